"""What stopping bad trials early spends and loses: the curves of a sweep's whole trials, replayed in random orders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.trial import Trial, TrialState

from benchmarks import Bar, Outcome
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune.sweep import make_pruner

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
ORDERS_A_ROUND = 40
AT_ONCE = 2
NEAR = 0.02  # of the best recall; with 160 queries three of them
SCHEDULERS = ("none", "asha", "median")


class _Running(NamedTuple):
    trial: Trial
    curve: Sequence[int]
    measured: int  # that were reported


def replay(pruner: BasePruner, curves: Sequence[Sequence[int]], draw: random.Random) -> tuple[float, float]:
    """(samples trained / samples of whole trials, best recall of the trials that came to their ends) of one order.

    `AT_ONCE` trials run side by side at much the same pace; a trial that ends makes room for the next.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner)
    waiting = draw.sample(list(curves), len(curves))
    running: list[_Running] = []
    steps, best = 0, 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            running.append(_Running(study.ask(), waiting.pop(), 0))
        one = min(running, key=lambda each: each.measured + draw.random())
        running.remove(one)
        step, right = STEPS[one.measured], one.curve[one.measured]
        steps += step - (STEPS[one.measured - 1] if one.measured else 0)
        one.trial.report(right / QUERIES, step * BATCH)
        if step == STEPS[-1]:
            study.tell(one.trial, right / QUERIES)
            best = max(best, right)
        elif one.trial.should_prune():
            study.tell(one.trial, state=TrialState.PRUNED)
        else:
            running.append(one._replace(measured=one.measured + 1))
    return steps / (STEPS[-1] * len(curves)), best / QUERIES


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Every scheduler in the same random orders of the recorded trials, with the shipped sweep's own settings."""
    experiment = load_experiment(shipped_experiment("sweep_quickstart"))
    assert experiment.search is not None
    stages = make_stages(experiment, VIDEOS)
    top = max(curve[-1] for curve in RECORDED) / QUERIES
    shares: dict[str, list[float]] = {}
    lost: dict[str, list[float]] = {}
    for scheduler in SCHEDULERS:
        pruner = make_pruner(experiment.search.model_copy(update={"scheduler": scheduler}), experiment, stages)
        orders = [replay(pruner, RECORDED, random.Random(seed)) for seed in range(ORDERS_A_ROUND * rounds)]
        shares[scheduler] = [share for share, _ in orders]
        lost[scheduler] = [top - best for _, best in orders]
    outcome = Outcome("samples trained / samples of whole trials", shares)
    outcome.details = {
        scheduler: {
            "mean share of the samples": float(np.mean(shares[scheduler])),
            "orders within 0.6 of the samples": float(np.mean(np.array(shares[scheduler]) <= 0.6)),
            "mean recall lost": float(np.mean(lost[scheduler])),
            "orders within 2 points of the best": float(np.mean(np.array(lost[scheduler]) <= NEAR)),
        }
        for scheduler in SCHEDULERS
    }
    asha = outcome.details["asha"]
    outcome.bars = [
        Bar("asha: mean share of the samples", asha["mean share of the samples"], 0.6, False),
        Bar("asha: orders within 2 points of the best", asha["orders within 2 points of the best"], 0.9),
    ]
    outcome.facts = {"best recall": round(top, 4), "orders": ORDERS_A_ROUND * rounds}
    return outcome
