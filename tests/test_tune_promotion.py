"""Trials that pause at rungs: which one goes on, by hand; every trial once, whatever is killed and when; what samplers see."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_tune_sweep import Killed, drive, experiment, facts, opened

from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.tune.history import seen
from vicc_ray.tune.promotion import Curve, Promotion, next_rung, promoted, rungs, to_the_end
from vicc_ray.tune.space import search_of
from vicc_ray.tune.sweep import Sweep
from vicc_ray.tune.trials import Measurement


def curve(number: int, *values: float, allowed: int | None = None, **more: Any) -> Curve:
    """A trial with a look every 10 of 90 samples, that came to what it may train."""
    looks = {10 * (index + 1): value for index, value in enumerate(values)}
    return Curve(number, looks, max(looks, default=0) if allowed is None else allowed, 90, **more)


def test_rungs_lie_a_factor_apart_and_the_end_is_the_last() -> None:
    assert rungs(10, 3, 90) == [10, 30, 90]
    assert rungs(10, 3, 91) == [10, 30, 90, 91]
    assert rungs(90, 3, 90) == [90]
    assert [next_rung(curve(0, allowed=allowed), 10, 3) for allowed in (10, 30)] == [30, 90]


@pytest.mark.parametrize(
    ("curves", "found"),
    [
        ([], None),
        ([curve(0, 0.5), curve(1, 0.9)], None),  # a third of two is none
        ([curve(0, 0.5), curve(1, 0.9), curve(2, 0.6)], Promotion(1, 30)),
        ([curve(0, 0.5), curve(1, 0.9, busy=True), curve(2, 0.6)], None),  # the best one is running
        ([curve(0, 0.5), curve(1, 0.9, over=True), curve(2, 0.6)], None),  # or has failed: it holds its place
        ([curve(0, 0.5), curve(1, 0.9, 0.9, 0.9, allowed=30), curve(2, 0.6)], None),  # is further already
        ([curve(0, 0.7), curve(1, 0.7), curve(2, 0.6)], Promotion(0, 30)),
        ([curve(0, 0.5), curve(1, 0.9), curve(2, 0.6), curve(3), curve(4, allowed=0)], Promotion(1, 30)),
        # the highest rung comes first; what counts at a rung is the look there, not what came after it
        (
            [*(curve(number, 0.1, 0.2, 0.5 + number / 10, allowed=30) for number in range(3)), curve(3, 0.4)],
            Promotion(2, 90),
        ),
        ([curve(0, 0.5, 0.9), curve(1, 0.6), curve(2, 0.4)], Promotion(1, 30)),
    ],
)
def test_who_goes_on(curves: list[Curve], found: Promotion | None) -> None:
    curves = [one if one.number or len(one.looks) != 2 else Curve(0, one.looks, 10, 90) for one in curves]
    assert promoted(curves, 10, 3) == found


def test_the_best_of_the_highest_rung_goes_to_its_end() -> None:
    high = [curve(number, 0.1, 0.1, value, allowed=30) for number, value in ((0, 0.3), (1, 0.5))]
    assert to_the_end([*high, curve(2, 0.9)]) == Promotion(1, 90)
    assert to_the_end([curve(0, 0.9, over=True), curve(1, 0.8, busy=True)]) is None


def pausing(folder: Path, **search: Any) -> Any:
    return experiment(folder, scheduler="promotion", **{"budget": "9 trials", "reduction": 2, **search})


def test_a_sweep_with_pauses_trains_each_trial_as_far_as_it_deserves(tmp_path: Path) -> None:
    sweep, ran = opened(pausing(tmp_path)), []  # type: ignore[var-annotated]
    drive(sweep, ran)
    trials = sweep.study.get_trials()
    assert [trial.number for trial in trials] == list(range(9))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    complete = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 2
    at_first = sorted(trials, key=lambda trial: -trial.intermediate_values[16])
    assert at_first[0].number in complete
    assert trials[at_first[-1].number].last_step == 16  # the worst one has seen its first rung and no more
    assert all(trials[number].user_attrs["outcome"] == "finished" for number in complete)
    assert sum(trial.user_attrs["trained_samples"] for trial in trials) < 0.65 * 9 * 64
    history = sweep.folder.history.read_bytes()
    assert opened(pausing(tmp_path)).next() is None
    assert sweep.folder.history.read_bytes() == history


@pytest.mark.parametrize("seed", range(16))
def test_a_driver_killed_at_any_moment_comes_to_exactly_its_trials(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    asked, ran = pausing(tmp_path, sampler=draw.choice(["tpe", "random"])), []  # type: ignore[var-annotated]
    kills = 0
    while True:
        sweep = opened(asked)
        before = sweep.study.get_trials()
        try:
            drive(sweep, ran, (lambda: draw.random() < 0.1) if kills < 5 else (lambda: False))
        except Killed:
            kills += 1
            continue
        break
    trials = sweep.study.get_trials()
    assert kills
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.state.is_finished() for trial in trials)
    assert all(trials[trial.number].params == trial.params for trial in before)
    assert all(trials[trial.number].state == trial.state for trial in before if trial.state.is_finished())
    for trial in trials:  # each trial came as far as it may, a look more where it was killed on the way, and no further
        assert trial.last_step is not None
        assert trial.user_attrs["allowed"] <= trial.last_step <= max(trial.user_attrs["allowed"], 16)
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) >= 2


def begin_and_pause(sweep: Sweep, value: float) -> int:
    spec = sweep.next()
    assert spec
    sweep.add_measurement(spec.number, Measurement(value, 16))
    assert spec.allowed == 16
    assert not RunFolder.at(spec.folder).stop_requested()  # it ends itself, with that measurement
    sweep.end(spec.number, facts(16, outcome="stopped"))
    return spec.number


def test_nothing_is_begun_while_what_runs_decides(tmp_path: Path) -> None:
    sweep = opened(pausing(tmp_path, budget="2 trials"))
    assert begin_and_pause(sweep, 0.5) == 0
    running = sweep.next()
    assert running and running.number == 1
    assert (sweep.next(), sweep.waits) == (None, True)
    sweep.add_measurement(1, Measurement(0.6, 16))
    assert (sweep.next(), sweep.waits) == (None, True)  # the better one has not ended yet
    sweep.end(1, facts(16, outcome="stopped"))
    going_on = sweep.next()
    assert going_on and going_on.number == 1
    assert sweep.study.get_trials()[1].user_attrs["allowed"] == going_on.allowed == 32


def test_a_promoted_trial_is_the_same_for_the_next_driver(tmp_path: Path) -> None:
    asked = pausing(tmp_path, budget="2 trials")
    sweep = opened(asked)
    begin_and_pause(sweep, 0.5)
    begin_and_pause(sweep, 0.4)
    going_on = sweep.next()
    assert going_on
    again = opened(asked)
    assert [trial.number for trial in again.left_over] == [0]
    assert again.next() == going_on
    assert (again.next(), again.waits) == (None, True)


def test_a_loss_that_is_no_number_does_not_pause_a_trial(tmp_path: Path) -> None:
    sweep = opened(pausing(tmp_path))
    spec = sweep.next()
    assert spec
    sweep.add_measurement(0, Measurement(float("nan"), 16))
    assert not sweep.live[0].paused
    sweep.end(0, facts(outcome="not finite"))
    assert sweep.study.get_trials()[0].state == TrialState.COMPLETE


def test_when_the_time_is_up_the_best_one_comes_to_its_end_and_no_other(tmp_path: Path) -> None:
    sweep = opened(pausing(tmp_path, budget="1 hours"))
    for value in (0.3, 0.5):
        begin_and_pause(sweep, value)
    sweep.before = 3600.0
    last = sweep.next()
    assert last and last.number == 1 and last.allowed is None
    assert sweep.study.get_trials()[1].user_attrs["allowed"] == 64
    sweep.add_measurement(1, Measurement(0.8, 64))
    sweep.end(1, facts())
    assert (sweep.next(), sweep.waits) == (None, False)
    assert [trial.state for trial in sweep.study.get_trials()] == [TrialState.PRUNED, TrialState.COMPLETE]


def test_device_hours_of_paused_trials_are_spent(tmp_path: Path) -> None:
    sweep = opened(pausing(tmp_path, budget="0.01 device-hours"))
    begin_and_pause(sweep, 0.3)
    assert sweep.device_hours() == pytest.approx(20 / 3600)
    assert not sweep.spent()
    begin_and_pause(sweep, 0.3)
    assert sweep.spent()


def test_samplers_see_paused_trials_by_what_they_reached(tmp_path: Path) -> None:
    asked = pausing(tmp_path)
    sweep = opened(asked)
    for value in (0.3, 0.5):
        begin_and_pause(sweep, value)
    sweep.next()
    for ranks, state in ((True, TrialState.PRUNED), (False, TrialState.COMPLETE)):
        trials = seen(sweep.study, search_of(asked), 3, ranks=ranks).get_trials()
        assert {trial.state for trial in trials if trial.number < 2} == {state}
    assert {trial.state for trial in sweep.study.get_trials()} == {TrialState.RUNNING}


def test_trials_of_a_search_against_cost_cannot_pause(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search.scheduler: promotion compares trials by one figure"):
        search_of(pausing(tmp_path, against="seconds"))
