"""The published rows beside what run folders hold of them: number, difference, cost. Reads files, runs nothing.

A run is of a row's pretraining where its backbone is the row's and its videos are UCF101's (the manifest says so; where it does
not, the run's name has to begin with the row's). Runs that differ in their seed alone are averaged, folds too; how a run
departs from the published recipe is said beside its number. A run of scale smoke is no reproduction and stands apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from vicc_ray.config import Experiment, flatten, is_free, load_experiment
from vicc_ray.config.published import PRETRAINING, ROWS, PublishedRow, shipped_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import Evaluation, Spread, read_all, recipe_of, summarise
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import NUMBER, read_events, read_records

# How a row's protocol is named in an evaluation; recall is set against the number as published and in its exact form.
MEASURED = {"retrieval": ("reference", "retrieval"), "linear": ("linear",), "finetune": ("finetune",)}
EXACT = "retrieval"


@dataclass(frozen=True)
class Cost:
    """What pretraining took: `device_hours` of all workers together, `hours` on the clock."""

    device_hours: float
    hours: float

    @property
    def told(self) -> str:
        """Both in words, minutes where they are few."""
        device, clock = _words(self.device_hours), _words(self.hours)
        return f"{device[0]} device-{device[1]}, {clock[0]} {clock[1]} on the clock"


@dataclass(frozen=True)
class Attempt:
    """One row as some runs reproduced it. Percent; `deviation` is a sample's, None of one value.

    `departures`: settings that differ from the published recipe, in words. `cost`: mean over the runs; None where their
    records do not say.
    """

    row: PublishedRow
    mean: float
    deviation: float | None
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    exact: bool
    smoke: bool
    departures: tuple[str, ...]
    cost: Cost | None

    @property
    def difference(self) -> float:
        """Ours less the published number, in points."""
        return self.mean - self.row.percent

    @property
    def over(self) -> str:
        """What the mean is taken over, in words."""
        splits = f"split{'s' if len(self.folds) > 1 else ''} {', '.join(map(str, self.folds))}"
        seeds = f"seed{'s' if len(self.seeds) > 1 else ''} {', '.join(map(str, self.seeds))}"
        return f"{splits if self.folds else 'a split of its own'}; {seeds}"

    @property
    def missing_folds(self) -> tuple[int, ...]:
        """Official splits that the row's number is set against and that were not measured."""
        return tuple(fold for fold in self.row.folds if fold not in self.folds)


@dataclass(frozen=True)
class Reproduction:
    """All rows that the run folders hold something of, in the table's order; `smoke` apart, `missing` have nothing."""

    attempts: list[Attempt]
    smoke: list[Attempt]
    missing: list[PublishedRow]
    notes: list[str]


@dataclass(frozen=True)
class _Run:
    experiment: Experiment
    evaluations: list[Evaluation]
    cost: Cost | None
    dataset: str | None
    fold: int | None


def reproduction(folders: Sequence[Path]) -> Reproduction | None:
    """The published rows that the run folders hold; None where they hold none.

    What cannot be read is left out and named in `notes`.
    """
    notes: list[str] = []
    runs = [run for folder in folders if (run := _read(RunFolder(folder), notes))]
    attempts = [attempt for row in ROWS for attempt in _attempts(row, runs)]
    if not attempts:
        return None
    tried = {attempt.row.id for attempt in attempts}
    return Reproduction(
        [attempt for attempt in attempts if not attempt.smoke],
        [attempt for attempt in attempts if attempt.smoke],
        [row for row in ROWS if row.id not in tried],
        notes,
    )


