"""Indexing and the jobs that fill stores, on a real Ray: crashes cost their item, a second call does only what is left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from afflicted import work
from packed import BOTH
from tiny import tiny_experiment
from videos import numbered_frames, write_video

from vicc_ray.cluster.jobs import run_on_cluster
from vicc_ray.cluster.session import job_session
from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.commands.pack import PackOptions, pack_videos
from vicc_ray.config import FlowConfig
from vicc_ray.data.guarded import Failure
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.samples import read_clips
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.errors import UserError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def actors() -> Iterator[int]:
    """A Ray for all tests of this file; the verbs use the one that is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # Ray's processes import the functions of tests too
        with job_session(2) as count:
            yield count


def test_a_crash_costs_its_item(actors: int) -> None:
    items = ["a", "b", "segfault", "c", "raise", "d", "exit", "e"]
    found = dict(run_on_cluster(work, items, actors, lambda _: 60.0))
    assert sorted(found) == list(range(len(items)))
    assert [found[place] for place in (0, 1, 3, 5, 7)] == ["A", "B", "C", "D", "E"]
    assert found[2] == Failure("it crashed the decoder (SIGSEGV)")
    assert found[4] == Failure("two lines")
    assert isinstance(found[6], Failure)


def test_of_many_items_some_are_taken_at_a_time(actors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_BLOCKS", "ITEMS_A_BLOCK", "ITEMS_AN_ACTOR"):
        monkeypatch.setattr(f"vicc_ray.cluster.jobs.{name}", 1)
    items = ["a", "b", "exit", "d", "e"]
    found = dict(run_on_cluster(work, items, actors, lambda _: 60.0))
    assert [found[place] for place in (0, 1, 3, 4)] == ["A", "B", "D", "E"] and isinstance(found[2], Failure)


@pytest.mark.usefixtures("actors")
def test_indexing_on_a_cluster_is_indexing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_video(tmp_path / "videos" / f"{number}.mp4", numbered_frames(5 + number))
    (tmp_path / "videos" / "text.mp4").write_text("no video")
    here = index_videos(str(tmp_path / "videos"), tmp_path / "here.parquet")
    monkeypatch.setattr("vicc_ray.commands.index.WORTH_A_CLUSTER", 1)
    there = index_videos(str(tmp_path / "videos"), tmp_path / "there.parquet", IndexOptions())
    assert there.videos == here.videos
    assert [row.refused for row in there.refused] == [row.refused for row in here.refused]
    assert [row.frames for row in there.videos] == [5, 6, 7, 8, 9, 10]


@pytest.mark.usefixtures("actors")
def test_the_flow_job_fills_what_is_left(tmp_path: Path, videos: Manifest) -> None:
    rows = videos.videos[:5]
    folder, flow, options = str(tmp_path / "store"), FlowConfig(bound=8), PackOptions(("flow",))
    pack_videos(Manifest(rows[:2]), folder, flow, (32, 32), options)
    done = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("flow-*")}
    assert len(done) == 2
    store = pack_videos(Manifest(rows), folder, flow, (32, 32), options)
    assert store.missing(rows, "flow") == [] and store.missing(rows, "rgb") == rows
    assert {path: path.stat().st_mtime_ns for path in done} == done  # not measured again
    assert len(PackedStore.open(folder).index("flow")) == 5
    clip = tiny_experiment().clip
    stored = FlowConfig(bound=8, source="store", store=folder)
    for row in rows:
        ours = read_clips(row, [0, 3], ("rgb", "flow"), clip, stored)
        streamed = read_clips(row, [0, 3], ("rgb", "flow"), clip, flow)
        np.testing.assert_array_equal(ours["rgb"], streamed["rgb"])
        steps = np.abs(ours["flow"].astype(int) - streamed["flow"])
        assert steps.mean() < 0.5  # of the 8-bit code
        assert (steps > 1).mean() < 0.02
        alone = read_clips(row, [0, 3], ("flow",), clip, stored)
        np.testing.assert_array_equal(alone["flow"], ours["flow"])
    with pytest.raises(UserError, match="holds other clips than these settings give"):
        pack_videos(Manifest(rows), folder, FlowConfig(bound=9), (32, 32), options)


@pytest.mark.usefixtures("actors")
def test_the_packing_job_fills_a_store_that_clips_are_read_from(tmp_path: Path, videos: Manifest) -> None:
    rows = videos.videos[:6]
    folder, flow = str(tmp_path / "store"), FlowConfig(bound=8)
    pack_videos(Manifest(rows[:2]), folder, flow, (32, 32), PackOptions(shard_bytes=1))
    store = pack_videos(Manifest(rows), folder, flow, (32, 32), PackOptions())
    assert all(store.missing(rows, stream) == [] for stream in BOTH)
    assert len(list(Path(folder, "shards").iterdir())) == 4 + 2 and not list(Path(folder).rglob("*.rgb"))
    experiment = tiny_experiment(clip={"source": "store", "store": folder})
    reader = StoreReader(experiment)
    for row in rows:
        ours = reader.read(row, [0, 3], BOTH)
        streamed = read_clips(row, [0, 3], BOTH, experiment.clip, flow)
        assert np.abs(ours["rgb"].astype(int) - streamed["rgb"]).mean() < 8  # small pictures of sharp colours
        assert np.abs(ours["flow"].astype(int) - streamed["flow"]).mean() < 0.5
    reader.close()


@pytest.mark.usefixtures("actors")
def test_too_many_videos_that_cannot_be_packed_end_with_the_list(
    tmp_path: Path, videos: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = replace(videos.videos[1], video=str(tmp_path / "gone.mp4"), content_hash="0" * 32)
    rows, folder = [videos.videos[0], gone], str(tmp_path / "s")
    with pytest.raises(UserError, match=r"1 of 2 videos could not be packed, more than data.max_refused = 0.01 allows"):
        pack_videos(Manifest(rows), folder, FlowConfig(bound=8), (32, 32), PackOptions())
    assert all(PackedStore.open(folder).missing(rows, stream) == [gone] for stream in BOTH)
