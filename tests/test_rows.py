"""Rows as columns: every answer is that of a list of `VideoRow`, at any size and in the memory of a few bytes a row."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_experiment

from vicc_ray.cluster.decode_actors import list_windows, video_key
from vicc_ray.data.clips import random_start
from vicc_ray.data.manifest import GROUP_BYTES, Manifest, count_videos, is_manifest
from vicc_ray.data.probing import whole_files
from vicc_ray.data.rows import FIELDS, TRAINING, Places, Rows, VideoRow, schema
from vicc_ray.data.samples import all_positions, positions
from vicc_ray.errors import UserError
from vicc_ray.evaluation.stored import Side
from vicc_ray.submit.package import pack
from vicc_ray.training.batches import training_samples
from vicc_ray.training.monitor import monitor_plan

TEXTS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["a'b", 'a"b', "a'\"b", "\\", "\n", "ü", "\u200b"]
)


@st.composite
def video_rows(draw: st.DrawFn) -> VideoRow:
    start = draw(st.none() | st.integers(0, 4).map(float))
    video = draw(st.sampled_from(["a.mp4", "b'.mp4", "c.mp4", "ü.mp4"]))
    return VideoRow(
        video=video,
        label=draw(st.none() | TEXTS),
        split=draw(st.sampled_from(["train", "test", "x'y"])),
        group=draw(st.none() | TEXTS | st.just(video)),
        frames=draw(st.integers(0, 2**33)),
        fps=draw(st.floats(0, 1e6)),
        duration_seconds=draw(st.floats(0, 1e9)),
        constant_rate=draw(st.booleans()),
        content_hash=draw(st.sampled_from(["", "0" * 32, "1" * 32])),
        refused=draw(st.none() | TEXTS),
        decoder=draw(st.sampled_from(["decord", "pyav"])),
        start=start,
        end=None if start is None else start + draw(st.sampled_from([1.0, 1.0004, 2.5])),
        first_frame=draw(st.integers(0, 9)),
        changes=draw(TEXTS),
    )


LISTS = st.lists(video_rows(), max_size=12)


def _fingerprint(rows: list[VideoRow]) -> str:
    """Row by row, as the first version made it, for which decord was another reader."""
    digest = blake2b(digest_size=16)
    for row in rows:
        group = None if row.is_part and row.group == row.video else row.group
        known = (row.content_hash, row.frames, row.label, row.split, group, row.decoder)
        digest.update(repr((*known, row.first_frame) if row.is_part else known).encode())
    return digest.hexdigest()


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_a_manifest_of_columns_is_that_of_a_list(given: list[VideoRow]) -> None:
    manifest = Manifest(given)
    first: dict[str, VideoRow] = {}
    for row in given:
        first.setdefault(row.id, row)
    videos = [row for row in first.values() if row.refused is None]
    assert list(manifest.videos) == videos
    assert list(manifest.refused) == [row for row in first.values() if row.refused is not None]
    assert [manifest.videos[place] for place in range(len(videos))] == videos
    assert manifest.earlier_fingerprint() == _fingerprint(videos)
    assert manifest.fingerprint() == _fingerprint([replace(row, decoder="pyav") for row in videos])
    assert manifest.labels == sorted({row.label for row in videos if row.label is not None})
    assert manifest.splits == {s: sum(r.split == s for r in videos) for s in sorted({r.split for r in videos})}
    for split in manifest.splits:
        assert list(manifest.select(split)) == [row for row in videos if row.split == split]
    same: dict[Any, list[VideoRow]] = {}
    for row in videos:
        if row.content_hash:
            same.setdefault((row.content_hash, row.first_frame, row.frames), []).append(row)
    assert manifest.copies() == [rows for rows in same.values() if len(rows) > 1]


@settings(max_examples=40, deadline=None)
@given(LISTS, st.data())
def test_rows_are_a_sequence(given: list[VideoRow], data: st.DataObject) -> None:
    rows = Rows.of(given)
    assert len(rows) == len(given)
    assert rows == given and rows == Rows.of(given)
    if given:
        assert rows != Rows.of([replace(given[0], frames=given[0].frames + 1), *given[1:]])
        assert rows[-1] == given[-1]
        places = data.draw(st.lists(st.integers(0, len(given) - 1), max_size=8))
        taken = rows.take(np.array(places, np.int64))
        assert list(taken) == [given[place] for place in places]
        assert list(taken[1:]) == [given[place] for place in places[1:]]
        assert list(taken.once()) == [given[place] for place in sorted(set(places))]
        assert pickle.loads(pickle.dumps(taken)) == taken
        for name in FIELDS:
            assert [taken.cell(number, name) for number in range(len(taken))] == [getattr(r, name) for r in taken]
    part = data.draw(st.slices(len(given)))
    assert list(rows[part]) == given[part]
    with pytest.raises(IndexError):
        rows[len(given)]


def test_rows_of_several_follow_one_another(videos: Manifest) -> None:
    listed = list(videos.videos)
    table = Rows.of(listed)
    chained = Rows.chain([table.take(np.array([3, 1])), listed[:2], table.only(("video", "frames", "fps")), []])
    assert list(chained[:4]) == [listed[3], listed[1], listed[0], listed[1]]
    assert [(row.video, row.frames, row.label) for row in chained[4:]] == [
        (row.video, row.frames, None) for row in listed
    ]
    assert Rows.chain([table]) is table


def test_what_a_table_lacks_is_the_default() -> None:
    row = VideoRow("a.mp4", frames=3, codec="h264", bytes=9, modified=1.5, changes="x", declared_frames=4, checked=True)
    (found,) = Rows.of([row]).only(TRAINING)
    assert found == VideoRow("a.mp4", frames=3)
    assert Rows.of([row]).only(TRAINING).cell(0, "codec") == ""


@settings(deadline=None)
@given(LISTS.filter(len))
def test_places_of_all_rows_are_those_of_each(given: list[VideoRow]) -> None:
    rows = Rows.of(
        [replace(row, frames=row.frames % 1000, duration_seconds=row.duration_seconds % 1000) for row in given]
    )
    for fps in (None, 12.5):
        clip = tiny_experiment(clip={"fps": fps}).clip
        assert all_positions(rows, clip).tolist() == [positions(row, clip) for row in rows]


@settings(max_examples=40, deadline=None)
@given(LISTS)
def test_walks_over_columns_are_walks_over_rows(given: list[VideoRow]) -> None:
    """Ids, a side's fingerprint, the keys of random draws, and a row a file: each against going through the rows."""
    given = [replace(row, file_frames=row.frames, frames=row.frames % 1000) for row in given]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("data.rows", "evaluation.stored", "cluster.decode_actors"):
            patch.setattr(f"vicc_ray.{module}.WALK", 3)
        rows = Rows.of(iter(given))
        assert list(rows) == given
        assert rows.ids().to_pylist() == [row.id for row in given]
        clip = tiny_experiment().clip
        drawn = [random_start(5, video_key(row), row.frames, clip.frames, clip.stride) for row in given]
        assert list_windows(rows, clip, "random", 5)[:, 1].tolist() == drawn
        digest = blake2b(Manifest(given).fingerprint().encode(), digest_size=16)
        for row in given:
            digest.update(b"\0" + row.id.encode() + repr((row.duration_seconds, row.fps)).encode())
        assert Side(rows, "all").fingerprint == digest.hexdigest()
        files: dict[str, VideoRow] = {}
        for row in given:
            files.setdefault(row.video, replace(row.file_row(), refused=None) if row.is_part else row)
        assert list(whole_files(rows)) == list(files.values())


