"""The table of streams, and frame differences in the place of flow: made right, trained, judged, shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_plan
from torch import Tensor

from vicc_ray.config import STREAMS, Experiment, decoded_for, load_experiment, make_experiment, stream_titled
from vicc_ray.data.augment import (
    AugmentSettings,
    augment,
    augmented,
    difference,
    draw,
    evaluation_input,
    stream_input,
)
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.neighbours import fused_name, newest_pair
from vicc_ray.preview import write_preview
from vicc_ray.training.batches import decode_share, to_batch
from vicc_ray.training.schedule import make_stages

CLIPS = torch.randint(0, 256, (3, 5, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SETTINGS = AugmentSettings(32)
QUICKSTART = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"


def by_hand(view: Tensor) -> Tensor:
    """Frame by frame."""
    out = torch.zeros_like(view)
    for t in range(view.shape[2]):
        here = min(t, view.shape[2] - 2)
        out[:, :, t] = view[:, :, here + 1] - view[:, :, here]
    return out


def test_the_table() -> None:
    assert [kind.title for kind in STREAMS.values()] == ["RGB", "Flow", "Difference", "LK"]
    assert decoded_for(["difference", "rgb"]) == ("rgb",)
    assert decoded_for(["flow", "rgb"]) == ("rgb", "flow") and decoded_for(["flow"]) == ("flow",)
    assert stream_titled("Flow") == "flow" and stream_titled("random") is None


def test_differences_are_those_of_the_same_crop_without_its_colours() -> None:
    params = draw(SETTINGS, [(0, row) for row in range(3)], np.ones(3, bool))
    assert params.jitter.any() and params.flip.any() != params.flip.all()
    none = np.zeros(3, bool)
    plain, _ = augment(CLIPS, None, replace(params, jitter=none, gray=none, blur=none), SETTINGS)
    assert plain is not None
    expected = by_hand(plain)
    views = augmented({"rgb": CLIPS}, ("rgb", "difference"), params, SETTINGS)
    coloured, _ = augment(CLIPS, None, params, SETTINGS)
    assert coloured is not None and torch.equal(views["rgb"], coloured) and torch.equal(views["difference"], expected)
    assert torch.equal(difference(plain)[:, :, -1], difference(plain)[:, :, -2])


def test_in_evaluation_they_are_those_of_the_centre_crop() -> None:
    found = stream_input({"rgb": CLIPS}, "difference", 32, "physical")
    torch.testing.assert_close(found, by_hand(evaluation_input(CLIPS, 32)), rtol=0, atol=0)


def test_one_word_puts_them_in_flows_place() -> None:
    """Also where lengths are given for each stream, as in the quickstart's file."""
    experiment = load_experiment(QUICKSTART, ["clip.motion=difference"])
    flow = load_experiment(QUICKSTART)
    stages = make_stages(experiment, 400)
    assert [stage.name for stage in stages] == ["RGB-1", "Difference-1", "RGB-2", "Difference-2"]
    assert [stage.steps for stage in stages] == [stage.steps for stage in make_stages(flow, 400)]
    assert all(stage.decoded == ("rgb",) for stage in stages)
    assert (stages[2].guide, stages[2].guided_by) == ("difference", "Difference-1")
    named = {"schedule": {"single": {"length": {"rgb": "3 steps", "motion": "5 steps"}}}}
    assert make_experiment(named, "x").schedule.single.stage_length("difference").value == 5
    with pytest.raises(UserError, match=r"clip\.motion"):
        make_experiment({"clip": {"motion": "depth"}}, "x")


def test_both_streams_are_found_and_named_together() -> None:
    assert newest_pair(["random", "RGB-1", "Difference-1"]) == ("RGB-1", "Difference-1")
    assert fused_name(("RGB-1", "Difference-1")) == "R+D" and fused_name(("RGB-2", "Flow-2")) == "R+F"


def _experiment(**changes: object) -> Experiment:
    return tiny_experiment(clip={"motion": "difference"}, **changes)


def test_nothing_but_rgb_is_decoded(videos: Manifest) -> None:
    plan = tiny_plan(_experiment(), videos)
    for stage in plan.stages:
        block = decode_share(plan, stage.first_step, 0, 1)
        assert "rgb" in block and "flow" not in block
        batch, refused = to_batch(plan, stage.first_step, block)
        assert not refused and set(batch.clips) == {"rgb"}


def test_the_page_shows_them(videos: Manifest, tmp_path: Path) -> None:
    page = write_preview(_experiment(), videos, tmp_path / "preview.html", 2).read_text()
    assert "difference view" in page and "difference input" in page and "frame differences" in page
    assert "decoded flow" not in page
