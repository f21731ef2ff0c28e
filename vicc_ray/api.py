"""The library's face: runs, encoders and the verbs of the command line as functions.

Mistakes are `vicc_ray.errors.UserError`, whose message says what to change. Embedding a few files needs no Ray; `train` and
`evaluate` start one on this machine, or join the cluster at `address`.

Shapes: n videos, w windows of a video, d feature size, D embedding size, T frames, H x W pixels.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows
from vicc_ray.config import Experiment, Stream, decoded_for, flatten, make_experiment, with_settings
from vicc_ray.config.published import named_experiment
from vicc_ray.data.augment import stream_input
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest, VideoError, VideoRow
from vicc_ray.data.probing import probe_named
from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import Evaluation, read_all
from vicc_ray.models.encoder_file import EncoderFile, load_encoder
from vicc_ray.models.planar import arrange
from vicc_ray.runs.encoders import finished_encoders
from vicc_ray.runs.folder import RunFolder

Frames: TypeAlias = NDArray[np.uint8]
Vectors: TypeAlias = NDArray[np.float32]
Video: TypeAlias = str | Path | Frames

WINDOWS_AT_A_TIME = 8


class Encoder:
    """A trained encoder with the settings that it was trained under: videos in, vectors out.

    Attributes:
        name: of the stage that it is from, for example RGB-2.
        stream: what it takes: rgb, or a motion stream, which is computed from the video.
        experiment: settings of clips, decoding and flow.
        device: where it computes; "cuda" where there is one, by default.
    """

    def __init__(self, file: EncoderFile, experiment: Experiment, name: str, device: str | None = None) -> None:
        self.file, self.experiment, self.name = file, experiment, name
        self.stream: Stream = file.stream
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def __repr__(self) -> str:
        spec = self.file.spec
        return f"<Encoder {self.name}: {spec.backbone} of {self.stream}, {self.module.feature_dim} features>"

    @cached_property
    def module(self) -> torch.nn.Module:
        """The network, in eval mode on `device`: clips float32 [B, 3, T, size, size] -> embeddings [B, D] of unit length.

        `module.features` gives the pooled features [B, d] that retrieval uses.
        """
        return arrange(self.file.build(), self.experiment.train, self.device)

    def embed(
        self,
        videos: Video | Sequence[Video],
        *,
        output: Literal["features", "embedding"] = "features",
        windows: Literal["all", "centre"] = "all",
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Any:
        """Vectors of videos, without Ray, in this process (decoding in a child process that may crash).

        Args:
            videos: a file (path or URI), frames uint8 [T, H, W, 3] (RGB, taken as consecutive), a list of these, or a folder.
            output: features: the pooled output of the backbone, which retrieval compares; embedding: the projection of it, of
                unit length, which training compares.
            windows: all: the mean over the windows that evaluation uses; centre: one window.
            on_error: raise: UserError for the first video that cannot be read; skip: a warning, and a row of NaN in a list, no
                entry for a folder.

        Returns:
            float32 [d] for one video; float32 [n, d] for a list, in its order; for a folder {path: float32 [d]}, in the order
            of the paths. Of `embedding`, D in place of d.
        """
        if isinstance(videos, str | Path) and _is_folder(videos):
            paths = sorted(candidate.path for candidate in scan(str(videos), "flat"))
            vectors = self._embed(paths, output, windows, on_error)
            return {path: row for path, row in zip(paths, vectors, strict=True) if not np.isnan(row).any()}
        if isinstance(videos, str | Path | np.ndarray):
            return self._embed([videos], output, windows, "raise")[0]
        return self._embed(list(videos), output, windows, on_error)

    def _embed(self, videos: Sequence[Video], output: str, windows: str, on_error: str) -> Vectors:
        with _as_files(videos) as files:
            found = [self._vector(file, output, windows, on_error) for file in files]
        width = getattr(self.module, "feature_dim" if output == "features" else "embedding_dim")
        rows = [np.full(width, np.nan, np.float32) if row is None else row for row in found]
        return np.stack(rows) if rows else np.zeros((0, width), np.float32)

    def _vector(self, file: str, output: str, windows: str, on_error: str) -> Vectors | None:
        try:
            row = probe_named(file)
            return self._mean(row, output, windows)
        except (UserError, VideoError, ValueError, OSError) as error:
            problem = f"{file}: {' '.join(str(error).split()).removeprefix(f'{file}: ')}"
            if on_error == "raise":
                raise UserError(problem) from error
            warnings.warn(f"left out: {problem}", stacklevel=4)
            return None

    def _mean(self, row: VideoRow, output: str, windows: str) -> Vectors:
        """The mean over a video's windows; a mean of unit vectors is scaled to unit length again."""
        chosen = list_windows([row], self.experiment.clip, windows)
        decode = DecodeWindows([row], chosen, WINDOWS_AT_A_TIME, self.experiment, decoded_for([self.stream]))
        try:
            total = sum(
                self._encode(decode({"unit": [unit]}), output) for unit in range(-(-len(chosen) // WINDOWS_AT_A_TIME))
            )
        finally:
            decode.reader.close()
        mean: Vectors = (total / len(chosen)).astype(np.float32)
        return mean / np.float32(np.linalg.norm(mean)) if output == "embedding" else mean

    @torch.inference_mode()
    def _encode(self, block: Mapping[str, Any], output: str) -> Any:
        """The sum over the windows of a block, float64 [d]."""
        reason = next((reason for reason in block["refused"] if reason), "")
        if reason:
            raise UserError(reason)
        clips = {name: torch.from_numpy(np.array(block[name])).to(self.device) for name in decoded_for([self.stream])}
        x = stream_input(clips, self.stream, self.experiment.clip.size, self.experiment.augment.style)
        vectors = self.module.features(x) if output == "features" else self.module(x)  # type: ignore[operator]
        return vectors.double().sum(dim=0).cpu().numpy()


@dataclass(frozen=True)
class Run:
    """Encoders that belong together, with their settings: a run's folder, or a file of encoders.

    Attributes:
        experiment: the settings that the encoders were trained under.
        folder: of the run, path or URI; None for a file.
    """

    experiment: Experiment
    folder: str | None = None
    files: Mapping[str, EncoderFile] = field(default_factory=dict, repr=False)

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, in the order of training."""
        if self.folder is None:
            return tuple(self.files)
        return tuple(finished_encoders(RunFolder.at(self.folder)).values())

    def encoder(self, name: str | None = None, device: str | None = None) -> Encoder:
        """An encoder by name; None: the only one, else RGB-2, else the last one trained. UserError where there is none of it."""
        known = self.encoders
        chosen = name or ("RGB-2" if "RGB-2" in known else known[-1])
        if chosen not in known:
            raise UserError(f"{self.folder or 'the file'}: has no encoder {chosen}; it has: {', '.join(known)}")
        if self.folder is None:
            return Encoder(self.files[chosen], self.experiment, chosen, device)
        folder = RunFolder.at(self.folder)
        return Encoder(load_encoder(folder.fetch(folder.encoder(chosen))), self.experiment, chosen, device)

    def evaluations(self) -> list[Evaluation]:
        """The results of every evaluation of the run so far; none for a file."""
        return [] if self.folder is None else read_all(RunFolder.at(self.folder))


def load(where: str | Path, stream: Stream | None = None) -> Run:
    """The encoders of a run's folder (path or URI), of a `.safetensors` file, or of a published ViCC or CoCLR `.pth.tar`.

    `stream` is what the learning encoder of a published file was trained on (rgb or flow), which the file does not say. Nothing
    in a file is executed. UserError for anything else.
    """
    name = str(where)
    if name.endswith((".tar", ".pth", ".pt")):
        return _published(Path(where), stream)
    if name.endswith(".safetensors"):
        file = load_encoder(Path(where))
        settings = file.meta.get("experiment", {})
        experiment = make_experiment(settings, name) if settings else _settings_of(file)
        encoder = str(file.meta.get("name") or Path(where).stem)
        return Run(experiment, None, {encoder: file})
    folder = RunFolder.at(where)
    with folder.as_user_errors():
        folder.pull()
    return Run(folder.experiment(), str(folder))


def train(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    address: str | None = None,
    verbose: bool = False,
) -> Run:
    """Train every stage of an experiment; an interrupted run is resumed, finished stages are skipped.

    Args:
        experiment: a file, the name of a shipped one (`s3d_rgb_retrieval_ucf101`), settings as a mapping, or an `Experiment`.
        settings: changes of it, {dotted path: value}, for example {"data.manifest": "videos.parquet", "name": "mine"}.
        address: of a running Ray cluster; None: one of its own on this machine.
        verbose: show what Ray prints, instead of keeping it in the run's logs.

    Returns:
        The run, with an encoder a stage.
    """
    from vicc_ray.cluster.launch import run_training

    return load(str(run_training(_experiment(experiment, settings), address, verbose)))


def evaluate(
    runs: Run | str | Path | Sequence[Run | str | Path],
    protocol: str = "retrieval",
    *,
    data: str | Path | Sequence[str | Path] = (),
    train_on: str | None = None,
    test_on: str | None = None,
    settings: Mapping[str, Any] | None = None,
    address: str | None = None,
    verbose: bool = False,
) -> list[Evaluation]:
    """Judge every encoder of runs, and both streams together, by a protocol; one result a run and data set.

    Args:
        runs: of `load` or `train`, or their folders.
        protocol: retrieval, linear, finetune, probe, all, or one of another package.
        data: manifests to judge on; by default each run's own.
        train_on, test_on: splits that are learnt from (searched), and tested.
        settings: changes of the runs' settings, {dotted path: value}, for example {"evaluate.windows": "centre"}.

    Returns:
        The results, whose `rows` are {"name": encoder, figure: share of 1}; they are written to the runs' folders too.
    """
    from vicc_ray.commands.evaluate import evaluate_runs

    several = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    folders = [one.folder if isinstance(one, Run) else str(one) for one in several]
    if None in folders:
        raise UserError("a file of encoders has no run folder to evaluate in; make one with 'vicc import'")
    manifests = [str(data)] if isinstance(data, str | Path) else [str(one) for one in data]
    overrides = [f"{path}={_yaml(value)}" for path, value in flatten(settings or {}).items()]
    return evaluate_runs(
        [str(one) for one in folders], protocol, manifests, train_on, test_on, overrides, address, verbose
    )


def index(source: str | Path, out: str | Path = "videos.parquet", **options: Any) -> Manifest:
    """Probe videos and write the manifest that training reads.

    Args:
        source: a folder, glob, table, list or video, path or URI; `out` the Parquet file to write.
        options: layout, fold, split, check, workers, address, max_pixels, as the options of `vicc index`.

    Returns:
        The manifest: its `videos`, and with a reason each the `refused` ones.
    """
    from vicc_ray.commands.index import IndexOptions, index_videos

    try:
        chosen = IndexOptions(**options)
    except TypeError as error:
        raise UserError(f"index: {str(error).removeprefix('IndexOptions.__init__() ')}") from None
    return index_videos(str(source), out, chosen)


def _experiment(
    experiment: Experiment | Mapping[str, Any] | str | Path, settings: Mapping[str, Any] | None
) -> Experiment:
    if isinstance(experiment, str | Path):
        experiment = named_experiment(str(experiment))
    elif not isinstance(experiment, Experiment):
        experiment = make_experiment(experiment, "the experiment")
    return with_settings(experiment, flatten(settings), "the settings") if settings else experiment


def _settings_of(file: EncoderFile) -> Experiment:
    """The published settings with the network of a file that does not say under which it was trained."""
    spec = file.spec
    model = {"backbone": spec.backbone, "width": spec.width, "embedding_dim": spec.embedding_dim}
    return make_experiment({"model": model}, "the file")


def _published(path: Path, stream: Stream | None) -> Run:
    from vicc_ray.interop import import_published

    if stream is None:
        raise UserError(
            f"{path}: a published file does not say what it was trained on; give stream='rgb' or stream='flow'"
        )
    encoders = import_published(path, stream).encoders
    return Run(_settings_of(next(iter(encoders.values()))), None, encoders)


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n...\n").strip()


def _is_folder(where: str | Path) -> bool:
    name = str(where)
    return storage.is_folder(name) if storage.is_uri(name) else Path(name).is_dir()


@contextmanager
def _as_files(videos: Sequence[Video]) -> Iterator[list[str]]:
    """Every video as a file: frames are written as lossless RGB, so that they go the way that files go."""
    with tempfile.TemporaryDirectory(prefix="vicc-") as folder:
        yield [
            _write(video, Path(folder) / f"{number}.mkv")
            if isinstance(video, np.ndarray)
            else storage.absolute(str(video))
            for number, video in enumerate(videos)
        ]


def _write(frames: Frames, path: Path, fps: int = 25) -> str:
    import av

    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise UserError(
            f"frames {frames.dtype} {list(frames.shape)}: a video is uint8 [T, H, W, 3] in RGB, with 1 frame or more"
        )
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        stream.time_base = Fraction(1, fps)
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)
