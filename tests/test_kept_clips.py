"""Clips of the recall in training, kept for the next start: what is read back, what is not, and how much is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_plan

from vicc_ray.cluster import kept_clips, ray_private
from vicc_ray.cluster.decode_actors import DecodeShares, monitor_units
from vicc_ray.cluster.host import RayHost
from vicc_ray.cluster.kept_clips import FOLDER, MOST_BYTES, KeptClips, forget_clips
from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.samples import Clips
from vicc_ray.runs.records import RecordWriter, read_records
from vicc_ray.training.batches import Block, TrainingPlan
from vicc_ray.training.monitor import monitor_plan

STREAMS: tuple[Decoded, ...] = ("rgb", "flow")


def clips(value: int, size: int = 8) -> Clips:
    return {
        "rgb": np.full((1, 2, size, size, 3), value, np.uint8),
        "flow": np.full((1, 2, size, size, 2), value + 1, np.uint8),
    }


def kept(folder: Path, experiment: Experiment | None = None, total: int = 1000) -> KeptClips:
    return KeptClips(folder, experiment or tiny_experiment(), STREAMS, total)


def test_the_next_start_reads_what_this_one_decoded(videos: Manifest, tmp_path: Path) -> None:
    first, second = videos.videos[:2]
    kept(tmp_path).keep(first, clips(3))
    found = kept(tmp_path).read(replace(first, video="elsewhere/the same.mp4"))  # known by its content
    assert found is not None
    for stream, array in clips(3).items():
        np.testing.assert_array_equal(found[stream], array)
    assert kept(tmp_path).read(second) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": {"frames": 4, "decode_size": [32, 32], "size": 24, "stride": 2}},
        {"flow": {"bound": 9}},
        {"flow": {"algorithm": "farneback"}},
        {"data": {"interlaced": "deinterlace"}},
    ],
)
def test_clips_of_other_settings_are_others(videos: Manifest, tmp_path: Path, changes: dict[str, object]) -> None:
    kept(tmp_path).keep(videos.videos[0], clips(3))
    assert kept(tmp_path, tiny_experiment(**changes)).read(videos.videos[0]) is None


def test_settings_that_decide_no_clip_share_them(videos: Manifest, tmp_path: Path) -> None:
    """The trials of a sweep."""
    kept(tmp_path).keep(videos.videos[0], clips(3))
    other = tiny_experiment(objective={"prototypes": 5}, optim={"lr": 0.5})
    assert kept(tmp_path, other).read(videos.videos[0]) is not None


def test_a_damaged_file_and_a_full_disk_mean_decoding_again(videos: Manifest, tmp_path: Path) -> None:
    row = videos.videos[0]
    first = kept(tmp_path)
    first.keep(row, clips(3))
    (file,) = (tmp_path / FOLDER).rglob("*.npz")
    os.truncate(file, file.stat().st_size // 2)
    assert first.read(row) is None
    first.keep(row, clips(4))
    assert first.read(row) is not None
    assert first.folder
    (first.folder / "x").mkdir()
    first.folder = first.folder / "x" / "gone"  # nothing can be written here
    first.keep(row, clips(5))
    assert first.read(row) is None


def test_no_more_is_kept_than_a_node_may(videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(tmp_path, total=MOST_BYTES + 1).folder is None
    monkeypatch.setattr(kept_clips, "MOST_BYTES", 3000)
    row = videos.videos[0]
    experiments = [tiny_experiment(flow={"bound": bound}) for bound in (5, 6, 7)]
    for moment, experiment in enumerate(experiments):
        one = kept(tmp_path, experiment, 1300)
        one.keep(row, clips(3))  # 640 bytes and the file's own
        assert one.folder
        os.utime(one.folder, (moment, moment))
    found = [KeptClips(tmp_path, one, STREAMS, 0).read(row) is not None for one in experiments]
    assert found == [False, True, True]  # the one that was used longest ago made room


def test_nothing_is_kept_without_a_session(videos: Manifest) -> None:
    nothing = KeptClips(None, tiny_experiment(), STREAMS, 0)
    nothing.keep(videos.videos[0], clips(3))
    assert nothing.read(videos.videos[0]) is None


def test_a_session_that_has_ended_keeps_nothing(videos: Manifest, tmp_path: Path) -> None:
    kept(tmp_path).keep(videos.videos[0], clips(3))
    (tmp_path / "logs").mkdir()
    forget_clips(tmp_path)
    forget_clips(None)
    assert [one.name for one in tmp_path.iterdir()] == ["logs"]


class _Host(RayHost):
    """A worker whose stream is decoded in this process."""

    def __init__(self, plan: TrainingPlan, events: Path) -> None:
        self.plan, self.events, self.device = plan, RecordWriter(events), torch.device("cpu")
        self.decoded: list[str] = []

    def _blocks(self, first_step: int, monitored: Sequence[VideoRow]) -> Iterator[Block]:
        self.decoded = [row.id for row in monitored]
        actor = DecodeShares(self.plan, 1, monitored)
        units = monitor_units(len(monitored), self.plan.experiment.clip)
        return (actor({"unit": np.array([unit])}) for unit in units)


def test_a_second_start_decodes_only_what_is_not_kept(
    videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_private, "session_folder", lambda: tmp_path)
    plan = tiny_plan(tiny_experiment(evaluate={"monitor_videos": 10}), videos)
    subset = monitor_plan(plan.experiment, videos)
    assert subset is not None
    gone = replace(subset.videos[2], video=str(tmp_path / "gone.mp4"), content_hash="another")
    subset = replace(subset, videos=(*subset.videos[:2], gone, *subset.videos[3:]))
    host = _Host(plan, tmp_path / "events.jsonl")
    first = host.open(0, subset)
    assert host.decoded == [row.id for row in subset.videos]
    second = host.open(1, subset)
    assert host.decoded == [gone.id]
    assert first is not None and second is not None
    rows = [row for row in range(len(subset.videos)) if row != 2]
    assert first.rows.tolist() == second.rows.tolist() == rows
    for stream in STREAMS:
        assert torch.equal(first.clips[stream], second.clips[stream])
        assert len(second.clips[stream]) == len(rows)
    assert ["gone.mp4" in record["text"] for record in read_records(tmp_path / "events.jsonl")] == [True, True]
    assert host.open(plan.steps, subset) is None  # nothing is left to train
