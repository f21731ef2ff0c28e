"""Stages: the published alternation, what starts from what, learning rates, counting in samples."""

from __future__ import annotations

import math

import pytest

from vicc_ray.config import Experiment, make_experiment, parse_cadence
from vicc_ray.errors import UserError
from vicc_ray.objective.prototype_objective import PrototypePhases, prototype_phases
from vicc_ray.training.schedule import describe, every, learning_rate, locate, make_stages, samples_at


def test_published_schedule_on_ucf101() -> None:
    stages = make_stages(Experiment(), 9537)
    assert [(s.name, s.starts_from, s.guided_by) for s in stages] == [
        ("RGB-1", None, None),
        ("Flow-1", None, None),
        ("RGB-2-cycle1", "RGB-1", "Flow-1"),
        ("Flow-2-cycle1", "Flow-1", "RGB-2-cycle1"),
        ("RGB-2", "RGB-2-cycle1", "Flow-2-cycle1"),
        ("Flow-2", "Flow-2-cycle1", "RGB-2"),
    ]
    single, cross = stages[0], stages[2]
    assert (single.steps_per_epoch, single.steps, single.cosine_steps) == (49, 300 * 49, 500 * 49)
    assert prototype_phases(Experiment(), single) == PrototypePhases(1920, 150 * 49, 100 * 49)
    assert (cross.steps_per_epoch, cross.steps, cross.cosine_steps) == (99, 100 * 99, 100 * 99)
    assert prototype_phases(Experiment(), cross) == PrototypePhases(1920, 25 * 99, 0)
    assert (single.streams, single.views, cross.streams, cross.views) == (("rgb",), 2, ("rgb", "flow"), 4)


def test_stages_follow_one_another_and_every_step_has_its_place() -> None:
    experiment = make_experiment(
        {"schedule": {"cycles": 1, "single": {"length": {"rgb": "3 steps", "flow": "5 steps"}, "global_batch": 4},
                      "cross": {"length": "2 steps", "global_batch": 8}}}, "x"
    )  # fmt: skip
    stages = make_stages(experiment, 16)
    assert [s.steps for s in stages] == [3, 5, 2, 2]
    places = [(locate(stages, step)[0].name, locate(stages, step)[1]) for step in range(12)]
    assert places[0] == ("RGB-1", 0)
    assert places[3] == ("Flow-1", 0)
    assert places[8] == ("RGB-2", 0)
    assert places[11] == ("Flow-2", 1)
    with pytest.raises(IndexError):
        locate(stages, 12)
    # samples: 3 x 4, then 5 x 4, then 2 x 8, then 2 x 8
    assert [samples_at(stages, step) for step in (0, 3, 8, 9, 12, 99)] == [0, 12, 32, 40, 64, 64]


def test_lengths_in_percent_of_the_total_and_of_the_stage() -> None:
    experiment = make_experiment(
        {"schedule": {"total": "10 epochs", "cycles": 0, "single": {
            "length": "30 %", "cosine_over": "100 %", "global_batch": 10, "queue_start": "50 %", "freeze_prototypes": "10 %"}}}, "x"
    )  # fmt: skip
    stage = make_stages(experiment, 100)[0]
    phases = prototype_phases(experiment, stage)
    assert (stage.steps, stage.cosine_steps, phases.queue_start, phases.freeze_prototypes) == (30, 30, 15, 3)
    with pytest.raises(UserError, match="share of nothing"):
        make_stages(make_experiment({"schedule": {"single": {"length": "30 %"}}}, "x"), 1000)


def test_learning_rate_is_the_published_cosine() -> None:
    stage = make_stages(Experiment(), 9537)[0]
    assert learning_rate(stage, 0, 0.6, 0.0006) == pytest.approx(0.6)
    for step in (1, 4900, 14699):
        expected = 0.0006 + 0.5 * (0.6 - 0.0006) * (1 + math.cos(math.pi * step / 24500))
        assert learning_rate(stage, step, 0.6, 0.0006) == pytest.approx(expected)
    cross = make_stages(Experiment(), 9537)[2]
    assert learning_rate(cross, cross.steps, 0.6, 0.0006) == pytest.approx(0.0006)


def test_warm_up_rises_to_the_cosine() -> None:
    warm = make_stages(make_experiment({"optim": {"warm_up": "4 steps"}}, "x"), 9537)[0]
    plain = make_stages(Experiment(), 9537)[0]
    for step in range(8):
        share = min((step + 1) / 5, 1)
        assert learning_rate(warm, step, 0.6, 0.1) == pytest.approx(share * learning_rate(plain, step, 0.6, 0.1))


def test_a_queue_that_the_batch_does_not_divide_is_rounded_down() -> None:
    experiment = make_experiment({"objective": {"queue": 1000}, "schedule": {"single": {"global_batch": 192}}}, "x")
    assert prototype_phases(experiment, make_stages(experiment, 9537)[0]).queue == 960


def test_too_few_videos_for_a_batch_names_the_field() -> None:
    with pytest.raises(
        UserError, match=r"schedule.single.global_batch: 192 .* the manifest has 97; set .* to 97 or less"
    ):
        make_stages(Experiment(), 97)


def test_cadence_and_plan_rows() -> None:
    stages = make_stages(Experiment(), 9537)
    assert every(parse_cadence("1 epochs"), stages[0]) == 49
    assert every(parse_cadence("5 minutes"), stages[0]) == 0  # the clock's business
    assert every(Experiment().evaluate.monitor_every, stages[0]) == 0
    rows = describe(stages, Experiment())
    assert rows[2]["guided by"] == "Flow-1"
    assert rows[0]["learning rate"].startswith("0.6 -> ")
