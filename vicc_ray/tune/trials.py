"""What one trial does: train its experiment in its own run folder, report each recall as it is measured, sum up. No Ray.

The trial is a run like any other, so one that was killed goes on from its checkpoint. It ends when the stages that the metric
names are done; what would come after them cannot change its value.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vicc_ray.cluster.progress import Tail
from vicc_ray.config import Experiment
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import METRICS, NUMBER, read_events, read_metrics
from vicc_ray.training.driver import alone_in
from vicc_ray.training.schedule import Stage, make_stages, samples_at
from vicc_ray.tune.sharing import begin_at, first_stage

POLL_SECONDS = 0.5
EARLIER_SECONDS = 60.0


class LostRun(Exception):
    """A run ended by a fault outside of its workers; Ray Tune begins the trial again, and it goes on."""


@dataclass(frozen=True)
class TrialSpec:
    """What a trial needs to know; plain data, as it is sent to another process."""

    number: int
    experiment: dict[str, Any]
    folder: str
    shared: str | None  # run folder that the trial begins from
    videos: int
    metrics: list[tuple[str, str]]  # (stage, figure)
    address: str
    # Samples of the measured stages: it ends with the first measurement from there on; None: it may train all.
    allowed: int | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """The metric at one moment: mean of the named figures, samples of the measured stages until then."""

    value: float
    samples: int


class Follower:
    """Reads a run's records as they are written, and makes the metric of them."""

    def __init__(self, folder: RunFolder, stages: Sequence[Stage], metrics: Sequence[tuple[str, str]]) -> None:
        self.folder = folder
        self.metrics = [(stage, figure) for stage, figure in metrics]
        self.stages = {stage.name: stage for stage in stages}
        self.newest: dict[tuple[str, str], float] = {}
        self.newest_steps: dict[str, int] = {}  # stage -> step within it of its newest measurement
        self.tail = Tail(folder.metrics, METRICS)

    def read(self) -> list[Measurement]:
        """The measurements since the last call; none before every named stage has been measured."""
        measured = []
        for record in self.tail.read():
            named = [metric for metric in self.metrics if metric[0] == record.get("stage")]
            if record.get("kind") != "monitor" or not named:
                continue
            stage = self.stages[named[0][0]]
            self.newest_steps[stage.name] = int(record["step"]) - stage.first_step
            self.newest |= {
                metric: float(record[metric[1]]) for metric in named if isinstance(record.get(metric[1]), NUMBER)
            }
            if len(self.newest) == len(self.metrics):
                measured.append(Measurement(sum(self.newest.values()) / len(self.newest), self.samples()))
        return measured

    def samples(self) -> int:
        """Samples of the measured stages until their newest measurements."""
        return sum(step * self.stages[name].global_batch for name, step in self.newest_steps.items())

    def reached(self, allowed: int | None) -> bool:
        """Whether the newest value, a finite one, is of so many samples of the measured stages or more; None: never."""
        measured = len(self.newest) == len(self.metrics) and all(map(math.isfinite, self.newest.values()))
        return allowed is not None and measured and self.samples() >= allowed

    def complete(self) -> bool:
        """Whether every named stage has been measured at its end."""
        return all(self.newest_steps.get(name, 0) >= self.stages[name].steps for name, _ in self.metrics)


def run_trial(spec: TrialSpec, report: Callable[[dict[str, Any]], None]) -> None:
    """Run a trial to its end, to the rung that it may train to, or to a request to stop in its folder.

    `report` gets {"value", "samples"} for each measurement and at last what `sum_up` says, with `outcome`:
    finished, stopped (goes on another time), not finite, failed, refused (the reader has to change something).
    LostRun where the run ended for no reason of its own.
    """
    experiment = Experiment.model_validate(spec.experiment)
    folder = RunFolder.at(spec.folder)
    folder.pull()
    stages = make_stages(experiment, spec.videos)
    ending: dict[str, str] = {}
    measured = {stage for stage, _ in spec.metrics}
    first = first_stage(stages, measured, spec.shared is not None)
    last = [stage.name for stage in stages if stage.name in measured][-1]
    begin_at(first, folder, experiment, stages, RunFolder.at(spec.shared) if spec.shared else None)
    starts, pause = _starts(folder), None if spec.allowed is None else pause_step(stages, measured, spec.allowed)

    def work() -> None:
        ending.update(_train(experiment, last, spec.address, pause))

    follower = Follower(folder, stages, spec.metrics)
    for one in follower.read():  # of an earlier driver
        report(asdict(one))
    if follower.complete() and all(folder.encoder(stage).is_file() for stage, _ in spec.metrics):
        report(sum_up(folder, stages, follower) | {"outcome": "finished", "reason": ""})
        return
    if follower.reached(spec.allowed):
        report(sum_up(folder, stages, follower) | {"outcome": "stopped", "reason": ""})
        return
    _wait_for_earlier(folder)
    thread = threading.Thread(target=work, daemon=True, name=f"trial-{spec.number}")
    thread.start()
    alive = True
    while alive:
        thread.join(POLL_SECONDS)
        alive = thread.is_alive()
        if alive and folder.remote:
            folder.fetch(folder.metrics)
        for one in follower.read():
            report(asdict(one))
    outcome = _outcome(ending, follower, folder, _starts(folder) > starts)
    if outcome["outcome"] == "stopped" and not (folder.stop_requested() or follower.reached(spec.allowed)):
        raise LostRun(f"trial {spec.number}: its run ended without a request")
    report(sum_up(folder, stages, follower) | outcome)


