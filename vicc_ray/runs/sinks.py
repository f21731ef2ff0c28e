"""Metrics sinks: where the records of a run go besides metrics.jsonl. TensorBoard, MLflow, Weights & Biases, and others' own.

One of your own is a class with the interface of `MetricsSink`, named in the experiment (`train.sinks: {package.module:Name:
{...}}`) or given by an installed package (entry points `vicc_ray.sinks`). See docs/extending.md.

Each sink has a thread of its own, which is fed from the records: a step waits for none of them. A sink that fails is named
once among the run's events and gets no more; one that hangs holds up nobody.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from queue import Empty, Full, Queue
from typing import Any, Protocol
from uuid import uuid4

from vicc_ray.config import Experiment, flatten
from vicc_ray.errors import UserError
from vicc_ray.extensions import SINKS
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import write_text

WAITING = 10_000  # records that a slow sink may be behind; what comes then is left out of it, and counted
CLOSE_SECONDS = 30.0  # for a sink to write what it has when the workers end
Record = Mapping[str, Any]


@dataclass(frozen=True)
class SinkRun:
    """The run that a sink is opened for.

    Attributes:
        folder: of the run; files of a sink may lie in it.
        experiment: all settings.
        samples: how many samples were trained on before: more than 0 where the run goes on from a checkpoint. Records of later
            samples that a sink has already are trained, and come, again.
    """

    folder: RunFolder
    experiment: Experiment
    samples: int

    @property
    def name(self) -> str:
        """The run's name."""
        return self.experiment.name

    def settings(self) -> dict[str, Any]:
        """All settings as {dotted path: plain value}."""
        return flatten(self.experiment.model_dump(mode="json"))

    def recall(self, key: str) -> str | None:
        """What `remember` kept under a key, in this start of the workers or an earlier one."""
        return self._kept().get(key)

    def remember(self, key: str, value: str) -> None:
        """Keep a short text with the run, for example the number that a tracking server gave it."""
        write_text(self.folder.sinks, json.dumps(self._kept() | {key: value}) + "\n")
        self.folder.push(self.folder.sinks)

    def _kept(self) -> dict[str, str]:
        with suppress(OSError, ValueError):
            kept = json.loads(self.folder.sinks.read_text())
            return kept if isinstance(kept, dict) else {}
        return {}


class MetricsSink(Protocol):
    """Where records go. All of it is called in one thread of worker 0; whatever it raises ends this sink and nothing else.

    A class may also have `check(options)`, a static method that is called before anything runs: UserError for what the reader has
    to change, such as a package that is missing.
    """

    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        """Open it for a run, or open it again; `options` are those of `train.sinks`."""
        ...

    def add(self, record: Record) -> None:
        """One record of metrics.jsonl: `kind` (train, monitor, note), `stage`, `step`, `samples`, `time` (seconds), figures or
        `text`.
        """
        ...

    def close(self) -> None:
        """Write what is left: the workers end, or start again."""
        ...


def figures_of(record: Record) -> dict[str, float]:
    """The finite figures of a record, {stage/figure: value}; none of a note."""
    if record["kind"] == "note":
        return {}
    numbers = {name: value for name, value in record.items() if isinstance(value, float) and name != "time"}
    return {f"{record['stage']}/{name}": value for name, value in numbers.items() if math.isfinite(value)}


class TensorBoard:
    """TensorBoard's event files in the run's folder, by tensorboardX; figures over samples."""

    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        # Its reader drops the points at this step and after it; the point at the checkpoint is not written again. Without a suffix
        # a writer that is opened in the same second would empty this one's file (findings/tensorboardx_same_second.sh).
        self.writer = SummaryWriter(
            str(run.folder.tensorboard), purge_step=run.samples + 1, filename_suffix=f".{run.samples:012d}"
        )

    def add(self, record: Record) -> None:
        """As `MetricsSink`. What a full disk refuses is missing there and nowhere else."""
        with suppress(OSError):
            for name, value in figures_of(record).items():
                self.writer.add_scalar(name, value, record["samples"])
            self.writer.flush()

    def close(self) -> None:
        """As `MetricsSink`."""
        with suppress(OSError):
            self.writer.close()


