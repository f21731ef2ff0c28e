"""TV-L1 on a GPU beside the CPU's and OpenCV's."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from gpu_device import GPU, needs_gpu
from moving import moving_texture

from vicc_ray.data.flow.tvl1 import median_by_exchanges, tvl1_flow

pytestmark = needs_gpu


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean end-point error off the rim, pixels."""
    inside = np.s_[:, 8:-8, 8:-8]
    return float(np.linalg.norm(found[inside] - expected[inside], axis=-1).mean())


def test_fields_are_those_of_the_cpu() -> None:
    frames = moving_texture()
    found = tvl1_flow(frames, GPU)
    assert error(found, tvl1_flow(frames, "cpu")) < 0.02
    assert error(found, np.broadcast_to(np.float32([1.5, 1.0]), found.shape)) < 0.1  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(cv2, "optflow"), reason="OpenCV has no TV-L1 here")
def test_fields_are_those_of_opencv() -> None:
    frames = moving_texture()
    algorithm = cv2.optflow.DualTVL1OpticalFlow.create()
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    expected = np.stack([algorithm.calc(a, b, None) for a, b in pairwise(gray)])
    assert error(tvl1_flow(frames, GPU), expected) < 0.25


def test_the_median_of_exchanges_is_the_median() -> None:
    values = torch.randn(2, 3, 20, 31, generator=torch.Generator().manual_seed(0)).to(GPU)
    padded = torch.nn.functional.pad(values, (2, 2, 2, 2), mode="replicate")
    windows = padded.unfold(2, 5, 1).unfold(3, 5, 1).flatten(4)
    assert torch.equal(median_by_exchanges(values, 5), windows.median(dim=-1).values)
