"""`vicc status`: how a run stands, from its folder alone, so from any terminal and after its end."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from vicc_ray.config import Experiment
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import CheckpointInfo
from vicc_ray.runs.disk import files_of, readable_bytes, sizes
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import COUNTED, NUMBER, read_events, read_metrics, unreadable_videos
from vicc_ray.training.schedule import Stage, locate, make_stages, samples_at

# A run whose newest record is older than this many of its usual pauses between records is not said to be running.
QUIET_PAUSES = 10
QUIET_SECONDS = 120.0
PARTS = 4  # of what a run keeps on disk, the largest ones


@dataclass(frozen=True)
class Status:
    """Where a run is. Times are seconds; `left` and `samples_per_second` are None before anything was measured."""

    run: str
    state: str  # not started, running, silent, finished
    stage: str | None
    stages_done: list[str]
    step: int
    steps: int
    epoch: float
    samples: int
    samples_per_second: float | None
    left: float | None
    loss: float | None
    recall: dict[str, float]
    workers: int | None
    workers_min: int
    workers_max: int
    checkpoint: CheckpointInfo | None
    since_record: float | None
    starts: int
    events: list[dict[str, Any]]
    unreadable_videos: int
    bytes: dict[str, int]


def read_status(folder: RunFolder) -> Status:
    """The status of a run folder; UserError where it is none."""
    with folder.as_user_errors():
        folder.pull()
    experiment = folder.experiment()
    stages = stages_of(folder, experiment)
    records = read_metrics(folder.metrics, "train")
    events = read_events(folder.events)
    last = records[-1] if records else None
    step = int(last["step"]) if last else 0
    done = [stage.name for stage in stages if all(folder.encoder(name).is_file() for name in stage.leaves)]
    finished = len(done) == len(stages)
    step = stages[-1].end if finished else step
    stage, within = locate(stages, min(step, stages[-1].end - 1))
    checkpoints = folder.checkpoints.listing()
    rate = _rate(records)
    since = time.time() - float(last["time"]) if last else None
    return Status(
        run=str(folder),
        state=_state(finished, records, events, since),
        stage=None if finished else stage.name,
        stages_done=done,
        step=step,
        steps=stages[-1].end,
        epoch=within / stage.steps_per_epoch,
        samples=samples_at(stages, step),
        samples_per_second=rate,
        left=(samples_at(stages, stages[-1].end) - samples_at(stages, step)) / rate if rate else None,
        loss=float(last["loss"]) if last else None,
        recall=_recalls(folder),
        workers=last.get("workers") if last else None,
        workers_min=experiment.train.workers.min,
        workers_max=experiment.train.workers.max,
        checkpoint=checkpoints[0] if checkpoints else None,
        since_record=since,
        starts=sum(event["kind"] == "start" for event in events),
        events=events,
        unreadable_videos=len(unreadable_videos(folder.refused)),
        bytes=sizes(files_of(folder)),
    )


def is_at_work(folder: RunFolder) -> bool:
    """Whether a run's records are so fresh that something trains in it, here or elsewhere; False where none can be read."""
    try:
        status = read_status(folder)
    except UserError:
        return False
    newest = max((float(event["time"]) for event in status.events), default=0.0)
    starts = status.state == "starting" and time.time() - newest < QUIET_SECONDS
    return status.state == "running" or starts


def print_status(status: Status) -> None:
    """A short table, then what happened to the run."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _lines(status):
        table.add_row(name, value)
    console.print(table)
    shown = [event for event in status.events if event["kind"] not in COUNTED][-5:]
    for event in shown:
        console.print(f"{ago(time.time() - event['time'])} ago: {event['kind']}: {event.get('text', '')}")


def status_json(status: Status) -> dict[str, Any]:
    """All of it, for a program."""
    return asdict(status)


def _lines(status: Status) -> list[tuple[str, str]]:
    figures = [f"{name} {value:.3f}" for name, value in status.recall.items()]
    lines = [
        ("run", status.run),
        ("state", status.state + (f", last record {ago(status.since_record)} ago" if status.since_record else "")),
        ("stage", f"{status.stage}, epoch {status.epoch:.1f}" if status.stage else "-"),
        ("finished", ", ".join(status.stages_done) or "-"),
        ("step", f"{status.step} of {status.steps} ({status.samples} samples)"),
    ]
    if status.samples_per_second:
        lines.append(("speed", f"{status.samples_per_second:.1f} samples/s, {ago(status.left or 0.0)} left"))
    if status.loss is not None:
        lines.append(("loss", f"{status.loss:.4f}" + (f"; R@1 {', '.join(figures)}" if figures else "")))
    limits = "" if status.workers_min == status.workers_max else f" (from {status.workers_min} to {status.workers_max})"
    lines.append(("workers", f"{status.workers or '-'}{limits}"))
    info = status.checkpoint
    lines.append(
        (
            "checkpoint",
            f"step {info.step}, {ago(time.time() - info.time)} ago, {info.bytes / 2**20:.1f} MiB" if info else "-",
        )
    )
    lines.append(("restarts", str(max(status.starts - 1, 0))))
    if status.unreadable_videos:
        lines.append(("unreadable", f"{status.unreadable_videos} videos"))
    parts = [f"{name} {readable_bytes(size)}" for name, size in list(status.bytes.items())[:PARTS]]
    lines.append(("on disk", f"{readable_bytes(sum(status.bytes.values()))}: {', '.join(parts)}"))
    return lines


def stages_of(folder: RunFolder, experiment: Experiment) -> list[Stage]:
    """The stages of a run, by the videos of its own manifest; UserError where that cannot be read."""
    try:
        videos = len(Manifest.read(folder.manifest).select(experiment.data.train_split))
    except UserError as error:
        raise UserError(f"{folder}: its manifest cannot be read ({error})") from error
    return make_stages(experiment, videos)


def _state(finished: bool, records: list[dict[str, Any]], events: list[dict[str, Any]], since: float | None) -> str:
    if finished:
        return "finished"
    if since is None:
        return "starting" if events else "not started"
    pauses = [b["time"] - a["time"] for a, b in itertools.pairwise(records)][-20:]
    usual = sorted(pauses)[len(pauses) // 2] if pauses else QUIET_SECONDS
    return "running" if since < max(QUIET_PAUSES * usual, QUIET_SECONDS) else "silent: stopped, or waiting for workers"


def _rate(records: list[dict[str, Any]]) -> float | None:
    """Median of the newest records, as a restart's first one is slow."""
    newest = sorted(
        float(rate) for record in records[-9:] if isinstance(rate := record.get("samples_per_second"), NUMBER)
    )
    return newest[len(newest) // 2] if newest and newest[len(newest) // 2] > 0 else None


def _recalls(folder: RunFolder) -> dict[str, float]:
    """The newest recall of each stage."""
    return {
        r["stage"]: float(r["R@1"]) for r in read_metrics(folder.metrics, "monitor") if isinstance(r.get("R@1"), NUMBER)
    }


def ago(seconds: float) -> str:
    """A time in words: 90 s, 3 min, 5 h."""
    for size, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"
