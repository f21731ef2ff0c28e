"""Flow: known shifts are found, with the right sign; the uint8 form keeps what it promises."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from videos import shifted_texture

from vicc_ray.data.flow import ALGORITHMS, dequantise, fingerprint, flow_between, quantise
from vicc_ray.errors import UserError

SHIFTS = [(1.0, 0.0), (0.0, 2.0), (-3.0, 1.0), (4.0, -4.0), (2.5, -1.5)]


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize(("u", "v"), SHIFTS)
def test_shifts_are_found(algorithm: str, u: float, v: float) -> None:
    flow = flow_between(shifted_texture(3, 64, 64, u, v), algorithm)
    assert flow.shape == (2, 64, 64, 2)
    assert flow.dtype == np.float32
    error = np.hypot(flow[..., 0] - u, flow[..., 1] - v)
    assert error.mean() < 0.3


@pytest.mark.parametrize("algorithm", ["dis", "farneback"])
def test_fields_do_not_depend_on_what_came_before(algorithm: str) -> None:
    frames = shifted_texture(4, 48, 72, 1.5, -0.5, seed=4)
    together = flow_between(frames, algorithm)
    for i in range(3):
        assert np.array_equal(together[i], flow_between(frames[i : i + 2], algorithm)[0])


def test_dis_survives_frames_too_small_for_opencv() -> None:
    for height, width in [(1, 1), (4, 40), (8, 12), (9, 9), (10, 10), (15, 40)]:
        flow = flow_between(shifted_texture(3, height, width, 1, 0), "dis")
        assert flow.shape == (2, height, width, 2)
        assert np.isfinite(flow).all()


def test_one_frame_has_no_flow_and_other_arrays_are_refused() -> None:
    assert flow_between(np.zeros((1, 16, 20, 3), np.uint8)).shape == (0, 16, 20, 2)
    with pytest.raises(ValueError, match="frames must be uint8"):
        flow_between(np.zeros((2, 16, 20, 3), np.float32))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'raff' is not known; allowed: dis, farneback, tvl1"):
        flow_between(np.zeros((2, 16, 20, 3), np.uint8), "raff")


def test_quantised_values_are_the_published_formula() -> None:
    field = np.random.default_rng(0).uniform(-25, 25, (2, 5, 7, 2)).astype(np.float32)
    values = quantise(field)
    assert values.dtype == np.uint8
    for got, f in zip(values.ravel(), field.ravel(), strict=True):
        assert int(got) == round((min(max(float(f), -20.0), 20.0) + 20.0) * 255 / 40)
    assert np.abs(dequantise(values) - np.clip(field, -20, 20)).max() <= 20 / 255 + 1e-5
    assert np.array_equal(quantise(dequantise(np.arange(256, dtype=np.uint8))), np.arange(256))
    assert quantise(np.array([-4.0, 4.0], np.float32), bound=4.0).tolist() == [0, 255]
    assert dequantise(np.array([0, 255], np.uint8), bound=4.0).tolist() == [-4.0, 4.0]


def test_fingerprint_names_what_decides_the_numbers() -> None:
    prints = {name: json.loads(fingerprint(name)) for name in ALGORITHMS}
    for name, print_ in prints.items():
        assert print_["algorithm"] == name
        assert print_["opencv"] == cv2.__version__
        assert ALGORITHMS[name].parameters.items() <= print_.items()
    with pytest.raises(UserError, match="not known"):
        fingerprint("none")


def test_written_out_parameters_are_opencvs_presets() -> None:
    medium = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    for name, value in ALGORITHMS["dis"].parameters.items():
        assert getattr(medium, f"get{name}")() == value
    frames = shifted_texture(2, 24, 24, 1, 1)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    plain = cv2.optflow.DualTVL1OpticalFlow.create().calc(gray[0], gray[1], None)
    assert np.array_equal(flow_between(frames, "tvl1")[0], plain)
