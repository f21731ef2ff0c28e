"""TV-L1 in PyTorch: one iteration is the papers', known motions are found, OpenCV's fields are met."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from videos import shifted_texture

from vicc_ray.data import pictures
from vicc_ray.data.flow import tvl1 as ours
from vicc_ray.data.flow.algorithms import TVL1, fingerprint, flow_between
from vicc_ray.data.flow.tvl1 import DEFAULT, Parameters, median_by_exchanges, tvl1, tvl1_flow
from vicc_ray.errors import UserError

HEIGHT, WIDTH = 96, 120
TURN, ZOOM, SHIFT = (0.02, 0.0, 0.0, 0.0), (0.0, 0.025, 0.0, 0.0), (0.0, 0.0, 2.5, -1.5)


def _moved(turn: float, zoom: float, right: float, down: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB frames of a texture that turns (radians), grows and shifts around the centre, and the true field."""
    rng = np.random.default_rng(seed)
    # Both are read from a picture twice as fine, so that what stands between two of its pixels is known well.
    noise = cv2.GaussianBlur(rng.standard_normal((2 * HEIGHT + 80, 2 * WIDTH + 80)).astype(np.float32), (0, 0), 4.0)
    noise = (noise - noise.min()) / (noise.max() - noise.min()) * 255
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2], np.float32)
    matrix = (1 + zoom) * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    shift = np.array([right, down])
    at = np.stack([x, y], -1) - centre
    field = at @ matrix.T + shift - at
    back = (at - shift) @ np.linalg.inv(matrix).T  # where the second frame's pixels were in the first
    frames = []
    for place in (at, back):
        places = (2 * (place + centre) + 40).astype(np.float32)
        gray = cv2.remap(noise, places[..., 0], places[..., 1], cv2.INTER_CUBIC)
        frames.append(np.repeat(np.clip(np.rint(gray), 0, 255).astype(np.uint8)[..., None], 3, -1))
    return np.stack(frames), field.astype(np.float32)


