"""Both streams in one stage: the gradients of two stages that guide each other, on any number of workers, over restarts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from test_run import BrokenMemory, PlainHost, Stopped, _losses, _open
from test_step import _batch, _encoder
from tiny import tiny_experiment, tiny_plan
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vicc_ray import distributed
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.objective import NonFiniteError, PrototypeObjective
from vicc_ray.runs.records import read_records
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.joint import JointTrainer
from vicc_ray.training.loop import train
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.schedule import Stage, describe, make_stages
from vicc_ray.training.step import StageTrainer
from vicc_ray.training.survival import Finished, merged
from vicc_ray.tune.sharing import first_stage

CPU = torch.device("cpu")
LEARNING: dict[str, Any] = {
    "schedule": {"cross": {"guide": "learning", "length": "4 steps", "global_batch": 8, "queue_start": "2 steps"}}
}
AVERAGED: dict[str, Any] = {
    "schedule": {"cross": LEARNING["schedule"]["cross"] | {"guide": "averaged"}},
    "optim": {"ema": 0.9},
}


def _experiment(changes: dict[str, Any]) -> Any:
    from tiny import TINY

    return tiny_experiment(**{**changes, "schedule": TINY["schedule"] | changes["schedule"]})


def _side(plan: TrainingPlan, stage: Stage, seed: int, guide: Any = None) -> StageTrainer:
    objective = PrototypeObjective(plan.experiment, stage, seed=seed)
    trainer = StageTrainer(plan.experiment, stage, _encoder(seed), objective, guide, CPU)
    # Running statistics in training mode too: then rows do not see each other.
    for module in trainer.encoder.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    return trainer


def _joint(plan: TrainingPlan) -> JointTrainer:
    stage = plan.stages[2]
    return JointTrainer(_side(plan, stage, 1), _side(plan, stage.mirrored(), 2))


def _seen(trainer: StageTrainer) -> dict[str, Tensor]:
    """Where the gradients that its optimiser gets are put."""
    seen: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        seen.update({k: p.grad.clone() for k, p in trainer.module.named_parameters() if p.grad is not None})

    trainer.optimiser.step = look  # type: ignore[assignment, method-assign]
    return seen


def _gradients(plan: TrainingPlan) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    trainer, figures = _joint(plan), dict[str, float]()
    seen = [_seen(side) for side in trainer.sides]
    batch = _batch(plan, 2, distributed.rank(), distributed.world_size())
    trainer.step(batch, 1, lambda outcome: figures.update(outcome.metrics()))
    return seen, figures


def test_stages_of_both_streams(videos: Manifest) -> None:
    stages = make_stages(_experiment({"schedule": LEARNING["schedule"] | {"cycles": 2}}), 16)
    assert [stage.leaves for stage in stages] == [
        ("RGB-1",), ("Flow-1",), ("RGB-2-cycle1", "Flow-2-cycle1"), ("RGB-2", "Flow-2")
    ]  # fmt: skip
    last = stages[-1]
    assert (last.starts_from, last.guided_by) == ("RGB-2-cycle1", "Flow-2-cycle1")
    other = last.mirrored()
    assert (other.stream, other.guide, other.starts_from, other.leaves) == (
        "flow", "rgb", "Flow-2-cycle1", ("Flow-2", "RGB-2")
    )  # fmt: skip
    assert other.mirrored() == last
    row = describe(stages, _experiment(LEARNING))[-1]
    assert (row["stage"], row["guided by"]) == ("RGB-2 + Flow-2", "each other")
    assert first_stage(stages, {"Flow-2"}, shared=False).name == "RGB-1", "the metric of either encoder needs its stage"


def test_a_step_is_two_stages_that_guide_each_other(videos: Manifest) -> None:
    """The slow twin: each side alone, with the other's encoder, as it is, for a frozen guide."""
    plan = tiny_plan(_experiment(LEARNING), videos)
    found, figures = _gradients(plan)
    for place, stage in enumerate((plan.stages[2], plan.stages[2].mirrored())):
        alone = _side(plan, replace(stage, beside=None), place + 1, guide=_encoder(2 - place))
        expected = _seen(alone)
        outcome = alone.step(_batch(plan, 2), 1)
        assert found[place].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[place][name], gradient, rtol=1e-3, atol=1e-6)
        assert figures["flow_loss" if place else "loss"] == pytest.approx(float(outcome.loss.detach()), rel=1e-5)


