"""A run from its first to its last step on one worker: open a stage, stream, step, record, save, hand over. No Ray.

The loop is the same in a Ray Train worker, in a plain process and in the tests; what differs is the `Host` that gives it
blocks, takes its checkpoints and passes on requests from outside. Progress is counted in global steps, and a checkpoint's
step says which samples are consumed, because a step's samples are a function of the plan alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from vicc_ray import distributed
from vicc_ray.errors import UserError
from vicc_ray.objective import NonFiniteError
from vicc_ray.runs.checkpoint import State
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import (
    NUMBER,
    RecordWriter,
    forget_records_after,
    last_records,
    read_events,
    unreadable_videos,
)
from vicc_ray.runs.sinks import Record, SinkRun, Sinks
from vicc_ray.training.batches import PADDING, Block, TrainingPlan, to_batch
from vicc_ray.training.monitor import Monitor
from vicc_ray.training.schedule import Stage, every, locate, samples_at
from vicc_ray.training.survival import Finished
from vicc_ray.training.task import Learner, Measured, Task

# Seconds between two polls for requests from outside; a poll is a small message between the workers.
POLL_SECONDS = 2.0
# The most records that a worker keeps for those after it.
RECENT = 2000


@dataclass(frozen=True)
class Notice:
    """Requests from outside: a checkpoint now (a node is about to go, or time is up), an end after it."""

    save: bool = False
    stop: bool = False


class Host(Protocol):
    """What the loop needs from where it runs."""

    device: torch.device

    def blocks(self, first_step: int) -> Iterator[Block]:
        """This worker's blocks from a global step on, in order."""
        ...

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Keep a checkpoint; every worker calls it with the same state. `about`: fields of `CheckpointInfo`."""
        ...

    def finished(self, step: Finished) -> None:
        """A step is done on this worker; called after each, between them and not in the middle of one."""
        ...

    def notice(self) -> Notice:
        """The requests now; every worker calls it and gets the same answer."""
        ...


@dataclass
class _Clock:
    """Time since the last record, and how much of it was spent waiting for data."""

    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    samples: int = 0
    steps: int = 0

    def read(self) -> dict[str, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        figures = {"samples_per_second": self.samples / elapsed, "data_wait": min(self.waited / elapsed, 1.0)}
        self.since, self.waited, self.samples, self.steps = time.perf_counter(), 0.0, 0, 0
        return figures

    def seconds_a_step(self) -> float:
        return (time.perf_counter() - self.since) / max(self.steps, 1)


def train(
    task: Task, plan: TrainingPlan, folder: RunFolder, host: Host, restored: State | None, monitor: Monitor | None
) -> int:
    """Train every stage that is left; returns the last global step, an earlier one where the plan or a request ends the run.

    Every worker calls it. UserError (on every worker alike) for too many unreadable videos, and for embeddings that are
    NaN at a step where they were before; the first time it is a `NonFiniteError`, as the last checkpoint may be sound.
    """
    step = int(restored["step"]) if restored else 0
    recorder = _Recorder(plan, folder)
    recorder.forget_after(step)
    try:
        return _train(task, plan, folder, host, restored, monitor, recorder, step)
    finally:
        recorder.close()


def _train(
    task: Task,
    plan: TrainingPlan,
    folder: RunFolder,
    host: Host,
    restored: State | None,
    monitor: Monitor | None,
    recorder: _Recorder,
    step: int,
) -> int:
    """`train`, from a step on."""
    if restored:
        _close_left_open(task, plan, folder, host, restored, recorder, monitor)
    blocks = host.blocks(step) if step < plan.steps else iter(())
    while step < plan.steps:
        stage, within = locate(plan.stages, step)
        learner = task.open_stage(plan, folder, stage, host.device)
        training = _StageRun(plan, stage, learner, blocks, host, recorder, monitor)
        if within and restored:
            learner.load_state_dict(restored["trainer"])
            training.make_up(restored)
        step = training.run(within)
        if step < stage.end:
            return step
        training.check(step)
        task.close_stage(plan, folder, stage, learner)
        host.save({"step": step, "stage": stage.name, "trainer": {}}, _about(plan, stage, step, None))
        recorder.saved(step)
    return step


def _close_left_open(
    task: Task,
    plan: TrainingPlan,
    folder: RunFolder,
    host: Host,
    restored: State,
    recorder: _Recorder,
    monitor: Monitor | None,
) -> None:
    """Leave what a stage leaves, where its last step was done and the workers died before they had written it."""
    if not restored["trainer"]:  # a trial of a sweep begins after stages that others trained
        return
    for stage in plan.stages:
        if (
            stage.end == int(restored["step"])
            and stage.name == restored["stage"]
            and not task.is_finished(folder, stage)
        ):
            learner = task.open_stage(plan, folder, stage, host.device)
            learner.load_state_dict(restored["trainer"])
            training = _StageRun(plan, stage, learner, iter(()), host, recorder, monitor)
            training.make_up(restored)
            training.check(stage.end)
            task.close_stage(plan, folder, stage, learner)


class _StageRun:
    """A stage being trained: its steps, and what some of them are followed by (a record, the recall, a checkpoint)."""

    def __init__(
        self,
        plan: TrainingPlan,
        stage: Stage,
        learner: Learner,
        blocks: Iterator[Block],
        host: Host,
        recorder: _Recorder,
        monitor: Monitor | None,
    ) -> None:
        self.plan, self.stage, self.learner, self.blocks = plan, stage, learner, blocks
        self.host, self.recorder, self.monitor = host, recorder, monitor
        self.settings = plan.experiment
        self.save_every = every(self.settings.train.checkpoint_every, stage)
        self.recall_every = every(self.settings.evaluate.monitor_every, stage)
        self.best = 0.0
        self.paused = False

    def run(self, within: int) -> int:
        """Train from the step `within` on; returns the global step reached, the stage's end or where to stop."""
        self.recorder.begin(self.stage, self.learner)
        if self.paused:  # the workers before these died before they had saved it
            self._save(self.stage.first_step + within, None)
            return self.stage.first_step + within
        for local in range(within, self.stage.steps):
            step = self.stage.first_step + local
            done, last = local + 1, local + 1 == self.stage.steps
            record = self._step(step, local, done % self.settings.train.log_every == 0 or last or local == within)
            about = {"stage": self.stage.name, "best_recall": self.best, "records": self.recorder.recent}
            self.host.finished(Finished(step + 1, about, self.learner.own_state))
            if local == within:
                # Everybody has a stream and has been through a step: a silence now is no slow start.
                distributed.set_patience(self.settings.train.collective_timeout)
            if record:
                self.recorder.record(self.stage, record, self.learner)
            recall = self._recall(step + 1) if self._is_measured(done) else None
            if last:
                break
            notice = self.host.notice() if done % self.recorder.poll_every == 0 else Notice()
            better = recall is not None and recall > self.best
            self.best = max(self.best, recall or 0.0)
            ends = notice.stop or self._pauses(step + 1, recall)
            if notice.save or ends or better or (self.save_every and done % self.save_every == 0):
                self._save(step + 1, recall)
            if ends:
                return step + 1
        return self.stage.end

    def make_up(self, restored: State) -> None:
        """What the step that training goes on from was to be followed by, where the workers before these died before that."""
        step, self.best = int(restored["step"]), float(restored.get("best_recall", 0.0))
        if "records" not in restored:  # a checkpoint, which comes after all that
            return
        records = [record for record in restored["records"] if record["step"] <= step]
        self.recorder.make_up(records)
        measured = [record for record in records if record["kind"] == "monitor" and record["step"] == step]
        recall = measured[0].get("R@1") if measured else None
        if self._is_measured(step - self.stage.first_step) and not measured:
            recall = self._recall(step)
        self.best = max(self.best, recall or 0.0)
        self.paused = step < self.stage.end and self._pauses(step, recall)

    def _step(self, step: int, local: int, recorded: bool) -> Record | None:
        """Wait for the block of a global step, train on it; the step's record where it is to have one."""
        recorder = self.recorder
        waiting = time.perf_counter()
        block = next(self.blocks)
        recorder.clock.waited += time.perf_counter() - waiting
        batch, refused = to_batch(self.plan, step, block)
        recorder.refuse(refused, block, step)
        recorder.consume(step, block)
        figures: dict[str, float] = {}

        def measure(outcome: Measured) -> None:
            figures.update(outcome.metrics())

        try:
            self.learner.step(batch, local, measure if recorded else None)
        except NonFiniteError as error:
            recorder.fail(step, error)
            raise
        recorder.clock.samples += self.stage.global_batch
        recorder.clock.steps += 1
        return recorder.made(self.stage, step + 1, self.learner, figures) if recorded else None

    def _is_measured(self, done: int) -> bool:
        """Whether the recall is measured after this many steps of the stage."""
        return bool(self.monitor and self.recall_every) and (done % self.recall_every == 0 or done == self.stage.steps)

    def _pauses(self, step: int, recall: float | None) -> bool:
        """Whether the run ends with the recall of this global step."""
        return self.plan.pause is not None and step >= self.plan.pause and recall is not None

    def check(self, step: int) -> None:
        """NonFiniteError, on every worker alike, where a weight of any of them is NaN or infinite after this global step.

        The next step's loss would tell, but what is measured, saved or left by the stage before that would be broken.
        """
        finite = [tensor.isfinite().all() for tensor in self.learner.weights()]
        alarm = torch.zeros(1) if torch.stack(finite).all() else torch.tensor([distributed.rank() + 1.0])
        distributed.all_reduce_max_(alarm)
        if alarm.item():
            where = f"stage {self.stage.name}, step {step - self.stage.first_step}, worker {int(alarm.item()) - 1}"
            error = NonFiniteError(
                f"{where}, the weights: NaN or infinity; restart from the last checkpoint with a lower learning rate, "
                "gradient clipping or float32 encoders"
            )
            self.recorder.fail(step, error)
            raise error

    def _recall(self, step: int) -> float | None:
        assert self.monitor is not None
        self.check(step)
        self.learner.share_statistics()  # all workers evaluate one and the same network
        recalls = []
        for name, stream, encoder in self.learner.encoders:
            figures = self.monitor(encoder, stream)
            self.recorder.add({"kind": "monitor", "stage": name, "step": step, **figures})
            recalls.append(figures.get("R@1"))
        return recalls[0]

    def _save(self, step: int, recall: float | None) -> None:
        self.check(step)
        state = {"step": step, "stage": self.stage.name, "trainer": self.learner.state_dict(), "best_recall": self.best}
        self.host.save(state, _about(self.plan, self.stage, step, recall))
        self.recorder.saved(step)


