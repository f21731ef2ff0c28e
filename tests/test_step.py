"""One optimiser step: views in the method's order, exact accumulation, frozen parts that stay frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from tiny import tiny_experiment, tiny_plan
from torch.nn.modules.batchnorm import _BatchNorm

from vicc_ray import distributed
from vicc_ray.data.flow.algorithms import flow_between, quantise
from vicc_ray.data.manifest import Manifest
from vicc_ray.models.encoder import Encoder, build_encoder
from vicc_ray.models.planar import planar_
from vicc_ray.objective import PrototypeObjective
from vicc_ray.training.batches import Batch, TrainingPlan, decode_share, to_batch
from vicc_ray.training.step import StageTrainer


def _encoder(seed: int) -> Encoder:
    return build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=seed)


def _trainer(plan: TrainingPlan, stage: int, *, without_statistics: bool = False) -> StageTrainer:
    guide = _encoder(2) if plan.stages[stage].guide else None
    trainer = StageTrainer(
        plan.experiment,
        plan.stages[stage],
        _encoder(1),
        PrototypeObjective(plan.experiment, plan.stages[stage], seed=0),
        guide,
        torch.device("cpu"),
    )
    if without_statistics:
        # Running statistics in training mode too: then rows do not see each other and parts add up exactly.
        for module in trainer.encoder.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    return trainer


def _batch(plan: TrainingPlan, stage: int, rank: int = 0, workers: int = 1) -> Batch:
    step = plan.stages[stage].first_step
    return to_batch(plan, step, decode_share(plan, step, rank, workers))[0]


def _gradients(
    trainer: StageTrainer, batch: Batch, monkeypatch: pytest.MonkeyPatch | None = None
) -> dict[str, torch.Tensor]:
    """The gradients that the optimiser would see."""
    seen: dict[str, torch.Tensor] = {}

    def look(*_: Any) -> None:
        seen.update({k: p.grad.clone() for k, p in trainer.module.named_parameters() if p.grad is not None})

    trainer.optimiser.step = look  # type: ignore[assignment, method-assign]
    trainer.step(batch, 1)
    return seen


@pytest.mark.parametrize("stage", [0, 2])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_micro_batches_give_the_gradient_of_the_whole_batch(videos: Manifest, stage: int, size: int) -> None:
    plan = tiny_plan(tiny_experiment(), videos)
    parts = tiny_plan(tiny_experiment(optim={"micro_batch": size}), videos)
    expected = _gradients(_trainer(plan, stage, without_statistics=True), _batch(plan, stage))
    found = _gradients(_trainer(parts, stage, without_statistics=True), _batch(plan, stage))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def _gradients_of_a_worker(plan: TrainingPlan, stage: int) -> dict[str, torch.Tensor]:
    trainer = _trainer(plan, stage, without_statistics=True)
    return _gradients(trainer, _batch(plan, stage, distributed.rank(), distributed.world_size()))


@pytest.mark.parametrize("micro", [None, 2])
def test_workers_with_uneven_shares_see_the_gradient_of_one(videos: Manifest, micro: int | None) -> None:
    plan = tiny_plan(tiny_experiment(optim={"micro_batch": micro}), videos)
    expected = _gradients(_trainer(plan, 2, without_statistics=True), _batch(plan, 2))
    for found in run_processes(_gradients_of_a_worker, 3, plan, 2):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def _train_on_few(plan: TrainingPlan) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The encoder after a step, with the statistics of all workers, and what the trainer remarks.

    One step, as batch norm over maps of so few pixels makes some 1e-3 in the next steps of the last bit of a sum.
    """
    trainer = _trainer(plan, 0)
    trainer.step(_batch(plan, 0, distributed.rank(), distributed.world_size()), 0)
    trainer.share_statistics()
    return {name: tensor.clone() for name, tensor in trainer.finish().state_dict().items()}, trainer.warnings()


