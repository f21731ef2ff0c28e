"""Encoders and videos -> pooled features in files, by Ray Data: CPU actors decode, model actors encode.

What is stored already is not made again; what is missing is made in one pass over the videos for all encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from vicc_ray import storage
from vicc_ray.config import STREAMS, Experiment, Stream
from vicc_ray.data.flow_store import check_stored
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pipeline import evaluation_windows, iterate_blocks, list_windows, video_key
from vicc_ray.evaluate.feature_store import FeatureWriter, VideoFeatures, writing_features
from vicc_ray.evaluate.stored import JITTER_P, EncoderOnDisk, FeatureFile, Side, feature_file, missing
from vicc_ray.progress import Counter
from vicc_ray.resources import ResourcePlan
from vicc_ray.run_folder import RunFolder

Block = Mapping[str, NDArray[Any]]

PART = 4096  # videos whose features are held before they are written
_JITTER = 5  # keeps the jitter of a test apart from other uses of a seed


class EncodeWindows:
    """A model actor: windows in, their features by each encoder (name -> path or URI) out.

    `keys` gives a number a video where windows get a colour jitter, which is drawn from (seed, its number, first frame).
    """

    def __init__(
        self,
        encoders: Mapping[str, str],
        experiment: Experiment,
        use_gpu: bool,
        threads: int,
        keys: Sequence[int] | None = None,
    ) -> None:
        import torch

        from vicc_ray.weights import load_encoder

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment, self.keys = experiment, keys
        files = {}
        for name, where in encoders.items():
            with storage.local_copy(where) as path:
                files[name] = load_encoder(path)
        self.streams = {name: file.stream for name, file in files.items()}
        self.layout = torch.channels_last_3d if experiment.train.channels_last else torch.contiguous_format
        self.encoders = {
            name: file.build().to(self.device).to(memory_format=self.layout) for name, file in files.items()
        }

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """uint8 windows [w, T, H, W, C] a stream -> video, refused and features float32 [w, d] an encoder."""
        import torch

        row: dict[str, Any] = {"video": rows["video"], "refused": rows["refused"]}
        inputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for name, encoder in self.encoders.items():
                stream = self.streams[name]
                if stream not in inputs:
                    inputs[stream] = self._input(rows, stream)
                row[name] = encoder.features(inputs[stream]).cpu().numpy()
        return row

    def _input(self, rows: dict[str, Any], stream: Stream) -> Any:
        """float32 [w, 3, T, size, size]."""
        import torch

        from vicc_ray.data.augment import AugmentSettings, draw_jitter, evaluation_input

        experiment, jitter = self.experiment, None
        if self.keys is not None:
            settings = AugmentSettings(experiment.clip.size, jitter=experiment.augment.jitter)
            places = zip(rows["video"].tolist(), rows["start"].tolist(), strict=True)
            # A start below 0 is that of a short video's only window.
            keys = [(_JITTER, experiment.seed, self.keys[video], max(start, 0)) for video, start in places]
            jitter = draw_jitter(settings, keys, JITTER_P)
        clips = torch.from_numpy(np.array(rows[stream])).to(self.device)
        view = evaluation_input(clips, experiment.clip.size, experiment.augment.style, jitter)
        return view.contiguous(memory_format=self.layout)


def extract_features(
    folder: RunFolder,
    data: str,
    encoders: Mapping[str, EncoderOnDisk],
    sides: Sequence[Side],
    experiment: Experiment,
    resources: Callable[[], ResourcePlan],
    say: Callable[[str], None],
    threads: int = 1,
) -> dict[str, list[FeatureFile]]:
    """The file of each encoder (by the name of its row) for each side; `resources` opens a Ray session where one is needed.

    A feature is the mean over a video's windows. Files that were made from just this are used again and the rest is
    encoded, each window decoded once for all encoders that lack it. Unreadable videos are left out and listed in the
    files. `say` takes a line for the reader.
    """
    files = {
        row: [feature_file(folder, data, encoder, side, experiment) for side in sides]
        for row, encoder in encoders.items()
    }
    absent = missing(folder, files, say)
    for part in passes(absent):
        _encode(part, experiment, resources(), threads)
        folder.push(*(file.path for file in part.files))
    return files


@dataclass(frozen=True)
class Pass:
    """One pass over videos: each of the encoders looks at each of the sides, whose windows all get a jitter or none."""

    encoders: tuple[EncoderOnDisk, ...]
    sides: tuple[Side, ...]
    files: tuple[FeatureFile, ...]

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Those that the encoders need."""
        return tuple(stream for stream in STREAMS if any(encoder.stream == stream for encoder in self.encoders))

    @property
    def videos(self) -> list[VideoRow]:
        """Of all sides, one after another."""
        return [row for side in self.sides for row in side.videos]

    def windows(self, experiment: Experiment) -> list[tuple[int, int]]:
        """(video number, first frame) of all, in order."""
        listed: list[tuple[int, int]] = []
        first = 0
        for side in self.sides:
            found = list_windows(side.videos, experiment.clip, side.windows, experiment.seed)
            listed += [(first + number, start) for number, start in found]
            first += len(side.videos)
        return listed