def pretraining_cost(folder: RunFolder) -> Cost | None:
    """Time between a start of the workers and their records, times their number; pauses and lost work are left out."""
    told = [
        r
        for r in read_records(folder.metrics)
        if r.get("kind") == "train" and isinstance(r.get("workers"), int) and isinstance(r.get("time"), NUMBER)
    ]
    starts = [event for event in read_events(folder.events) if event["kind"] == "start"]
    hours = device_hours = 0.0
    before: float | None = None
    for record in sorted([*told, *starts], key=lambda record: float(record["time"])):
        now = float(record["time"])
        if record["kind"] == "train" and before is not None:
            hours += (now - before) / 3600
            device_hours += (now - before) / 3600 * float(record["workers"])
        before = now
    return Cost(device_hours, hours) if told else None


def _read(folder: RunFolder, notes: list[str]) -> _Run | None:
    """None where nothing was evaluated, or where it cannot be read."""
    try:
        evaluations = read_all(folder)
        if not evaluations:
            return None
        manifest = Manifest.read(folder.manifest) if folder.manifest.is_file() else Manifest([])
        return _Run(folder.experiment(), evaluations, pretraining_cost(folder), manifest.dataset, manifest.fold)
    except UserError as error:
        notes.append(f"{error}.")
        return None


def _attempts(row: PublishedRow, runs: Sequence[_Run]) -> Iterator[Attempt]:
    recipes: dict[str, list[_Run]] = {}
    for run in runs:
        if _is_of(run, row):
            recipes.setdefault(recipe_of(run.experiment), []).append(run)
    for name, alike in product(MEASURED[row.protocol], recipes.values()):
        wanted = [one for run in alike for one in run.evaluations if (one.protocol, one.data) == (name, row.dataset)]
        for spread in summarise(wanted):
            official = (spread.train_on, spread.test_on) == ("train", "query")
            if (spread.encoder, spread.metric) == (row.encoder, row.metric) and official:
                yield _attempt(row, spread, [run for run in alike if run.experiment.name in spread.runs])


def _attempt(row: PublishedRow, spread: Spread, runs: Sequence[_Run]) -> Attempt:
    costs = [run.cost for run in runs if run.cost]
    return Attempt(
        row=row,
        mean=100 * spread.mean,
        deviation=None if spread.deviation is None else 100 * spread.deviation,
        folds=spread.folds,
        seeds=spread.seeds,
        runs=spread.runs,
        exact=spread.protocol == EXACT,
        smoke=spread.scale == "smoke",
        departures=() if spread.scale == "smoke" else tuple(_departures(row, spread, runs[0])),
        cost=Cost(*(_mean([getattr(cost, name) for cost in costs]) for name in ("device_hours", "hours")))
        if costs
        else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_of(run: _Run, row: PublishedRow) -> bool:
    if run.experiment.model.backbone != row.backbone:
        return False
    if run.dataset is not None:
        return run.dataset == PRETRAINING[0]
    name = run.experiment.name
    return name == row.run or name.startswith((f"{row.run}-", f"{row.run}_"))


def _departures(row: PublishedRow, spread: Spread, run: _Run) -> Iterator[str]:
    published = _settings(_published(row))
    ours = _settings(run.experiment)
    for key, value in ours.items():
        if key != "seed" and not is_free(key) and value != published[key]:
            yield f"{key} {value} (published: {published[key]})"
    for key, value in spread.settings.items():
        place = next((p for p in (f"{row.protocol}.{key}", f"evaluate.{key}") if p in published), None)
        if place and value != published[place]:
            yield f"{place} {value} (published: {published[place]})"
    if run.dataset is None:
        yield "the videos of pretraining are not known"
    elif run.fold != PRETRAINING[1]:
        yield f"pretrained on split {run.fold or 'of its own'} (published: {PRETRAINING[1]})"


def _settings(experiment: Experiment) -> Mapping[str, Any]:
    return flatten(experiment.model_dump(mode="json"))


@cache
def _published(row: PublishedRow) -> Experiment:
    return load_experiment(shipped_experiment(row.id))


def _words(hours: float) -> tuple[str, str]:
    value, unit = (hours, "hours") if hours >= 1 else (60 * hours, "minutes")
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}", unit