@pytest.mark.parametrize("optim", [{}, {"micro_batch": 1}, {"ema": 0.5}])
@pytest.mark.parametrize("recompute", [False, True])
def test_workers_without_a_sample_change_nothing(videos: Manifest, optim: dict[str, Any], recompute: bool) -> None:
    """Two samples over three workers are learnt from as over two: no clip of zeros goes through batch norm."""
    single = {"length": "4 steps", "global_batch": 2, "queue_start": "0", "freeze_prototypes": "0"}
    # Plain gradient steps: Adam's, of the size of the learning rate however small a gradient is, would show its rounding.
    optim = {"name": "sgd", "lr": 0.1, "end_lr": 0.01} | optim
    changes: dict[str, Any] = {"schedule": {"single": single}, "objective": {"queue": 0}, "optim": optim}
    plan = tiny_plan(tiny_experiment(**changes, train={"recompute": recompute}), videos)
    expected, quiet = run_processes(_train_on_few, 2, plan)[0]
    assert not any("nothing to do" in line for line in quiet)
    for found, remarks in run_processes(_train_on_few, 3, plan):
        assert "train.workers: 1 of 3 have nothing to do, as a step has 2 samples" in remarks
        for name, tensor in expected.items():
            if not name.endswith("num_batches_tracked"):
                assert (found[name] - tensor).norm() <= 2e-5 * tensor.norm() + 1e-7, name


@pytest.mark.parametrize("backbone", ["s3d", "s3dg", "r2plus1d_10", "r2plus1d_18"])
@pytest.mark.parametrize("planar", [False, True])
def test_no_rows_go_through_every_backbone(backbone: str, planar: bool) -> None:
    encoder = build_encoder(backbone, width=0.0625, embedding_dim=8)
    if planar:
        planar_(encoder)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    z = encoder(torch.zeros(0, 3, 16, 64, 64))
    z.sum().backward()
    assert z.shape == (0, 8)
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())
    after = encoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "num_batches" not in name)


