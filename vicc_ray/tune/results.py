"""What a sweep leaves: best.yaml, a table of its trials, the page."""

from __future__ import annotations

from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial
from pyarrow import csv
from rich.table import Table

from vicc_ray import storage
from vicc_ray.config import Experiment, SearchConfig, dump_experiment
from vicc_ray.console import console
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import write_text
from vicc_ray.storage import whole_file
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune.folder import SweepFolder, trial_name
from vicc_ray.tune.history import metric_name, point_of
from vicc_ray.tune.page import write_page
from vicc_ray.tune.rows import samples_spent, trial_rows
from vicc_ray.tune.sharing import begin_at, first_stage, measured
from vicc_ray.tune.space import describe_point, trial_experiment
from vicc_ray.tune.sweep import best_trial


def write_results(
    folder: SweepFolder, experiment: Experiment, search: SearchConfig, study: optuna.Study, shares: bool, videos: int
) -> None:
    """Write trials.csv, trials.parquet, report.html, and best.yaml as soon as a trial is completed."""
    rows = trial_rows(search, study)
    if rows:
        table = pa.table({name: _column([row[name] for row in rows]) for name in rows[0]})
        with whole_file(folder.parquet) as partial:
            pq.write_table(table, partial)
        with whole_file(folder.table) as partial:
            csv.write_csv(table, partial)
    best = best_trial(study)
    if best is not None:
        _write_best(folder, experiment, search, best, shares, videos)
    write_page(folder, search, study, rows)
    folder.push(folder.parquet, folder.table, folder.best_config, folder.report)


def _column(values: list[Any]) -> pa.Array:
    """One column; values of a choice that are of several kinds go as text."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])


def _write_best(
    folder: SweepFolder, experiment: Experiment, search: SearchConfig, best: FrozenTrial, shares: bool, videos: int
) -> None:
    """best.yaml, and where trials share stages the run folder that begins as they did."""
    name = f"best-{trial_name(best.number)}"
    chosen = trial_experiment(experiment, point_of(search, best), storage.absolute(str(folder)), name)
    head = [
        f"The best of the sweep {folder}: trial {best.number}, {metric_name(search)} {best.values[0]:.4f},",
        f"with {describe_point(point_of(search, best))}.",
        f"  vicc train {storage.join(str(folder), folder.best_config.name)}",
    ]
    if shares:
        stages = make_stages(chosen, videos)
        first = first_stage(stages, measured(search), shared=True)
        begin_at(first, RunFolder.at(chosen.run_folder), chosen, stages, folder.shared)
        head += [
            f"Its run folder, {name}, begins with the single-stream stages that all trials shared, as the trial did.",
            "Under another name (--set name=...) all stages are trained, with the settings below.",
        ]
    write_text(folder.best_config, "".join(f"# {line}\n" for line in head) + dump_experiment(chosen))


def print_results(folder: SweepFolder, search: SearchConfig, study: optuna.Study) -> None:
    """The trials in the order of their value, and the best one."""
    rows = trial_rows(search, study)
    table = Table(title=f"{folder}: {metric_name(search)}")
    for column in ("trial", "outcome", "value", *search.space, "seconds"):
        table.add_column(column.rsplit(".", 1)[-1], justify="left" if column == "outcome" else "right")
    sign = -1 if search.mode == "max" else 1
    known = sorted(rows, key=lambda row: (row["value"] is None, sign * (row["value"] or 0.0)))
    for row in known:
        cells = (row[name] for name in ("trial", "outcome", "value", *search.space, "seconds"))
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)
    spent, whole = samples_spent(rows)
    if whole > spent:
        console.print(f"stopping early saved {1 - spent / whole:.0%} of {whole} training samples")
    best = best_trial(study)
    if best is not None:
        console.print(
            f"best: trial {best.number}, {metric_name(search)} {best.values[0]:.3f}: {describe_point(point_of(search, best))}",
        )
        console.print(f"train it: vicc train {folder.best_config}")
    console.print(f"report: {folder.report}")
