"""`vicc preview`: it shows what training augments, nothing else, on a page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_experiment, tiny_manifest, tiny_plan

from vicc_ray.config import Experiment, Stream
from vicc_ray.data.augment import IMAGENET_MEAN, IMAGENET_STD, evaluation_input
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.samples import read_clips
from vicc_ray.errors import UserError
from vicc_ray.models.encoder import build_encoder
from vicc_ray.objective import PrototypeObjective
from vicc_ray.preview import write_preview
from vicc_ray.preview.samples import PreviewSample, preview_samples, preview_stages, strip_frames
from vicc_ray.report.flow_colour import LIMITS, colour_flow, colour_wheel, readable_limit
from vicc_ray.report.pages import distinct_names
from vicc_ray.training.batches import Batch, decode_share, make_plan, to_batch
from vicc_ray.training.step import StageTrainer


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return tiny_manifest(tmp_path_factory.mktemp("preview"))


def _pixels(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean) * 255


def _training_views(experiment: Experiment, manifest: Manifest) -> tuple[Batch, dict[Stream, list[torch.Tensor]]]:
    """The first batch of the cross-stream stage as one worker of training gets it, and both clips' views of each stream."""
    plan = tiny_plan(experiment, manifest)
    stage = next(stage for stage in plan.stages if stage.guide)
    batch, refused = to_batch(plan, stage.first_step, decode_share(plan, stage.first_step, 0, 1))
    assert not refused
    encoders = [build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=seed) for seed in (1, 2)]
    objective = PrototypeObjective(experiment, stage, seed=0)
    trainer = StageTrainer(experiment, stage, encoders[0], objective, encoders[1], torch.device("cpu"))
    (x1, x2), guide = trainer.views(batch)
    assert guide is not None and stage.stream == "rgb"
    return batch, {"rgb": [x1, x2], "flow": [guide[1], guide[0]]}


@pytest.mark.parametrize("style", ["physical", "reference"])
def test_it_shows_the_very_views_that_training_makes(manifest: Manifest, style: str) -> None:
    experiment = tiny_experiment(augment={"style": style})
    batch, views = _training_views(experiment, manifest)
    plan = make_plan(experiment, manifest)
    (stage,) = preview_stages(plan)
    samples = list(preview_samples(plan, stage, 8))
    assert len(samples) == 8
    frames, chains = strip_frames(experiment.clip.frames), set()
    for row, look in enumerate(samples):
        for number, clip in enumerate(look.clips):
            assert clip.full == batch.full[row, number]
            chains.add(bool(clip.operations))
            assert np.array_equal(clip.decoded["rgb"].picture, batch.clips["rgb"][row, number, frames])  # type: ignore[arg-type]
            seen = _pixels(views["rgb"][number][row])[:, frames].permute(1, 2, 3, 0)
            assert np.abs(clip.view["rgb"].picture - seen.numpy()).max() <= 0.51
            codes = _pixels(views["flow"][number][row])[:, frames].permute(1, 0, 2, 3)
            shown = clip.view["flow"]
            if style == "reference":
                assert shown.field is None and shown.picture is not None
                assert np.abs(shown.picture - codes.permute(0, 2, 3, 1).numpy()).max() <= 0.51
            else:
                assert shown.field is not None
                torch.testing.assert_close(shown.field, codes[:, [2, 1]] * 16 / 255 - 8, atol=1e-3, rtol=0)
    assert chains == {True, False}


def test_captions_tell_what_was_done(manifest: Manifest) -> None:
    experiment = tiny_experiment(augment={"gray_p": 1, "jitter_p": 0, "blur_p": 0, "same_window_p": 1})
    plan = make_plan(experiment, manifest)
    for look in preview_samples(plan, preview_stages(plan)[0], 8):
        assert look.same_window and {clip.full for clip in look.clips} == {True, False}
        for clip in look.clips:
            assert bool(clip.operations) == clip.full
            picture = clip.view["rgb"].picture
            assert picture is not None
            assert (np.ptp(picture, axis=-1) == 0).all() == clip.full
    apart = tiny_experiment(augment={"same_window_p": 0})
    plan = make_plan(apart, manifest)
    assert any(not look.same_window for look in preview_samples(plan, preview_stages(plan)[0], 8))