class MLflow:
    """A run of MLflow, on a tracking server or in a local database; figures over samples, settings as parameters.

    Options: tracking_uri (default: MLflow's own, or sqlite:///mlflow.db), experiment (default: vicc).
    """

    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=options.get("tracking_uri"))
        known = run.recall("mlflow")
        self.logged: dict[str, int] = {}
        if known is None:
            name = str(options.get("experiment", "vicc"))
            found = self.client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self.client.create_experiment(name)
            known = self.client.create_run(experiment, run_name=run.name).info.run_id
            run.remember("mlflow", known)
            self._log_settings(known, run.settings())
        else:
            self.client.update_run(known, status="RUNNING")
            for name in self.client.get_run(known).data.metrics:
                self.logged[name] = max(point.step for point in self.client.get_metric_history(known, name))
        self.run = known

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """UserError where MLflow is not installed, or an option is unknown."""
        _check_options("mlflow", options, {"tracking_uri", "experiment"})
        _check_installed("mlflow", "mlflow")

    def _log_settings(self, run: str, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:500]) for name, value in settings.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run, params=params[start : start + 100])

    def add(self, record: Record) -> None:
        """As `MetricsSink`. MLflow keeps every point of a step, so points that it has are not logged again."""
        from mlflow.entities import Metric

        samples, moment = int(record["samples"]), round(1000 * record["time"])
        # Names may hold no '@'.
        found = {name.replace("@", " at "): value for name, value in figures_of(record).items()}
        new = {name: value for name, value in found.items() if samples > self.logged.get(name, -1)}
        if new:
            self.client.log_batch(self.run, metrics=[Metric(name, new[name], moment, samples) for name in new])

    def close(self) -> None:
        """As `MetricsSink`."""
        self.client.set_terminated(self.run)


class WeightsAndBiases:
    """A run of Weights & Biases; figures over samples.

    Options: project (default: vicc), entity, mode (online, offline; default: online), dir (default: the run's folder).
    """

    def __init__(self, run: SinkRun, options: Mapping[str, Any]) -> None:
        import wandb

        known = run.recall("wandb") or uuid4().hex[:8]
        run.remember("wandb", known)
        folder = options.get("dir", run.folder.path)
        self.run = wandb.init(
            project=str(options.get("project", "vicc")),
            entity=options.get("entity"),
            mode=options.get("mode", "online"),
            dir=str(folder),
            id=known,
            name=run.name,
            resume="allow",
            config=run.settings(),
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )

    @staticmethod
    def check(options: Mapping[str, Any]) -> None:
        """UserError where W&B is not installed, or an option is unknown."""
        _check_options("wandb", options, {"project", "entity", "mode", "dir"})
        _check_installed("wandb", "wandb")

    def add(self, record: Record) -> None:
        """As `MetricsSink`. W&B takes no steps before the newest that it has, so what it has is not logged again."""
        found = figures_of(record)
        if found:
            self.run.log(found, step=int(record["samples"]))

    def close(self) -> None:
        """As `MetricsSink`."""
        self.run.finish()


def check_sinks(experiment: Experiment) -> None:
    """UserError, before anything runs, for a sink that cannot be loaded or has wrong options."""
    for name, options in experiment.train.sinks.items():
        check = getattr(SINKS.load(name, "train.sinks"), "check", None)
        if check is not None:
            check(options)


class Sinks:
    """The sinks of a run, on worker 0; `report` takes a line for the run's events, from any thread."""

    def __init__(self, run: SinkRun, report: Callable[[str], object]) -> None:
        self.feeds = [_Feed(name, run, options, report) for name, options in run.experiment.train.sinks.items()]

    def add(self, record: Record) -> None:
        """Give every sink a record; returns at once."""
        for feed in self.feeds:
            feed.add(record)

    def close(self) -> None:
        """Wait for what the sinks have still to write, but not for one that hangs."""
        for feed in self.feeds:
            feed.end()
        limit = time.monotonic() + CLOSE_SECONDS
        for feed in self.feeds:
            feed.join(max(limit - time.monotonic(), 0.1))


class _Feed:
    """A sink in a thread of its own. The thread is a daemon: a sink that hangs does not keep the process."""

    def __init__(self, name: str, run: SinkRun, options: Mapping[str, Any], report: Callable[[str], object]) -> None:
        self.name, self.run, self.options, self.report = name, run, options, report
        self.queue: Queue[Record | None] = Queue(WAITING)
        self.failed, self.lost = False, 0
        self.thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self.thread.start()

    def add(self, record: Record) -> None:
        if self.failed:
            return
        try:
            self.queue.put_nowait(dict(record))
        except Full:
            self.lost += 1

    def end(self) -> None:
        with suppress(Full):
            self.queue.put_nowait(None)

    def join(self, seconds: float) -> None:
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.report(f"{self.name}: has not written its last records after {CLOSE_SECONDS:g} s; it is left behind")
        elif self.lost:
            self.report(f"{self.name}: was too slow; {self.lost} records are missing there")

    def _work(self) -> None:
        with self._reported():
            sink: MetricsSink = SINKS.load(self.name, "train.sinks")(self.run, self.options)
            while (record := self.queue.get()) is not None:
                sink.add(record)
            sink.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed = True
            self.report(
                f"{self.name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}; gets no more records"
            )
            with suppress(Empty):
                while True:
                    self.queue.get_nowait()


def _check_options(name: str, options: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(options.keys() - known):
        raise UserError(f"train.sinks.{name}.{unknown[0]}: is not an option; allowed: {', '.join(sorted(known))}")


def _check_installed(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise UserError(
            f"train.sinks.{extra}: its package is not installed; pip install 'vicc-ray[{extra}]' on every node"
        )
