"""A small training run on a cluster of this machine's own, to cause faults in: for the recovery bench and the fault tests."""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.nodes import LocalCluster, command_line, descendants, send
from benchmarks.product import Product
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.probing import index
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import last_records, read_records

# What is read of a run's metrics for the newest of them, each of which has some 500 bytes.
NEWEST_BYTES = 4096

# Small enough for several nodes on two cores: what is measured is the recovery, not the training.
EXPERIMENT: dict[str, Any] = {
    "name": "faults",
    "seed": 3,
    "clip": {"frames": 8, "decode_size": [32, 32], "size": 32},
    "flow": {"bound": 8},
    "model": {"backbone": "r2plus1d_10", "width": 0.0625, "embedding_dim": 16},
    "objective": {"prototypes": 8, "queue": 16},
    "schedule": {
        "cycles": 1,
        "single": {
            "length": "3 steps",
            "cosine_over": "100 %",
            "global_batch": 8,
            "queue_start": 0,
            "freeze_prototypes": 0,
        },
        "cross": {"length": {"rgb": "4000 steps", "flow": "3 steps"}, "global_batch": 8, "queue_start": "2 steps"},
    },
    "optim": {"name": "adamw", "lr": 0.001, "end_lr": 0.0001},
    "train": {
        "workers": {"min": 1, "max": 4},
        "resize_after": 5,
        "start_timeout": 5,
        "collective_timeout": 20,
        "checkpoint_every": "20 steps",
        "log_every": 1,
        "record_samples": True,
    },
    "evaluate": {"monitor_every": "25 steps", "monitor_videos": 16},
}


def make_table(folder: Path) -> Path:
    """16 training and 8 query videos of 12 frames, 32 x 32 pixels, in `folder`/data; returns their table."""
    return make_dataset(folder / "data", train_per_class=2, query_per_class=1, frames=12, size=32, seed=5, workers=1)


def make_videos(folder: Path) -> Manifest:
    """The videos of `make_table` with their manifest, made by this checkout, at `folder`/videos.parquet."""
    manifest = index(scan(make_table(folder)), workers=2)
    manifest.write(folder / "videos.parquet")
    return manifest


class TooLate(Exception):
    """Something did not happen in time; the message has the driver's words."""


@dataclass(frozen=True)
class Recovered:
    """What a fault cost: seconds to the next optimiser step, and steps that were done and had to be done again."""

    seconds: float
    steps_lost: int


class TrainRun(ABC):
    """A run of `EXPERIMENT` (with `changes` to its sections) in `folder`, driven by `vicc train`."""

    folder: Path
    changes: dict[str, Any]
    driver: subprocess.Popen[bytes] | None

    @property
    def run_folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.folder / "runs" / "faults")

    @abstractmethod
    def command(self, experiment: Path) -> list[str]:
        """What is run."""

    @abstractmethod
    def measured(self) -> Product:
        """Whose command that is."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """For what is run."""

    def start(self) -> None:
        """Start the driver; again after it has ended."""
        tree = {name: dict(value) if isinstance(value, dict) else value for name, value in EXPERIMENT.items()}
        for name, value in self.changes.items():
            tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
        tree |= {
            "runs": str(self.folder / "runs"),
            "data": {"manifest": str(self.folder / "videos.parquet"), **tree.get("data", {})},
        }
        file = self.folder / "faults.yaml"
        file.write_text(yaml.safe_dump(tree))
        with (self.folder / "driver.log").open("ab") as log:
            self.driver = self.measured().start(self.command(file), log, self.environment())

    def stop(self) -> int:
        """Interrupt the driver politely; its status."""
        assert self.driver
        send(self.driver.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return self.driver.wait(60)
        self.driver.kill()
        return self.driver.wait()

    def records(self) -> list[dict[str, Any]]:
        """The training records so far."""
        return [record for record in read_records(self.run_folder.metrics) if record["kind"] == "train"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The run's events of a kind."""
        return [event for event in read_records(self.run_folder.events) if event["kind"] == kind]

    def step(self) -> int:
        """Optimiser steps done, as far as the records say."""
        # The whole file, read ten times a second, would take its time from what is measured.
        newest = last_records(self.run_folder.metrics, 1, NEWEST_BYTES)
        return int(newest[-1]["step"]) if newest else 0

    def wait(self, holds: Callable[[], bool], what: str, seconds: float = 240) -> float:
        """Seconds until a condition holds; `TooLate` where it does not or the driver ends before."""
        started = time.monotonic()
        while not holds():
            over = self.driver is not None and self.driver.poll() is not None
            if over or time.monotonic() - started > seconds:
                words = (self.folder / "driver.log").read_text(errors="replace")[-3000:]
                raise TooLate(f"{what}: not {'before the driver ended' if over else f'within {seconds:g} s'}\n{words}")
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_steps(self, count: int, what: str = "training goes on", seconds: float = 240) -> None:
        """Wait for this many more steps."""
        goal = self.step() + count
        self.wait(lambda: self.step() >= goal, what, seconds)

    def let_train(self, seconds: float) -> None:
        """Let this many seconds pass; `TooLate` where the driver ends in them. Reads no records, so costs the run nothing."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= until, "a run that goes on", seconds + 60)

    def pace(self, seconds: float) -> float:
        """Samples/s of this many seconds from now, between the newest records of their beginning and end."""
        before = self.records()[-1]
        self.let_train(seconds)
        after = self.records()[-1]
        return float((after["samples"] - before["samples"]) / (after["time"] - before["time"]))


@dataclass
class LocalRun(TrainRun):
    """A run on this machine alone, with the Ray that the driver starts for itself."""

    folder: Path
    product: Product
    changes: dict[str, Any] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None

    def command(self, experiment: Path) -> list[str]:
        """Without an address."""
        return [str(self.product.vicc), "train", str(experiment)]

    def measured(self) -> Product:
        """The product named."""
        return self.product

    def environment(self) -> dict[str, str]:
        """The product's."""
        return self.product.environment()