def _about(plan: TrainingPlan, stage: Stage, step: int, recall: float | None) -> dict[str, Any]:
    return {
        "step": step,
        "stage": stage.name,
        "samples": samples_at(plan.stages, step),
        "workers": distributed.world_size(),
        "recall": recall,
    }


class _Recorder:
    """Writes what happens: rank 0 the metrics, every worker what it alone knows. A full disk never stops training."""

    def __init__(self, plan: TrainingPlan, folder: RunFolder) -> None:
        self.plan, self.folder = plan, folder
        self.clock = _Clock()
        self.pace = 0.0  # seconds a step up to the newest record
        # On every worker, for those that come after it: what was recorded since the last checkpoint but one.
        self.recent: list[Record] = []
        self.last_save = -1
        self.writes = distributed.rank() == 0
        self.metrics, self.events = RecordWriter(folder.metrics), RecordWriter(folder.events)
        self.refused = RecordWriter(folder.refused)
        self.samples = RecordWriter(folder.samples / f"worker-{distributed.rank()}.jsonl")
        self.sinks: Sinks | None = None
        # Of this worker since the last record: video -> (reason, step), and videos that could be read again.
        self.unreadable: dict[str, tuple[str, int]] = {}
        self.readable: set[str] = set()
        # Written down as unreadable when last tried, in this start of the workers or before; and those of this start, which
        # are what `data.max_refused` bounds: what an outage kept away may be back.
        self.noted = set(unreadable_videos(folder.refused))
        self.failing: set[str] = set()
        # Steps from one poll of the host's notice to the next; the same on every worker.
        self.poll_every = 1

    def forget_after(self, step: int) -> None:
        """Begin (again) at a global step."""
        if self.plan.experiment.train.record_samples:
            self.folder.samples.mkdir(exist_ok=True)
        if self.writes:
            with suppress(OSError):  # what a full disk keeps is forgotten by the next start
                forget_records_after(self.folder.metrics, step)
            run = SinkRun(self.folder, self.plan.experiment, samples_at(self.plan.stages, step))
            self.sinks = Sinks(run, self._report_sink)
        distributed.barrier()

    def make_up(self, records: Sequence[Record]) -> None:
        """Write those of the workers before these that did not come to it, or wrote them where nobody finds them any more."""
        self.recent.extend(records)
        newest = last_records(self.folder.metrics, len(records)) if self.writes else []
        there = {_identity(record) for record in newest}
        for record in records:
            if _identity(record) not in there:
                self._write(record)

    def saved(self, step: int) -> None:
        """A checkpoint is being written, and with the last one the records before it got to where the run is kept."""
        self.recent[:] = [record for record in self.recent if record["step"] > self.last_save]
        self.last_save = step

    def begin(self, stage: Stage, learner: Learner) -> None:
        self.clock, self.poll_every = _Clock(), 1
        for text in learner.warnings():
            self.note(stage, text)

    def made(self, stage: Stage, step: int, learner: Learner, figures: Mapping[str, float]) -> Record:
        """The record of a step: the loss and its company."""
        self.pace = self.clock.seconds_a_step()
        rate = learner.optimiser.param_groups[0]["lr"]
        record = {"kind": "train", "stage": stage.name, "step": step, **figures, "lr": rate, **self.clock.read()}
        return self._note_down(record)

    def record(self, stage: Stage, record: Record, learner: Learner) -> None:
        """Write one; a collective, every worker calls it."""
        step = int(record["step"])
        slowest = torch.tensor([self.pace, float(len(self.unreadable) + len(self.readable))])
        distributed.all_reduce_max_(slowest)
        self.poll_every = max(1, min(round(POLL_SECONDS / max(float(slowest[0]), 1e-3)), 1000))
        if slowest[1]:
            self._share_unreadable(stage, step)
        warning = learner.observe(step, {name: value for name, value in record.items() if isinstance(value, NUMBER)})
        self._write(record)
        if warning:
            self.note(stage, warning, step)

    def note(self, stage: Stage, text: str, step: int | None = None) -> None:
        """A line for the reader, shown beside the progress and in the report."""
        self.add(
            {"kind": "note", "stage": stage.name, "step": stage.first_step if step is None else step, "text": text}
        )

    def add(self, record: Record) -> None:
        """Append to metrics.jsonl, and give it to the sinks, on rank 0."""
        self._write(self._note_down(record))

    def _write(self, record: Record) -> None:
        if not self.writes:
            return
        self.metrics.add(record)
        if self.sinks is not None:
            self.sinks.add(record)

    def _note_down(self, record: Record) -> Record:
        """The record, complete, among the recent ones: plain values, as a file would have them."""
        samples = samples_at(self.plan.stages, int(record["step"]))
        whole = {**record, "samples": samples, "workers": distributed.world_size(), "time": time.time()}
        self.recent.append(json.loads(json.dumps(whole)))
        del self.recent[:-RECENT]
        return whole

    def close(self) -> None:
        """Let the sinks write what they have."""
        if self.sinks is not None:
            self.sinks.close()

    def _report_sink(self, text: str) -> None:
        self.events.add({"kind": "sink failed", "text": text, "time": time.time()})

    def consume(self, step: int, block: Block) -> None:
        """Where the experiment records it: which samples this worker consumed in a step."""
        if self.plan.experiment.train.record_samples:
            rows = [int(row) for row in np.flatnonzero(block["slot"] != PADDING)]
            taken = {name: block[name][rows].tolist() for name in ("slot", "video")}
            self.samples.add({"step": step, "workers": distributed.world_size(), "time": time.time(), **taken})

    def refuse(self, refused: list[tuple[str, str]], block: Block, step: int) -> None:
        """Remember videos that could not be read, and those that could again, until the next record."""
        bad = {video for video, _ in refused}
        for video, reason in refused:
            self.unreadable.setdefault(video, (reason, step))
        self.readable -= bad
        if self.noted or self.unreadable:
            names = {self.plan.videos[int(row)].id for row in block["video"] if row != PADDING}
            self.readable |= (names - bad) & (self.noted | self.unreadable.keys())

    def fail(self, step: int, error: NonFiniteError) -> None:
        """A loss that is no number: UserError (on every worker) where this step came to it before, else an event."""
        seen = "first"
        if self.writes:
            before = [r for r in read_events(self.folder.events) if r["kind"] == "not finite" and r.get("step") == step]
            seen = "again" if before else "first"
            self.events.add({"kind": "not finite", "step": step, "text": str(error), "time": time.time()})
            self.folder.push(self.folder.events)
        if distributed.broadcast_bytes(seen.encode()) == b"again":
            raise UserError(f"{error}; it came to the same after going back to the last checkpoint") from error

    def _share_unreadable(self, stage: Stage, step: int) -> None:
        """Rank 0 writes down what all workers could not read, or could again; UserError, on every worker, where it is too much."""
        mine = json.dumps({"unreadable": self.unreadable, "readable": sorted(self.readable)}).encode()
        everyone = [json.loads(part) for part in distributed.gather_bytes(mine)]
        self.unreadable, self.readable = {}, set()
        bad = {video: seen for part in everyone for video, seen in part["unreadable"].items()}
        for video, (reason, first) in bad.items():
            self.failing.add(video)
            if video not in self.noted:
                self.noted.add(video)
                self._write_refused({"video": video, "reason": reason, "step": first})
        still = {video for part in everyone for video in part["unreadable"].keys() - set(part["readable"])}
        for video in sorted({video for part in everyone for video in part["readable"]} - still):
            self.noted.discard(video)
            self.failing.discard(video)
            self._write_refused({"video": video, "readable": True, "step": step})
        allowed = self.plan.experiment.data.max_refused * len(self.plan.rows)
        if len(self.failing) > allowed:
            if self.writes:
                self.folder.push(self.folder.refused)
            shown = "; ".join(f"{video}: {reason}" for video, (reason, _) in list(bad.items())[:5])
            raise UserError(
                f"{len(self.failing)} of {len(self.plan.rows)} videos could not be read in stage {stage.name}, "
                f"more than data.max_refused = {self.plan.experiment.data.max_refused:g} allows "
                f"({shown}; all in {self.folder.refused})"
            )

    def _write_refused(self, record: dict[str, Any]) -> None:
        if self.writes:
            self.refused.add(record)


def _identity(record: Record) -> tuple[Any, ...]:
    return record.get("kind"), record.get("step"), record.get("text")