def test_outlined_crop_is_the_view(manifest: Manifest) -> None:
    experiment = tiny_experiment(augment={"full_chain_p": 0, "same_window_p": 0})
    plan = make_plan(experiment, manifest)
    for look in preview_samples(plan, preview_stages(plan)[0], 4):
        for clip in look.clips:
            top, left, height, width = clip.box
            decoded, seen = clip.decoded["rgb"].picture, clip.view["rgb"].picture
            assert decoded is not None and seen is not None
            crop = Image.fromarray(decoded[0]).crop((left, top, left + width, top + height))
            want = np.asarray(crop.resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(seen[0] - (want[:, ::-1] if clip.flip else want)).max() <= 2


def test_the_evaluation_window_is_the_evaluation_input(manifest: Manifest) -> None:
    experiment = tiny_experiment()
    plan = make_plan(experiment, manifest)
    look = next(preview_samples(plan, preview_stages(plan)[0], 1))
    window = look.window
    assert window is not None and not window.refused
    starts = evaluation_starts(look.video.frames, 8, 1, "all")
    assert window.number == len(starts) // 2 + 1
    assert window.windows == len(starts) > 1 and window.start == starts[window.number - 1]
    clips = read_clips(look.video, [window.start], ("rgb",), experiment.clip, experiment.flow)
    want = _pixels(evaluation_input(torch.from_numpy(clips["rgb"]), 32)[0])[:, strip_frames(8)].permute(1, 2, 3, 0)
    assert window.view["rgb"].picture is not None
    assert np.abs(window.view["rgb"].picture - want.numpy()).max() <= 0.51


def test_without_cross_stream_stages_both_streams_are_shown(manifest: Manifest) -> None:
    plan = make_plan(tiny_experiment(schedule={"cycles": 0}), manifest)
    stages = preview_stages(plan)
    assert [stage.name for stage in stages] == ["RGB-1", "Flow-1"]
    assert [set(next(preview_samples(plan, stage, 1)).clips[0].view) for stage in stages] == [{"rgb"}, {"flow"}]


def test_samples_go_on_with_the_next_step_and_end_with_the_stage(manifest: Manifest) -> None:
    plan = make_plan(tiny_experiment(), manifest)
    (stage,) = preview_stages(plan)
    few = [look.video.video for look in preview_samples(plan, stage, 10)]
    want = [plan.videos[v].video for step in (0, 1) for v in plan.epoch_and_videos(stage.first_step + step)[1]]
    assert few == want[:10]
    assert len(list(preview_samples(plan, stage, 10_000))) == stage.samples


class _Page(HTMLParser):
    """All sources and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_is_the_same_for_the_same_seed(manifest: Manifest, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    out = write_preview(experiment, manifest, tmp_path / "new" / "preview.html", samples=2)
    html = out.read_text(encoding="utf-8")
    page = _Page(html)
    assert len(page.sources) == 1 + 2 * (2 * 4 + 2)  # wheel; a sample: two clips of 4 strips, an evaluation window of 2
    for source in page.sources:
        assert source.startswith("data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert min(picture.size) >= 100
    assert not re.search(r"https?://", html) and "script" not in page.tags
    for word in ("tiny", "RGB-2", "evaluation", "from frame"):
        assert word.lower() in page.text.lower()
    assert write_preview(experiment, manifest, tmp_path / "again.html", samples=2).read_text(encoding="utf-8") == html
    other = write_preview(tiny_experiment(seed=4), manifest, tmp_path / "other.html", samples=2)
    assert other.read_text(encoding="utf-8") != html


def test_an_unreadable_video_is_shown_as_refused_and_texts_are_escaped(manifest: Manifest, tmp_path: Path) -> None:
    experiment = tiny_experiment()
    plan = make_plan(experiment, manifest)
    (stage,) = preview_stages(plan)
    first = plan.videos[int(plan.epoch_and_videos(stage.first_step)[1][0])]
    broken = tmp_path / "a <b>bold & \"quoted\" 'name'.mp4"
    broken.write_text("not a video")
    spoilt = dataclasses.replace(first, video=str(broken), label="<script>x</script>")
    rows = [spoilt if row == first else row for row in manifest.videos]
    out = write_preview(experiment, Manifest(rows), tmp_path / "p.html", samples=2)
    page = _Page(out.read_text(encoding="utf-8"))
    assert broken.name in page.text and "<script>x</script>" in page.text and "Refused: " in page.text
    assert "script" not in page.tags and "b" in page.tags and page.text.count("Clip 1") == 1
    look: PreviewSample = next(preview_samples(make_plan(experiment, Manifest(rows)), stage, 1))
    assert look.refused and look.refused in page.text


@pytest.mark.parametrize(("clip", "said"), [({"frames": 16}, "frames before the video"), ({"fps": 4}, "s before the")])
def test_a_short_video_says_that_its_first_frame_repeats(
    manifest: Manifest, tmp_path: Path, clip: dict[str, object], said: str
) -> None:
    out = write_preview(tiny_experiment(clip=clip), manifest, tmp_path / "p.html", samples=1)
    assert said in _Page(out.read_text(encoding="utf-8")).text


def test_what_cannot_be_shown_is_said(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 samples"):
        write_preview(tiny_experiment(), manifest, tmp_path / "p.html", samples=0)
    with pytest.raises(UserError, match="global_batch"):
        write_preview(tiny_experiment(), Manifest(manifest.select("train")[:3]), tmp_path / "p.html")


def test_colours_of_flow() -> None:
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]).view(4, 2, 1, 1)
    full = colour_flow(2 * directions, 2.0).astype(int)
    assert len({tuple(colour) for colour in full.reshape(-1, 3)}) == 4
    # full colour has no white in it; half the speed is half way to white; beyond the limit nothing changes
    assert (full.min(axis=-1) <= 1).all() and (full.max(axis=-1) == 255).all()
    half = colour_flow(directions, 2.0)
    assert np.abs(half - (full + 255) / 2).max() <= 1.5
    assert np.array_equal(colour_flow(9 * directions, 2.0), full)
    assert (colour_flow(torch.zeros(1, 2, 3, 3), 2.0) == 255).all()
    # each picture on its own: neighbours in the batch change nothing
    assert np.array_equal(colour_flow(directions[:1], 2.0)[0], half[0])
    assert colour_flow(torch.zeros(0, 2, 3, 3), 1.0).shape == (0, 3, 3, 3)
    for wrong, limit in ((torch.zeros(2, 3, 3), 1.0), (torch.zeros(1, 2, 3, 3), 0.0)):
        with pytest.raises(ValueError, match=r"flow|limit"):
            colour_flow(wrong, limit)


def test_the_legend_points_where_the_motion_goes() -> None:
    wheel = colour_wheel(101)
    ends = {
        (1.0, 0.0): (50, 100),
        (-1.0, 0.0): (50, 0),
        (0.0, 1.0): (100, 50),
        (0.0, -1.0): (0, 50),
    }  # (u, v): row, column
    for (u, v), (row, column) in ends.items():
        want = colour_flow(torch.tensor([u, v]).view(1, 2, 1, 1), 1.0)[0, 0, 0].astype(int)
        assert np.abs(wheel[row, column] - want).max() <= 1
    assert (wheel[0, 0] == 255).all() and (wheel[50, 50] >= 254).all()


def test_limits_are_numbers_one_can_count_with() -> None:
    assert readable_limit(torch.zeros(0)) == LIMITS[0]
    assert readable_limit(torch.full((1000,), 2.4)) == 3
    spread = torch.cat([torch.full((999,), 4.0), torch.full((1,), 90.0)])
    assert readable_limit(spread) == 5
    assert readable_limit(torch.full((10,), 1e4)) == LIMITS[-1]


def test_names_on_a_page_tell_videos_apart() -> None:
    paths = [
        "/v/run/id1/video.mp4",
        "/v/jump/id1/video.mp4",
        "/v/jump/id2/video.mp4",
        "/v/a.mp4",
        "s3://b/my%20clip.mp4",
    ]
    assert distinct_names(paths) == dict(
        zip(paths, ["run/id1/video.mp4", "jump/id1/video.mp4", "id2/video.mp4", "a.mp4", "my clip.mp4"], strict=True)
    )
    assert distinct_names(["/v/a.mp4", "/v/a.mp4"]) == {"/v/a.mp4": "a.mp4"}
    assert distinct_names(["/a.mp4", "/v/a.mp4"]) == {"/a.mp4": "a.mp4", "/v/a.mp4": "v/a.mp4"}
    assert distinct_names([]) == {}


def test_a_video_that_hangs_its_decoder_is_shown_as_refused(manifest: Manifest, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.mp4")  # opening it waits for a writer, deep in native code
    endless = str(tmp_path / "endless.mp4")
    rows = [replace(row, video=endless) if number == 0 else row for number, row in enumerate(manifest.videos)]
    experiment = tiny_experiment(data={"decode_timeout": 5, "decoder": "pyav"})
    plan = make_plan(experiment, Manifest(rows))
    samples = list(preview_samples(plan, preview_stages(plan)[0], 16))
    assert [look.refused for look in samples if look.video.video == endless] == [
        "the decoder gave no answer within 5 s"
    ]
    assert sum(bool(look.clips) for look in samples) == 15