def _assert_views(seen: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """The same embeddings in order; batch norm over a few pixels raises the last bit of a sum, views are 0.1 and more apart."""
    assert len(seen) == len(expected)
    for place, found in enumerate(seen):
        apart = torch.stack([(found - z).abs().max() for z in expected])
        assert apart.argmin() == place and apart[place] < 1e-3 < 0.1 < apart.topk(2, largest=False).values[1], apart


def test_views_stand_in_the_methods_order(videos: Manifest) -> None:
    """z0 = f(x1), z1 = f(x2), z2 = g(m2), z3 = g(m1)."""
    plan = tiny_plan(tiny_experiment(), videos)
    trainer = _trainer(plan, 2)
    (x1, x2), guide = trainer.views(batch := _batch(plan, 2))
    assert guide is not None
    seen: list[torch.Tensor] = []

    def watch(_: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.extend(z.detach().clone() for z in arguments[0])

    trainer.objective.register_forward_pre_hook(watch)
    encoder, guiding = _encoder(1).train(), _encoder(2).eval()
    trainer.step(batch, 0)
    m2, m1 = guide
    with torch.no_grad():
        expected = [encoder(x1), encoder(x2), guiding(m2), guiding(m1)]
    _assert_views(seen, expected)


def test_flow_of_a_clip_is_the_motion_of_its_frames(videos: Manifest) -> None:
    """RGB and flow of a clip show the same frames: the flow measured again between its frames is what came with it."""
    plan = tiny_plan(tiny_experiment(), videos)
    batch = _batch(plan, 2)
    assert batch.clips["rgb"].shape == (8, 2, 8, 32, 32, 3)
    for rgb, flow in zip(batch.clips["rgb"].flatten(0, 1), batch.clips["flow"].flatten(0, 1), strict=True):
        again = quantise(flow_between(rgb.numpy(), "dis"), plan.experiment.flow.pixels)
        np.testing.assert_array_equal(flow[:-1].numpy(), again)


def test_a_checkpoint_of_the_version_before_objectives_goes_on(videos: Manifest) -> None:
    """It held the prototypes and the queue under names of their own."""
    plan = tiny_plan(tiny_experiment(), videos)
    first, second = _trainer(plan, 2), _trainer(plan, 2)
    for step in range(1):
        first.step(_batch(plan, 2), step)
    state = first.state_dict()
    heads = {name.removeprefix("prototypes."): value for name, value in state["objective"].items()}
    second.load_state_dict(
        {key: value for key, value in state.items() if key != "memory"}
        | {"prototypes": heads, "objective": state["memory"]}
    )
    again = second.state_dict()
    assert len(state["memory"]["positions"]) and torch.equal(again["memory"]["rows"], state["memory"]["rows"])
    assert all(torch.equal(again["objective"][name], value) for name, value in state["objective"].items())


def test_the_guide_and_frozen_prototypes_stay(videos: Manifest) -> None:
    plan = tiny_plan(tiny_experiment(), videos)
    cross = _trainer(plan, 2)
    assert cross.guide is not None
    before = {key: value.clone() for key, value in cross.guide.state_dict().items()}
    learner = {key: value.clone() for key, value in cross.encoder.state_dict().items()}
    cross.step(_batch(plan, 2), 0)
    assert all(torch.equal(value, before[key]) for key, value in cross.guide.state_dict().items())
    assert any(not torch.equal(value, learner[key]) for key, value in cross.encoder.state_dict().items())

    single = _trainer(plan, 0)  # prototypes are frozen for its first step
    assert isinstance(single.objective, PrototypeObjective)
    start = single.objective.prototypes.weights[0].detach().clone()
    single.step(_batch(plan, 0), 0)
    torch.testing.assert_close(single.objective.prototypes.weights[0].detach(), start)
    single.step(_batch(plan, 0), 1)
    assert not torch.allclose(single.objective.prototypes.weights[0].detach(), start)


def test_second_view_without_gradient(videos: Manifest) -> None:
    """Only f(x1) carries gradient then; the encoder's gradient changes, that of the prototypes keeps all views."""
    both = tiny_plan(tiny_experiment(), videos)
    one = tiny_plan(tiny_experiment(objective={"second_view_gradient": False}), videos)
    first = _gradients(_trainer(both, 0, without_statistics=True), _batch(both, 0))
    second = _gradients(_trainer(one, 0, without_statistics=True), _batch(one, 0))
    torch.testing.assert_close(
        first["objective.prototypes.weights.0"], second["objective.prototypes.weights.0"], rtol=1e-3, atol=1e-6
    )
    assert not torch.allclose(first["encoder.projection.0.weight"], second["encoder.projection.0.weight"], rtol=1e-2)


def _second_views(plan: TrainingPlan) -> tuple[torch.Tensor, torch.Tensor]:
    trainer = _trainer(plan, 0, without_statistics=True)
    batch = _batch(plan, 0, distributed.rank(), distributed.world_size())
    (_, x2), _ = trainer.views(batch)
    with torch.no_grad():
        plain = trainer.encoder(x2)
    return trainer._second_view(x2, 0), plain


def test_shuffled_rows_come_back_to_their_worker(videos: Manifest) -> None:
    """Without batch statistics a row's embedding does not depend on where it was encoded."""
    plan = tiny_plan(
        tiny_experiment(objective={"second_view_gradient": False}, model={"batch_norm": "shuffle"}), videos
    )
    for shuffled, plain in run_processes(_second_views, 3, plan):
        torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-5)


def test_averaged_weights_lag_behind(videos: Manifest) -> None:
    plan = tiny_plan(tiny_experiment(optim={"ema": 0.75}), videos)
    trainer = _trainer(plan, 0)
    name = "projection.0.weight"
    start = trainer.encoder.state_dict()[name].clone()
    trainer.step(_batch(plan, 0), 0)
    moved = trainer.encoder.state_dict()[name]
    torch.testing.assert_close(trainer.finish().state_dict()[name], 0.75 * start + 0.25 * moved)


def test_the_gradient_is_clipped_where_asked(videos: Manifest) -> None:
    plan = tiny_plan(tiny_experiment(optim={"clip_norm": 1e-3}), videos)
    gradients = _gradients(_trainer(plan, 0), _batch(plan, 0))
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values()))  # type: ignore[arg-type]
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
