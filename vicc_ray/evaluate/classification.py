"""Classifiers and videos -> class probabilities, by Ray Data: CPU actors decode, model actors classify.

Every window is seen through one, five or ten crops; the softmax is averaged over crops and windows (method.md, section 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from vicc_ray.classifier_file import ClassifierFile, load_classifier
from vicc_ray.config import STREAMS, Experiment
from vicc_ray.data.flow_store import check_stored
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pipeline import evaluation_windows, iterate_blocks, list_windows
from vicc_ray.errors import UserError
from vicc_ray.evaluate.accuracy import check_probabilities
from vicc_ray.evaluate.features import Block, video_means
from vicc_ray.resources import ResourcePlan


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of the videos that could be read, the mean over their windows, in the order of the videos.

    Args:
        videos: n of them.
        classes: C names, the columns.
        probabilities: classifier -> float32 [n,C].
        refused: (path, reason) of the videos left out.
    """

    videos: tuple[VideoRow, ...]
    classes: tuple[str, ...]
    probabilities: dict[str, NDArray[np.float32]]
    refused: tuple[tuple[str, str], ...]


class ClassifyWindows:
    """A model actor: windows in, their class probabilities by each classifier out."""

    def __init__(self, classifiers: Mapping[str, str], experiment: Experiment, use_gpu: bool, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment = experiment
        files = {name: load_classifier(path) for name, path in classifiers.items()}
        self.streams = {name: file.stream for name, file in files.items()}
        self.layout = torch.channels_last_3d if experiment.train.channels_last else torch.contiguous_format
        self.classifiers = {
            name: file.build().to(self.device).to(memory_format=self.layout) for name, file in files.items()
        }

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """uint8 windows [w, T, H, W, C] a stream -> video, refused and probabilities float32 [w, classes] a classifier."""
        import torch

        from vicc_ray.evaluate.crops import COUNTS, crop_views

        crops, augment = self.experiment.evaluate.crops, self.experiment.augment
        row: dict[str, Any] = {"video": rows["video"], "refused": rows["refused"]}
        with torch.inference_mode():
            for stream in dict.fromkeys(self.streams.values()):
                mine = [name for name in self.classifiers if self.streams[name] == stream]
                sums: dict[str, Any] = dict.fromkeys(mine, 0)
                windows = torch.from_numpy(np.array(rows[stream])).to(self.device)
                for view in crop_views(windows, self.experiment.clip.size, crops, augment.style):
                    x = view.contiguous(memory_format=self.layout)
                    for name in mine:
                        sums[name] = sums[name] + self.classifiers[name](x).softmax(dim=1)
                row |= {name: (total / COUNTS[crops]).cpu().numpy() for name, total in sums.items()}
        return row


def classify_videos(
    files: Mapping[str, Path],
    videos: Sequence[VideoRow],
    experiment: Experiment,
    resources: ResourcePlan,
    on_progress: Callable[[int], None] | None = None,
    threads: int = 1,
) -> Probabilities:
    """What every classifier (name -> file) gives for every video; an open Ray session is needed.

    A window is decoded once for all classifiers, only in the streams that they look at. Unreadable videos are left out
    and listed. `on_progress` is called with the number of windows that have just been finished. Raises UserError for no
    videos or none that can be read, classifiers of different classes, one of another stream than its name says, flow that
    is not in its store, and probabilities that are NaN.
    """
    opened = {name: load_classifier(path) for name, path in files.items()}
    classes = _common_classes(opened)
    for name, file in opened.items():
        _check_stream(name, file)
    if not videos:
        raise UserError("classification: there are no videos to classify; is the split empty?")
    streams = tuple(stream for stream in STREAMS if any(file.stream == stream for file in opened.values()))
    if "flow" in streams:
        check_stored(experiment.flow, experiment.clip.decode_size, videos)
    windows = list_windows(videos, experiment.clip, experiment.evaluate.windows)
    decoded = evaluation_windows(videos, windows, experiment, *resources.decoders(resources.workers), streams)
    paths = {name: str(path) for name, path in files.items()}
    classified = decoded.map_batches(
        ClassifyWindows,
        fn_constructor_args=(paths, experiment, resources.use_gpu, threads),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.use_gpu else 0,
        compute=ActorPoolStrategy(
            min_size=resources.min_workers, max_size=resources.workers, max_tasks_in_flight_per_actor=2
        ),
    )

    def blocks() -> Iterator[Block]:
        for block in iterate_blocks(classified.iterator()):
            if on_progress:
                on_progress(len(block["video"]))
            yield block

    return mean_over_windows(blocks(), videos, tuple(files), classes)


def mean_over_windows(
    blocks: Iterable[Block], videos: Sequence[VideoRow], names: Sequence[str], classes: tuple[str, ...]
) -> Probabilities:
    """One row a video from rows a window, in order; UserError where no video could be read or a classifier gives NaN."""
    means = list(video_means(blocks, names))
    if [mean.number for mean in means] != list(range(len(videos))):
        raise RuntimeError(f"{len(means)} of {len(videos)} videos gave windows")
    refused = tuple((videos[mean.number].video, mean.refused) for mean in means if mean.refused)
    good = [mean for mean in means if not mean.refused]
    if not good:
        raise UserError(
            f"classification: none of {len(videos)} videos could be read (first: {refused[0][0]}: {refused[0][1]})"
        )
    kept = tuple(videos[mean.number] for mean in good)
    tables = {name: np.stack([mean.vectors[name] for mean in good]) for name in names}
    for name, table in tables.items():
        check_probabilities(table, [row.video for row in kept], name)
    return Probabilities(kept, classes, tables, refused)


def _common_classes(files: Mapping[str, ClassifierFile]) -> tuple[str, ...]:
    if not files:
        raise ValueError("classification: no classifiers")
    (first, one), *others = files.items()
    for name, file in others:
        if file.classes != one.classes:
            raise UserError(
                f"classification: {first} knows {len(one.classes)} classes and {name} {len(file.classes)}, not the same "
                "or not in one order; train them on the same split of the same data"
            )
    return one.classes


def _check_stream(name: str, file: ClassifierFile) -> None:
    said = name.split("-")[0].lower()
    if said in STREAMS and said != file.stream:
        raise UserError(
            f"classification: {name} is the name of a {said} classifier, but its file holds one of the {file.stream} "
            f"stream; give it a name that begins with {'Flow' if file.stream == 'flow' else 'RGB'}-, or the right file"
        )
