"""The training step of an experiment beside the published way, one of our steps added after the other.

Every row trains the same stage (cross-stream where there is one) on the same decoded clips in this process, on one device. The
first row is the published way, the last one is `vicc train` with the experiment as it is; what lies between are the settings
that the experiment (defaults included) uses, switched on one by one. Decoding is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks import Bar, Outcome, take_turns
from benchmarks.roofline import copy_rate, matmul_rate, now, operations, peak_memory
from benchmarks.step_published import PublishedTrainer, Ways, loader, loader_processes, made_batch
from vicc_ray.config import Experiment
from vicc_ray.errors import UserError
from vicc_ray.machine import cpu_has_matrix_units
from vicc_ray.models.encoder import Encoder, build_encoder
from vicc_ray.objective import PrototypeObjective
from vicc_ray.objective.prototype_objective import prototype_phases
from vicc_ray.training.batches import Batch
from vicc_ray.training.schedule import Stage, make_stages
from vicc_ray.training.step import StageTrainer

STEPS = 2  # timed steps a turn
TIMES_PUBLISHED = {"cpu": 1.5, "cuda": 3.0}
FULL_CHAIN = (
    0.4  # share of training clips that get the full augmentation: half of a same-window pair, 0.3 of the others
)
PHASES = (
    "data wait",
    "augment",
    "encode guide",
    "encode learning",
    "objective",
    "backward",
    "collectives",
    "optimiser",
    "rest",
)
PUBLISHED = "the published way"


@dataclass(frozen=True)
class Row:
    """A way to do the step: the settings of ours that are on, and the parts that are done the published way."""

    name: str
    experiment: Experiment
    ways: Ways | None  # None: `vicc train`


def rows_of(experiment: Experiment, stage: Stage, device: torch.device) -> list[Row]:
    """The published way, then each of the experiment's steps beyond it, in the order in which they are added."""
    gpu = device.type == "cuda"
    # (name, section, field, what the published way has, whether it plays a part here)
    settings: list[tuple[str, str, str, Any, bool]] = [
        ("guide's batch norm folded", "train", "fold_guide", False, stage.guide is not None),
        ("channels-last", "train", "channels_last", False, True),
        ("convolutions and pools as 2D ones", "train", "planar", False, experiment.train.planar != "auto" or not gpu),
        ("cuDNN's fastest kernels", "train", "autotune", False, gpu),
        ("bf16 encoders", "optim", "precision", "fp32", gpu or cpu_has_matrix_units()),
        ("augmentation in one kernel", "train", "fused_augment", False, gpu),
        ("both views in one forward", "model", "joint_views", False, True),
        ("torch.compile", "train", "compile", False, True),
        ("CUDA graphs", "train", "cuda_graphs", False, gpu),
        ("copy and augmentation beside backward", "train", "overlap", False, gpu),
        ("activations computed again", "train", "recompute", False, True),
        ("micro batches", "optim", "micro_batch", None, True),
    ]
    used = [
        (name, section, field, value)
        for name, section, field, plain, applies in settings
        if applies and (value := getattr(getattr(experiment, section), field)) != plain
    ]
    plain = experiment
    for _, section, field, off, _ in settings:
        plain = _with(plain, section, field, off)
    ways = Ways(loader=True, guide=stage.guide is not None, objective=True, lars=experiment.optim.name == "lars")
    rows = [Row(PUBLISHED, plain, ways)]
    for name, part in (
        ("frames augmented in batches", "loader"),
        ("log-domain assignments of all views at once", "objective"),
        ("LARS of all parameters at once", "lars"),
        ("one forward for the guide", "guide"),
    ):
        if getattr(ways, part):
            ways = replace(ways, **{part: False})
            rows.append(Row(f"+ {name}", plain, ways))
    for name, section, field, value in used:
        plain = _with(plain, section, field, value)
        rows.append(Row(f"+ {name}", plain, ways))
    # The last one is no imitation of the trainer, it is the trainer.
    rows[-1] = Row(f"{rows[-1].name} = vicc train", experiment, None)
    return rows


