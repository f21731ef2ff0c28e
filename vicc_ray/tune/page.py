"""The page of a sweep: Optuna's own plots and a table of the trials, one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna import visualization
from optuna.trial import TrialState

from vicc_ray.config import SearchConfig
from vicc_ray.report.pages import render
from vicc_ray.report.plots import figure_json, scripts
from vicc_ray.runs.records import write_text
from vicc_ray.tune.folder import SweepFolder
from vicc_ray.tune.history import metric_name, point_of, seen
from vicc_ray.tune.rows import samples_spent
from vicc_ray.tune.samplers import importance
from vicc_ray.tune.space import describe_point
from vicc_ray.tune.sweep import best_trial

FEWEST_FOR_IMPORTANCE = 4  # completed trials; of fewer, importances say nothing


@dataclass(frozen=True)
class Plot:
    """A plot's title, what it shows, and its figure as JSON."""

    title: str
    text: str
    json: str


def write_page(folder: SweepFolder, search: SearchConfig, study: optuna.Study, rows: list[dict[str, Any]]) -> None:
    """Write report.html; a plot that cannot be made of these trials is left out, with the reason."""
    plots, left_out = _plots(search, study)
    facts = {
        "title": folder.path.name,
        "scripts": scripts(),
        "facts": _facts(folder, search, study, rows),
        "plots": plots,
        "left_out": left_out,
        "columns": list(rows[0]) if rows else [],
        "rows": rows,
    }
    write_text(folder.report, render(Path(__file__).parent / "page.html.j2", facts, {"cell": _cell}))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(
    folder: SweepFolder, search: SearchConfig, study: optuna.Study, rows: list[dict[str, Any]]
) -> list[tuple[str, str]]:
    ends = [row["outcome"] for row in rows]
    spent, whole = samples_spent(rows)
    facts = [("trials", ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends)) or "none")]
    best = best_trial(study)
    if best is not None:
        settings = describe_point(point_of(search, best))
        facts.append(("best", f"trial {best.number}: {metric_name(search)} {best.values[0]:.4f} with {settings}"))
    facts += [
        ("time", f"{folder.seconds() / 60:.1f} min of the driver"),
        ("device-hours", f"{sum(row['device_hours'] or 0.0 for row in rows):.3g}"),
    ]
    if whole:
        facts.append(("training", f"{spent} of {whole} samples; stopping early saved {1 - spent / whole:.0%}"))
    facts.append(("search", f"{search.sampler}, {search.scheduler}, budget {search.budget}, seed {search.seed}"))
    return facts


def _plots(search: SearchConfig, study: optuna.Study) -> tuple[list[Plot], list[str]]:
    name, one = metric_name(search), search.against == "none"
    judged = seen(study, search, len(study.get_trials(deepcopy=False)))
    counted = "; of a trial that was stopped early its last measurement counts" if _stopped(study) else ""
    # Optuna needs the name of one of several figures of a plot, and refuses that of a single one.
    of: dict[str, Any] = {"target_name": name} if one else {"target": _metric, "target_name": name}
    chosen: list[tuple[str, str, Callable[[], Any]]] = [
        (
            "Best so far",
            "every trial, and the best one until then",
            lambda: _history(study, of),
        ),
        (
            "Parallel coordinates",
            f"a line a trial, coloured by its value{counted}",
            lambda: visualization.plot_parallel_coordinate(judged, **of),
        ),
        ("Slices", f"the value over each setting{counted}", lambda: visualization.plot_slice(judged, **of)),
        (
            "Importances",
            f"which setting the value depends on (fANOVA){counted}",
            lambda: _importances(judged, name),
        ),
        ("Timeline", "when each trial ran", lambda: visualization.plot_timeline(study)),
    ]
    if one:
        text = "each measurement of each trial; a dotted curve was stopped early"
        chosen.insert(1, ("Recall curves", text, lambda: _curves(search, study)))
    else:
        text = f"{name} against {search.against}; no trial is better in both than one of the front"
        chosen.insert(0, ("Front", text, lambda: visualization.plot_pareto_front(study)))
    plots, left_out = [], []
    for title, text, make in chosen:
        try:
            figure = make()
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            left_out.append(f"{title}: {error}")
            continue
        plots.append(Plot(title, text, figure_json(figure, 420)))
    return plots, left_out


def _metric(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _stopped(study: optuna.Study) -> dict[int, float]:
    """{number: last measurement} of the trials that were stopped early."""
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    return {trial.number: trial.intermediate_values[trial.last_step] for trial in pruned if trial.last_step is not None}


def _history(study: optuna.Study, of: dict[str, Any]) -> Any:
    """Optuna's history, with the last measurements of trials that were stopped early next to it."""
    figure = visualization.plot_optimization_history(study, **of)
    if stopped := _stopped(study):
        marker, name = {"symbol": "circle-open", "color": "#51606e"}, "stopped early, last measurement"
        figure.add_scatter(x=list(stopped), y=list(stopped.values()), mode="markers", marker=marker, name=name)
    return figure


def _curves(search: SearchConfig, study: optuna.Study) -> Any:
    """The metric of each trial over samples; Optuna's own plot leaves out why a curve ends."""
    import plotly.graph_objects as graph

    figure = graph.Figure()
    best = best_trial(study)
    for trial in study.get_trials(deepcopy=False):
        measured = sorted(trial.intermediate_values.items())
        if not measured:
            continue
        outcome = trial.user_attrs.get("outcome", "unfinished")
        leads = best is not None and trial.number == best.number
        figure.add_scatter(
            x=[step for step, _ in measured],
            y=[value for _, value in measured],
            mode="lines+markers",
            name=f"{trial.number} ({outcome})",
            line={"width": 3 if leads else 1.2, "dash": "dot" if outcome == "pruned" else "solid"},
            hovertext=describe_point(point_of(search, trial)),
        )
    if not figure.data:
        raise ValueError("no trial has a measurement yet")
    figure.update_layout(xaxis_title="samples of the measured stage", yaxis_title=metric_name(search))
    return figure


def _importances(study: optuna.Study, name: str) -> Any:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.values[0] for trial in done]
    if len(done) < FEWEST_FOR_IMPORTANCE or math.isclose(min(values), max(values)):
        raise ValueError(f"needs {FEWEST_FOR_IMPORTANCE} completed trials of different values")
    return visualization.plot_param_importances(study, evaluator=importance(), target=_metric, target_name=name)
