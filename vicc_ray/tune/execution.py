"""Ray Tune's part of a sweep: a driver a trial, placed, watched and begun again where its node is lost.

Tune's own persistence is not used: its searcher's state is saved now and then, so a killed driver would take trials from Optuna
twice. Each session of a sweep is a fresh Tuner over the same study (see `sweep`). Trials that are given up are requested to
stop through their folders and end by themselves; a trial that Tune stops leaves its workers to be found and ended.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune import Callback, FailureConfig, PlacementGroupFactory, RunConfig, TuneConfig, Tuner
from ray.tune.search import Searcher

from vicc_ray import storage
from vicc_ray.cluster.resources import Machine, total
from vicc_ray.cluster.session import machine_grown, nodes_now
from vicc_ray.config import TrainConfig
from vicc_ray.errors import Interrupted
from vicc_ray.tune.plan import with_room_for_one
from vicc_ray.tune.sweep import Sweep
from vicc_ray.tune.trials import Measurement, TrialSpec, run_trial

# What a trial's driver occupies; it computes nothing, so it takes no CPU from the workers.
DRIVER_BYTES = 600 * 2**20

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def cluster(train: TrainConfig) -> Machine:
    """What the connected cluster has, or will have for a trial."""
    now = total(nodes_now())
    return with_room_for_one(now, machine_grown(now), train)


def driver_memory() -> int:
    """Bytes that the connected cluster can allocate to trials' drivers."""
    return int(ray.cluster_resources().get("memory", 0))


def run_trials(sweep: Sweep, concurrency: int) -> None:
    """Run trials until the sweep has no more; Interrupted at a second Ctrl-C."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    trainable = tune.with_resources(_trial, PlacementGroupFactory([{"memory": float(DRIVER_BYTES)}]))
    tuner = Tuner(
        trainable,
        tune_config=TuneConfig(
            search_alg=_Asker(sweep),
            num_samples=-1,  # the sweep itself says when it is over
            max_concurrent_trials=concurrency,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"trial-{trial.trial_id}",
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=RunConfig(
            name=uuid4().hex,
            storage_path=storage.join(str(sweep.folder), "logs", "tune"),
            failure_config=FailureConfig(max_failures=sweep.search.max_failures),
            callbacks=[_Watch(sweep)],
            verbose=0,
        ),
    )
    with _polite(sweep):
        try:
            tuner.fit()
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; the same command goes on in {sweep.folder}") from None
        finally:
            sweep.folder.keep_seconds(sweep.seconds)


def _trial(config: dict[str, Any]) -> None:
    """What each of Tune's trials runs."""
    spec = json.loads(config["spec"])
    spec["metrics"] = [(stage, figure) for stage, figure in spec["metrics"]]
    run_trial(TrialSpec(**spec), tune.report)


class _Asker(Searcher):  # type: ignore[misc]  # Ray has no types
    """Tune's questions, passed to the sweep."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(metric="value", mode="max")
        self.sweep = sweep
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial, as Tune takes it; None where there is none yet."""
        try:
            spec = self.sweep.next()
        except Exception as error:
            return self._give_up(error)
        if spec is None and self.sweep.waits:
            return None
        if spec is None:
            finished: str = Searcher.FINISHED
            return finished
        self.numbers[trial_id] = spec.number
        return {"spec": json.dumps(spec.plain())}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A measurement; the last report is taken at the trial's end."""
        if "outcome" in result or trial_id not in self.numbers:
            return
        try:
            self.sweep.add_measurement(
                self.numbers[trial_id], Measurement(float(result["value"]), int(result["samples"]))
            )
        except Exception as error:
            self._give_up(error)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial's end; `error`: its driver was lost too often."""
        if trial_id not in self.numbers:
            return
        try:
            self.sweep.end(self.numbers[trial_id], None if error else result)
        except Exception as problem:
            self._give_up(problem)

    def _give_up(self, error: Exception) -> str:
        """End the sweep with an error: Tune itself would log it and go on."""
        self.sweep.closing = True
        self.sweep.error = self.sweep.error or error
        finished: str = Searcher.FINISHED
        return finished

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk."""


class _Watch(Callback):  # type: ignore[misc]
    """Tune's loop, passed to the sweep."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Several times a second."""
        self.sweep.tick()


@contextmanager
def _polite(sweep: Sweep) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the sweep after its trials' next checkpoints; the second one at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if sweep.closing:
            raise KeyboardInterrupt
        sweep.close("stopping")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
