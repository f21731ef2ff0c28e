"""What stopping or pausing bad trials early spends and loses: curves of whole trials, replayed in random orders.

Two records: the trials of a grid over the shipped sweep's space, and `lcdb.csv`, learning curves of classifiers on 50 public data
sets, where a trial is a classifier and samples are those that it learns from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import Trial, TrialState

from benchmarks import Bar, Outcome
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune.median import MedianPruner
from vicc_ray.tune.promotion import Curve, Promotion, promoted, to_the_end
from vicc_ray.tune.sweep import grace_samples, make_pruner

# Recall of 160 queries after 18, 36, 54 and 72 steps of the 12 trials of `experiments/sweep_quickstart.yaml` with scheduler:
# none over the grid of 8, 32 and 128 prototypes, temperature 0.05 and 0.2, queue 0 and 64 (in an order of its own).
QUERIES, VIDEOS, BATCH = 160, 400, 16
STEPS = (18, 36, 54, 72)
RECORDED = (
    (129, 148, 139, 134),
    (136, 139, 146, 148),
    (137, 144, 152, 151),
    (140, 147, 142, 147),
    (136, 144, 139, 143),
    (138, 132, 143, 148),
    (121, 123, 131, 125),
    (129, 140, 134, 143),
    (133, 142, 152, 151),
    (129, 139, 143, 144),
    (137, 130, 137, 142),
    (141, 141, 148, 148),
)
RECALLS = tuple(tuple(right / QUERIES for right in curve) for curve in RECORDED)
LCDB = Path(__file__).with_name("lcdb.csv")
LCDB_FIRST, LCDB_REDUCTION = 128, 3  # first rung; training samples
ORDERS_A_ROUND = 40
AT_ONCE = 2
NEAR = 0.02  # of the best; three of 160 queries
SCHEDULERS = ("none", "asha", "promotion", "median")

Curves = Sequence[Sequence[float]]
Rule = Callable[[Curves, random.Random], tuple[float, float]]


class _Running(NamedTuple):
    trial: Trial
    curve: Sequence[float]
    measured: int  # that were reported


def replay(
    pruner: BasePruner, curves: Curves, draw: random.Random, steps: Sequence[int] = STEPS, batch: int = BATCH
) -> tuple[float, float]:
    """(samples trained / samples of whole trials, best value of the trials that came to their ends) of one order.

    `AT_ONCE` trials run side by side at much the same pace; a trial that ends makes room for the next.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner)
    waiting = draw.sample(list(curves), len(curves))
    running: list[_Running] = []
    spent, best = 0, 0.0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(_Running(study.ask(), waiting.pop(), 0))
        one = min(running, key=lambda each: each.measured + draw.random())
        running.remove(one)
        step, value = steps[one.measured], one.curve[one.measured]
        spent += step - (steps[one.measured - 1] if one.measured else 0)
        one.trial.report(value, step * batch)
        if step == steps[-1]:
            study.tell(one.trial, value)
            best = max(best, value)
        elif one.trial.should_prune():
            study.tell(one.trial, state=TrialState.PRUNED)
        else:
            running.append(one._replace(measured=one.measured + 1))
    return spent / (steps[-1] * len(curves)), best


def replay_pauses(
    first: int, reduction: int, curves: Curves, draw: random.Random, steps: Sequence[int] = STEPS, batch: int = BATCH
) -> tuple[float, float]:
    """The same where trials pause at their rungs and the best go on; `first`: the first rung, in samples."""
    order = draw.sample(list(curves), len(curves))
    full = steps[-1] * batch
    trials: list[Curve] = []
    while True:
        while sum(trial.busy for trial in trials) < AT_ONCE:
            if found := _going_on(trials, first, reduction, len(trials) == len(order)):
                trials[found.number] = replace(trials[found.number], allowed=found.samples, busy=True)
            elif len(trials) < len(order):
                trials.append(Curve(len(trials), {}, min(first, full), full, busy=True))
            else:
                break
        running = [trial for trial in trials if trial.busy]
        if not running:
            break
        one = min(running, key=lambda trial: len(trial.looks) + draw.random())
        seen = len(one.looks)
        samples = steps[seen] * batch
        looks = {**one.looks, samples: order[one.number][seen]}
        over = samples == full
        trials[one.number] = replace(one, looks=looks, over=over, busy=not over and samples < one.allowed)
    spent = sum(max(trial.looks) for trial in trials)
    return spent / (full * len(order)), max(trial.looks[full] for trial in trials if trial.over)


