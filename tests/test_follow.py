"""Crops that follow what moves: drawn by the energy of motion, each clip for itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from processes import run_processes
from test_step import _batch, _gradients, _gradients_of_a_worker, _trainer
from tiny import tiny_experiment, tiny_plan
from torch import Tensor

from vicc_ray.data.augment import AugmentSettings, _inverse, draw, draw_for, motion_energy
from vicc_ray.data.manifest import Manifest
from vicc_ray.preview.samples import preview_samples

SIZE = 64
PATCH = (slice(8, 20), slice(40, 52))  # rows and columns that move by themselves


def panned(pan: tuple[int, int], moves: int = 30) -> Tensor:
    """Codes of flow uint8 [1, 4, SIZE, SIZE, 2]: a camera that pans, and the patch that moves besides."""
    flow = torch.full((1, 4, SIZE, SIZE, 2), 128, dtype=torch.uint8)
    flow[..., 0] += pan[0]
    flow[..., 1] += pan[1]
    flow[:, :, PATCH[0], PATCH[1], 0] += moves
    return flow


def keys(count: int) -> list[tuple[int, ...]]:
    return [(7, 0, 0, number, 0) for number in range(count)]


def in_patch(centre: Any) -> Any:
    x, y = (np.asarray(centre) * SIZE).T
    return (y >= PATCH[0].start) & (y < PATCH[0].stop) & (x >= PATCH[1].start) & (x < PATCH[1].stop)


@pytest.mark.parametrize("pan", [(0, 0), (25, -14)])
@pytest.mark.parametrize("follow", [1.0, 0.5])
def test_crops_lie_where_things_move_whatever_the_camera_does(pan: tuple[int, int], follow: float) -> None:
    count = 400
    settings = AugmentSettings(32, area=(0.1, 0.3), follow=follow)
    flow = panned(pan).expand(count, -1, -1, -1, -1)
    params = draw_for(settings, keys(count), np.ones(count, bool), {"flow": flow})
    area = 12 * 12 / SIZE**2
    assert in_patch(params.centre).mean() == pytest.approx(follow + (1 - follow) * area, abs=0.07)
    boxes = params.boxes(SIZE, SIZE)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= SIZE).all()
    assert (boxes[:, 1] + boxes[:, 3] <= SIZE).all()
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    free = (middle[:, 0] > boxes[:, 2] / 2 + 1) & (
        middle[:, 0] < SIZE - boxes[:, 2] / 2 - 1
    )  # the frame did not push it
    assert params.centre is not None
    assert np.abs(middle[free, 0] - params.centre[free, 1] * SIZE).max() <= 1


def test_all_else_is_drawn_as_without_it() -> None:
    followed = draw_for(
        AugmentSettings(32, follow=1.0), keys(6), np.ones(6, bool), {"flow": panned((3, 3)).expand(6, -1, -1, -1, -1)}
    )
    plain = draw(AugmentSettings(32), keys(6), np.ones(6, bool))
    for name in ("area", "aspect", "flip", "factors", "order", "sigma"):
        np.testing.assert_array_equal(getattr(followed, name), getattr(plain, name))
    assert followed.rows(slice(2, 4)).boxes(SIZE, SIZE).tolist() == followed.boxes(SIZE, SIZE)[2:4].tolist()
    assert draw_for(AugmentSettings(32), keys(6), np.ones(6, bool), {}).centre is None


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    settings = AugmentSettings(32, follow=0.8)
    flows = torch.cat([panned((5, 0)), panned((0, 9), 60), torch.full((1, 4, SIZE, SIZE, 2), 128, dtype=torch.uint8)])
    together = draw_for(settings, keys(3), np.ones(3, bool), {"flow": flows}).boxes(SIZE, SIZE)
    for row in range(3):
        alone = draw_for(settings, keys(3)[row : row + 1], np.ones(1, bool), {"flow": flows[row : row + 1]})
        np.testing.assert_array_equal(alone.boxes(SIZE, SIZE)[0], together[row])


def test_energy_is_what_loops_say() -> None:
    generator = torch.Generator().manual_seed(0)
    flow = torch.randint(0, 256, (2, 3, 8, 12, 2), generator=generator, dtype=torch.uint8)
    rgb = torch.randint(0, 256, (2, 3, 8, 12, 3), generator=generator, dtype=torch.uint8)
    by_flow, by_rgb = motion_energy({"flow": flow, "rgb": rgb}), motion_energy({"rgb": rgb})
    assert by_flow.shape == by_rgb.shape == (2, 2, 3)
    for clip in range(2):
        camera = [[sorted(flow[clip, t, ::4, ::4, axis].flatten().tolist())[2] for axis in (0, 1)] for t in range(3)]
        for row in range(2):
            for column in range(3):
                at = flow[clip, :, 4 * row, 4 * column].tolist()
                energy = sum((at[t][axis] - camera[t][axis]) ** 2 for t in range(3) for axis in (0, 1)) / 3
                assert float(by_flow[clip, row, column]) == pytest.approx(energy)
                seen = rgb[clip, :, 4 * row, 4 * column].int()
                assert float(by_rgb[clip, row, column]) == pytest.approx(
                    float((seen[1:] - seen[:-1]).square().sum()) / 2
                )


def test_a_draw_by_the_inverse_distribution_is_what_adding_up_says() -> None:
    rng = np.random.default_rng(0)
    weights, uniform = rng.random((50, 7)) * (rng.random((50, 7)) < 0.6) + 1e-3, rng.random(50)
    for row, place in enumerate(_inverse(weights, uniform)):
        left, cell = uniform[row] * weights[row].sum(), 0
        while left >= weights[row, cell]:
            left -= weights[row, cell]
            cell += 1
        assert place == pytest.approx((cell + left / weights[row, cell]) / 7, abs=1e-6)


def test_stages_that_take_no_flow_read_it_for_their_crops(videos: Manifest) -> None:
    still, follows = (tiny_plan(tiny_experiment(augment={"follow": follow}), videos) for follow in (0.0, 1.0))
    assert still.stages[0].decoded == ("rgb",) and follows.stages[0].decoded == ("rgb", "flow")
    (x1, _), _ = _trainer(still, 0).views(_batch(still, 0))
    (followed, _), _ = _trainer(follows, 0).views(_batch(follows, 0))
    assert x1.shape == followed.shape and not torch.equal(x1, followed)
    _trainer(follows, 0).step(_batch(follows, 0), 1)
    difference = tiny_plan(tiny_experiment(augment={"follow": 1.0}, clip={"motion": "difference"}), videos)
    assert [stage.decoded for stage in difference.stages] == [("rgb",)] * 4, "no flow is measured"
    _trainer(difference, 0).step(_batch(difference, 0), 1)
    # The preview shows the crops that training takes.
    sample = next(iter(preview_samples(follows, follows.stages[0], 1)))
    batch = _batch(follows, 0)
    settings = _trainer(follows, 0).settings
    clips = {name: both[:, 0] for name, both in batch.clips.items()}
    params = draw_for(settings, [pair[0] for pair in batch.keys], batch.full[:, 0], clips)
    assert list(sample.clips[0].box) == params.boxes(32, 32)[0].tolist()


@pytest.mark.parametrize("stage", [0, 2])
def test_two_workers_see_the_gradients_of_one(videos: Manifest, stage: int) -> None:
    plan = tiny_plan(tiny_experiment(augment={"follow": 0.8}), videos)
    expected = _gradients(_trainer(plan, stage, without_statistics=True), _batch(plan, stage))
    still = tiny_plan(tiny_experiment(), videos)
    plain = _gradients(_trainer(still, stage, without_statistics=True), _batch(still, stage))
    assert any((expected[name] - plain[name]).abs().max() > 1e-4 for name in expected), "crops lie elsewhere"
    for found in run_processes(_gradients_of_a_worker, 2, plan, stage):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
