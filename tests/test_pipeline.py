"""What decode actors do, called in this process: the same blocks, dealt out in turn, windows in order; Ray has its own test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import tiny_experiment, tiny_plan

from vicc_ray.cluster import decode_actors
from vicc_ray.cluster import stream as ray_stream
from vicc_ray.cluster.decode_actors import DecodeShares, DecodeWindows, list_windows, monitor_units
from vicc_ray.cluster.host import ends_soon
from vicc_ray.cluster.resources import Decoders, ResourcePlan
from vicc_ray.cluster.stream import segments, units_of
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.samples import read_clips
from vicc_ray.training.batches import decode_share
from vicc_ray.training.monitor import monitor_plan


def test_a_unit_is_the_share_of_a_worker(videos: Manifest) -> None:
    plan = tiny_plan(tiny_experiment(), videos)
    actor = DecodeShares(plan, 3, ())
    for unit in (0, 1, 2, 14):
        step, rank = divmod(unit, 3)
        expected = decode_share(plan, step, rank, 3)
        found = actor({"unit": np.array([unit])})
        assert found.keys() == expected.keys()
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name], rows)


@pytest.mark.parametrize("most", [1, 4, 16])
def test_a_workers_monitored_videos_come_in_order_some_a_block(
    videos: Manifest, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_actors, "MONITOR_WINDOWS", most)
    plan = tiny_plan(tiny_experiment(evaluate={"monitor_videos": 10}), videos)
    subset = monitor_plan(plan.experiment, videos)
    assert subset is not None
    actor = DecodeShares(plan, 2, subset.videos)
    units = monitor_units(len(subset.videos), plan.experiment.clip)
    assert len(units) == math.ceil(len(subset.videos) / most)
    numbers = [actor({"unit": np.array([unit])})["video"].tolist() for unit in units]
    assert all(len(block) <= most for block in numbers)
    assert [number for block in numbers for number in block] == list(range(len(subset.videos)))


def test_blocks_of_monitored_videos_stay_small(videos: Manifest) -> None:
    clip = tiny_experiment(clip={"frames": 64, "decode_size": [512, 512], "size": 32}).clip
    assert len(monitor_units(5, clip)) == 5
    assert len(monitor_units(0, clip)) == 0


def test_windows_of_several_videos_share_a_block_and_a_long_video_may_have_several(
    videos: Manifest, tmp_path: Path
) -> None:
    experiment = tiny_experiment()
    rows = [*videos.videos[:3], replace(videos.videos[3], video=str(tmp_path / "gone.mp4"))]
    windows = list_windows(rows, experiment.clip, "all")
    assert windows.tolist() == [[video, start] for video in range(4) for start in (0, 3, 4)]
    actor = DecodeWindows(rows, windows, 5, experiment)
    blocks = [actor({"unit": np.array([unit])}) for unit in range(3)]
    assert [len(block["video"]) for block in blocks] == [5, 5, 2]
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    assert joined["video"].tolist() == [video for video, _ in windows]
    assert [bool(reason) for reason in joined["refused"]] == [video == 3 for video, _ in windows]
    whole = read_clips(rows[1], [0, 3, 4], ("rgb", "flow"), experiment.clip, experiment.flow)
    for stream in ("rgb", "flow"):
        np.testing.assert_array_equal(joined[stream][3:6], whole[stream])


def test_only_the_streams_asked_for_are_decoded(videos: Manifest) -> None:
    experiment = tiny_experiment()
    rows = videos.videos[:2]
    windows = list_windows(rows, experiment.clip, "all")
    both = DecodeWindows(rows, windows, 6, experiment)({"unit": np.array([0])})
    for stream in ("rgb", "flow"):
        one = DecodeWindows(rows, windows, 6, experiment, [stream])({"unit": np.array([0])})
        assert set(one) == {"video", "start", "key", "refused", stream}
        assert [*zip(one["video"].tolist(), one["start"].tolist(), strict=True)] == [*map(tuple, windows.tolist())]
        np.testing.assert_array_equal(one[stream], both[stream])


def test_random_windows_hang_on_the_seed_and_the_video_alone(videos: Manifest, tmp_path: Path) -> None:
    clip = tiny_experiment().clip
    row = videos.videos[0]  # 100 videos of its length: each of the five starts is drawn, whatever an encoder wrote
    rows = [replace(row, content_hash=hashlib.sha256(bytes([i])).hexdigest()) for i in range(100)]
    drawn = [start for _, start in list_windows(rows, clip, "random", 3)]
    assert [number for number, _ in list_windows(rows, clip, "random", 3)] == list(range(len(rows)))
    moved = [replace(row, video=str(tmp_path / str(i))) for i, row in enumerate(rows)][::-1]
    assert [start for _, start in list_windows(moved, clip, "random", 3)] == drawn[::-1]
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert [start for _, start in list_windows(rows, clip, "random", 4)] != drawn


def test_segments_cover_every_step_once() -> None:
    parts = list(segments(5, 10_000))
    assert [step for part in parts for step in part] == list(range(5, 10_000))
    assert all(len(part) <= 2048 for part in parts)
    assert list(segments(7, 7)) == []


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 3), (5, 4)])
def test_every_share_of_every_step_is_one_workers_after_its_monitored_videos(
    videos: Manifest, workers: int, most: int
) -> None:
    plan, monitored = tiny_plan(tiny_experiment(), videos), range(-7, 0)
    shares: list[tuple[int, int]] = []
    seen: list[int] = []
    for rank in range(workers):
        units = units_of(plan.stages, range(1, plan.steps), rank, workers, monitored, most)
        own = [unit["unit"] for unit in units if unit["unit"] < 0]
        assert [unit["unit"] for unit in units[: len(own)]] == own  # before the steps
        seen += own
        for unit in units[len(own) :]:
            step, whose = divmod(unit["unit"], workers)
            assert whose == rank
            shares += [(step + number, rank) for number in range(unit["steps"])]
    assert seen == list(monitored) * workers  # each has its own share of the videos
    assert sorted(shares) == [(step, rank) for step in range(1, plan.steps) for rank in range(workers)]


def test_decode_actors_are_dealt_out_in_turn_and_every_worker_has_one() -> None:
    assert [Decoders(7).share(rank, 3).actors for rank in range(3)] == [3, 2, 2]
    few = Decoders(2, 1, {"pool": "cpu"})  # of one CPU each, for three workers: they must all find room
    assert [few.share(rank, 3) for rank in range(3)] == [Decoders(1, 0.6666, {"pool": "cpu"})] * 3


def test_datasets_of_a_run_grow_and_cover_every_step_once() -> None:
    made = list(segments(10, 5000))
    assert [len(steps) for steps in made] == [128, 512, 2048, 2048, 254]
    assert [step for steps in made for step in steps] == list(range(10, 5000))


@pytest.mark.parametrize(("pace", "begins"), [(0.001, 32), (0.125, 48), (1.0, 118), (60.0, 126)])
def test_the_next_dataset_begins_10_s_before_it_is_needed(pace: float, begins: int) -> None:
    """Not in the first quarter, and with two blocks left where a block takes long."""
    taken = [pace * block for block in range(129)]
    assert min(block for block in range(128) if ends_soon(block, 128, taken[max(block - 8, 0) : block + 2])) == begins
    paused = [*taken[:60], *(moment + 30 for moment in taken[60:])]  # an evaluation: nothing of the pace
    assert ends_soon(62, 128, paused[54:64]) == (begins <= 62)


def test_windows_of_an_evaluation_go_through_several_datasets_in_order(
    videos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an actor is sent of each is its own videos and windows; the numbers that come out are those of all videos."""
    rows = videos.select("train")
    windows = np.array([(row, start) for row in (1, 2, 5, 9, 10) for start in (0, 2, 4)])
    sent: list[int] = []

    def evaluation_windows(part: Sequence[VideoRow], chosen: NDArray[np.int64], *_: Any) -> Iterator[Any]:
        sent.append(len(part))
        for number, start in chosen.tolist():
            yield {"video": np.array([number]), "id": part[number].id, "start": np.array([start])}

    monkeypatch.setattr(ray_stream, "_evaluation_windows", evaluation_windows)
    monkeypatch.setattr(ray_stream, "_through_models", lambda blocks, *_: blocks)
    monkeypatch.setattr(ray_stream, "SEGMENT_BLOCKS", 1)
    monkeypatch.setattr(ray_stream, "WINDOWS_A_BLOCK", 4)
    parts = list(ray_stream.in_parts(windows))
    assert [len(part) for part in parts] == [4, 4, 4, 3]
    plan = ResourcePlan(1, 1, False, 1, 1, 1 << 28)
    blocks = ray_stream.modelled_windows(rows, parts, tiny_experiment(), ("rgb",), object, (), plan, lambda _: None)
    found = [(int(block["video"][0]), int(block["start"][0]), block["id"]) for block in blocks]
    assert found == [(row, start, rows[row].id) for row, start in windows.tolist()]
    assert sent == [2, 2, 2, 1]
