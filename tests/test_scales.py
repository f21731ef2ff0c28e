"""--scale smoke: small enough for every part of a run to come in minutes, between the file and --set, recorded in the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vicc_ray.cli import app
from vicc_ray.config import differences, flatten, load_experiment
from vicc_ray.config.published import ROWS, shipped_experiment
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.objective.prototype_objective import prototype_phases
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.scale import experiment_at
from vicc_ray.training.schedule import make_stages

ROW = shipped_experiment("s3d_rf_finetune_hmdb51")
EVERY = [shipped_experiment(row.id) for row in ROWS] + [shipped_experiment("quickstart")]


def manifest(path: Path, videos: int) -> str:
    """A manifest of that many training videos and some others; nobody opens them."""
    rows = [VideoRow(f"/v/{number}.avi", "a", "train", frames=50) for number in range(videos)]
    Manifest([*rows, replace(rows[0], video="/v/q.avi", split="query")], "ucf101", 1).write(path)
    return f"data.manifest={path}"


@pytest.mark.parametrize("file", EVERY, ids=lambda file: file.stem)
def test_every_part_of_a_run_comes_at_small_sizes(file: Path) -> None:
    full, smoke = load_experiment(file), experiment_at(file, [], "smoke", 20)
    assert (smoke.name, smoke.scale) == (f"{full.name}-smoke", "smoke")
    assert smoke.model.backbone == full.model.backbone and smoke.model.width <= 0.25
    stages = make_stages(smoke, 20)
    assert [stage.name for stage in stages] == [stage.name for stage in make_stages(full, 9537)]
    assert sum(stage.steps for stage in stages) <= 18
    for stage in stages:
        phases = prototype_phases(smoke, stage)
        assert stage.global_batch <= 8 and phases.queue_start < stage.steps
        assert 0 < phases.queue < stage.steps * stage.global_batch  # full, so in use, before the stage ends
        assert phases.freeze_prototypes < stage.steps
    assert any(prototype_phases(smoke, stage).freeze_prototypes for stage in stages)
    assert smoke.clip.frames <= 8 and smoke.clip.size <= 48 <= min(smoke.clip.decode_size) <= 64
    assert (smoke.flow.source, smoke.flow.algorithm) == ("stream", "dis")
    assert smoke.evaluate == full.evaluate.model_copy(update={"monitor_videos": 16})
    assert smoke.train.workers.max <= 2


@pytest.mark.parametrize("name", ["linear", "finetune"])
def test_classifiers_drop_their_rates_where_the_published_ones_do(name: str) -> None:
    full, smoke = (getattr(experiment_at(ROW, [], scale, 20), name) for scale in ("full", "smoke"))
    assert [drop.value / smoke.length.value for drop in smoke.drops] == [
        drop.value / full.length.value for drop in full.drops
    ]
    changed = {"length", "drops", "global_batch"}
    assert smoke.model_dump(exclude=changed) == full.model_dump(exclude=changed)
    assert smoke.length.unit == "steps" and smoke.length.value <= 10 and smoke.global_batch <= 8


def test_the_frames_keep_their_aspect_and_are_never_enlarged() -> None:
    def sizes(*overrides: str) -> tuple[tuple[int, int], int, int]:
        # The overrides stand in for the file here: a scale is applied to what they say, and they are applied again last.
        clip = experiment_at(ROW, overrides, "smoke").clip
        return clip.decode_size, clip.size, clip.frames

    assert sizes() == ((60, 80), 48, 8)
    assert experiment_at(None, [], "smoke").clip.decode_size == (60, 80)  # of 128 x 171
    small = experiment_at(shipped_experiment("quickstart"), [], "smoke").clip
    assert (small.decode_size, small.size, small.frames) == ((60, 60), 48, 8)
    assert sizes("clip.decode_size=[48, 50]", "clip.size=32", "clip.frames=4") == ((48, 50), 32, 4)


def test_a_clip_covers_as_much_time_as_a_full_one() -> None:
    full, smoke = (experiment_at(ROW, [], scale).clip for scale in ("full", "smoke"))
    assert (full.frames * full.stride, smoke.frames * smoke.stride) == (32, 32)


def test_a_clip_of_frames_a_second_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("clip: {frames: 16, fps: 12}")
    clip = experiment_at(file, [], "smoke").clip
    assert (clip.frames, clip.fps, clip.stride) == (8, 6, 1)


def test_set_is_applied_after_the_scale() -> None:
    asked = experiment_at(ROW, ["name=mine", "clip.frames=16", "schedule.cross.length=1 epochs"], "smoke")
    assert (asked.name, asked.scale, asked.clip.frames) == ("mine", "smoke", 16)
    assert str(asked.schedule.cross.length) == "1 epochs"
    assert asked.model.width == 0.25


@pytest.mark.parametrize(("videos", "batches"), [(100, (8, 4)), (8, (8, 4)), (7, (4, 4)), (3, (2, 2)), (2, (2, 2))])
def test_no_batch_exceeds_the_videos(tmp_path: Path, videos: int, batches: tuple[int, int]) -> None:
    data = manifest(tmp_path / "m.parquet", videos)
    schedule = experiment_at(ROW, [data], "smoke").schedule
    assert (schedule.single.global_batch, schedule.cross.global_batch) == batches
    assert len(make_stages(experiment_at(ROW, [data], "smoke"), videos)) == 6


def test_full_is_the_file_as_it_is() -> None:
    assert experiment_at(ROW, ["seed=4"], "full") == load_experiment(ROW, ["seed=4"])
    assert load_experiment(ROW).scale == "full"


def test_the_run_remembers_and_is_no_resumption_of_the_full_one(tmp_path: Path) -> None:
    smoke = experiment_at(ROW, [f"runs={tmp_path}"], "smoke")
    folder = RunFolder.at(smoke.run_folder)
    folder.open(smoke, "data")
    assert folder.experiment() == smoke
    assert experiment_at(folder.config, [], "smoke") == smoke  # not made smaller twice
    small_but_full = smoke.model_copy(update={"scale": "full"})
    assert differences(smoke, small_but_full) == ["scale: was smoke, now full"]


def test_only_known_fields_change() -> None:
    full, smoke = (flatten(experiment_at(ROW, [], scale).model_dump(mode="json")) for scale in ("full", "smoke"))
    kept = {"seed", "optim.name", "optim.lr", "model.batch_norm", "augment.style", "evaluate.crops", "data.manifest"}
    assert {key for key in full if full[key] != smoke[key]}.isdisjoint(kept)
    assert smoke["flow.store"] == "flow/smoke_dis_60x80"  # never the store of full sizes


def test_the_command_line_has_it(tmp_path: Path) -> None:
    data = manifest(tmp_path / "m.parquet", 20)
    shown = CliRunner().invoke(app, ["train", str(ROW), "--scale", "smoke", "--plan", "--set", data, "--json"])
    assert shown.exit_code == 0
    for verb in ("train", "preview", "flow"):
        assert CliRunner().invoke(app, [verb, str(ROW), "--scale", "tiny"]).exit_code == 2
