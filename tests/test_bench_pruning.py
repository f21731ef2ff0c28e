"""The replay of recorded trials: what is counted, and that the record is one of the shipped sweep."""

from __future__ import annotations

import random

import optuna
from optuna.pruners import BasePruner, NopPruner

from benchmarks.pruning import BATCH, QUERIES, RECORDED, STEPS, VIDEOS, measure, replay
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.training.schedule import every, make_stages


class Never(BasePruner):
    """No trial goes on."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_whole_trials_spend_everything_and_lose_nothing() -> None:
    assert replay(NopPruner(), RECORDED, random.Random(0)) == (1.0, 151 / QUERIES)


def test_trials_that_end_at_their_first_look_spend_that_and_find_nothing() -> None:
    assert replay(Never(), RECORDED, random.Random(0)) == (STEPS[0] / STEPS[-1], 0.0)


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
    assert outcome.details["none"]["mean recall lost"] == 0.0
