"""What a sweep tries: the search section as Optuna's distributions, and points of it as experiments. Pure.

A point is {dotted setting: value}. Optuna knows scalars only, so a value of a choice that is a list or a mapping goes by its
JSON text there.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from vicc_ray.config import Experiment, Range, SearchConfig, is_free, with_settings
from vicc_ray.errors import UserError
from vicc_ray.training.schedule import Stage, make_stages

Point = dict[str, Any]

# Combinations of ends and choices that are checked before the first trial; of larger spaces that many, at random.
CHECKED = 512
# What the monitor of recall reports (see `training.monitor`).
FIGURES = ("R@1", "R@5")


def search_of(experiment: Experiment) -> SearchConfig:
    """The experiment's search section; UserError where there is none, it is empty, or it names what cannot be searched."""
    search = experiment.search
    if search is None:
        raise UserError(
            "search: is not set; a sweep is an experiment with a search section (see experiments/sweep_*.yaml)"
        )
    if not search.space:
        raise UserError(
            "search.space: is empty; name settings to try, e.g. {objective.temperature: {log: [0.03, 0.3]}}"
        )
    for path in search.space:
        if is_free(path):
            raise UserError(f"search.space: {path} does not change what is learnt, so there is nothing to find by it")
    if search.sampler == "grid":
        for path, range_ in search.space.items():
            if range_.kind != "choice":
                raise UserError(
                    f"search.space: {path}: {range_.kind} has no grid; write {{choice: [...]}} or take sampler: tpe"
                )
    if search.budget.unit == "trials" and search.sampler == "grid" and search.budget.value > grid_size(search):
        raise UserError(
            f"search.budget: {search.budget} cannot be reached, the grid has {grid_size(search)} points; "
            f"write '{grid_size(search)} trials'"
        )
    if search.against != "none" and search.scheduler != "none":
        raise UserError(
            f"search.scheduler: {search.scheduler} compares trials by one figure, so it cannot stop trials of a search "
            f"against {search.against}; set search.scheduler: none"
        )
    return search


def distributions(search: SearchConfig) -> dict[str, BaseDistribution]:
    """The space for Optuna."""
    return {path: _distribution(range_) for path, range_ in search.space.items()}


def _distribution(range_: Range) -> BaseDistribution:
    if range_.kind == "choice":
        return CategoricalDistribution([_label(value) for value in range_.values])
    low, high = range_.values
    if range_.kind in ("int", "log_int"):
        return IntDistribution(low, high, log=range_.kind == "log_int")
    return FloatDistribution(low, high, log=range_.kind == "log")


def _label(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)


def settings_of(search: SearchConfig, params: Mapping[str, Any]) -> Point:
    """Optuna's parameters as settings."""
    point = dict(params)
    for path, range_ in search.space.items():
        if range_.kind == "choice" and path in point:
            point[path] = next(value for value in range_.values if _label(value) == point[path])
    return point


def grid(search: SearchConfig) -> list[Point]:
    """Every combination of choices as Optuna's parameters, in an order of its own that spreads over the grid."""
    paths = list(search.space)
    points = [
        dict(zip(paths, map(_label, values), strict=True))
        for values in itertools.product(*(search.space[path].values for path in paths))
    ]
    random.Random(search.seed).shuffle(points)
    return points


def grid_size(search: SearchConfig) -> int:
    """The number of combinations of choices."""
    size = 1
    for range_ in search.space.values():
        size *= len(range_.values)
    return size


def describe_point(point: Mapping[str, Any]) -> str:
    """One phrase, with the last part of each setting's name."""
    return ", ".join(f"{path.rsplit('.', 1)[-1]} {_short(value)}" for path, value in point.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trial_experiment(experiment: Experiment, point: Point, runs: str, name: str) -> Experiment:
    """The experiment of a trial: the sweep's with the point's settings, in a run folder of its own."""
    changed = with_settings(experiment, point, f"trial {name}")
    return changed.model_copy(update={"search": None, "runs": runs, "name": name})


def corners(search: SearchConfig) -> Iterator[Point]:
    """Every combination of lowest, highest and chosen values; of more than `CHECKED` a random part, with each value in it."""
    ends = {path: range_.values for path, range_ in search.space.items()}
    if grid_size(search) <= CHECKED:
        for values in itertools.product(*ends.values()):
            yield dict(zip(ends, values, strict=True))
        return
    draw = random.Random(0)
    for number in range(CHECKED):
        # The first points go through every value of each setting in turn.
        yield {path: values[number] if number < len(values) else draw.choice(values) for path, values in ends.items()}


def check_space(experiment: Experiment, search: SearchConfig, videos: int) -> list[Stage]:
    """The stages of the sweep's own experiment; UserError where a point would be refused or never report the metric.

    What makes one setting impossible beside another grows or falls with either, so the ends of the ranges decide.
    """
    stages = make_stages(experiment, videos)
    check_metric(experiment, search, stages)
    for point in corners(search):
        where = describe_point(point)
        try:
            changed = with_settings(experiment, point, "search.space")
            check_metric(changed, search, make_stages(changed, videos))
        except UserError as error:
            raise UserError(f"{error} [at {where}]") from None
    return stages


def metrics_of(search: SearchConfig) -> list[tuple[str, str]]:
    """(stage, figure) of each part of the metric."""
    names = (search.metric,) if isinstance(search.metric, str) else search.metric
    return [(stage, figure) for stage, _, figure in (name.partition("/") for name in names)]


def check_metric(experiment: Experiment, search: SearchConfig, stages: list[Stage]) -> None:
    """UserError where the metric would never be reported."""
    known = [stage.name for stage in stages]
    for stage, figure in metrics_of(search):
        if stage not in known or figure not in FIGURES:
            raise UserError(
                f"search.metric: {stage}/{figure} is never reported; it is STAGE/FIGURE with a stage of {', '.join(known)} "
                f"and a figure of {', '.join(FIGURES)}"
            )
    if experiment.evaluate.monitor_every.value <= 0:
        raise UserError(
            f"search.metric: {search.metric} is never reported, as evaluate.monitor_every is 0; set it, "
            "e.g. evaluate.monitor_every: 5 epochs"
        )