def _error(found: np.ndarray, field: np.ndarray) -> np.ndarray:
    return np.hypot(found[..., 0] - field[..., 0], found[..., 1] - field[..., 1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "motion", [SHIFT, (0.0, 0.0, -4.0, 3.0), (0.0, 0.0, 0.25, 0.0), TURN, ZOOM, (-0.03, -0.02, 1.0, 0.5)]
)
def test_shifts_turns_and_zooms_are_found(motion: tuple[float, float, float, float]) -> None:
    frames, field = _moved(*motion)
    error = _error(flow_between(frames, "tvl1_torch")[0], field)
    inner = error[8:-8, 8:-8]  # what moves out of the picture is guessed at
    assert inner.mean() < 0.06
    assert np.quantile(inner, 0.99) < 0.3
    assert error.mean() < 0.2


@pytest.mark.parametrize("motion", [SHIFT, TURN, ZOOM])
def test_opencvs_field_is_met(motion: tuple[float, float, float, float]) -> None:
    frames, _ = _moved(*motion, seed=3)
    assert _error(flow_between(frames, "tvl1_torch")[0], flow_between(frames, "tvl1")[0]).mean() < 0.1


def test_a_thing_moves_before_a_ground_that_rests() -> None:
    rng = np.random.default_rng(5)
    ground, thing = (cv2.GaussianBlur(rng.uniform(0, 255, (96, 120)).astype(np.float32), (0, 0), 1.5) for _ in range(2))
    frames = []
    for x in (40, 43):
        frame = 3 * (ground - 128) + 128
        frame[30:62, x : x + 36] = 3 * (thing[30:62, 40:76] - 128) + 128
        frames.append(np.repeat(np.clip(frame, 0, 255).astype(np.uint8)[..., None], 3, -1))
    flow = flow_between(np.stack(frames), "tvl1_torch")[0]
    assert np.abs(flow[34:58, 46:74] - [3.0, 0.0]).mean() < 0.1
    far = np.ones((96, 120), bool)
    far[24:68, 34:85] = False
    assert np.abs(flow[far]).mean() < 0.03


def _plain_iterations(
    u: np.ndarray, dual: np.ndarray, g: np.ndarray, rho: np.ndarray, times: int, par: Parameters
) -> np.ndarray:
    """The papers' iteration pixel by pixel: u [2, H, W] and dual [2, 2, H, W] in place; `rho` at u0 = u's start."""
    start, (height, width) = u.copy(), u.shape[1:]
    for _ in range(times):
        before = u.copy()
        for y in range(height):
            for x in range(width):
                here = g[:, y, x]
                now, square = rho[y, x] + here @ (before[:, y, x] - start[:, y, x]), here @ here
                limit = par.lambda_ * par.theta
                if now < -limit * square:
                    v = before[:, y, x] + limit * here
                elif now > limit * square:
                    v = before[:, y, x] - limit * here
                else:
                    v = before[:, y, x] - now * here / square
                for k in range(2):
                    # Backward differences; p is 0 before the first and in the last column and row.
                    out = dual[0, k, y, x] * (x < width - 1) + dual[1, k, y, x] * (y < height - 1)
                    out -= (dual[0, k, y, x - 1] if x else 0.0) + (dual[1, k, y - 1, x] if y else 0.0)
                    u[k, y, x] = v[k] + par.theta * out
        step = par.tau / par.theta
        for k in range(2):
            for y in range(height):
                for x in range(width):
                    right = u[k, y, x + 1] - u[k, y, x] if x < width - 1 else 0.0
                    down = u[k, y + 1, x] - u[k, y, x] if y < height - 1 else 0.0
                    dual[:, k, y, x] += step * np.array([right, down])
                    dual[:, k, y, x] /= 1 + step * np.hypot(right, down)
    return before


def test_the_iterations_are_the_papers() -> None:
    par, times = Parameters(tau=0.2, lambda_=0.1, theta=0.4), 4
    rng = np.random.default_rng(1)
    n, height, width = 2, 6, 7
    u, dual = rng.normal(size=(2, n, height, width)), np.zeros((2, 2, n, height, width))
    g, rho = rng.normal(size=(2, n, height, width)) * 3, rng.normal(size=(n, height, width))
    scaled, square = par.tau / par.theta, (g**2).sum(0)
    constant = -(rho - (g * u).sum(0)) / square
    data = np.concatenate([g * scaled, -g / square / scaled, constant[None]])
    w, p = torch.tensor(u * scaled, dtype=torch.float32), torch.zeros(2, 2, n, height, width)
    moved = ours._Iteration(w, p, torch.tensor(data, dtype=torch.float32), par)(times)
    for i in range(n):
        before = _plain_iterations(u[:, i], dual[:, :, i], g[:, i], rho[i], times, par)
        assert moved[i].item() == pytest.approx(((u[:, i] - before) ** 2).sum(0).mean() * scaled**2, rel=1e-4)
    assert np.allclose(w.numpy() / scaled, u, atol=1e-5)
    assert np.allclose(p.numpy(), dual, atol=1e-5)


def test_a_warp_is_the_difference_of_the_pictures_made_linear() -> None:
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    pictures = torch.stack([2 * x + y + 7, 3 * x - 2 * y + 40])[:, None]  # first and second, planes
    w = torch.zeros(2, 1, 20, 24)
    w[0], w[1] = 1.5 * DEFAULT.tau / DEFAULT.theta, -0.5 * DEFAULT.tau / DEFAULT.theta
    data = ours._Warp(pictures, DEFAULT)(w)[:, 0]
    ratio = data[2] * w[0, 0] + data[3] * w[1, 0] + data[4]
    rho = 3 * (x + 1.5) - 2 * (y - 0.5) + 40 - (2 * x + y + 7)
    inner = (slice(4, -4), slice(4, -4))
    assert torch.allclose(ratio[inner], -rho[inner] / 13, atol=1e-4)
    assert torch.allclose(data[0][inner] * DEFAULT.theta / DEFAULT.tau, torch.tensor(3.0), atol=1e-4)
    assert torch.allclose(data[1][inner] * DEFAULT.theta / DEFAULT.tau, torch.tensor(-2.0), atol=1e-4)
    # Between the first two rows it is read with a row above that repeats the first, not with zeros.
    square = (data[:2, 1, 4:-4] * DEFAULT.theta / DEFAULT.tau).square().sum(0)
    assert (ratio[1, 4:-4] * square + rho[1, 4:-4]).abs().max() < 0.5
    assert (data[:4, :, -1] == 0).all()  # 1.5 to the right of the last column there is no picture


def test_scales_and_what_goes_from_one_to_the_next() -> None:
    sizes = [tuple(p.shape[2:]) for p in ours._pyramid(torch.zeros(2, 1, 128, 171), DEFAULT)]
    assert sizes == [(128, 171), (102, 137), (82, 110), (66, 88), (53, 70)]
    assert [p.shape[2] for p in ours._pyramid(torch.zeros(2, 1, 22, 60), DEFAULT)] == [22, 18]  # 14 would be too few
    noise = torch.from_numpy(np.random.default_rng(2).uniform(0, 255, (2, 1, 40, 50)).astype(np.float32))
    plain = torch.nn.functional.interpolate(ours._blurred(noise, 0.45), (32, 40), mode="bilinear", align_corners=False)
    assert torch.allclose(ours._pyramid(noise, DEFAULT)[1], plain, atol=1e-3)
    assert torch.allclose(ours._at_scale(noise, noise.clone(), replace(DEFAULT, warps=0)), noise, rtol=1e-6)
    larger = ours._enlarged(torch.ones(2, 1, 8, 10), (12, 20))
    assert (larger[0] == 2).all() and (larger[1] == 1.5).all()
    point = torch.zeros(2, 1, 21, 25)
    point[:, :, 10, 12] = 1
    blurred = ours._blurred(point, 0.8)[1, 0]
    assert blurred.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(blurred, blurred.flip(0)) and torch.equal(blurred, blurred.flip(1))
    y, x = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(25.0) - 12, indexing="ij")
    spread = [(blurred * axis.square()).sum().item() for axis in (y, x)]
    assert spread == pytest.approx([0.64, 0.64], rel=0.03)


