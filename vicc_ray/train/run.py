"""A run from its first to its last step on one worker: open a stage, stream, step, record, save, hand over. No Ray.

The loop is the same in a Ray Train worker, in a plain process and in the tests; what differs is the `Host` that gives it
blocks and takes its checkpoints. Progress is counted in global steps, and a checkpoint's step says which samples are
consumed, because a step's samples are a function of the plan alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from vicc_ray import distributed
from vicc_ray.checkpoint import RunFolder, append_record, forget_records_after, read_records
from vicc_ray.config import Stream
from vicc_ray.errors import UserError
from vicc_ray.models.encoder import Encoder, build_encoder
from vicc_ray.objective import CollapseWatch, Outcome, Prototypes
from vicc_ray.train.batches import Block, TrainingPlan, to_batch
from vicc_ray.train.monitor import Monitor
from vicc_ray.train.schedule import TITLES, Stage, every, locate, samples_at
from vicc_ray.train.step import StageTrainer
from vicc_ray.weights import EncoderFile, load_encoder, save_encoder

State = dict[str, Any]


class Host(Protocol):
    """What the loop needs from where it runs."""

    device: torch.device

    def blocks(self, first_step: int) -> Iterator[Block]:
        """This worker's blocks from a global step on, in order."""
        ...

    def save(self, state: State, step: int) -> None:
        """Keep a checkpoint; every worker calls it with the same state."""
        ...


@dataclass
class _Clock:
    """Time since the last record, and how much of it was spent waiting for data."""

    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    samples: int = 0

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        figures = {"samples_per_second": self.samples / elapsed, "data_wait": min(self.waited / elapsed, 1.0)}
        self.since, self.waited, self.samples = time.perf_counter(), 0.0, 0
        return figures


def train(plan: TrainingPlan, folder: RunFolder, host: Host, restored: State | None, monitor: Monitor | None) -> int:
    """Train every stage that is left; returns the last global step. Every worker calls it.

    UserError (on every worker alike) for NaN in the embeddings and for too many unreadable videos.
    """
    step = int(restored["step"]) if restored else 0
    recorder = _Recorder(plan, folder)
    recorder.forget_after(step)
    blocks = host.blocks(step) if step < plan.steps else iter(())
    while step < plan.steps:
        stage, within = locate(plan.stages, step)
        trainer = open_stage(plan, folder, stage, host.device)
        if within and restored:
            trainer.load_state_dict(restored["trainer"])
        _train_stage(plan, stage, within, trainer, blocks, host, recorder, monitor)
        step = stage.end
        _leave(plan, folder, stage, trainer)
        host.save({"step": step, "stage": stage.name, "trainer": {}}, step)
    return step


def open_stage(plan: TrainingPlan, folder: RunFolder, stage: Stage, device: torch.device) -> StageTrainer:
    """The trainer of a stage at its beginning: the learner from its own stream's newest encoder, the guide from the other's."""
    experiment = plan.experiment
    prototypes = Prototypes(
        experiment.model.embedding_dim,
        experiment.objective.heads(stage.stream),
        torch.Generator().manual_seed(_seed(experiment.seed, stage.index, 1)),
    )
    if stage.starts_from is None:
        learner = fresh_encoder(plan, stage.stream)
        _save(plan, folder, f"{TITLES[stage.stream]}-0", stage, learner, prototypes)
    else:
        start = load_encoder(folder.encoder(stage.starts_from))
        learner = start.build()
        if [len(weight) for weight in start.prototypes] == list(prototypes.counts):
            with torch.no_grad():
                for weight, saved in zip(prototypes.weights, start.prototypes, strict=True):
                    weight.copy_(saved)
    guide = load_encoder(folder.encoder(stage.guided_by)).build() if stage.guided_by else None
    return StageTrainer(experiment, stage, learner, prototypes, guide, device)


def fresh_encoder(plan: TrainingPlan, stream: Stream) -> Encoder:
    """A stream's encoder as it is before any training, the same in every process."""
    model = plan.experiment.model
    seed = _seed(plan.experiment.seed, 0 if stream == "rgb" else 1, 0)
    return build_encoder(model.backbone, width=model.width, embedding_dim=model.embedding_dim, seed=seed)


def _seed(seed: int, stage: int, purpose: int) -> int:
    return (seed * 1000 + stage) * 10 + purpose


def _train_stage(
    plan: TrainingPlan,
    stage: Stage,
    within: int,
    trainer: StageTrainer,
    blocks: Iterator[Block],
    host: Host,
    recorder: _Recorder,
    monitor: Monitor | None,
) -> None:
    settings = plan.experiment
    save_every = every(settings.train.checkpoint_every, stage)
    look_every = every(settings.evaluate.monitor_every, stage)
    recorder.begin(stage, trainer)
    for local in range(within, stage.steps):
        step = stage.first_step + local
        waiting = time.perf_counter()
        block = next(blocks)
        recorder.clock.waited += time.perf_counter() - waiting
        batch, refused = to_batch(plan, step, block)
        recorder.refuse(refused, step)
        outcome = trainer.step(batch, local)
        recorder.clock.samples += stage.global_batch
        done = local + 1
        if done % settings.train.log_every == 0 or done == stage.steps or local == 0:
            recorder.record(stage, step + 1, outcome, trainer)
        if monitor and look_every and (done % look_every == 0 or done == stage.steps):
            recorder.add(
                {"kind": "monitor", "stage": stage.name, "step": step + 1, **monitor(trainer.encoder, stage.stream)}
            )
        if save_every and done % save_every == 0 and done < stage.steps:
            host.save({"step": step + 1, "stage": stage.name, "trainer": trainer.state_dict()}, step + 1)


