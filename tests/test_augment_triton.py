"""The GPU's augmentation kernel beside its twin in PyTorch: on a GPU where there is one, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vicc_ray.data.augment import IMAGENET_STD, AugmentSettings, ClipParameters, augment, draw

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 9  # with which the chain's parts all occur
SETTINGS = AugmentSettings(size=16)
CODE = 1 / (255 * min(IMAGENET_STD))  # one step of a picture's 0..255 in the network's input


@pytest.fixture(scope="module")
def kernel() -> ModuleType:
    """The kernel's module; on a CPU conftest.py has Triton's interpreter run it."""
    from vicc_ray.data import augment_triton

    return augment_triton


def frames(channels: int, clips: int = 8, height: int = 27, width: int = 36) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    low = torch.rand((clips, 2, 5, 7, channels), generator=generator)
    grown = torch.nn.functional.interpolate(low.flatten(0, 1).permute(0, 3, 1, 2), (height, width), mode="bilinear")
    return (grown.permute(0, 2, 3, 1).reshape(clips, 2, height, width, channels) * 255).to(torch.uint8).to(DEVICE)


def drawn(settings: AugmentSettings, clips: int = 8) -> ClipParameters:
    return draw(settings, [(SEED, clip) for clip in range(clips)], [clip % 4 != 3 for clip in range(clips)])


def difference(found: Tensor | None, expected: Tensor | None) -> float:
    """The largest, in codes of 0..255."""
    assert found is not None and expected is not None
    assert found.shape == expected.shape
    return float((found.float() - expected.float()).abs().max()) / CODE


def twin(rgb: Tensor | None, flow: Tensor | None, params: ClipParameters, settings: AugmentSettings) -> Any:
    """The PyTorch chain; RGB through its float kernel, as on a GPU, since the CPU's rounds a resized picture."""
    import vicc_ray.data.augment as chain

    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setattr(chain, "_ROUNDED", ())
        return augment(rgb, flow, params, settings)


@pytest.mark.parametrize("style", ["physical", "reference"])
@pytest.mark.parametrize("size", [16, 32])
def test_it_is_the_chain(kernel: ModuleType, style: Any, size: int) -> None:
    """All of the chain in every order, both styles, crops that shrink and crops that grow."""
    settings = replace(SETTINGS, size=size, style=style, jitter_p=0.9, gray_p=0.5)
    params = drawn(settings)
    assert params.blur.any() and params.gray.any() and not params.jitter.all()
    rgb, flow = frames(3), frames(2)
    expected = twin(rgb, flow, params, settings)
    found = kernel.augment_fused(rgb, flow, params, settings)
    for mine, theirs in zip(found, expected, strict=True):
        assert difference(mine, theirs) < 0.05


def test_type_and_layout_are_the_networks(kernel: ModuleType) -> None:
    params = drawn(SETTINGS)
    rgb = frames(3)
    expected = twin(rgb, None, params, SETTINGS)[0]
    found, none = kernel.augment_fused(rgb, None, params, SETTINGS, torch.bfloat16, torch.channels_last_3d)
    assert none is None
    assert found.dtype == torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last_3d)
    assert difference(found, expected) < 3


def test_each_clip_is_on_its_own(kernel: ModuleType) -> None:
    """A clip's input does not depend on the batch around it, one without clips is empty."""
    params, rgb = drawn(SETTINGS), frames(3)
    whole = kernel.augment_fused(rgb, None, params, SETTINGS)[0]
    part = kernel.augment_fused(rgb[2:5], None, params.rows(slice(2, 5)), SETTINGS)[0]
    assert difference(part, whole[2:5]) < 1e-3
    assert kernel.augment_fused(rgb[:0], None, params.rows(slice(0, 0)), SETTINGS)[0].shape == (0, 3, 2, 16, 16)


@pytest.mark.parametrize(("length", "side"), [(33, 24), (24, 24), (100, 7), (7, 24), (1, 24), (25, 24)])
def test_taps_are_those_of_the_resize(kernel: ModuleType, length: int, side: int) -> None:
    boxes = np.array([[3, 3, length, length]])
    first, weights = kernel.taps(boxes, 0, side, kernel.most_taps(length, side))
    line = torch.rand(length, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(
        line.view(1, 1, 1, length), (1, side), mode="bilinear", antialias=True
    ).flatten()
    at = np.minimum(first[0, :, None] - 3 + np.arange(weights.shape[2]), length - 1)
    found = (line.numpy()[at] * weights[0]).sum(axis=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_wrong_frames_are_refused(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="rgb: expected uint8"):
        kernel.augment_fused(frames(2), None, drawn(SETTINGS), SETTINGS)


def test_it_compiles_for_gpus() -> None:
    """For Ampere and Hopper, without having one: the interpreter takes programs that the compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_kernel.py"
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["80", "90"]
