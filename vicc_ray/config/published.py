"""The published results that experiments/ reproduces: one row a number, one experiment file a row. Pure data.

Source: Toering et al., WACV 2022, and the listings of the published implementation. Percentages; pretraining on UCF101,
split 1. What was published without a number has no row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vicc_ray.config import Experiment, Stream, flatten, load_experiment
from vicc_ray.errors import UserError

Backbone = Literal["s3d", "r2plus1d_10"]
Dataset = Literal["ucf101", "hmdb51"]
Protocol = Literal["retrieval", "linear", "finetune"]

BACKBONES: dict[Backbone, str] = {"s3d": "S3D", "r2plus1d_10": "R(2+1)D"}
DATASETS: dict[Dataset, str] = {"ucf101": "UCF101", "hmdb51": "HMDB51"}
PROTOCOLS: dict[Protocol, str] = {
    "retrieval": "nearest-neighbour retrieval",
    "linear": "linear probe",
    "finetune": "finetuning",
}
# Settings about which nothing was published: where things lie, how they are read, and what changes the speed only.
UNPUBLISHED = frozenset(
    {
        "name", "runs", "data.max_refused", "data.decoder", "data.interlaced", "data.decode_timeout", "data.max_pixels",
        "clip.source", "clip.store", "flow.source", "flow.store", "flow.weights", "model.backbone", "optim.micro_batch",
        "augment.local_frames",
        "linear.momentum", "linear.global_batch", "finetune.momentum", "evaluate.retrieval", "evaluate.monitor_every",
        "evaluate.monitor_videos", "evaluate.neighbours",
    }
)  # fmt: skip
UNPUBLISHED_SECTIONS = ("train.", "search.")
PRETRAINING: tuple[Dataset, int] = ("ucf101", 1)  # data set and official split of every row
TRAIN_VIDEOS = 9537  # of it


@dataclass(frozen=True)
class Cost:
    """What pretraining took: one job a stage, one after the other."""

    jobs: int
    hours: float  # at most, a job
    gpus: int
    gpu: str

    @property
    def days(self) -> float:
        """Days of all jobs, at most."""
        return self.jobs * self.hours / 24

    @property
    def device_hours(self) -> float:
        """GPU-hours of all jobs, at most."""
        return self.jobs * self.hours * self.gpus


# Published for S3D only.
COSTS: dict[Backbone, Cost] = {"s3d": Cost(jobs=6, hours=38, gpus=4, gpu="TITAN RTX")}


@dataclass(frozen=True)
class PublishedRow:
    """One published number, in percent: R@1 of retrieval, top-1 accuracy of the other protocols."""

    backbone: Backbone
    streams: tuple[Stream, ...]
    protocol: Protocol
    dataset: Dataset
    percent: float
    also_listed: float | None = None  # what another listing says

    @property
    def id(self) -> str:
        """Name of the row and of its file, for example s3d_rgb_retrieval_ucf101; rf stands for both streams."""
        streams = "rf" if len(self.streams) == 2 else self.streams[0]
        return f"{self.backbone}_{streams}_{self.protocol}_{self.dataset}"

    @property
    def file(self) -> str:
        """The experiment file, from the project's root."""
        return f"experiments/{self.id}.yaml"

    @property
    def run(self) -> str:
        """Name of the run: the rows of a backbone share one, so that it is pretrained once."""
        return f"vicc-{self.backbone}-ucf101"

    @property
    def encoder(self) -> str:
        """Whose number it is, as `vicc evaluate` names its rows: RGB-2, Flow-2 or R+F."""
        if len(self.streams) == 2:
            return "R+F"
        return "RGB-2" if self.streams == ("rgb",) else "Flow-2"

    @property
    def metric(self) -> str:
        """What the number is."""
        return "R@1" if self.protocol == "retrieval" else "top-1"

    @property
    def folds(self) -> tuple[int, ...]:
        """The official splits whose mean is set against the number.

        The listing is of split 1 or the mean of three and does not say which number is which: recall is taken on split
        1, which pretraining used, accuracy on all three.
        """
        return (1,) if self.protocol == "retrieval" else (1, 2, 3)

    @property
    def cost(self) -> Cost | None:
        """The published cost of pretraining, where there is one."""
        return COSTS.get(self.backbone)

    @property
    def title(self) -> str:
        """The row in words."""
        streams = self.encoder.removesuffix("-2")
        return f"{BACKBONES[self.backbone]}, {streams}, {PROTOCOLS[self.protocol]} on {DATASETS[self.dataset]}"


RGB: tuple[Stream, ...] = ("rgb",)
FLOW: tuple[Stream, ...] = ("flow",)
BOTH: tuple[Stream, ...] = ("rgb", "flow")