def test_averaged_weights_guide(videos: Manifest) -> None:
    """Each side alone, with the other's averaged weights for a frozen guide."""
    plan = tiny_plan(_experiment(AVERAGED), videos)
    trainer = _joint(plan)
    averages = []
    for side in trainer.sides:
        assert side.averaged is not None
        with torch.no_grad():
            for weight in side.averaged.parameters():
                weight.mul_(1.1)
        averages.append(copy.deepcopy(side.averaged))
    found = [_seen(side) for side in trainer.sides]
    trainer.step(_batch(plan, 2), 1)
    for place, stage in enumerate((plan.stages[2], plan.stages[2].mirrored())):
        alone = _side(plan, replace(stage, beside=None), place + 1, guide=averages[1 - place])
        expected = _seen(alone)
        alone.step(_batch(plan, 2), 1)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[place][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [LEARNING, AVERAGED])
def test_two_workers_see_the_gradients_of_one(videos: Manifest, changes: dict[str, Any]) -> None:
    plan = tiny_plan(_experiment(changes), videos)
    expected, figures = _gradients(plan)
    for found, theirs in run_processes(_gradients, 2, plan):
        assert theirs == pytest.approx(figures, rel=1e-4)
        for mine, ours in zip(found, expected, strict=True):
            for name, gradient in ours.items():
                torch.testing.assert_close(mine[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("changes", [LEARNING, AVERAGED])
def test_an_interrupted_stage_goes_on_as_if_nothing_had_happened(
    videos: Manifest, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plan = tiny_plan(_experiment(changes), videos)
    assert [stage.end for stage in plan.stages] == [2, 4, 8]
    whole, broken = (_open(plan, tmp_path / name, videos) for name in ("whole", "broken"))
    assert train(Pretraining(), plan, whole, PlainHost(plan), None, None) == 8
    assert set(whole.encoders()) == {"RGB-0", "Flow-0", "RGB-1", "Flow-1", "RGB-2", "Flow-2"}
    assert {name: load_encoder(whole.encoder(name)).stream for name in ("RGB-2", "Flow-2")} == {
        "RGB-2": "rgb", "Flow-2": "flow"
    }  # fmt: skip
    host = PlainHost(plan, kill_at=7)
    with pytest.raises(Stopped):
        train(Pretraining(), plan, broken, host, None, None)
    state = host.saved[-1]
    assert state["step"] == 7 and state["trainer"]["sides"][1]["memory"]["pushed"] == 16
    train(Pretraining(), plan, broken, PlainHost(plan), state, None)
    assert _losses(broken) == pytest.approx(_losses(whole), rel=1e-5)
    last = [record for record in read_records(broken.metrics) if record["kind"] == "train"][-1]
    assert {"loss", "flow_loss", "flow_entropy"} <= last.keys()
    for name in ("RGB-2", "Flow-2"):
        one, other = (load_encoder(folder.encoder(name)) for folder in (whole, broken))
        for key, value in one.state_dict.items():
            torch.testing.assert_close(other.state_dict[key], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.prototypes, other.prototypes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "part",
    [
        lambda learner: next(learner.sides[0].encoder.parameters()),
        lambda learner: next(learner.sides[1].encoder.parameters()),
        lambda learner: next(learner.sides[1].objective.parameters()),
        lambda learner: next(learner.sides[1].averaged.parameters()),
    ],
    ids=["first", "second", "prototypes", "averaged"],
)
def test_nan_in_either_stream_is_not_kept(videos: Manifest, tmp_path: Path, part: Callable[[Any], Tensor]) -> None:
    plan = tiny_plan(_experiment(AVERAGED), videos)
    host = BrokenMemory(plan, 6, part)
    with pytest.raises(NonFiniteError, match="the weights: NaN or infinity"):
        train(Pretraining(), plan, _open(plan, tmp_path / "run", videos), host, None, None)
    assert max(about["step"] for about in host.about) == 5


def test_a_worker_that_is_left_has_all_of_it(videos: Manifest) -> None:
    plan = tiny_plan(_experiment(AVERAGED), videos)
    trainer = _joint(plan)
    for step in range(2):
        trainer.step(_batch(plan, 2), step)
    kept = Finished(6, {}, trainer.own_state).take()
    assert kept is not None and kept.rows == 16
    state = merged(kept.state, [kept, kept])["trainer"]
    again = _joint(plan)
    again.load_state_dict(state)
    for mine, theirs in zip(again.sides, trainer.sides, strict=True):
        first, second = mine.state_dict(), theirs.state_dict()
        for part in ("encoder", "objective", "averaged"):
            torch.testing.assert_close(first[part], second[part])
        torch.testing.assert_close(first["memory"]["rows"], second["memory"]["rows"])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"schedule": {"cross": LEARNING["schedule"]["cross"] | {"length": {"rgb": "4 steps", "flow": "2 steps"}}}},
            "one length",
        ),
        ({"schedule": AVERAGED["schedule"]}, "set optim.ema"),
        ({**LEARNING, "optim": {"micro_batch": 2}}, "optim.micro_batch exclude each other"),
        ({**LEARNING, "train": {"cuda_graphs": True}}, "train.cuda_graphs exclude each other"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        _experiment(changes)


FROZEN: dict[str, Any] = {"schedule": {"cross": {"length": "4 steps", "global_batch": 8, "queue_start": "2 steps"}}}


@pytest.mark.parametrize(
    ("changes", "starts"),
    [
        (FROZEN, {"RGB-2": "RGB-1", "Flow-2": "Flow-1"}),
        (FROZEN | {"prototypes": "guide"}, {"RGB-2": "Flow-1", "Flow-2": "RGB-2"}),
        (LEARNING, {"RGB-2": "RGB-1", "Flow-2": "Flow-1"}),
        (LEARNING | {"prototypes": "guide"}, {"RGB-2": "Flow-1", "Flow-2": "Flow-1"}),
    ],
)
def test_where_prototypes_of_cross_stream_stages_start(
    videos: Manifest, tmp_path: Path, changes: dict[str, Any], starts: dict[str, str]
) -> None:
    """The guide's: what it assigns means something before the learner has found prototypes of its own."""
    cross = changes["schedule"]["cross"] | {"prototypes": changes.get("prototypes", "own")}
    plan = tiny_plan(_experiment({"schedule": {"cross": cross}}), videos)
    folder = _open(plan, tmp_path / "run", videos)
    single = replace(plan, stages=tuple(stage for stage in plan.stages if stage.single))
    train(Pretraining(), single, folder, PlainHost(single), None, None)
    for stage in plan.stages[2:]:
        learner = Pretraining().open_stage(plan, folder, stage, CPU)
        for side in learner.sides:
            expected = load_encoder(folder.encoder(starts[side.stage.name])).prototypes
            torch.testing.assert_close(side.objective.heads(), expected)
        Pretraining().close_stage(plan, folder, stage, learner)  # untrained, for the next one


def test_the_guides_prototypes_need_as_many_in_both_streams() -> None:
    with pytest.raises(UserError, match=r"schedule\.cross\.prototypes: guide needs as many"):
        tiny_experiment(
            schedule={"cross": FROZEN["schedule"]["cross"] | {"prototypes": "guide"}},
            objective={"prototypes": {"rgb": 8, "flow": 4}},
        )
