"""The replay of recorded trials: what is counted, and that the record is one of the shipped sweep."""

from __future__ import annotations

import random

import optuna
from optuna.pruners import BasePruner, NopPruner

from benchmarks.pruning import (
    BATCH,
    RECALLS,
    RECORDED,
    STEPS,
    VIDEOS,
    measure,
    public_curves,
    replay,
    replay_pauses,
)
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.training.schedule import every, make_stages


class Never(BasePruner):
    """No trial goes on."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_whole_trials_spend_everything_and_lose_nothing() -> None:
    assert replay(NopPruner(), RECALLS, random.Random(0)) == (1.0, 151 / 160)


def test_trials_that_end_at_their_first_look_spend_that_and_find_nothing() -> None:
    assert replay(Never(), RECALLS, random.Random(0)) == (STEPS[0] / STEPS[-1], 0.0)


def test_the_record_is_one_of_the_shipped_sweep() -> None:
    experiment = load_experiment(shipped_experiment("sweep_quickstart"))
    stage = next(stage for stage in make_stages(experiment, VIDEOS) if stage.name == "Flow-1")
    look = every(experiment.evaluate.monitor_every, stage)
    assert tuple(range(look, stage.steps + 1, look)) == STEPS
    assert stage.global_batch == BATCH
    assert {len(curve) for curve in RECORDED} == {len(STEPS)}


def test_stopping_early_saves_and_asha_saves_more_than_median_stopping() -> None:
    outcome = measure(rounds=1)
    assert outcome.median("asha") < outcome.median("median") < outcome.median("none") == 1.0
    assert outcome.details["none"]["mean value lost"] == 0.0
    assert outcome.median("promotion") < outcome.median("median")
    assert (
        outcome.median("public: promotion") < outcome.median("public: median") < outcome.median("public: none") == 1.0
    )


def test_pauses_spend_what_they_let_trials_train() -> None:
    """By hand: all four see 18 steps, the best half 36, and 72 steps the two that the sweep ends with."""
    curves = [(0.1, 0.1, 0.1, 0.1), (0.2, 0.2, 0.2, 0.2), (0.3, 0.3, 0.3, 0.3), (0.4, 0.4, 0.4, 0.4)]
    found = [replay_pauses(18 * BATCH, 2, curves, random.Random(seed)) for seed in range(20)]
    assert {best for _, best in found} == {0.4}
    assert min(share for share, _ in found) == (2 * 18 + 2 * 72) / (4 * 72)
    late = [(0.9, 0.1, 0.1, 0.1), (0.1, 0.9, 0.9, 0.9), (0.1, 0.1, 0.1, 0.1)]
    assert replay_pauses(18 * BATCH, 3, late, random.Random(0))[1] == 0.9  # all three come to their ends


def test_the_public_curves_are_whole() -> None:
    samples, sets = public_curves()
    assert samples == [2**power for power in range(4, 14)]
    assert len(sets) == 50
    assert all(18 <= len(curves) <= 20 and {len(curve) for curve in curves} == {10} for curves in sets)
    assert all(0 <= value <= 1 for curves in sets for curve in curves for value in curve)
