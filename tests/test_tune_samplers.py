"""What proposes trials: pinned against Optuna's defaults, the same after a kill, with trials beside and those stopped early."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
import pytest
from optuna.importance import FanovaImportanceEvaluator
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from vicc_ray.config import SearchConfig
from vicc_ray.tune.history import again, ask, new_study, point_of, sampler_for, seen
from vicc_ray.tune.samplers import good_group, good_group_of_front, importance, tpe

SPACE: dict[str, Any] = {
    "objective.temperature": {"log": [0.03, 0.3]},
    "objective.epsilon": {"uniform": [0.01, 0.2]},
    "objective.prototypes": {"log_int": [4, 300]},
    "objective.iterations": {"int": [1, 5]},
    "objective.queue": {"choice": [0, 16, 64]},
    "model.joint_views": {"choice": [True, False]},
}


def search_with(**settings: Any) -> SearchConfig:
    return SearchConfig.model_validate({"space": SPACE, "random_starts": 4, "scheduler": "none", **settings})


def value(params: dict[str, Any]) -> float:
    return float(1 - abs(params["objective.temperature"] - 0.1) - 0.1 * (params["objective.queue"] == 0))


def proposals(study: optuna.Study, search: SearchConfig, count: int) -> list[dict[str, Any]]:
    """Trials one after the other, each told its value."""
    found = []
    for _ in range(count):
        trial = ask(study, search)
        values = [value(trial.params)] if search.against == "none" else [value(trial.params), trial.number % 3]
        study.tell(trial, values)
        found.append(trial.params)
    return found


def by_default(study: optuna.Study, search: SearchConfig, sampler: BaseSampler) -> dict[str, Any]:
    """What a sampler of Optuna's proposes after a study's trials."""
    copy = new_study(InMemoryStorage(), search)
    copy.add_trials(study.get_trials())
    copy.sampler = sampler
    trial = copy.ask()
    for name, distribution in study.get_trials()[0].distributions.items():
        trial._suggest(name, distribution)
    return trial.params


def test_tpe_is_pinned_to_what_it_was_measured_with() -> None:
    for objectives in (1, 2):
        pinned = tpe(0, 7, objectives)
        assert pinned._n_startup_trials == 7
        assert pinned._n_ei_candidates == 24
        assert pinned._multivariate is (objectives == 1)
        assert pinned._group is False
        assert pinned._constant_liar is True
        assert pinned._gamma is (good_group if objectives == 1 else good_group_of_front)
    assert [good_group(ended) for ended in (1, 10, 11, 100, 250, 400)] == [1, 1, 2, 10, 25, 25]
    assert [good_group_of_front(ended) for ended in (1, 10, 11, 100, 250, 400)] == [1, 1, 2, 10, 25, 40]


@pytest.mark.skipif(optuna.__version__ != "5.0.0", reason="says what the defaults of Optuna 5.0.0 are")
@pytest.mark.parametrize("against", ["none", "seconds"])
@pytest.mark.parametrize("ended", [12, 60, 290])  # of 290, 29 would be good ones without the limit of 25
def test_tpe_proposes_what_optuna_5_proposes_by_default(against: str, ended: int) -> None:
    search = search_with(against=against, random_starts=10)
    study = new_study(InMemoryStorage(), search)
    random = SearchConfig.model_validate(search.model_dump() | {"sampler": "random"})
    proposals(study, random, ended)
    ask(study, search)  # a trial that runs beside
    for seed in range(3):
        ours = tpe(seed, search.random_starts, objectives=1 if against == "none" else 2)
        assert by_default(study, search, ours) == by_default(study, search, TPESampler(seed=seed))


def test_importance_is_pinned_to_fanova() -> None:
    study = new_study(InMemoryStorage(), search_with())
    proposals(study, search_with(sampler="random"), 20)
    expected = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    assert optuna.importance.get_param_importances(study, evaluator=importance()) == expected
    forest = importance()._evaluator._forest
    assert (forest.n_estimators, forest.max_depth) == (64, 64)


def test_no_warning_reaches_the_reader() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for sampler in ("tpe", "gp"):
            proposals(new_study(InMemoryStorage(), search_with()), search_with(sampler=sampler), 6)


@pytest.mark.parametrize("against", ["none", "seconds"])
def test_gp_proposes_within_the_space_and_the_same_again(against: str) -> None:
    search = search_with(sampler="gp", against=against)
    found = [proposals(new_study(InMemoryStorage(), search), search, 7) for _ in range(2)]
    assert found[0] == found[1]
    other = search_with(sampler="gp", against=against, seed=1)
    assert proposals(new_study(InMemoryStorage(), other), other, 7) != found[0]
    for params in found[0]:
        assert 0.03 <= params["objective.temperature"] <= 0.3
        assert params["objective.prototypes"] in range(4, 301)
        assert params["objective.queue"] in (0, 16, 64)


def test_gp_learns() -> None:
    """After its random starts it is nearer to the optimum than they were."""
    search = search_with(sampler="gp")
    values = [value(params) for params in proposals(new_study(InMemoryStorage(), search), search, 12)]
    assert max(values[4:]) > max(values[:4])
    assert sum(values[8:]) / 4 > sum(values[:4]) / 4


def test_gp_takes_a_setting_of_one_value() -> None:
    search = search_with(sampler="gp", space=SPACE | {"objective.queue": {"choice": [16]}})
    assert all(params["objective.queue"] == 16 for params in proposals(new_study(InMemoryStorage(), search), search, 6))


def test_gp_keeps_away_from_trials_that_run() -> None:
    search = search_with(sampler="gp")
    alone, beside = (new_study(InMemoryStorage(), search) for _ in range(2))
    proposals(alone, search, 6)
    beside.add_trials(alone.get_trials())
    running = ask(beside, search)
    following = sampler_for(search, 7)
    assert by_default(alone, search, following) != by_default(beside, search, sampler_for(search, 7))
    assert ask(beside, search).params != running.params


def told(trials: Sequence[FrozenTrial], search: SearchConfig) -> optuna.Study:
    study = new_study(InMemoryStorage(), search)
    for trial in trials:
        study.add_trial(trial)
    return study


def test_a_trial_that_was_cut_short_while_it_was_proposed_gets_the_same_settings() -> None:
    search = search_with(sampler="gp")
    study = new_study(InMemoryStorage(), search)
    proposals(study, search, 5)
    whole = ask(study, search)
    cut = told(study.get_trials()[:5], search)
    cut.sampler = sampler_for(search, 0)
    begun = cut.ask()
    begun._suggest("objective.temperature", study.get_trials()[5].distributions["objective.temperature"])
    with_one = cut.get_trials()[5].params
    goes_on = again(cut, search, cut.get_trials()[5])
    assert goes_on.params == whole.params | with_one
    assert again(cut, search, cut.get_trials()[5]).params == goes_on.params


def test_gp_learns_from_trials_that_were_stopped_early() -> None:
    search = search_with(sampler="gp")
    study = new_study(InMemoryStorage(), search)
    for number in range(5):
        trial = ask(study, search)
        trial.report(number / 10, 16)
        trial.report(number / 5, 32)
        study.tell(trial, state=TrialState.PRUNED)
    looks = seen(study, search, 4).get_trials()
    assert [trial.value for trial in looks] == [0.0, 0.2, 0.4, pytest.approx(0.6)]
    assert {trial.state for trial in looks} == {TrialState.COMPLETE}
    assert {trial.state for trial in study.get_trials()} == {TrialState.PRUNED}
    from_few = ask(study, search).params
    assert from_few != by_default(study, search, sampler_for(search, 5))  # which is at random, as none is complete


def test_gp_writes_nothing_of_its_own_into_the_history() -> None:
    search = search_with(sampler="gp")
    study = new_study(InMemoryStorage(), search)
    proposals(study, search, 6)
    assert all(not [key for key in trial.system_attrs if key.startswith("gp:")] for trial in study.get_trials())
    assert point_of(search, study.get_trials()[5]).keys() == SPACE.keys()


def test_a_sampler_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"sampler\n.*'tpe', 'gp', 'random' or 'grid'"):
        search_with(sampler="cmaes")


def test_nothing_of_gp_is_loaded_before_it_proposes() -> None:
    code = "import sys, vicc_ray.tune.history; print([name for name in ('torch', 'scipy', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
