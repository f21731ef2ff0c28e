"""The trials of a sweep as rows: what the table, the page and the status show."""

from __future__ import annotations

from typing import Any

import optuna

from vicc_ray.config import SearchConfig
from vicc_ray.tune.history import point_of


def trial_rows(search: SearchConfig, study: optuna.Study) -> list[dict[str, Any]]:
    """A row a trial: number, outcome, metric, settings, cost, collapse. Samples are those that the trial trained itself."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        facts = trial.user_attrs
        point = point_of(search, trial)
        measured = trial.intermediate_values
        rows.append(
            {
                "trial": trial.number,
                "outcome": facts.get("outcome", "unfinished"),
                "value": (trial.values or [measured[max(measured)] if measured else None])[0],
                **{path: _plain(point.get(path)) for path in search.space},
                "best_measurement": (max if search.mode == "max" else min)(measured.values(), default=None),
                "samples": facts.get("trained_samples"),
                "samples_of_a_whole_trial": facts.get("full_samples"),
                "seconds": facts.get("seconds"),
                "device_hours": facts["device_seconds"] / 3600 if "device_seconds" in facts else None,
                "collapsed": facts.get("collapsed"),
                "loss": facts.get("end_loss"),
                "ln_k": facts.get("end_ln_k"),
                "entropy": facts.get("end_entropy"),
                "reason": facts.get("reason") or None,
            }
        )
    return rows


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def samples_spent(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """(samples that the trials trained, samples that they would have trained to their ends)."""
    known = [row for row in rows if row["samples"] is not None and row["samples_of_a_whole_trial"] is not None]
    return sum(row["samples"] for row in known), sum(
        max(row["samples_of_a_whole_trial"], row["samples"]) for row in known
    )
