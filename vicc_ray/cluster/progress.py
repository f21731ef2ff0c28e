"""Progress of a run, read from its folder: bars with the time left on a terminal, plain lines in a log. Runs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
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
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import COUNTED, EVENTS, METRICS, NUMBER, Shape, number, parse_record
from vicc_ray.training.schedule import Stage

# Figures that a loss is read with, where a record has them -> what they are called.
COMPARED = {"ln_k": "ln K", "accuracy": "accuracy"}
PLAIN_SECONDS = 15.0  # between two lines in a log
FETCH_SECONDS = 5.0  # between two reads of an object store


def progress_bar() -> Progress:
    """The project's one style of a progress bar."""
    return Progress(
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=False,
    )


class Counter:
    """Counts finished items of a job: a bar on a terminal, else a plain line now and then."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.started = self.printed = time.monotonic()
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
        elif now - self.printed > PLAIN_SECONDS:
            self.printed = now
            console.print(f"{self.title}: {self.done} of {self.total}, {self._left(now):.0f} s left")


class Tail:
    """Follows a file of JSON lines: `read` gives the records that were added since the last call."""

    def __init__(self, path: Path, shape: Shape | None = None) -> None:
        self.path, self.shape, self.offset = path, shape, 0

    def read(self) -> list[dict[str, Any]]:
        """New whole lines; all of them again where the file was written anew."""
        if not self.path.is_file():
            return []
        if self.path.stat().st_size < self.offset:
            self.offset = 0
        records = []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.offset += len(line)
                record = parse_record(line, self.shape)
                if record is not None:  # else cut short by a crash, or damaged
                    records.append(record)
        return records


class RunProgress:
    """Follows a run's records in a thread of its own while the run is going on."""

    def __init__(self, folder: RunFolder, stages: Sequence[Stage]) -> None:
        self.folder, self.stages = folder, {stage.name: stage for stage in stages}
        self.tails = [Tail(folder.events, EVENTS), Tail(folder.metrics, METRICS)]
        self.since = time.time()  # older records belong to an earlier session of the same run
        self.finished = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.bar = progress_bar() if console.is_terminal else None
        self.tasks: dict[str, TaskID] = {}
        self.printed = 0.0
        self.starts = 0

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
        fetched = time.monotonic()
        while not self.finished.wait(0.5):
            if self.folder.remote and time.monotonic() - fetched > FETCH_SECONDS:
                fetched = time.monotonic()
                with suppress(OSError):  # a store that is away for a moment is no reason to stop
                    self.folder.fetch(self.folder.events)
                    self.folder.fetch(self.folder.metrics)
            self._read()
        self._read()

    def _read(self) -> None:
        records = [record for tail in self.tails for record in tail.read() if isinstance(record.get("time"), NUMBER)]
        fresh = [record for record in records if record["time"] > self.since]
        for record in sorted(fresh, key=lambda record: float(record["time"])):
            self.since = float(record["time"])
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        stage = self.stages.get(str(record.get("stage")))
        if stage is None:
            self._show_event(record)
        elif record["kind"] == "train":
            self._show_training(stage, record)
        elif record["kind"] == "note":
            console.print(f"{stage.name}: note: {record['text']}")

    def _show_event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            self.starts += 1
            if self.starts > 1:
                console.print(f"going on from step {event.get('step')} with {event.get('workers')} workers")
        elif event["kind"] in COUNTED:
            return
        elif "text" in event:
            console.print(f"{event['kind']}: {event['text']}")
        else:
            console.print(event["kind"])

    def _show_training(self, stage: Stage, record: dict[str, Any]) -> None:
        done = record["step"] - stage.first_step
        rate = number(record, "samples_per_second")
        figures = [
            f"{title} {record[name]:.2f}" for name, title in COMPARED.items() if isinstance(record.get(name), float)
        ]
        compared = f" ({', '.join(figures)})" if figures else ""
        note = f"loss {record['loss']:.3f}{compared}  {rate:.0f} samples/s"
        if self.bar:
            if stage.name not in self.tasks:
                self.tasks[stage.name] = self.bar.add_task(stage.name, total=stage.steps, note="")
            self.bar.update(self.tasks[stage.name], completed=done, note=note)
        elif done == stage.steps or time.monotonic() - self.printed > PLAIN_SECONDS:
            self.printed = time.monotonic()
            left = (stage.steps - done) * stage.global_batch / max(rate, 1e-9)
            console.print(f"{stage.name}: step {done} of {stage.steps}, {note}, {left:.0f} s left in this stage")
