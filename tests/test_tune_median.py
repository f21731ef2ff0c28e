"""median.py: Optuna's own rule where trials look at the same moments, and the same decision where they do not."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.trial import Trial, TrialState

from vicc_ray.tune.median import MedianPruner

optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_of(pruner: optuna.pruners.BasePruner, direction: str = "maximize") -> optuna.Study:
    return optuna.create_study(direction=direction, pruner=pruner, sampler=optuna.samplers.RandomSampler(0))  # type: ignore[arg-type]


def run(study: optuna.Study, looks: dict[int, float]) -> int | None:
    """The step at which a trial with these looks is stopped; None where it comes to its end."""
    trial: Trial = study.ask()
    for step, value in looks.items():
        trial.report(value, step)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return step
    study.tell(trial, value)
    return None


@pytest.mark.parametrize("every", [16, 24, 32, 25])
def test_a_worthless_trial_of_another_batch_size_is_stopped_at_its_first_look(every: int) -> None:
    study = study_of(MedianPruner(startup_trials=5, grace=16))
    for number in range(6):
        assert run(study, {step: 0.5 + number / 100 + step / 1000 for step in range(16, 161, 16)}) is None
    assert run(study, dict.fromkeys(range(every, 161, every), 0.01)) == every
    assert run(study, dict.fromkeys(range(every, 161, every), 0.9)) is None


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_is_optunas_rule_where_all_look_at_the_same_moments(direction: str) -> None:
    draw = random.Random(1)
    ours = study_of(MedianPruner(startup_trials=3, grace=20), direction)
    theirs = study_of(optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=19), direction)
    ends = []
    for _ in range(40):
        looks = {step: draw.random() for step in range(10, 101, 10)}
        ends.append((run(ours, looks), run(theirs, looks)))
    assert all(mine == other for mine, other in ends)
    assert 5 < sum(mine is not None for mine, _ in ends) < 37


def test_nobody_is_stopped_before_its_time() -> None:
    study = study_of(MedianPruner(startup_trials=2, grace=50))
    worthless = {10: 0.0, 49: 0.0}
    run(study, {10: 0.5, 60: 0.5})
    assert run(study, {50: 0.6, 60: 0.6}) is None  # one completed trial is too few, and there is nothing to fall below
    assert run(study, worthless) is None  # all of it within its grace
    assert run(study, {40: 0.1, 51: 0.1}) == 51
    late = study_of(MedianPruner(startup_trials=1, grace=1))
    run(late, {100: 0.9})
    assert run(late, {30: 0.0, 99: 0.0}) is None  # nobody had looked by then