def pause_step(stages: Sequence[Stage], measured: Collection[str], allowed: int) -> int:
    """The global step by which the measured stages have seen `allowed` samples; not before the last of them has begun."""
    *earlier, last = [stage for stage in stages if stage.name in measured]
    left = allowed - sum(stage.samples for stage in earlier)
    return last.first_step + max(math.ceil(left / last.global_batch), 1)


def _wait_for_earlier(folder: RunFolder) -> None:
    """Let the same trial of a driver that was just killed end; where it does not, `run_training` says so."""
    folder.path.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + EARLIER_SECONDS
    while time.monotonic() < until:
        with suppress(UserError), alone_in(folder):
            return
        time.sleep(POLL_SECONDS)


def _train(experiment: Experiment, last: str, address: str, pause: int | None) -> dict[str, str]:
    from vicc_ray.cluster.launch import run_training

    try:
        run_training(experiment, address, last=last, pause=pause)
        return {"outcome": "finished"}
    except Interrupted:
        return {"outcome": "stopped"}
    except UserError as error:
        return {"outcome": "refused", "reason": str(error)}
    except Exception as error:
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}


def _outcome(ending: Mapping[str, str], follower: Follower, folder: RunFolder, started: bool) -> dict[str, str]:
    """How a trial ended, in the sweep's words."""
    outcome, reason = ending.get("outcome", "failed"), ending.get("reason", "")
    if follower.complete():
        outcome, reason = "finished", ""
    elif outcome == "refused" and any(event["kind"] == "not finite" for event in read_events(folder.events)):
        outcome = "not finite"
    elif outcome == "refused" and started:
        # What its workers came to is this trial's own end; what came before them would meet every other trial too.
        outcome = "failed"
    elif outcome == "finished":
        outcome, reason = "failed", "its stages are done, but the metric was never reported"
    return {"outcome": outcome, "reason": " ".join(reason.split())}


def _starts(folder: RunFolder) -> int:
    return sum(event["kind"] == "start" for event in read_events(folder.events))


def sum_up(folder: RunFolder, stages: Sequence[Stage], follower: Follower) -> dict[str, Any]:
    """What a trial cost so far, and figures of its assignments, from its folder."""
    folder.pull()
    records = read_metrics(folder.metrics)
    trained = [r for r in records if r["kind"] == "train" and isinstance(r.get("samples"), int)]
    wanted = [follower.stages[name] for name, _ in follower.metrics]
    first = min((record["samples"] for record in _first_of_run(trained, stages)), default=0)
    seconds, device_seconds = cost(read_events(folder.events), trained)
    newest = [record for record in trained if record["stage"] in {stage.name for stage in wanted}][-1:]
    facts = {
        f"end_{name}": float(newest[0][name]) for name in ("loss", "ln_k", "entropy") if newest and name in newest[0]
    }
    return {
        "seconds": seconds,
        "device_seconds": device_seconds,
        "trained_samples": max((record["samples"] for record in trained), default=first) - first,
        "full_samples": samples_at(stages, max(stage.end for stage in wanted)) - first,
        "collapsed": any(_tells_collapse(record, follower) for record in records),
        **facts,
    }


def _first_of_run(trained: Sequence[Mapping[str, Any]], stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """What was trained when this run's own first stage began."""
    for record in trained[:1]:
        stage = next(stage for stage in stages if stage.name == record["stage"])
        return [{"samples": samples_at(stages, stage.first_step)}]
    return []


def _tells_collapse(record: Mapping[str, Any], follower: Follower) -> bool:
    """Whether a note of a measured stage says that nothing is being learned (see `objective.CollapseWatch`)."""
    return record["kind"] == "note" and "ln(K)" in record["text"] and (record["stage"] in dict(follower.metrics))


def cost(events: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """(seconds, device-seconds) of a run: each start of its workers to its last record, times its workers.

    Work that was lost by a fault counts up to the last record that survived it.
    """
    starts = [event for event in events if event["kind"] == "start" and isinstance(event.get("workers"), int)]
    seconds = devices = 0.0
    for event, after in itertools.zip_longest(starts, starts[1:]):
        until = float(after["time"]) if after else math.inf
        times = [float(record["time"]) for record in trained if event["time"] <= record["time"] < until]
        if times:
            seconds += max(times) - float(event["time"])
            devices += (max(times) - float(event["time"])) * int(event["workers"])
    return seconds, devices
