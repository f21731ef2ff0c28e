"""The library's face: runs, encoders and the verbs of the command line as functions.

Mistakes are `vicc_ray.errors.UserError`, whose message says what to change. Embedding a few files needs no Ray; `train` and
`evaluate` start one on this machine, or join the cluster at `address`.

Shapes: n videos, w windows of a video, d feature size, D embedding size, T frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicc_ray.config import Experiment, Stream, flatten, make_experiment, with_settings
from vicc_ray.config.published import named_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.encoder import Encoder
from vicc_ray.evaluation.results import Evaluation, read_all
from vicc_ray.models.encoder_file import EncoderFile, load_encoder
from vicc_ray.runs.encoders import encoder_settings, finished_encoders
from vicc_ray.runs.folder import RunFolder

__all__ = ["Encoder", "Run", "embed", "evaluate", "index", "load", "train"]

if TYPE_CHECKING:
    from vicc_ray.archive.store import Archive


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

    Args:
        where: the folder or file.
        stream: what the learning encoder of a published file was trained on (rgb or flow), which the file does not say.

    Nothing in a file is executed. UserError for anything else.
    """
    name = str(where)
    if name.endswith((".tar", ".pth", ".pt")):
        return _published(Path(where), stream)
    if name.endswith(".safetensors"):
        file = load_encoder(Path(where))
        encoder = str(file.meta.get("name") or Path(where).stem)
        return Run(encoder_settings(file, name), None, {encoder: file})
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
        train_on: split that is learnt from (searched).
        test_on: split of the queries or test videos.
        settings: changes of the runs' settings, {dotted path: value}, for example {"evaluate.windows": "centre"}.
        address: of a running Ray cluster; None: one of its own on this machine, where one is needed.
        verbose: show what Ray prints, instead of keeping it in the runs' logs.

    Returns:
        The results, which are written to the runs' folders too. Each of their `rows` has the encoder as "name", and its
        figures by name, as shares of 1.
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


def embed(run: Run | str | Path, source: str | Path, out: str | Path, **options: Any) -> Archive:
    """Embed the videos of a source into the archive `out`, by Ray; the same call goes on after an interruption.

    Args:
        run: of `load` or `train`, its folder, or an encoder's `.safetensors` file.
        source: a manifest, or what `index` takes.
        out: the archive's folder, path or URI; made, or filled up.
        options: stream, encoder, windows, every, half, split, cut, workers, address, overrides, as the options of `vicc embed`.

    Returns:
        The archive, which `vicc_ray.search` searches, with `len(archive)` rows, `archive.table()` and `archive.rows()`.
    """
    from vicc_ray.commands.embed import EmbedOptions, embed_videos

    where = run.folder if isinstance(run, Run) else str(run)
    if where is None:
        raise UserError("embed: the run has no folder; give the path of its file")
    try:
        chosen = EmbedOptions(**options)
    except TypeError as error:
        raise UserError(f"embed: {str(error).removeprefix('EmbedOptions.__init__() ')}") from None
    return embed_videos(where, str(source), str(out), chosen)


def index(source: str | Path, out: str | Path = "videos.parquet", **options: Any) -> Manifest:
    """Probe videos and write the manifest that training reads.

    Args:
        source: a folder, glob, table, list or video, path or URI.
        out: the Parquet file to write.
        options: layout, fold, split, check, workers, address, max_pixels, as the options of `vicc index`.

    Returns:
        The manifest, with its `videos` and, with a reason each, the `refused` ones.
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


def _published(path: Path, stream: Stream | None) -> Run:
    from vicc_ray.interop import import_published

    if stream is None:
        raise UserError(
            f"{path}: a published file does not say what it was trained on; give stream='rgb' or stream='flow'"
        )
    encoders = import_published(path, stream).encoders
    return Run(encoder_settings(next(iter(encoders.values())), str(path)), None, encoders)


def _yaml(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, default_flow_style=True)).removesuffix("\n...\n").strip()