ROWS = (
    PublishedRow("s3d", RGB, "retrieval", "ucf101", 62.1),
    PublishedRow("s3d", FLOW, "retrieval", "ucf101", 59.7),
    PublishedRow("s3d", BOTH, "retrieval", "ucf101", 65.1),
    PublishedRow("s3d", RGB, "retrieval", "hmdb51", 25.5),
    PublishedRow("s3d", RGB, "linear", "ucf101", 72.2),
    PublishedRow("s3d", RGB, "linear", "hmdb51", 38.5),
    PublishedRow("s3d", RGB, "finetune", "ucf101", 84.3, also_listed=88.8),
    PublishedRow("s3d", RGB, "finetune", "hmdb51", 47.9),
    PublishedRow("s3d", BOTH, "finetune", "ucf101", 90.5),
    PublishedRow("s3d", BOTH, "finetune", "hmdb51", 62.2),
    PublishedRow("r2plus1d_10", RGB, "retrieval", "ucf101", 58.6),
    PublishedRow("r2plus1d_10", FLOW, "retrieval", "ucf101", 50.0),
    PublishedRow("r2plus1d_10", RGB, "retrieval", "hmdb51", 25.3),
    PublishedRow("r2plus1d_10", BOTH, "retrieval", "hmdb51", 28.3),
    PublishedRow("r2plus1d_10", RGB, "finetune", "ucf101", 82.8),
    PublishedRow("r2plus1d_10", RGB, "finetune", "hmdb51", 52.4),
    PublishedRow("r2plus1d_10", BOTH, "finetune", "ucf101", 88.8),
    PublishedRow("r2plus1d_10", BOTH, "finetune", "hmdb51", 61.5),
)


def commands(row: PublishedRow) -> tuple[str, ...]:
    """The command lines from the data sets' folders to the row's number, in order; the file's head shows them.

    All streams are evaluated in one go, so flow is measured for rows of RGB too. One store holds the flow of every data
    set, each video once whatever its fold. Recall is measured as it was published, which is not the default.
    """
    dataset, fold = PRETRAINING
    lines = [*_prepared(row, dataset, (fold,)), f"vicc train {row.file}"]
    if row.dataset == dataset:
        lines += [_index(dataset, fold) for fold in row.folds[1:]]
    else:
        lines += _prepared(row, row.dataset, row.folds)
    data = "".join(f" --data {_manifest(row.dataset, fold)}" for fold in row.folds)
    reference = " --set evaluate.retrieval=reference" if row.protocol == "retrieval" else ""
    return (*lines, f"vicc evaluate runs/{row.run} --protocol {row.protocol}{data}{reference}")


def published_settings() -> dict[str, Any]:
    """{dotted path: value as JSON} of the published recipe (S3D); settings about which nothing was published are left out."""
    resolved = load_experiment(shipped_experiment(ROWS[0].id)).model_dump(mode="json")
    beside = {"seed", "scale", "search", "data.manifest"}  # of the files of the rows, and of nothing that was published
    not_ours = {path: value for path, value in flatten(resolved).items() if path not in UNPUBLISHED | beside}
    return {path: value for path, value in not_ours.items() if not path.startswith(UNPUBLISHED_SECTIONS)}


def videos_of(manifest: str) -> int | None:
    """Training videos of the rows' pretraining manifest by its name, for a plan before the data are there; else None."""
    return TRAIN_VIDEOS if Path(manifest).name == _manifest(*PRETRAINING) else None


def shipped_experiment(name: str) -> Path:
    """An experiment file that comes with the project, from the checkout or from the installed package; UserError."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "experiments", package / "experiments"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise UserError(f"experiments/{name}.yaml: is missing from this installation")


def experiment_file(name: str) -> Path:
    """The file of an experiment: itself, or a shipped one by its name (`s3d_rgb_retrieval_ucf101`) or its path in a checkout.

    An installed package has its experiments inside, so that `experiments/NAME.yaml` of the documentation is found without a
    checkout, too.
    """
    path = Path(name)
    in_checkout = path.parent == Path("experiments") and path.suffix == ".yaml"
    if path.exists() or not (in_checkout or (path.name == name and not path.suffix)):
        return path
    try:
        return shipped_experiment(path.stem)
    except UserError:
        known = sorted(file.stem for file in shipped_experiment("quickstart").parent.glob("*.yaml"))
        raise UserError(f"{name}: is no file and no shipped experiment; shipped: {', '.join(known)}") from None


def named_experiment(name: str) -> Experiment:
    """The experiment of a file, or a shipped one by its name."""
    return load_experiment(experiment_file(name))


def _prepared(row: PublishedRow, dataset: Dataset, folds: tuple[int, ...]) -> list[str]:
    flow = f"vicc flow {_manifest(dataset, folds[0])} --for {row.file}"
    return [*(_index(dataset, fold) for fold in folds), flow]


def _index(dataset: Dataset, fold: int) -> str:
    return f"vicc index {DATASETS[dataset]} --layout {dataset} --fold {fold} --out {_manifest(dataset, fold)}"


def _manifest(dataset: Dataset, fold: int) -> str:
    return f"{dataset}_{fold}.parquet"