def _leave(plan: TrainingPlan, folder: RunFolder, stage: Stage, trainer: StageTrainer) -> None:
    encoder = trainer.finish()
    _save(plan, folder, stage.name, stage, encoder, trainer.prototypes)
    distributed.barrier()  # no worker looks for the file before it is there


def _save(
    plan: TrainingPlan, folder: RunFolder, name: str, stage: Stage, encoder: Encoder, prototypes: Prototypes
) -> None:
    if distributed.rank():
        return
    meta = {"name": name, "experiment": plan.experiment.model_dump(mode="json"), "provenance": folder.provenance()}
    file = EncoderFile(
        spec=encoder.spec,
        stream=stage.stream,
        flow_input="published",
        state_dict={key: value.detach().cpu() for key, value in encoder.state_dict().items()},
        prototypes=[weight.detach().cpu() for weight in prototypes.weights],
        meta=meta,
    )
    save_encoder(folder.encoder(name), file)


class _Recorder:
    """Writes what happens: rank 0 the metrics, every worker the videos that it could not read."""

    def __init__(self, plan: TrainingPlan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self.clock = _Clock()
        self.watch = CollapseWatch(plan.experiment.train.collapse_warning_steps)
        self.writes = distributed.rank() == 0
        self.board: Any = None

    def forget_after(self, step: int) -> None:
        """Begin (again) at a global step."""
        if self.writes:
            from tensorboardX import SummaryWriter

            forget_records_after(self.folder.metrics, step)
            self.board = SummaryWriter(str(self.folder.tensorboard), purge_step=samples_at(self.plan.stages, step))
        distributed.barrier()

    def begin(self, stage: Stage, trainer: StageTrainer) -> None:
        self.clock = _Clock()
        self.watch = CollapseWatch(self.plan.experiment.train.collapse_warning_steps)
        asked = self.plan.experiment
        queue = trainer.objective.queue
        if queue is not None and (note := queue.rounding_note()):
            self.note(stage, note)
        if queue is None and asked.objective.queue:
            self.note(stage, f"queue: {asked.objective.queue} rows are fewer than a global batch, so none is used")
        if asked.optim.precision == "bf16" and not trainer.bf16:
            self.note(stage, f"optim.precision: bf16 is for GPUs, fp32 is used on {trainer.device.type}")

    def record(self, stage: Stage, step: int, outcome: Outcome, trainer: StageTrainer) -> None:
        """One record of the loss and its company; a collective, every worker calls it."""
        figures = outcome.metrics()
        self._stop_when_too_many_refused(stage)
        warning = self.watch.observe(step, figures["loss"], figures["ln_k"])
        rate = trainer.optimiser.param_groups[0]["lr"]
        self.add({"kind": "train", "stage": stage.name, "step": step, **figures, "lr": rate, **self.clock.read()})
        if warning:
            self.note(stage, warning, step)

    def note(self, stage: Stage, text: str, step: int | None = None) -> None:
        """A line for the reader, shown beside the progress and in the report."""
        self.add(
            {"kind": "note", "stage": stage.name, "step": stage.first_step if step is None else step, "text": text}
        )

    def add(self, record: dict[str, Any]) -> None:
        """Append to metrics.jsonl and tensorboard, on rank 0."""
        if not self.writes:
            return
        samples = samples_at(self.plan.stages, record["step"])
        record |= {"samples": samples, "workers": distributed.world_size(), "time": time.time()}
        append_record(self.folder.metrics, record)
        if record["kind"] != "note":
            for name, value in record.items():
                if isinstance(value, float) and name != "time":
                    self.board.add_scalar(f"{record['stage']}/{name}", value, samples)
            self.board.flush()

    def refuse(self, refused: list[tuple[str, str]], step: int) -> None:
        for video, reason in refused:
            append_record(self.folder.refused, {"video": video, "reason": reason, "step": step})

    def _stop_when_too_many_refused(self, stage: Stage) -> None:
        """UserError, on every worker, when the share of unreadable videos is above what the experiment allows."""
        allowed = self.plan.experiment.data.max_refused * len(self.plan.videos)
        bad = {str(record["video"]): str(record["reason"]) for record in read_records(self.folder.refused)}
        count = torch.tensor(float(len(bad)))
        distributed.all_reduce_max_(count)
        if float(count) > allowed:
            shown = "; ".join(f"{video}: {reason}" for video, reason in list(bad.items())[:5])
            raise UserError(
                f"{int(count)} of {len(self.plan.videos)} videos could not be read in stage {stage.name}, more than "
                f"data.max_refused = {self.plan.experiment.data.max_refused:g} allows ({shown}; all in {self.folder.refused})"
            )