@settings(deadline=None)
@given(st.lists(TEXTS, unique=True, max_size=12), st.lists(TEXTS, max_size=12), st.booleans())
def test_places_are_those_of_a_dictionary(known: list[str], wanted: list[str], alike: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if alike:  # texts with one mark
            patch.setattr("vicc_ray.data.rows.hash", lambda text: len(text) % 2, raising=False)
        found = Places(pa.array(known, pa.string())).find(pa.chunked_array([wanted, known], pa.string()))
    at = {text: place for place, text in enumerate(known)}
    assert found.tolist() == [at.get(text, -1) for text in [*wanted, *known]]


def test_samples_of_long_videos_repeat_their_rows() -> None:
    experiment = tiny_experiment(data={"samples_an_epoch": "2s"})
    seconds = [0.1, 2.9, 3.0, 3.1, 11.0]
    rows = [VideoRow(f"{number}.mp4", duration_seconds=value) for number, value in enumerate(seconds)]
    found = training_samples(experiment, Manifest(rows))
    assert [row.video for row in found] == [
        f"{n}.mp4" for n, value in enumerate(seconds) for _ in range(max(int(value / 2 + 0.5), 1))
    ]
    assert list(found.once()) == rows


def test_few_rows_of_many_are_sent_alone() -> None:
    rows = Rows.of(VideoRow(f"{number}.mp4", frames=number) for number in range(20_000))
    for few in (rows[100:104], rows.take(np.array([5, 19_999]))):
        sent = pickle.dumps(few)
        assert len(sent) < 20_000
        assert pickle.loads(sent) == few


def test_a_manifest_of_several_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = [VideoRow(f"{number}.mp4", label=f"l{number % 3}", frames=number) for number in range(30)]
    for part, name in enumerate(["c", "a", "b"]):
        Manifest(rows[10 * part : 10 * part + 10], "ucf101", 1).write(tmp_path / "m" / f"{name}.parquet")
    (tmp_path / "m" / "_notes.txt").write_text("other files do not matter")
    found = Manifest.read(tmp_path / "m")
    assert list(found.videos) == [*rows[10:20], *rows[20:], *rows[:10]]
    assert (found.dataset, found.fold, found.outdated) == ("ucf101", 1, False)
    (tmp_path / "m" / "d.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match=r"m/d\.parquet: not a Parquet file"):
        Manifest.read(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: a folder without a \.parquet file"):
        Manifest.read(tmp_path / "empty")


def test_a_folder_is_a_manifest_where_it_holds_nothing_else(tmp_path: Path) -> None:
    Manifest([VideoRow("a.mp4")]).write(tmp_path / "m" / "a.parquet")
    (tmp_path / "m" / "_SUCCESS").touch()
    assert is_manifest(str(tmp_path / "m")) and is_manifest(str(tmp_path / "m" / "a.parquet"))
    assert Manifest.read(tmp_path / "m").videos == [VideoRow("a.mp4")]
    (tmp_path / "m" / "film.mp4").touch()  # a folder of videos with their manifest beside them
    assert not is_manifest(str(tmp_path / "m"))
    pq.write_table(pa.table({"video": ["a.mp4"]}), tmp_path / "table.parquet")
    assert not any(
        map(is_manifest, (str(tmp_path / "table.parquet"), str(tmp_path / "absent"), str(tmp_path / "m" / "film.mp4")))
    )


def test_a_folder_becomes_one_file_where_one_has_to_be_sent(tmp_path: Path) -> None:
    rows = [VideoRow(f"{number}.mp4", frames=number) for number in range(4)]
    for part in (0, 1):
        Manifest(rows[2 * part : 2 * part + 2]).write(tmp_path / "m" / f"{part}.parquet")
    Manifest.copy(str(tmp_path / "m"), tmp_path / "one.parquet")
    assert Manifest.read(tmp_path / "one.parquet").videos == rows
    Manifest.copy(str(tmp_path / "one.parquet"), tmp_path / "same.parquet")
    assert (tmp_path / "same.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert count_videos(tmp_path / "m", "train") == 4
    experiment = tiny_experiment(data={"manifest": str(tmp_path / "m")}, runs=str(tmp_path / "runs"))
    package = pack(experiment, tmp_path / "package")
    assert Manifest.read(package.folder / "manifest.parquet").videos == rows


@pytest.mark.parametrize("rows", [[], [VideoRow("a.mp4", refused="no video")]])
def test_a_manifest_without_a_usable_video_goes_through_a_file(tmp_path: Path, rows: list[VideoRow]) -> None:
    Manifest(rows).write(tmp_path / "m" / "a.parquet")
    Manifest([VideoRow("b.mp4", frames=3)]).write(tmp_path / "m" / "b.parquet")
    found = Manifest.read(tmp_path / "m" / "a.parquet")
    assert (len(found), list(found.refused)) == (0, rows)
    assert (found.labels, found.splits, found.copies()) == ([], {}, [])
    assert found.fingerprint() == Manifest([]).fingerprint() and found.times_fingerprint()
    assert list(Manifest.read(tmp_path / "m").videos) == [VideoRow("b.mp4", frames=3)]


@pytest.mark.parametrize("mapped", [False, True])
def test_row_groups_are_joined_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    """Also where one has numbers that need more bits than another's, or other texts."""
    monkeypatch.setattr("vicc_ray.storage.MAPPED_BYTES", 0 if mapped else 1 << 30)
    rows = [
        VideoRow(f"{n:02}.mp4", label=f"l{n % 5}" if n < 6 else None, frames=2**33 if n == 7 else n) for n in range(10)
    ]
    Manifest(rows).write(tmp_path / "m.parquet")
    pq.write_table(pq.read_table(tmp_path / "m.parquet"), tmp_path / "groups.parquet", row_group_size=3)
    assert pq.ParquetFile(tmp_path / "groups.parquet").num_row_groups == 4
    found = Manifest.read(tmp_path / "groups.parquet")
    assert found.videos == rows and found.videos.table["video"].num_chunks == 1
    assert found.fingerprint() == Manifest(rows).fingerprint()


def test_a_column_that_may_not_be_empty_is_named(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{name: getattr(VideoRow("a.mp4"), name) for name in FIELDS}], schema=schema())
    empty = table.set_column(table.column_names.index("frames"), "frames", pa.array([None], pa.int64()))
    pq.write_table(empty, tmp_path / "m.parquet")
    with pytest.raises(UserError, match=r"frames is empty in 1 rows"):
        Manifest.read(tmp_path / "m.parquet")


def test_the_monitors_videos_are_those_of_the_list(tmp_path: Path) -> None:
    """Unlabelled ones are left out, and queries whose class the gallery has not."""
    labels = ["a", None, "b", "c"]
    rows = [VideoRow(f"g{n}.mp4", label=labels[n % 3], split="train") for n in range(9)]
    rows += [VideoRow(f"q{n}.mp4", label=labels[n % 4], split="test") for n in range(8)]
    experiment = tiny_experiment(
        data={"gallery_split": "train", "query_split": "test"},
        evaluate={"monitor_videos": 40, "monitor_every": "1 steps"},
    )
    plan = monitor_plan(experiment, Manifest(rows))
    assert plan is not None
    assert [row.video for row in plan.videos] == [
        "g0.mp4",
        "g2.mp4",
        "g3.mp4",
        "g5.mp4",
        "g6.mp4",
        "g8.mp4",
        "q0.mp4",
        "q2.mp4",
        "q4.mp4",
        "q6.mp4",
    ]
    assert plan.gallery == 6 and plan.labels == (0, 1, 0, 1, 0, 1, 0, 1, 0, 1)


LONG_FILE = """
import sys
from dataclasses import replace
import pyarrow as pa
from vicc_ray.data.manifest import Manifest, VideoRow

table, count = "x" * 200_000, 1000
one = VideoRow(video="a.mp4", content_hash="0" * 32, frames=10, frame_table=table, fps=25.0)
parts = [replace(one, start=float(place), end=place + 1.0, first_frame=25 * place) for place in range(count)]
manifest = Manifest(parts)
held = pa.default_memory_pool().max_memory()
manifest.write(sys.argv[1])
written = pa.default_memory_pool().max_memory()
again = Manifest.read(sys.argv[1])
assert list(again.videos) == parts and again.fingerprint() == manifest.fingerprint()
print(held, written)
"""


def test_parts_of_a_long_file_hold_its_frame_table_once_and_are_written_a_few_at_a_time(tmp_path: Path) -> None:
    """Of a day at 25 pictures a second it is 22 kB, and 8,640 parts of ten seconds have it. A process of its own, for its peaks."""
    file, table, count = tmp_path / "m.parquet", 200_000, 1000
    done = subprocess.run([sys.executable, "-c", LONG_FILE, str(file)], capture_output=True, text=True, check=True)
    held, written = map(int, done.stdout.split())
    assert held < 20 * table, "never all of them"
    assert written < 3 * GROUP_BYTES < count * table
    assert pq.read_metadata(file).num_row_groups == -(-count // (GROUP_BYTES // table))
