"""`vicc bench augment`: its contenders do the same work, and its figures are clips a second."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import augment as bench
from vicc_ray.config import ClipConfig
from vicc_ray.data.augment import IMAGENET_STD, AugmentSettings, draw

CLIP = ClipConfig(frames=2, decode_size=(48, 64), size=40)


@pytest.fixture(autouse=True)
def few_small_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CLIPS", 8)
    monkeypatch.setattr(bench, "ClipConfig", lambda: CLIP)


@pytest.mark.parametrize("channels", [3, 2])
def test_every_way_gives_the_same_network_input(channels: int) -> None:
    settings = AugmentSettings(size=CLIP.size, gray_p=0.4)
    frames = bench.pictures(CLIP, channels)
    params = draw(settings, [(1, row) for row in range(8)], np.arange(8) % 2 == 0)
    for done in (params.flip, params.jitter, params.gray, params.blur):
        assert done.any() and not done.all()
    # PIL blurs by boxes and turns hues in 256 steps; torchvision mirrors the picture where a blur leaves it
    exact = dataclasses.replace(params, blur=params.blur & False)
    std = 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)
    for drawn, clip_gap, frame_gap in ((params, 25.0, 25.0), (exact, 1.6, 20.0)):
        ours = bench.ours(frames, drawn, settings)
        assert ours.shape == (8, 3, 2, 40, 40) and ours.std() > 0.05
        for way, most in ((bench.by_clip, clip_gap), (bench.by_frame, frame_gap)):
            gap = ((way(frames, drawn, settings) - ours) * std).abs()
            assert gap.max() < most and gap.mean() < 1.5


def test_what_is_measured() -> None:
    outcome = bench.measure(1)
    ways = {"ours", "torchvision v2 by clip", "PIL frame by frame"}
    assert {f"{name}: {way}" for name in ("RGB", "flow") for way in ways} <= set(outcome.figures)
    assert all(len(figures) == 1 and figures[0] > 0 for figures in outcome.figures.values())
    assert len(outcome.bars) == 4 and outcome.unit == "clips/s"
