"""What a sweep tries: the search section checked against the config, and the line that tells a mistake."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from tiny import TINY

from vicc_ray.config import Experiment, dump_experiment, load_experiment, make_experiment
from vicc_ray.errors import UserError
from vicc_ray.tune.sharing import shared_experiment, shared_stages
from vicc_ray.tune.space import check_space, corners, grid, search_of, settings_of, trial_experiment

VIDEOS = 16


def sweep(space: dict[str, Any], **search: Any) -> Experiment:
    return make_experiment(TINY | {"search": {"space": space, **search}}, "sweep.yaml")


def told(space: dict[str, Any], **search: Any) -> str:
    """The line that a search section is refused with."""

    def ask() -> None:
        asked = sweep(space, **search)
        check_space(asked, search_of(asked), VIDEOS)

    with pytest.raises(UserError) as refusal:
        ask()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("space", "line"),
    [
        ({}, "search.space: is empty"),
        ({"objective.temprature": {"log": [0.1, 0.2]}}, "did you mean objective.temperature?"),
        ({"objective.temperature": {"log": [0, 0.2]}}, "log needs values above 0"),
        ({"objective.temperature": {"uniform": [-0.1, 0.2]}}, "objective.temperature: input should be greater than 0"),
        ({"objective.temperature": {"log": [0.3, 0.03]}}, "0.3 is not below 0.03"),
        ({"objective.temperature": [0.03, 0.3]}, "write {log:"),
        ({"objective.prototypes": {"int": [1, 4]}}, "at least 2 are needed"),
        ({"objective.prototypes": {"int": [2, 4.5]}}, "two whole numbers"),
        ({"objective.queue": {"choice": [0, 0]}}, "names a value twice"),
        ({"train.workers": {"int": [1, 2]}}, "does not change what is learnt"),
        ({"data.manifest": {"choice": ["a", "b"]}}, "does not change what is learnt"),
        # 0.0001 at the end of the cosine is above a learning rate of 0.00001 at its start
        ({"optim.lr": {"log": [1e-5, 1e-2]}}, "optim.end_lr: 0.0001 is above optim.lr"),
        ({"schedule.cross.global_batch": {"int": [4, 17]}}, "at least as many training videos"),
        ({"schedule.cross.length": {"choice": ["4 steps", "4 weeks"]}}, "a length needs a number and a unit"),
    ],
)
def test_a_space_that_the_config_would_refuse_is_refused_at_once(space: dict[str, Any], line: str) -> None:
    assert line in told(space)


TEMPERATURE = {"objective.temperature": {"log": [0.03, 0.3]}}


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"metric": "RGB-3/R@1"}, "never reported; it is STAGE/FIGURE with a stage of RGB-1, Flow-1, RGB-2, Flow-2"),
        ({"metric": "RGB-2/R@10"}, "a figure of R@1, R@5"),
        ({"scheduler": "pbt"}, "gives Ray Tune no weights to copy; allowed: asha, promotion, median, none"),
        ({"budget": "0 trials"}, "'12 trials', '2 hours' or '4 device-hours'"),
        ({"budget": "1.5 trials"}, "'12 trials', '2 hours' or '4 device-hours'"),
        ({"budget": "a while"}, "'12 trials', '2 hours' or '4 device-hours'"),
        ({"sampler": "grid"}, "log has no grid"),
        ({"against": "seconds"}, "set search.scheduler: none"),
        ({"trials": 12}, "search.trials is not a setting"),
    ],
)
def test_a_search_that_cannot_be_is_refused_at_once(search: dict[str, Any], line: str) -> None:
    assert line in told(TEMPERATURE, **search)


def test_a_metric_that_is_never_measured_is_refused() -> None:
    asked = make_experiment(TINY | {"evaluate": {"monitor_every": 0}, "search": {"space": TEMPERATURE}}, "sweep.yaml")
    with pytest.raises(UserError, match=r"never reported, as evaluate.monitor_every is 0"):
        check_space(asked, search_of(asked), VIDEOS)


def test_a_grid_cannot_have_more_trials_than_points() -> None:
    space = {"objective.queue": {"choice": [0, 16]}, "objective.temperature": {"choice": [0.1, 0.2, 0.3]}}
    assert "the grid has 6 points" in told(space, sampler="grid", budget="7 trials")
    points = grid(search_of(sweep(space, sampler="grid", budget="6 trials")))
    pairs = {(point["objective.queue"], point["objective.temperature"]) for point in points}
    assert pairs == set(itertools.product([0, 16], [0.1, 0.2, 0.3]))


def test_an_experiment_without_a_search_is_no_sweep() -> None:
    with pytest.raises(UserError, match="search: is not set"):
        search_of(make_experiment(TINY, "plain.yaml"))


def test_corners_hold_every_combination_and_of_large_spaces_every_value() -> None:
    small = search_of(sweep({**TEMPERATURE, "objective.queue": {"choice": [0, 8, 16]}}))
    assert {tuple(point.values()) for point in corners(small)} == set(itertools.product([0.03, 0.3], [0, 8, 16]))
    many = {f"augment.{name}_p": {"uniform": [0.1, 0.9]} for name in ("jitter", "gray", "blur", "flip", "same_window")}
    many |= {"objective.queue": {"choice": list(range(0, 400, 8))}}
    large = list(corners(search_of(sweep(many))))
    assert len(large) <= 512
    assert {point["objective.queue"] for point in large} == set(range(0, 400, 8))


def test_a_search_survives_its_file(tmp_path: Any) -> None:
    space = {**TEMPERATURE, "objective.prototypes": {"choice": [8, [8, 16], {"rgb": 8, "flow": 4}]}}
    asked = sweep(space, metric=["RGB-2/R@1", "Flow-2/R@1"], budget="4 device-hours", grace="10 %")
    (tmp_path / "sweep.yaml").write_text(dump_experiment(asked))
    assert load_experiment(tmp_path / "sweep.yaml") == asked


def test_a_trial_is_the_experiment_with_the_points_settings() -> None:
    space = {**TEMPERATURE, "objective.prototypes": {"choice": [8, {"rgb": 8, "flow": 4}]}}
    asked = sweep(space)
    point = settings_of(
        search_of(asked), {"objective.temperature": 0.07, "objective.prototypes": '{"rgb": 8, "flow": 4}'}
    )
    trial = trial_experiment(asked, point, "runs/sweep/trials", "0003")
    assert trial.objective.temperature == 0.07
    assert trial.objective.heads("flow") == (4,)
    assert trial.search is None
    assert trial.run_folder.endswith("runs/sweep/trials/0003")
    assert trial.model_copy(
        update={"search": asked.search, "runs": asked.runs, "name": asked.name}
    ) == asked.model_copy(update={"objective": trial.objective})


@pytest.mark.parametrize(
    ("space", "share", "expected"),
    [
        ({"schedule.cross.length": {"choice": ["4 steps", "6 steps"]}}, "auto", ["RGB-1", "Flow-1"]),
        ({"schedule.cycles": {"int": [1, 2]}}, "auto", ["RGB-1", "Flow-1"]),
        (TEMPERATURE, "auto", []),
        (TEMPERATURE, "single", ["RGB-1", "Flow-1"]),
        ({"schedule.cross.length": {"choice": ["4 steps", "6 steps"]}}, "none", []),
    ],
)
def test_what_no_searched_setting_acts_on_is_made_once(space: dict[str, Any], share: str, expected: list[str]) -> None:
    asked = sweep(space, share=share)
    search = search_of(asked)
    stages = check_space(asked, search, VIDEOS)
    assert [stage.name for stage in shared_stages(asked, search, stages)] == expected


@pytest.mark.parametrize("path", ["model.width", "schedule.single.global_batch", "seed", "clip.frames"])
def test_stages_that_a_setting_must_be_the_same_in_are_not_shared(path: str) -> None:
    values = [0.0625, 0.125] if path == "model.width" else [8, 16]
    asked = sweep({path: {"choice": values}}, share="single")
    search = search_of(asked)
    with pytest.raises(UserError, match=path):
        shared_stages(asked, search, check_space(asked, search, VIDEOS))


def test_the_shared_run_has_the_single_stream_stages_of_the_sweep() -> None:
    asked = sweep(TEMPERATURE, share="single")
    shared = shared_experiment(asked, "runs/sweep")
    whole, part = check_space(asked, search_of(asked), VIDEOS), check_space_of(shared)
    assert part == whole[:2]


def check_space_of(experiment: Experiment) -> list[Any]:
    from vicc_ray.training.schedule import make_stages

    return make_stages(experiment, VIDEOS)