def measure(rounds: int, experiment: Experiment, device: str | None = None) -> Outcome:
    """Samples/s of each row, medians of turns, and what bounds them; UserError where the device is not there."""
    where = _device(device)
    stage = stage_of(experiment)
    batch = made_batch(experiment, stage, FULL_CHAIN)
    processes = loader_processes(batch, experiment)
    contenders: dict[str, Contender] = {}
    for row in rows_of(experiment, stage, where):
        views = None
        if row.ways and row.ways.loader:
            views = loader(batch, row.experiment, processes, pinned=where.type == "cuda")
        contenders[row.name] = Contender(row, make_trainer(row, stage, where, views), batch, where)
    outcome = Outcome("samples/s", take_turns({name: one.turn for name, one in contenders.items()}, rounds))
    counted = operations(contenders[PUBLISHED].step)
    peaks = {dtype: matmul_rate(where, dtype) for dtype in {one.dtype for one in contenders.values()}}
    for name, one in contenders.items():
        rate = outcome.median(name) * counted / stage.global_batch
        outcome.details[name] = {
            "TFLOP/s": rate / 1e12,
            "of peak": rate / peaks[one.dtype],
            "MiB": peak_memory(one.step, where) / 2**20,
            **{f"{phase}, ms": 1000 * seconds for phase, seconds in one.phases().items()},
        }
    last = next(reversed(contenders))
    bar = TIMES_PUBLISHED[where.type]
    outcome.bars = [Bar(f"{last} / {PUBLISHED}", outcome.ratio(last, PUBLISHED), bar)]
    second = list(contenders)[1]
    outcome.facts = {
        "device": f"{_name(where)}, torch {torch.__version__}, {torch.get_num_threads()} threads",
        "step": f"{experiment.model.backbone} x {experiment.model.width:g}, {experiment.clip.frames} frames at "
        f"{experiment.clip.size} px, {stage.global_batch} samples, {stage.views} views",
        "operations of a step (1e12)": round(counted / 1e12, 4),
        "peak of a large matrix product (TFLOP/s)": {
            str(k).split(".")[-1]: round(v / 1e12, 3) for k, v in peaks.items()
        },
        "memory copy (GB/s)": round(copy_rate(where) / 1e9, 1),
        "processes of the published way's loader": processes,
        "ratio without the loader": round(outcome.ratio(last, second), 3),
        "seconds of the first step": {name: round(one.first, 2) for name, one in contenders.items()},
    }
    return outcome


def stage_of(experiment: Experiment) -> Stage:
    """The stage that is measured: the first cross-stream one where there is one. Its length plays no part."""
    videos = 10 * max(experiment.schedule.single.global_batch, experiment.schedule.cross.global_batch)
    stages = make_stages(experiment, videos)
    return next((stage for stage in stages if stage.guide is not None), stages[0])


def make_trainer(row: Row, stage: Stage, device: torch.device, views: Iterator[Any] | None = None) -> StageTrainer:
    """The trainer of a row; all rows begin with the same weights."""
    objective = PrototypeObjective(row.experiment, stage, seed=0)
    learner, guide = _encoder(row.experiment, 1), _encoder(row.experiment, 2) if stage.guide else None
    if row.ways is None:
        return StageTrainer(row.experiment, stage, learner, objective, guide, device)
    return PublishedTrainer(row.experiment, stage, learner, objective, guide, device, row.ways, views)


class Contender:
    """A row's trainer, and the clocks around it."""

    def __init__(self, row: Row, trainer: StageTrainer, batch: Batch, device: torch.device) -> None:
        self.row, self.trainer, self.batch, self.device = row, trainer, batch, device
        self.frozen = prototype_phases(trainer.experiment, trainer.stage).freeze_prototypes
        self.done = 0
        self.first = 0.0  # seconds of the very first step, where compilation happens

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoders' matrix products."""
        return self.trainer.autocast.dtype or torch.float32

    def step(self) -> None:
        """One step, with prototypes that learn."""
        steps = self.trainer.stage.steps
        self.trainer.step(self.batch, min(self.frozen + self.done, steps - 1))
        self.done += 1

    def turn(self) -> float:
        """Samples/s of `STEPS` steps after one that is not counted, and after what a loader had ready is used up."""
        start = now(self.device)
        self.step()
        if self.done == 1:
            self.first = now(self.device) - start
        start = now(self.device)
        for _ in range(STEPS):
            self.step()
        return STEPS * len(self.batch.slots) / (now(self.device) - start)

    def phases(self) -> dict[str, float]:
        """Seconds of one step by what it is spent on; the device is waited for between them."""
        clock = _Clock(self.device)
        trainer: Any = self.trainer
        watched: list[tuple[Any, str, str]] = [
            (trainer, "views", "augment"),
            (trainer, "_guide", "encode guide"),
            (trainer.encode, "forward", "encode learning"),
            (trainer, "outcome", "objective"),
            (trainer, "backward", "backward"),
            (trainer, "_average_gradients", "collectives"),
            (trainer.optimiser, "step", "optimiser"),
        ]
        if isinstance(trainer, PublishedTrainer) and trainer.loaded is not None:
            watched.append((trainer, "wait", "data wait"))
        for owner, name, phase in watched:
            setattr(owner, name, partial(clock.run, phase, getattr(owner, name)))
        clock.run("rest", self.step)
        for owner, name, _ in watched:
            delattr(owner, name)
        return clock.seconds


class _Clock:
    """Time by phase; a phase within another is taken out of it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.inner = [0.0]

    def run(self, phase: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What `work` gives."""
        with self._timed(phase):
            return work(*arguments, **named)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = now(self.device)
        self.inner.append(0.0)
        yield
        spent = now(self.device) - start
        self.seconds[phase] += spent - self.inner.pop()
        self.inner[-1] += spent


def _with(experiment: Experiment, section: str, field: str, value: Any) -> Experiment:
    part = getattr(experiment, section).model_copy(update={field: value})
    return experiment.model_copy(update={section: part})


def _encoder(experiment: Experiment, seed: int) -> Encoder:
    model = experiment.model
    return build_encoder(model.backbone, width=model.width, embedding_dim=model.embedding_dim, seed=seed)


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; leave it out to measure on the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}"
