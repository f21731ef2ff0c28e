"""`vicc tune --status`: how a sweep stands, from its folder alone."""

from __future__ import annotations

import time
from typing import Any

from vicc_ray.config import Experiment
from vicc_ray.console import console
from vicc_ray.runs.records import read_events
from vicc_ray.tune.folder import SweepFolder
from vicc_ray.tune.history import metric_name, open_study, point_of
from vicc_ray.tune.rows import trial_rows
from vicc_ray.tune.space import describe_point, search_of
from vicc_ray.tune.sweep import best_trial


def sweep_status(experiment: Experiment) -> dict[str, Any]:
    """State, counts, best trial, time left (seconds; None before a trial has ended); UserError where there is no sweep."""
    folder = SweepFolder.at(experiment.run_folder)
    experiment = folder.experiment()
    search = search_of(experiment)
    study = open_study(folder, search, read_only=True)
    rows = trial_rows(search, study)
    ended = [row for row in rows if row["outcome"] != "unfinished"]
    best = best_trial(study)
    budget, seconds = search.budget, folder.seconds()
    driven = folder.is_driven()
    left = None
    if budget.unit == "trials":
        to_do = max(int(budget.value) - len(ended), 0)
        left = seconds / len(ended) * to_do if ended else None
    elif budget.unit == "hours":
        left = max(3600 * budget.value - seconds, 0.0)
    starts = [event for event in read_events(folder.events) if event["kind"] == "start"]
    return {
        "sweep": str(folder),
        "state": _state(driven, _done(budget, ended, rows, seconds)),
        "budget": str(budget),
        "metric": metric_name(search),
        "trials": len(ended),
        "unfinished": [row for row in rows if row["outcome"] == "unfinished"],
        "outcomes": {end: sum(row["outcome"] == end for row in ended) for end in {row["outcome"] for row in ended}},
        "best": None
        if best is None
        else {"trial": best.number, "value": best.values[0], "settings": point_of(search, best)},
        "seconds": seconds,
        "left": left,
        "device_hours": sum(row["device_hours"] or 0.0 for row in rows),
        "starts": len(starts),
        "since_start": time.time() - starts[-1]["time"] if starts else None,
    }


def _state(driven: bool | None, done: bool) -> str:
    if driven:
        return "running"
    if done:
        return "finished"
    return "stopped" if driven is False else "running or stopped (its lock cannot be read here)"


def _done(budget: Any, ended: list[Any], rows: list[dict[str, Any]], seconds: float) -> bool:
    if len(ended) < len(rows):
        return False
    if budget.unit == "trials":
        return bool(len(ended) >= budget.value)
    spent = seconds / 3600 if budget.unit == "hours" else sum(row["device_hours"] or 0.0 for row in rows)
    return bool(spent >= budget.value)


def print_sweep_status(status: dict[str, Any]) -> None:
    """A few lines."""
    outcomes = ", ".join(f"{count} {end}" for end, count in sorted(status["outcomes"].items()))
    console.print(f"{status['sweep']}: {status['state']}, budget {status['budget']}")
    console.print(f"trials: {status['trials']} ended ({outcomes or 'none'}), {len(status['unfinished'])} unfinished")
    if status["best"]:
        best = status["best"]
        console.print(
            f"best: trial {best['trial']}, {status['metric']} {best['value']:.3f}: {describe_point(best['settings'])}",
        )
    for row in status["unfinished"]:
        at = f"at {row['value']:.3f}" if row["value"] is not None else "no measurement yet"
        console.print(f"trial {row['trial']}: {at}")
    left = f", about {status['left'] / 60:.0f} min left" if status["left"] and status["state"] != "finished" else ""
    console.print(
        f"{status['seconds'] / 60:.1f} min, {status['device_hours']:.3g} device-hours, {status['starts']} starts{left}"
    )