def _going_on(trials: Sequence[Curve], first: int, reduction: int, all_begun: bool) -> Promotion | None:
    """What `Sweep.next` does where the budget is a number of trials."""
    if found := promoted(trials, first, reduction):
        return found
    done = sum(trial.over for trial in trials)
    idle = not any(trial.busy for trial in trials)
    return to_the_end(trials) if all_begun and idle and done < reduction else None


def public_curves() -> tuple[list[int], list[Curves]]:
    """(training samples of each point, per data set the curves of its classifiers) of `lcdb.csv`."""
    lines = [line.split(",") for line in LCDB.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    sets: dict[str, list[list[float]]] = {}
    for data, _, *values in lines[1:]:
        sets.setdefault(data, []).append([int(value) / 10_000 for value in values])
    return [int(samples) for samples in lines[0][2:]], list(sets.values())


def shipped_rule(scheduler: str) -> Rule:
    """A scheduler with the shipped sweep's own settings."""
    experiment = load_experiment(shipped_experiment("sweep_quickstart"))
    assert experiment.search is not None
    search, stages = experiment.search.model_copy(update={"scheduler": scheduler}), make_stages(experiment, VIDEOS)
    if scheduler == "promotion":
        first = grace_samples(search, experiment, stages)
        return lambda curves, draw: replay_pauses(first, search.reduction, curves, draw)
    pruner = make_pruner(search, experiment, stages)
    return lambda curves, draw: replay(pruner, curves, draw)


def public_rule(scheduler: str, steps: Sequence[int]) -> Rule:
    """The same schedulers for the public curves."""
    if scheduler == "promotion":
        return lambda curves, draw: replay_pauses(LCDB_FIRST, LCDB_REDUCTION, curves, draw, steps, batch=1)
    pruners: dict[str, BasePruner] = {
        "none": NopPruner(),
        "asha": SuccessiveHalvingPruner(min_resource=LCDB_FIRST, reduction_factor=LCDB_REDUCTION),
        "median": MedianPruner(startup_trials=5, grace=LCDB_FIRST),
    }
    return lambda curves, draw: replay(pruners[scheduler], curves, draw, steps, batch=1)


def replayed(rule: Rule, sets: Sequence[Curves], orders: int) -> tuple[list[float], list[float]]:
    """(share of the samples, value lost beside the best trial) of each order, the sets in turn."""
    shares, lost = [], []
    for seed in range(orders):
        curves = sets[seed % len(sets)]
        share, best = rule(curves, random.Random(seed))
        shares.append(share)
        lost.append(max(curve[-1] for curve in curves) - best)
    return shares, lost


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Every scheduler in the same random orders of the recorded trials."""
    orders = ORDERS_A_ROUND * rounds
    steps, sets = public_curves()
    results = {scheduler: replayed(shipped_rule(scheduler), [RECALLS], orders) for scheduler in SCHEDULERS}
    results |= {f"public: {name}": replayed(public_rule(name, steps), sets, orders) for name in SCHEDULERS}
    outcome = Outcome("samples trained / samples of whole trials", {name: one[0] for name, one in results.items()})
    outcome.details = {
        name: {
            "mean share of the samples": float(np.mean(shares)),
            "orders within 0.6 of the samples": float(np.mean(np.array(shares) <= 0.6)),
            "mean value lost": float(np.mean(lost)),
            "orders within 2 points of the best": float(np.mean(np.array(lost) <= NEAR)),
        }
        for name, (shares, lost) in results.items()
    }
    for name in ("asha", "promotion"):
        figures = outcome.details[name]
        outcome.bars += [
            Bar(f"{name}: mean share of the samples", figures["mean share of the samples"], 0.6, False),
            Bar(f"{name}: orders within 2 points", figures["orders within 2 points of the best"], 0.9),
        ]
    for where in ("", "public: "):
        ours, rival = (outcome.details[f"{where}{name}"]["mean value lost"] for name in ("promotion", "asha"))
        outcome.bars.append(Bar(f"{where}what promotion loses / what asha loses", ours / rival, 1.0, False))
    outcome.facts = {
        "best recall": round(max(curve[-1] for curve in RECALLS), 4),
        "orders": orders,
        "public data sets": len(sets),
    }
    return outcome
