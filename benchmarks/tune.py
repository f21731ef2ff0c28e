"""The sampler of sweeps beside random search, on a made-up response surface: recall found with equally many trials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.storages import InMemoryStorage

from benchmarks import Bar, Outcome
from vicc_ray.config import SearchConfig
from vicc_ray.tune.history import ask, new_study, point_of

TRIALS = 40
SEEDS_A_ROUND = 4  # the default of 5 rounds makes 20 seeds
NOISE = 0.02  # standard deviation of a recall of some hundred queries

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


def best_found(sampler: str, seed: int, trials: int = TRIALS) -> float:
    """The surface, without noise, at the trial with the best value."""
    budget = f"{trials} trials"
    search = SearchConfig.model_validate({"space": SPACE, "sampler": sampler, "budget": budget, "seed": seed})
    study = new_study(InMemoryStorage(), search)
    noise = np.random.default_rng(seed)
    for _ in range(trials):
        trial = ask(study, search)
        study.tell(trial, surface(point_of(search, trial)) + NOISE * noise.standard_normal())
    return surface(point_of(search, study.best_trial))


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Both samplers from the same seeds; the bars are the seeds on which TPE is better, and how much less it leaves."""
    seeds = range(SEEDS_A_ROUND * rounds)
    figures = {sampler: [best_found(sampler, seed) for seed in seeds] for sampler in ("tpe", "random")}
    outcome = Outcome(f"recall found in {TRIALS} trials", figures)
    better = sum(tpe > random for tpe, random in zip(figures["tpe"], figures["random"], strict=True))
    top = surface(OPTIMUM)
    regrets = {name: top - float(np.mean(found)) for name, found in figures.items()}
    outcome.bars = [
        Bar("share of seeds on which tpe is better", better / len(seeds), 0.7),
        Bar("what tpe leaves of the best recall / what random leaves", regrets["tpe"] / regrets["random"], 0.8, False),
    ]
    outcome.facts = {"seeds": len(seeds), "best recall of the surface": round(top, 3)}
    return outcome
