"""`vicc watch`: a run as it goes on, from its folder alone: curves, recall, workers, faults; plain lines where no terminal is."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vicc_ray.cluster.progress import FETCH_SECONDS, PLAIN_SECONDS, Tail
from vicc_ray.commands.status import ago, stages_of
from vicc_ray.console import console, printable
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import COUNTED, EVENTS, METRICS, NUMBER, number
from vicc_ray.training.driver import is_held
from vicc_ray.training.schedule import Stage, samples_at

Point = tuple[float, float]
NEWEST = 9  # records whose median speed is told
FAULTS = 6  # events that are shown
WIDTH, HEIGHT = 56, 9  # of a chart, in characters
STEPS = "▁▂▃▄▅▆▇█"
# The dots of a braille character by their column and row.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class Watched:
    """What the folder of a run has said so far; `poll` reads what was added."""

    def __init__(self, folder: RunFolder) -> None:
        with folder.as_user_errors():
            folder.pull()
        self.folder, self.experiment = folder, folder.experiment()
        if self.experiment.search is not None:
            raise UserError(
                f"{folder}: is a sweep; 'vicc tune {folder} --status' shows it, and 'vicc watch' one of its trials"
            )
        self.stages: Sequence[Stage] = stages_of(folder, self.experiment)
        self.metrics, self.happenings = Tail(folder.metrics, METRICS), Tail(folder.events, EVENTS)
        self.fetched = time.monotonic()
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self.loss: dict[float, float] = {}
        self.recall: dict[str, list[Point]] = {}
        self.workers: list[int] = []
        self.events: list[dict[str, Any]] = []
        self.rates: deque[float] = deque(maxlen=NEWEST)
        self.last: dict[str, Any] | None = None

    def poll(self) -> list[dict[str, Any]]:
        """The records that were added since the last call, in order of time; the state is what they make of it."""
        if self.folder.remote and time.monotonic() - self.fetched > FETCH_SECONDS:
            self.fetched = time.monotonic()
            with suppress(OSError):  # a store that is away for a moment is no reason to stop
                self.folder.pull()
        before = self.metrics.offset, self.happenings.offset
        records = self.metrics.read()
        if self.metrics.offset < before[0]:  # a resumed run has dropped what it does again, and all came anew
            self.clear()
            self.happenings.offset = 0
        records += self.happenings.read()
        fresh = [record for record in records if isinstance(record.get("time"), NUMBER)]
        fresh.sort(key=lambda record: float(record["time"]))
        for record in fresh:
            self._take(record)
        return fresh

    def _take(self, record: dict[str, Any]) -> None:
        kind, stage = record["kind"], self.stage_of(record)
        if stage is None:
            self.events.append(record)
        elif kind == "train":
            self.last = record
            self.loss[self.samples(stage, record)] = float(record["loss"])
            if isinstance(record.get("workers"), int):
                self.workers.append(record["workers"])
            if number(record, "samples_per_second") > 0:
                self.rates.append(number(record, "samples_per_second"))
        elif kind == "monitor" and isinstance(record.get("R@1"), NUMBER):
            self.recall.setdefault(stage.name, []).append((self.samples(stage, record), float(record["R@1"])))

    def stage_of(self, record: dict[str, Any]) -> Stage | None:
        """The stage that a record is of."""
        return next((stage for stage in self.stages if stage.name == record.get("stage")), None)

    def samples(self, stage: Stage, record: dict[str, Any]) -> float:
        """Samples that were seen when a record was made."""
        return float(samples_at(self.stages, min(int(record["step"]), stage.end)))

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self.last["step"]) if self.last else 0

    @property
    def rate(self) -> float | None:
        """Samples a second: the median of the newest, as a restart's first one is slow."""
        return sorted(self.rates)[len(self.rates) // 2] if self.rates else None

    @property
    def seconds_left(self) -> float | None:
        """At the speed of now."""
        left = samples_at(self.stages, self.stages[-1].end) - samples_at(self.stages, self.step)
        return left / self.rate if self.rate else None

    @property
    def finished(self) -> bool:
        """Whether every stage's encoder is there."""
        return all(self.folder.encoder(name).is_file() for stage in self.stages for name in stage.leaves)

    @property
    def abandoned(self) -> bool:
        """Whether this machine trained it and does so no longer; of another machine that is not known."""
        with suppress(OSError):
            holder = (self.folder.path / "lock").read_text(errors="replace")
            return holder.strip().endswith(f" on {socket.gethostname()}") and is_held(self.folder) is False
        return False


def watch_run(where: str, every: float) -> bool:
    """Follow a run until it ends; whether it is finished. Interrupted at Ctrl-C, which leaves the run alone."""
    run = Watched(RunFolder.at(where))
    try:
        return _watch_terminal(run, every) if console.is_terminal else _watch_plainly(run, every)
    except KeyboardInterrupt:
        raise Interrupted(f"no longer watched; {run.folder} goes on as it was") from None


def _watch_terminal(run: Watched, every: float) -> bool:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            # The order matters: what is finished has written all of its records.
            ends = run.finished, run.abandoned
            run.poll()
            live.update(view(run), refresh=True)
            if any(ends):
                break
            time.sleep(every)
    return _say_end(run)


def _watch_plainly(run: Watched, every: float) -> bool:
    printed, first = 0.0, True
    while True:
        ends = run.finished, run.abandoned
        fresh = run.poll()
        if first and fresh:
            console.print(summary(run))
        for record in [] if first else fresh:
            line = line_of(run, record)
            if line is None or (record["kind"] == "train" and time.monotonic() - printed < PLAIN_SECONDS):
                continue
            printed = time.monotonic() if record["kind"] == "train" else printed
            console.print(line)
        first = first and not fresh
        if any(ends):
            return _say_end(run)
        time.sleep(every)


def _say_end(run: Watched) -> bool:
    if run.finished:
        console.print(f"finished; encoders in {run.folder.path / 'encoders'}")
    else:
        console.print(
            f"{run.folder}: ended before it was finished; the same 'vicc train' goes on from its last checkpoint"
        )
    return run.finished


def summary(run: Watched) -> str:
    """One line: where the run stands."""
    last = run.last
    if last is None:
        return f"{run.folder}: nothing was trained yet"
    figures = [f"{name} {points[-1][1]:.3f}" for name, points in run.recall.items()]
    parts = [
        f"{run.folder}: {last['stage']}",
        f"step {run.step} of {run.stages[-1].end}",
        f"loss {last['loss']:.4g}",
        *([f"R@1 {', '.join(figures)}"] if figures else []),
        *([f"{run.rate:.1f} samples/s"] if run.rate else []),
        *([f"{ago(run.seconds_left)} left"] if run.seconds_left else []),
        *([f"{run.workers[-1]} workers"] if run.workers else []),
    ]
    return ", ".join(parts)


def line_of(run: Watched, record: dict[str, Any]) -> str | None:
    """A record as a line of a log; None for what says nothing to a reader."""
    kind, stage = record["kind"], record.get("stage")
    if kind == "train":
        return summary(run)
    if kind == "monitor":
        figures = ", ".join(
            f"{name} {record[name]:.3f}" for name in ("R@1", "R@5") if isinstance(record.get(name), NUMBER)
        )
        return f"{stage}: step {record['step']}: {figures}" if figures else None
    if kind == "start":
        return f"starts at step {record.get('step')} with {record.get('workers')} workers"
    if kind in COUNTED:
        return None
    return f"{stage or kind}: {record['text']}" if "text" in record else kind


def view(run: Watched) -> RenderableType:
    """All of it, for a terminal."""
    head = Table.grid(padding=(0, 2))
    for name, value in _facts(run):
        head.add_row(Text(name, style="dim"), value)
    bars = Table.grid(padding=(0, 2))
    for stage in run.stages:
        done = min(max(run.step - stage.first_step, 0), stage.steps)
        complete = all(run.folder.encoder(name).is_file() for name in stage.leaves)
        bar = ProgressBar(total=stage.steps, completed=stage.steps if complete else done, width=28)
        bars.add_row(stage.name, bar, f"{stage.steps if complete else done} of {stage.steps}")
    charts = [_panel("loss", chart(sorted(run.loss.items())))]
    points = [point for name in run.recall for point in run.recall[name]]
    newest = [f"{name} {found[-1][1]:.3f}" for name, found in run.recall.items()]
    charts.append(
        _panel("neighbours' recall R@1" + (f": {', '.join(newest)}" if newest else ""), chart(sorted(points)))
    )
    return Group(head, Text(), bars, Columns(charts), _happenings(run))


def _facts(run: Watched) -> Iterator[tuple[str, str]]:
    last = run.last
    yield "run", str(run.folder)
    since = f", last record {ago(time.time() - float(last['time']))} ago" if last else ""
    yield "state", ("finished" if run.finished else "training" if last else "not begun") + since
    if last:
        loss = f"loss {last['loss']:.4f}"
        compared = f" (ln K {last['ln_k']:.2f})" if isinstance(last.get("ln_k"), NUMBER) else ""
        yield "step", f"{run.step} of {run.stages[-1].end}, {loss}{compared}"
    if run.rate:
        yield "speed", f"{run.rate:.1f} samples/s, {ago(run.seconds_left or 0.0)} left"
    bounds = run.experiment.train.workers
    limits = "" if bounds.min == bounds.max else f" (from {bounds.min} to {bounds.max})"
    yield "workers", f"{run.workers[-1] if run.workers else '-'}{limits}  {steps_line(run.workers, WIDTH)}"


def _happenings(run: Watched) -> RenderableType:
    starts = sum(event["kind"] == "start" for event in run.events)
    lines = [f"restarts: {max(starts - 1, 0)}"]
    for event in [event for event in run.events if event["kind"] not in COUNTED][-FAULTS:]:
        lines.append(f"{ago(time.time() - float(event['time']))} ago: {event['kind']}: {event.get('text', '')}")
    return _panel("faults", Text("\n".join(printable(line) for line in lines)))


def _panel(title: str, inner: Text) -> Panel:
    return Panel(inner, title=Text(title), title_align="left", border_style="dim", expand=False)


def chart(points: Sequence[Point], width: int = WIDTH, height: int = HEIGHT) -> Text:
    """Points in ascending x as dots of braille characters, 2 x 4 a character, with the highest and the lowest value beside them."""
    if not points:
        return Text("nothing yet".ljust(width + 8))
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    cells = [[0] * width for _ in range(height)]
    for x, y in points:
        across = round((x - xs[0]) / ((xs[-1] - xs[0]) or 1) * (2 * width - 1))
        down = round((high - y) / ((high - low) or 1) * (4 * height - 1))
        cells[down // 4][across // 2] |= DOTS[across % 2][down % 4]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    rows = ["".join(chr(0x2800 + dots) for dots in row) for row in cells]
    return Text("\n".join(f"{labels.get(place, ''):>7} {row}" for place, row in enumerate(rows)))


def steps_line(values: Sequence[int], width: int) -> str:
    """Whole numbers over time as a line of blocks, the least 0."""
    if not values:
        return ""
    count = min(width, len(values))
    means = [values[round(place * (len(values) - 1) / max(count - 1, 1))] for place in range(count)]
    top = max(values) or 1
    return "".join(STEPS[round(value / top * (len(STEPS) - 1))] for value in means)
