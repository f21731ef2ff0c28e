"""Temporal multi-crop: short clips of a sample's two long ones, encoded by the learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import run_processes
from test_step import _assert_views, _batch, _encoder, _gradients, _trainer
from tiny import tiny_experiment, tiny_plan

from vicc_ray import distributed
from vicc_ray.data.augment import draw_for
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.pretraining import Pretraining

SHORT: dict[str, Any] = {"augment": {"local_clips": 3, "local_frames": 4}}


def test_short_clips_are_cut_out_of_the_long_ones_in_turn(videos: Manifest) -> None:
    plan = tiny_plan(tiny_experiment(**SHORT), videos)
    trainer, batch = _trainer(plan, 2), _batch(plan, 2)
    found = trainer.short_views(batch)
    assert {stream: [tuple(view.shape) for view in views] for stream, views in found.items()} == {
        stream: [(8, 3, 4, 32, 32)] * 3 for stream in ("rgb", "flow")
    }
    starts = [[trainer._short_start(pair[0][:-1], number) for pair in batch.keys] for number in range(3)]
    assert all(0 <= start <= 4 for row in starts for start in row) and len({tuple(row) for row in starts}) == 3
    for number, view in enumerate(found["rgb"]):
        for row in range(8):
            long, start = number % 2, starts[number][row]
            clip = {"rgb": batch.clips["rgb"][row : row + 1, long, start : start + 4]}
            keys = [(*batch.keys[row][long][:-1], 8 + number)]
            params = draw_for(trainer.settings, keys, batch.full[row : row + 1, long], clip)  # type: ignore[arg-type]
            again = trainer._augment({**clip, "flow": torch.zeros(1, 4, 32, 32, 2, dtype=torch.uint8)}, params)["rgb"]  # type: ignore[dict-item]
            torch.testing.assert_close(view[row : row + 1], again)


def test_the_learner_encodes_them_after_the_guide_s_views(videos: Manifest) -> None:
    """z: f(x1), f(x2), g(m2), g(m1), then f of the short clips."""
    plan = tiny_plan(tiny_experiment(**SHORT), videos)
    trainer, batch = _trainer(plan, 2), _batch(plan, 2)
    seen: list[torch.Tensor] = []
    trainer.objective.register_forward_pre_hook(
        lambda _, arguments: seen.extend(z.detach().clone() for z in arguments[0])
    )
    (x1, x2), guide = trainer.views(batch)
    assert guide is not None
    encoder, guiding, short = _encoder(1).train(), _encoder(2).eval(), trainer.short_views(batch)["rgb"]
    trainer.step(batch, 0)
    with torch.no_grad():
        expected = [encoder(x1), encoder(x2), *map(guiding, guide), *map(encoder, short)]
    assert len(seen) == 7
    _assert_views(seen, expected)


def _gradients_of_a_worker(plan: TrainingPlan) -> dict[str, torch.Tensor]:
    trainer = _trainer(plan, 2, without_statistics=True)
    return _gradients(trainer, _batch(plan, 2, distributed.rank(), distributed.world_size()))


@pytest.mark.parametrize("joint", [False, True])
def test_two_workers_see_the_gradient_of_one(videos: Manifest, joint: bool) -> None:
    plan = tiny_plan(tiny_experiment(**SHORT, model={"joint_views": joint}), videos)
    expected = _gradients_of_a_worker(plan)
    plain = tiny_plan(tiny_experiment(), videos)
    assert not torch.allclose(
        expected["encoder.projection.0.weight"],
        _gradients_of_a_worker(plain)["encoder.projection.0.weight"],
        rtol=1e-2,
    )
    for found in run_processes(_gradients_of_a_worker, 2, plan):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_what_does_not_fit_is_refused(videos: Manifest) -> None:
    with pytest.raises(UserError, match=r"augment.local_frames: 8 is not below clip.frames 8"):
        tiny_experiment(augment={"local_clips": 1})
    with pytest.raises(UserError, match=r"augment.local_clips and optim.micro_batch exclude each other"):
        tiny_experiment(**SHORT, optim={"micro_batch": 2})
    fixed = tiny_experiment(**SHORT, model={"backbone": "mvit_v2_s", "width": 1.0}, clip={"frames": 16, "size": 224})
    with pytest.raises(UserError, match=r"augment.local_clips: mvit_v2_s takes clips of one length only"):
        Pretraining().plan(fixed, videos)
