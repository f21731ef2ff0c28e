"""Progress of a run, read from its folder: bars with the time left on a terminal, plain lines in a log. Runs nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vicc_ray.console import console
from vicc_ray.train.schedule import Stage

PLAIN_SECONDS = 15.0  # between two lines in a log


def progress_bar() -> Progress:
    """The project's one look of a progress bar."""
    return Progress(
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=False,
    )


class Counter:
    """Counts finished items of a job: a bar on a terminal, else a plain line now and then."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.started = self.told = time.monotonic()
        # When the first items came: until then the job was starting, which says nothing about the others.
        self.first: tuple[float, int] | None = None
        self.bar = progress_bar() if console.is_terminal else None
        self.task: TaskID | None = None

    def _left(self, now: float) -> float:
        """Seconds that the items to come will take, at the pace since the first ones."""
        since, count = self.first or (self.started, 0)
        return (now - since) / max(self.done - count, 1) * (self.total - self.done)

    def __enter__(self) -> Counter:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()
        elif kind is None:
            console.print(f"{self.title}: {self.done} of {self.total} in {time.monotonic() - self.started:.0f} s")

    def advance(self, count: int = 1) -> None:
        """`count` more items are done."""
        now = time.monotonic()
        if self.first is None:
            self.first = (now, self.done + count)
        self.done += count
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done)
        elif now - self.told > PLAIN_SECONDS:
            self.told = now
            console.print(f"{self.title}: {self.done} of {self.total}, {self._left(now):.0f} s left")


class RunProgress:
    """Follows metrics.jsonl of a run in a thread of its own while the run is going on."""

    def __init__(self, metrics: Path, stages: Sequence[Stage]) -> None:
        self.metrics, self.stages = metrics, {stage.name: stage for stage in stages}
        self.offset = 0
        self.since = time.time()  # older records belong to an earlier session of the same run
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.bar = progress_bar() if console.is_terminal else None
        self.tasks: dict[str, TaskID] = {}
        self.told = 0.0

    def __enter__(self) -> RunProgress:
        if self.bar:
            self.bar.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finished.set()
        self.thread.join()
        if self.bar:
            self.bar.stop()

    def _follow(self) -> None:
        while not self.finished.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self.metrics.is_file():
            return
        if self.metrics.stat().st_size < self.offset:
            self.offset = 0  # a restart dropped records beyond its checkpoint; seen ones come again
        with self.metrics.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                record = json.loads(line)
                self._show(record)
                self.since = max(self.since, record.get("time", 0.0))

    def _show(self, record: dict[str, Any]) -> None:
        stage = self.stages.get(str(record.get("stage")))
        if stage is None or record.get("time", 0.0) <= self.since:
            return
        handlers: dict[str, Callable[[Stage, dict[str, Any]], None]] = {
            "train": self._show_training,
            "note": lambda stage, record: console.print(f"{stage.name}: note: {record['text']}"),
        }
        handlers.get(record["kind"], _ignore)(stage, record)

    def _show_training(self, stage: Stage, record: dict[str, Any]) -> None:
        done = record["step"] - stage.first_step
        note = f"loss {record['loss']:.3f} (ln K {record['ln_k']:.2f})  {record['samples_per_second']:.0f} samples/s"
        if self.bar:
            if stage.name not in self.tasks:
                self.tasks[stage.name] = self.bar.add_task(stage.name, total=stage.steps, note="")
            self.bar.update(self.tasks[stage.name], completed=done, note=note)
        elif done == stage.steps or time.monotonic() - self.told > PLAIN_SECONDS:
            self.told = time.monotonic()
            left = (stage.steps - done) * stage.global_batch / max(record["samples_per_second"], 1e-9)
            console.print(f"{stage.name}: step {done} of {stage.steps}, {note}, {left:.0f} s left in this stage")


def _ignore(stage: Stage, record: dict[str, Any]) -> None:
    """Records that are for the report."""