def test_a_warp_begins_with_the_median_and_ends_when_the_field_moves_little(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    data = torch.from_numpy(rng.normal(size=(5, 1, 30, 40)).astype(np.float32))
    w, dual = data[:2] * 5, torch.zeros(2, 2, 1, 30, 40)
    plain = torch.from_numpy(np.stack([cv2.medianBlur(plane.numpy(), 5) for plane in w[:, 0]]))[:, None]
    ours._minimise(w, dual, data, replace(DEFAULT, inner_iterations=0, outer_iterations=1))
    assert torch.equal(w, plain)

    data[2:4] = -data[:2] / data[:2].square().sum(0)
    moved, iterate = [], ours._Iteration.__call__

    def watched(self: ours._Iteration, times: int) -> torch.Tensor:
        found = iterate(self, times)
        moved.append(found.item() ** 0.5 * DEFAULT.theta / DEFAULT.tau)
        return found

    monkeypatch.setattr(ours._Iteration, "__call__", watched)
    ours._minimise(w, dual, data, DEFAULT)
    assert 2 < len(moved) < 60
    assert moved[-1] < DEFAULT.epsilon <= min(moved[:-1])


@pytest.mark.parametrize("side", [3, 5])
def test_the_median_by_exchanges_is_opencvs(side: int) -> None:
    values = torch.from_numpy(np.random.default_rng(side).normal(size=(2, 3, 21, 33)).astype(np.float32))
    plain = values.clone()
    ours._median_filter(plain, side)  # OpenCV's, as it is on the CPU
    assert torch.equal(median_by_exchanges(values, side), plain)
    window = np.pad(values[1, 2].numpy(), side // 2, mode="edge")[4 : 4 + side, 9 : 9 + side]
    assert plain[1, 2, 4, 9] == np.median(window)


def test_a_field_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    still = np.full((1, HEIGHT, WIDTH, 3), 90, np.uint8)
    frames = np.concatenate([_moved(*TURN)[0], _moved(*SHIFT, seed=2)[0], still, still])
    monkeypatch.setitem(ours.PAIRS, "cpu", 8)
    together = flow_between(frames, "tvl1_torch")
    for i, pair in enumerate(pairwise(frames)):
        # The pair before and after a cut has no answer: there the last bit of a sum may decide.
        if i != 1 and i != 3:
            assert np.abs(flow_between(np.stack(pair), "tvl1_torch")[0] - together[i]).max() < 0.01
    assert np.abs(together[-1]).max() == 0.0


def test_small_flat_and_single_frames() -> None:
    for height, width in [(1, 1), (1, 9), (4, 40), (15, 17), (16, 16), (23, 90)]:
        for frames in (shifted_texture(3, height, width, 1, 0), np.zeros((3, height, width, 3), np.uint8)):
            flow = flow_between(frames, "tvl1_torch")
            assert flow.shape == (2, height, width, 2)
            assert flow.dtype == np.float32
            assert np.isfinite(flow).all()
    assert flow_between(np.zeros((1, 16, 20, 3), np.uint8), "tvl1_torch").shape == (0, 16, 20, 2)


def test_other_tensors_are_refused() -> None:
    gray = torch.zeros(2, 16, 20, dtype=torch.uint8)
    for first, second in [(gray, gray[:1]), (gray.float(), gray.float()), (gray[0], gray[0]), (gray, gray.float())]:
        with pytest.raises(ValueError, match=r"must both be uint8 \[N, H, W\]; they are"):
            tvl1(first, second)
    with pytest.raises(ValueError, match="median must be 1, 3 or 5; it is 4"):
        Parameters(median=4)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device; tvl1_torch runs on cpu"):
            tvl1_flow(np.zeros((2, 16, 20, 3), np.uint8), "cuda")


def test_parameters_are_those_of_opencvs_tvl1() -> None:
    names = {
        "scales": "nscales",
        "inner_iterations": "innnerIterations",
        "outer_iterations": "outerIterations",
        "scale_step": "scaleStep",
        "median": "medianFiltering",
    }
    theirs = TVL1.parameters
    found = json.loads(fingerprint("tvl1_torch"))
    assert found.pop("algorithm") == "tvl1_torch"
    assert found.pop("rules") == ours.RULES
    assert found.pop("torch") == torch.__version__.split("+")[0]
    assert (found.pop("pictures"), found.pop("interlaced")) == (pictures.RULES, "weave")
    assert {names.get(name, name): value for name, value in found.items()} == {
        name: value for name, value in theirs.items() if name not in ("gamma", "useInitialFlow")
    }


def test_threads_are_as_many_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        flow_between(shifted_texture(2, 20, 20, 1, 0), "tvl1_torch")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_field_is_the_cpus() -> None:
    for motion in (SHIFT, TURN, ZOOM):
        frames, field = _moved(*motion)
        found = flow_between(frames, "tvl1_torch", device="cuda")[0]
        assert _error(found, flow_between(frames, "tvl1_torch")[0]).mean() < 0.01
        assert _error(found, field)[8:-8, 8:-8].mean() < 0.06
