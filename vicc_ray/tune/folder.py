"""A sweep's folder: which file lies where, and who may go on with it.

RUNS/NAME/sweep.yaml             the resolved experiment with its search section
          history.jsonl          Optuna's journal: every trial, its settings, its figures; the one truth of what was run
          trials/0000/ ...       a run folder a trial
          shared/                the run folder of the single-stream stages, where all trials start from the same ones
          best.yaml, best/       the best trial as an experiment, and a run folder that starts as the trial did
          trials.csv, trials.parquet, report.html      the result
          events.jsonl, clock.json, logs/              starts and faults, seconds spent, what Ray had to say

As a run, a sweep under a URI has a mirror on the machine that drives it; only that machine writes the files above.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicc_ray import storage
from vicc_ray.config import Experiment, dump_experiment, flatten, load_experiment
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder, flow_differences
from vicc_ray.runs.records import append_record, write_text
from vicc_ray.training.driver import alone_in, is_held

# Settings under which a sweep may go on with other values: where and how long, not what is compared.
_MAY_CHANGE = (
    "name",
    "runs",
    "train",
    "linear",
    "finetune",
    "data.decode_timeout",
    "data.max_pixels",
    "data.manifest",
    "clip.store",
    "flow.store",
    "flow.weights",
    "search.budget",
    "search.concurrency",
    "search.max_failures",
)


@dataclass(frozen=True)
class SweepFolder:
    """Where each file of a sweep lies."""

    run: RunFolder

    @classmethod
    def at(cls, where: str | Path) -> SweepFolder:
        """The sweep folder of a path or URI."""
        return cls(RunFolder.at(where))

    def __str__(self) -> str:
        return str(self.run)

    @property
    def path(self) -> Path:
        """The folder on this machine."""
        return self.run.path

    @property
    def config(self) -> Path:
        """The sweep's experiment."""
        return self.path / "sweep.yaml"

    @property
    def history(self) -> Path:
        """Optuna's journal of the trials."""
        return self.path / "history.jsonl"

    @property
    def trials(self) -> str:
        """Path or URI of the folder that holds the trials' run folders."""
        return storage.join(str(self.run), "trials")

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial."""
        return RunFolder.at(storage.join(self.trials, trial_name(number)))

    @property
    def shared(self) -> RunFolder:
        """The run folder of the stages that all trials share."""
        return RunFolder.at(storage.join(str(self.run), "shared"))

    @property
    def best_config(self) -> Path:
        """The experiment of the best trial."""
        return self.path / "best.yaml"

    @property
    def table(self) -> Path:
        """The trials, a row each, as CSV."""
        return self.path / "trials.csv"

    @property
    def parquet(self) -> Path:
        """The same as Parquet."""
        return self.path / "trials.parquet"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def events(self) -> Path:
        """Starts, ends and notes of the driver; a JSON line each."""
        return self.path / "events.jsonl"

    @property
    def clock(self) -> Path:
        """Seconds that drivers were at work."""
        return self.path / "clock.json"

    @property
    def logs(self) -> Path:
        """Folder of Ray's output."""
        return self.path / "logs"

    def exists(self) -> bool:
        """Whether a sweep was begun here."""
        self.pull()
        return self.config.is_file()

    def pull(self) -> None:
        """Bring the sweep's own files of the mirror up to the store."""
        if self.run.remote is not None:
            for path in (self.config, self.history, self.events, self.clock):
                self.run.fetch(path)

    def push(self, *paths: Path) -> None:
        """Put files into the store."""
        self.run.push(*paths)

    def experiment(self) -> Experiment:
        """The sweep's experiment; UserError where this is no sweep folder."""
        if not self.exists():
            raise UserError(f"{self}: is not a sweep folder (it has no sweep.yaml); give one that 'vicc tune' made")
        return load_experiment(self.config)

    def begun(self) -> Experiment | None:
        """The experiment of the sweep that the folder holds; None where none began."""
        return self.experiment() if self.exists() else None

    def open(
        self,
        experiment: Experiment,
        data_fingerprint: str,
        flow: Mapping[str, Any] | None = None,
        earlier: str | None = None,
    ) -> bool:
        """Claim the folder for a sweep; True where it goes on. UserError, naming each difference, for another sweep's.

        flow: what decides the flow that trials learn from (`data.identity`). earlier: as of `RunFolder.open`.
        """
        facts = {"data_fingerprint": data_fingerprint, "flow": flow}
        there = self.exists()
        if there:
            self._refuse_another(experiment, facts, earlier)
        elif self.run.config.is_file():
            raise UserError(f"{self}: holds a run, not a sweep; choose another folder with --set name=...")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "sweep.json", json.dumps(facts) + "\n")
        write_text(self.config, dump_experiment(experiment))
        self.push(self.path / "sweep.json", self.config)
        return there

    def _refuse_another(self, experiment: Experiment, facts: Mapping[str, Any], earlier: str | None) -> None:
        before, now = (flatten(one.model_dump(mode="json")) for one in (self.experiment(), experiment))
        changed = [
            f"{key}: was {before.get(key)}, now {now.get(key)}"
            for key in before | now
            if before.get(key) != now.get(key)
            and not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
        ]
        self.run.fetch(self.path / "sweep.json")
        there = self._facts()
        if there.get("data_fingerprint") not in (facts["data_fingerprint"], earlier):
            changed.append("the videos of the manifest are not the same")
        changed += flow_differences(there.get("flow"), facts["flow"])
        if changed:
            raise UserError(
                f"{self}: holds a sweep of another experiment ({'; '.join(changed)}); "
                "choose another folder with --set name=..., or remove this one"
            )

    def _facts(self) -> dict[str, Any]:
        """What sweep.json says; UserError where it is missing or damaged: then it is not known which videos were used."""
        file = self.path / "sweep.json"
        try:
            facts = json.loads(file.read_bytes())
            if not isinstance(facts, dict):
                raise ValueError("it is no object")
            return facts
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self}: its sweep.json cannot be read ({getattr(error, 'strerror', None) or error}), so it is not known "
                "whether the videos are still the same; put the file back, or choose another folder with --set name=..."
            ) from None

    @contextmanager
    def driven(self) -> Iterator[None]:
        """Be the only driver of this sweep; UserError where another one is alive on this machine."""
        with alone_in(self.run):
            yield

    def is_driven(self) -> bool | None:
        """Whether a driver is alive on this machine; None where its lock cannot be read. Writes nothing."""
        return is_held(self.run)

    def note(self, kind: str, **facts: Any) -> None:
        """Append to the sweep's events; a full disk does not stop the sweep for it."""
        with suppress(OSError):
            append_record(self.events, {"kind": kind, "time": time.time(), **facts})
            self.push(self.events)

    def seconds(self) -> float:
        """Seconds that drivers of this sweep have been at work."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return float(json.loads(self.clock.read_text(encoding="utf-8"))["seconds"])
        return 0.0

    def keep_seconds(self, seconds: float) -> None:
        """Remember them for the next driver."""
        with suppress(OSError):
            write_text(self.clock, json.dumps({"seconds": seconds}) + "\n")
            self.push(self.clock)


def trial_name(number: int) -> str:
    """The name of a trial's run folder."""
    return f"{number:04d}"