@dataclass
class FaultRun(TrainRun):
    """A run on a cluster, of the product that the cluster is of."""

    folder: Path
    cluster: LocalCluster
    changes: dict[str, Any] = field(default_factory=dict)
    driver: subprocess.Popen[bytes] | None = None
    reached: int = 0  # the step at the newest `mark`

    def command(self, experiment: Path) -> list[str]:
        """With the cluster's address."""
        return [str(self.cluster.product.vicc), "train", str(experiment), "--address", self.cluster.address]

    def measured(self) -> Product:
        """The one that the cluster is of."""
        return self.cluster.product

    def environment(self) -> dict[str, str]:
        """The cluster's."""
        return self.cluster.environment

    def mark(self) -> float:
        """The moment of a fault, time.time(); the step reached by then is remembered."""
        self.reached = self.step()
        return time.time()

    def recovery(self, since: float, workers: int | None = None, seconds: float = 240) -> float:
        """Seconds from the moment `since` (time.time()) to the next optimiser step, of that many workers where given."""

        def stepped() -> float | None:
            starts = [event["time"] for event in self.events("start") if event["time"] > since]
            times = [
                record["time"]
                for record in self.records()
                if starts and record["time"] > starts[0] and workers in (None, record["workers"])
            ]
            return min(times) - since if times else None

        self.wait(lambda: stepped() is not None, "recovery", seconds)
        return stepped() or 0.0

    def next_step(self, since: float, workers: int, seconds: float = 240) -> float:
        """Seconds from the moment `since` (time.time()) to the next optimiser step of that many workers."""

        def times() -> list[float]:
            return [one["time"] for one in self.records() if one["time"] > since and one["workers"] == workers]

        self.wait(lambda: bool(times()), "a step", seconds)
        return min(times()) - since

    def recover(self, cause: Callable[[], object], workers: int | None = None) -> Recovered:
        """Cause a fault and wait for the next step, of that many workers where given.

        Steps lost: from the step that the next start of training begins at to the one reached when the fault was complete.
        """
        starts, at = len(self.events("start")), time.time()
        cause()
        reached = self.step()
        seconds = self.recovery(at, workers)
        return Recovered(seconds, max(reached - int(self.events("start")[starts]["step"]), 0))

    def processes(self, title: str) -> list[int]:
        """Processes of the cluster's nodes whose title holds a word, as Ray writes it (`RayTrainWorker`, `MapWorker`)."""
        pids = [pid for node in self.cluster.nodes for pid in descendants(node.process.pid)]
        return [pid for pid in pids if title in command_line(pid)]