def passes(files: Sequence[FeatureFile]) -> list[Pass]:
    """As few passes as make all the files: sides that lack the same encoders are gone through together."""
    lacking: dict[Side, list[FeatureFile]] = {}
    for file in files:
        lacking.setdefault(file.side, []).append(file)
    together: dict[tuple[bool, tuple[EncoderOnDisk, ...]], list[Side]] = {}
    for side, wanted in lacking.items():
        together.setdefault((side.jitter, tuple(file.encoder for file in wanted)), []).append(side)
    return [
        Pass(encoders, tuple(sides), tuple(file for side in sides for file in lacking[side]))
        for (_, encoders), sides in together.items()
    ]


def _encode(part: Pass, experiment: Experiment, resources: ResourcePlan, threads: int) -> None:
    videos, windows = part.videos, part.windows(experiment)
    if "flow" in part.streams:
        check_stored(experiment.flow, experiment.clip.decode_size, videos)
    paths = {encoder.name: encoder.reached for encoder in part.encoders}
    keys = [video_key(row) for row in videos] if part.sides[0].jitter else None
    decoded = evaluation_windows(videos, windows, experiment, *resources.decoders(resources.workers), part.streams)
    encoded = decoded.map_batches(
        EncodeWindows,
        fn_constructor_args=(paths, experiment, resources.use_gpu, threads, keys),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.use_gpu else 0,
        compute=ActorPoolStrategy(
            min_size=resources.min_workers, max_size=resources.workers, max_tasks_in_flight_per_actor=2
        ),
    )
    with Counter("evaluating windows", len(windows)) as counter:

        def blocks() -> Iterator[Block]:
            for block in iterate_blocks(encoded.iterator()):
                counter.advance(len(block["video"]))
                yield block

        write_means(part, blocks())


@dataclass(frozen=True)
class VideoMeans:
    """A video's features: the mean over its `windows`, float32 [d] an encoder; `refused` is the reason where it has none."""

    number: int
    windows: int
    refused: str
    vectors: Mapping[str, NDArray[np.float32]]


def video_means(blocks: Iterable[Block], names: Sequence[str]) -> Iterator[VideoMeans]:
    """One row a video from rows a window in order; a video with an unreadable window is refused."""
    rows = ((int(number), block, place) for block in blocks for place, number in enumerate(block["video"]))
    before = -1
    for number, group in groupby(rows, key=lambda row: row[0]):
        if number <= before:
            raise RuntimeError(f"windows of video {number} came after those of video {before}")
        before = number
        mine = [(block, place) for _, block, place in group]
        refused = next((str(block["refused"][place]) for block, place in mine if block["refused"][place]), "")
        stacked = {name: np.stack([block[name][place] for block, place in mine]) for name in names}
        means = {name: rows.mean(axis=0, dtype=np.float64).astype(np.float32) for name, rows in stacked.items()}
        yield VideoMeans(number, len(mine), refused, means)


def write_means(part: Pass, blocks: Iterable[Block]) -> None:
    """Fill the files of a pass from its windows' features, in order; no file appears where one of them cannot."""
    names = [encoder.name for encoder in part.encoders]
    means = video_means(blocks, names)
    with ExitStack() as stack:
        writers = [stack.enter_context(writing_features(str(file.path), file.source)) for file in part.files]
        of_side = {
            side: [
                (file.encoder.name, writer)
                for file, writer in zip(part.files, writers, strict=True)
                if file.side == side
            ]
            for side in part.sides
        }
        first = 0
        for side in part.sides:
            last = first + len(side.videos)
            held: list[VideoMeans] = []
            for number in range(first, last):
                found = next(means, None)
                if found is None or found.number != number:
                    raise RuntimeError(f"video {number} of {last} gave no windows")
                held.append(found)
                if len(held) == PART or number == last - 1:
                    _write_part(side.videos[held[0].number - first : number + 1 - first], held, of_side[side])
                    held = []
            first = last


def _write_part(
    rows: Sequence[VideoRow], means: Sequence[VideoMeans], writers: Sequence[tuple[str, FeatureWriter]]
) -> None:
    good = [(row, mean) for row, mean in zip(rows, means, strict=True) if not mean.refused]
    for row, mean in zip(rows, means, strict=True):
        for _, writer in writers:
            if mean.refused:
                writer.refuse(row.video, mean.refused)
    for name, writer in writers if good else ():
        writer.add(
            VideoFeatures(
                ids=[row.video for row, _ in good],
                labels=[row.label for row, _ in good],
                groups=[row.group for row, _ in good],
                splits=[row.split for row, _ in good],
                windows=[mean.windows for _, mean in good],
                vectors=np.stack([mean.vectors[name] for _, mean in good]),
            )
        )
