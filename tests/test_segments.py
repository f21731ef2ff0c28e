"""Parts of videos: which frames they have, how files are cut, what tables say of them, and what is read of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packed import make_store, pack
from tiny import tiny_experiment
from videos import numbered_frames, read_number, shifted_texture, write_video

from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.config import ClipConfig, FlowConfig, make_experiment
from vicc_ray.console import console
from vicc_ray.data import decode, samples, segments
from vicc_ray.data.changes import Changes, by_second, decode_changes
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.cutting import STILL, Cutting, named_row, parse_cut
from vicc_ray.data.decode import Timeline, VideoError, fetched, read_frames, timeline_of
from vicc_ray.data.frame_table import decode_table, encode_table
from vicc_ray.data.layouts import Found, scan
from vicc_ray.data.manifest import Manifest, VideoRow, part_id, part_in, probe
from vicc_ray.data.samples import by_file, positions, read_clips, read_together
from vicc_ray.data.segments import cut_at, cut_evenly, frame_times, part_between, part_of_frames
from vicc_ray.errors import UserError
from vicc_ray.training.batches import make_plan, training_samples

CLIP = ClipConfig(frames=4, decode_size=(32, 48), size=32)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> VideoRow:
    """100 numbered frames at 25 a second."""
    return probe(str(write_video(tmp_path_factory.mktemp("film") / "a.mp4", numbered_frames(100))))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> VideoRow:
    """40 numbered frames, 20 at 25 a second and then 20 at 5 a second."""
    stamps = [40 * k for k in (*range(20), *range(20, 120, 5))]
    path = write_video(tmp_path_factory.mktemp("uneven") / "v.mkv", numbered_frames(40), stamps=stamps)
    row = probe(str(path))
    assert not row.constant_rate
    return row


def seen(row: VideoRow, starts: list[int], clip: ClipConfig = CLIP) -> list[list[int]]:
    clips = read_clips(row, starts, ("rgb",), clip, FlowConfig())
    return [[read_number(frame) for frame in one] for one in clips["rgb"]]


def test_a_part_has_the_frames_between_its_times(film: VideoRow, uneven: VideoRow) -> None:
    part = part_between(film, 1.0, 2.0)
    assert (part.first_frame, part.frames, part.file_frames) == (25, 25, 100)
    assert (part.duration_seconds, part.is_part, part.last_frame) == (1.0, True, 49)
    assert part.id == f"{film.video}@1-2" and part.group == film.video
    assert replace(film, group="g").group == part_between(replace(film, group="g"), 0, 1).group == "g"
    # A time between two frames belongs to the part after the first; parts that follow one another share none.
    assert part_between(film, 0.05, 0.5).first_frame == 2
    cut = [part_between(film, start, start + 0.33) for start in (0.0, 0.33, 0.66)]
    assert [one.first_frame + one.frames for one in cut[:2]] == [one.first_frame for one in cut[1:]]
    # By the time stamps, not by the rate: 0.8 s is frame 20, from where on five frames take a second.
    assert [(p.first_frame, p.frames) for p in (part_between(uneven, 0.8, 1.8), part_between(uneven, 0, 0.8))] == [
        (20, 5),
        (0, 20),
    ]
    assert part_of_frames(film, 10, 30).span == (0.4, 1.2)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (1.0, 1.0, "has no length"),
        (2.0, 1.0, "has no length"),
        (-1.0, 1.0, "times are seconds from 0 on"),
        (float("nan"), 1.0, "times are seconds from 0 on"),
        (4.0, 5.0, "lies past its end at 4 s; frame numbers go into columns named start_frame and end_frame"),
        (0.0, 5.1, "lies past its end at 4 s"),
        (120.0, 130.0, "lies past its end at 4 s$"),
        (1.0, 1.03, "holds 1 pictures, a part needs 2 or more"),
    ],
)
def test_parts_that_cannot_be_say_why(film: VideoRow, start: float, end: float, reason: str) -> None:
    with pytest.raises(VideoError, match=reason):
        part_between(film, start, end)
    assert part_between(film, 0, 4.9).span == (0.0, 4.0)  # rounded lengths of tables
    for first, stop in ((-1, 5), (0, 101), (5, 6)):
        with pytest.raises(VideoError, match="frames go from 0 to 100"):
            part_of_frames(film, first, stop)


def test_even_parts_and_their_rest(film: VideoRow) -> None:
    def lengths(seconds: float) -> list[int]:
        return [part.frames for part in cut_evenly(film, seconds)]

    assert lengths(1.0) == [25] * 4
    assert lengths(1.5) == [38, 37, 25]  # the rest, 1 s, is at least half as long
    assert lengths(1.8) == [45, 55]  # 0.4 s is not
    assert cut_evenly(film, 3.0) == [film] and cut_evenly(film, 100.0) == [film]
    parts = cut_evenly(film, 1.5)
    assert parts[0].start == 0 and parts[-1].end == 4.0
    assert all(a.last_frame + 1 == b.first_frame and a.end == b.start for a, b in itertools.pairwise(parts))
    inner = cut_evenly(part_between(film, 1.0, 3.0), 1.0)  # parts of a part are parts of the file
    assert [(one.first_frame, one.frames, one.file_frames) for one in inner] == [(25, 25, 100), (50, 25, 100)]
    assert parts[1].file_row() == film


def test_scenes_have_a_least_and_a_greatest_length(film: VideoRow) -> None:
    def spans(cuts: list[int], least: float, most: float) -> list[tuple[int, int]]:
        return [(part.first_frame, part.frames) for part in cut_at(film, cuts, least, most)]

    assert spans([25, 60], 0.5, 10) == [(0, 25), (25, 35), (60, 40)]
    assert spans([5, 60], 0.5, 10) == [(0, 60), (60, 40)]  # a short first one belongs to the next
    assert spans([25, 30, 60], 0.5, 10) == [(0, 25), (25, 35), (60, 40)]  # others to the one before
    assert spans([60, 95], 0.5, 10) == [(0, 60), (60, 40)]
    assert spans([], 0.5, 1.5) == [(0, 34), (34, 33), (67, 33)]
    assert spans([40], 0.5, 1.0) == [(0, 20), (20, 20), (40, 20), (60, 20), (80, 20)]
    assert cut_at(film, [0, 100, 300], 0.5, 10) == [film]


def test_a_frame_table_is_the_timeline_in_short(film: VideoRow, uneven: VideoRow) -> None:
    for row in (film, uneven):
        there, again = timeline_of(row.video), decode_table(row.frame_table)
        assert again is not None and (again.stamps == there.stamps).all() and (again.keys == there.keys).all()
        assert (again.time_base, again.open_gops, again.exact) == (there.time_base, there.open_gops, True)
        np.testing.assert_array_equal(frame_times(row), there.seconds)
    hours = Timeline(np.arange(216_000) * 512 + 7, np.arange(0, 216_000, 250), True, 1 / 15360)
    assert len(encode_table(hours)) < 4000
    assert encode_table(replace(hours, exact=False)) == ""
    for text in ("", "nonsense", "2 0.04 0 eJw=", f"1 0.04 0 {film.frame_table[-8:]}", "1 x 0 eJw="):
        assert decode_table(text) is None
    # Without one the even grid of the rate counts.
    np.testing.assert_allclose(frame_times(replace(film, frame_table="")), np.arange(100) / 25)


def test_clips_of_a_part_are_those_of_the_file_there(film: VideoRow, uneven: VideoRow) -> None:
    part = part_between(film, 1.0, 2.0)
    assert positions(part, CLIP) == 25
    assert seen(part, [0, 21]) == [[25, 26, 27, 28], [46, 47, 48, 49]] == seen(film, [25, 46])
    short = part_between(film, 3.88, 4.0)
    assert evaluation_starts(positions(short, CLIP), 4, 1, "all") == [-1]
    assert seen(short, [-1]) == [[97, 97, 98, 99]]  # what is before the part does not come in
    by_time = ClipConfig(frames=4, fps=5, decode_size=(32, 48), size=32)
    assert seen(part, [0], by_time) == [[25, 30, 35, 40]]
    late = part_between(uneven, 0.8, 3.0)
    assert positions(late, by_time) == 11 and seen(late, [0, 5], by_time) == [[20, 21, 22, 23], [25, 26, 27, 28]]
    for decoder in ("decord", "pyav", "pyav-sequential"):
        assert seen(replace(part, decoder=decoder), [3]) == [[28, 29, 30, 31]]


def test_a_long_file_is_not_walked(film: VideoRow, monkeypatch: pytest.MonkeyPatch) -> None:
    part = part_between(film, 2.0, 3.0)
    monkeypatch.setattr("vicc_ray.data.decode.read_timeline", lambda *_: pytest.fail("walked"))
    monkeypatch.setattr("vicc_ray.data.decode.open_decord", lambda *_: pytest.fail("decord walks it too"))
    assert seen(part, [1]) == [[51, 52, 53, 54]]
    monkeypatch.setattr(segments, "WALKED", 50)
    assert seen(film, [60]) == [[60, 61, 62, 63]]
    images = read_frames(film.video, np.array([70, 3]), timeline=decode_table(film.frame_table))
    assert [read_number(image) for image in images] == [70, 3]


def test_of_clips_far_apart_only_their_surroundings_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clips of one sample may lie hours apart."""
    row = probe(str(write_video(tmp_path / "a.mp4", numbered_frames(240), gop=12)))
    monkeypatch.setattr(segments, "WALKED", 50)
    decoded = 0
    decode_from = decode.decode_from

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal decoded
        for frame in decode_from(*arguments):
            decoded += 1
            yield frame

    monkeypatch.setattr(decode, "decode_from", counted)
    assert seen(row, [5, 200]) == [[5, 6, 7, 8], [200, 201, 202, 203]]
    assert decoded < 40
    decoded = 0
    assert seen(row, [5, 30]) == [[5, 6, 7, 8], [30, 31, 32, 33]]  # what is near is decoded in one go
    assert decoded <= 34


def test_a_table_of_another_file_is_not_believed(film: VideoRow, tmp_path: Path) -> None:
    """The file was replaced after it was indexed: its frames are found by its own packets."""
    other = write_video(tmp_path / "b.mp4", numbered_frames(60), fps=10)
    row = replace(part_between(film, 1.0, 2.0), video=str(other))
    assert seen(row, [0]) == [[25, 26, 27, 28]]


def test_flow_of_a_part_does_not_look_past_it(tmp_path: Path) -> None:
    """At a cut the motion to the next scene's first picture is none; the field before is shown again."""
    scenes = [shifted_texture(12, 64, 96, 2, 0, seed=1), shifted_texture(12, 64, 96, -2, 0, seed=2)]
    row = probe(str(write_video(tmp_path / "a.mp4", np.concatenate(scenes), options={"crf": "4"})))
    part = part_of_frames(row, 0, 12)
    size = (64, 96)
    clip, flow = ClipConfig(frames=4, decode_size=size, size=32), FlowConfig(bound=8)
    computed = read_clips(part, [8], ("flow",), clip, flow)["flow"][0]
    across = read_clips(row, [8], ("flow",), clip, flow)["flow"][0]
    np.testing.assert_array_equal(computed[:3], across[:3])
    np.testing.assert_array_equal(computed[3], computed[2])
    assert (across[3] != across[2]).mean() > 0.3
    # A store may hold the flow of the whole file, which all parts of it share, or that of each part.
    second = part_of_frames(row, 12, 24)
    for number, rows in enumerate(([row], [part, second])):
        store = make_store(tmp_path / f"store{number}", size, ["flow"], flow)
        assert store.missing([part, second], "flow") == [part, second]
        pack(store, rows, ["flow"], flow)
        assert store.missing([part, second], "flow") == []
        stored = FlowConfig(bound=8, source="store", store=store.folder)
        for one in (part, second):
            there = read_clips(one, [8], ("flow",), clip, stored)["flow"].astype(int)
            assert np.abs(there - read_clips(one, [8], ("flow",), clip, flow)["flow"]).max() <= 4


def test_requests_of_one_file_are_read_together(
    film: VideoRow, uneven: VideoRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [part_between(film, start, start + 1) for start in (2.0, 0.0)]
    gone = replace(uneven, video=str(tmp_path / "gone.mkv"))
    requests = [(parts[0], [0], ("rgb",)), (uneven, [1], ("rgb",)), (gone, [0], ("rgb",)), (parts[1], [5], ("rgb",))]
    assert by_file(requests) == [[3, 0], [1], [2]]  # type: ignore[arg-type]
    fetches: list[str] = []

    def counted(name: str) -> AbstractContextManager[str]:
        fetches.append(name)
        return fetched(name)

    monkeypatch.setattr(samples, "fetched", counted)
    answers = read_together(requests, CLIP, FlowConfig())  # type: ignore[arg-type]
    firsts = [None if isinstance(a, VideoError) else read_number(a["rgb"][0][0]) for a in answers]
    assert firsts == [50, 1, None, 5]
    assert fetches.count(film.video) == 3  # once for both, and each again, which finds the local file


def test_a_manifest_keeps_parts(film: VideoRow, tmp_path: Path) -> None:
    parts = cut_evenly(replace(film, label="x"), 1.0)
    manifest = Manifest([*parts, parts[0]])
    assert len(manifest) == 4 and manifest.copies() == []
    manifest.write(tmp_path / "m.parquet")
    again = Manifest.read(tmp_path / "m.parquet")
    assert again.videos == parts
    assert len({id(row.frame_table) for row in again.videos}) == 1
    assert again.fingerprint() == manifest.fingerprint()
    assert Manifest(parts[:3]).fingerprint() != Manifest(parts[1:]).fingerprint()
    moved = [replace(part, video="/elsewhere/a.mp4", group="/elsewhere/a.mp4") for part in parts]
    assert Manifest(moved).fingerprint() == manifest.fingerprint()  # wherever the files lie
    twice = [replace(part, video="/copy.mp4") for part in parts[:1]]
    assert Manifest([*parts, *twice]).copies() == [[parts[0], *twice]]


def test_names_of_parts(film: VideoRow, tmp_path: Path) -> None:
    assert part_id("a.mp4", 12.5, 15.0) == "a.mp4@12.5-15" and part_id("a", 0.1 + 0.2, 10) == "a@0.3-10"
    assert part_in("x/a.mp4@12.5-15") == ("x/a.mp4", 12.5, 15.0)
    for name in ("a.mp4", "a.mp4@", "a.mp4@1", "a@b-c", "@1-2", "a.mp4@1-2x", "a.mp4@-1-2"):
        assert part_in(name) is None
    assert named_row(f"{film.video}@1-2").first_frame == 25
    odd = write_video(tmp_path / "a.mp4", numbered_frames(10)).rename(tmp_path / "a@1-2")
    assert named_row(str(odd)).frames == 10  # a file of that whole name is that file


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "t.csv",
            "video,label,start,end\na.mp4,x,0,1.5\na.mp4,y,1,2\nb.mp4,z,,\n",
            ["a x 0-1.5 s", "a y 1-2 s", "b z None"],
        ),
        ("t.csv", "video,start_time,end_time\na.mp4,0:01,00:00:02.5\n", ["a None 1-2.5 s"]),
        ("t.csv", "video,start_frame,end_frame\na.mp4,10,30\n", ["a None frames 10-30"]),
        ("k.csv", "label,youtube_id,time_start,time_end,split\njump,a,0,2,train\n", ["a jump 0-2 s"]),
        ("ava.csv", "video_id,timestamp,action_id\na,2.0,12\nb,1.5,7\n", ["a 12 0.5-3.5 s", "b 7 0-3 s"]),
        (
            "net.json",
            {"database": {"a": {"subset": "training", "annotations": [{"segment": [0.5, 2], "label": "x"}]}, "b": {}}},
            ["a x 0.5-2 s", "b None None"],
        ),
        (
            "l.json",
            [{"video": "a.mp4", "annotations": [{"segment": [0, 1], "label": "x"}, {"segment": [1, 2], "label": "y"}]}],
            ["a x 0-1 s", "a y 1-2 s"],
        ),
        ("l.jsonl", '{"video": "a.mp4", "start": 1, "end": 2}\n', ["a None 1-2 s"]),
    ],
)
def test_tables_name_parts(tmp_path: Path, name: str, text: object, expected: list[str]) -> None:
    for video in ("a.mp4", "b.mp4"):
        (tmp_path / video).touch()
    (tmp_path / name).write_text(text if isinstance(text, str) else json.dumps(text))
    found = scan(tmp_path / name)
    assert [f"{Path(c.path).stem} {c.label} {c.span}" for c in found] == expected


def test_kinetics_table_with_cut_files_names_them_whole(tmp_path: Path) -> None:
    (tmp_path / "abc_000010_000020.mp4").touch()
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end,split\njump,abc,10,20,train\n")
    found = scan(tmp_path / "k.csv")
    assert [(Path(c.path).name, c.span) for c in found] == [("abc_000010_000020.mp4", None)]


def test_one_part_with_several_labels_has_none(tmp_path: Path) -> None:
    """AVA names the actions of each person at a moment."""
    (tmp_path / "a.mp4").touch()
    (tmp_path / "ava.csv").write_text("video_id,timestamp,action_id\na,2,12\na,2,80\na,3,12\n")
    found = scan(tmp_path / "ava.csv")
    assert [(c.label, str(c.span)) for c in found] == [(None, "0.5-3.5 s"), ("12", "1.5-4.5 s")]
    assert any("1 parts have several labels" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("video,start,end\na.mp4,1,\n", "row 1: has a start or an end, not both"),
        ("video,start,end\na.mp4,one,2\n", "row 1: time 'one'; a time is seconds from 0 on, or HH:MM:SS"),
        ("video,start,end\na.mp4,-1,2\n", "row 1: time '-1'"),
        ("video,start,end\na.mp4,0,inf\n", "row 1: time 'inf'"),
        ("video,start_frame,end_frame\na.mp4,1.5,20\n", "row 1: frames 1.5 to 20: a frame's number is a whole one"),
        ("video,label,start,end\na.mp4,x,0,1\n,y,0,1\n", "row 2 names no video"),
    ],
)
def test_rows_with_bad_times_are_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=reason):
        scan(tmp_path / "t.csv")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    write_video(folder / "a.mp4", numbered_frames(100))
    write_video(folder / "b.mp4", numbered_frames(20))
    return folder


def index(source: Path, out: Path, **options: object) -> tuple[Manifest, str]:
    with console.capture() as printed:
        manifest = index_videos(str(source), out, IndexOptions(workers=1, **options))  # type: ignore[arg-type]
    return manifest, " ".join(printed.get().split())


def test_index_cuts_evenly_and_knows_files_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "m.parquet"
    made, text = index(videos, out, cut="1s", split="query: rest")
    assert [(Path(row.video).name, row.start, row.frames) for row in made.videos] == [
        *(("a.mp4", float(second), 25) for second in range(4)),
        ("b.mp4", None, 20),
    ]
    assert "5 videos and parts of videos (4 of 1 files) used (query 5)" in text
    monkeypatch.setattr("vicc_ray.commands.index.run_guarded", lambda *_: pytest.fail("opened again"))
    again, text = index(videos, out, cut="2s")
    assert [row.frames for row in again.videos] == [50, 50, 20] and "2 of 2 videos are known" in text
    whole, _ = index(videos, out)
    assert [row.id for row in whole.videos] == [str(videos / "a.mp4"), str(videos / "b.mp4")]
    assert [row.frames for row in whole.videos] == [100, 20] and whole.videos[0].group is None


def test_index_names_the_rows_of_a_table_that_cannot_be(videos: Path, tmp_path: Path) -> None:
    table = videos / "t.csv"
    table.write_text("video,label,start,end\na.mp4,x,0,1\na.mp4,y,50,60\na.mp4,z,2,2\na.mp4,w,0.5,1.5\nb.mp4,v,,\n")
    made, text = index(table, tmp_path / "m.parquet")
    assert [(row.label, row.first_frame, row.frames) for row in made.videos] == [
        ("x", 0, 25),
        ("w", 13, 25),
        ("v", 0, 20),
    ]
    assert [row.refused for row in made.refused] == [
        f"{table}: row 2: its part from 50 to 60 s lies past its end at 4 s; frame numbers go into columns named start_frame "
        "and end_frame",
        f"{table}: row 3: its part from 2 to 2 s has no length",
    ]
    assert f"refused: {videos}/a.mp4@50-60: {table}: row 2" in text
    again, text = index(table, tmp_path / "m.parquet")
    assert again.videos == made.videos and again.refused == made.refused and "2 of 2 videos are known" in text


def test_index_names_what_does_not_move(tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    moving = shifted_texture(50, 64, 96, 2, 1)
    half = np.concatenate([moving[:25], np.repeat(moving[24:25], 50, axis=0)])
    write_video(folder / "half.mp4", half)
    made, text = index(folder, tmp_path / "m.parquet", cut="1s", still=0.05)
    assert [row.start for row in made.videos] == [0.0, 1.0, 2.0]
    assert (made.videos[0].split, made.videos[2].split) == ("train", STILL)
    assert made.refused == [] and "still: " in text and "of 3 move less than --still 0.05" in text
    assert "have the split 'still'" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cut": "ten"}, "--cut ten: is neither a length such as 10s nor 'scenes'"),
        ({"cut": "0s"}, "--cut 0s: is neither"),
        ({"cut": "5s", "min_length": 2.0}, "--min-length: is the length of a scene"),
        ({"cut": "scenes", "min_length": 9.0, "max_length": 3.0}, "--max-length 3: is less than --min-length 9"),
        ({"still": 2.0}, "--still 2: is a share of the picture"),
    ],
)
def test_rules_of_cutting_that_are_none(videos: Path, tmp_path: Path, options: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        index(videos, tmp_path / "m.parquet", **options)
    assert not (tmp_path / "m.parquet").exists()


def test_the_rule_of_cutting_is_read(film: VideoRow) -> None:
    assert parse_cut("10s", None, None, None) == parse_cut("10", None, None, None) == Cutting(every=10.0)
    assert parse_cut("2.5 seconds", None, None, None).every == 2.5
    assert parse_cut("scenes", 2.0, 9.0, None) == Cutting(scenes=True, least=2.0, most=9.0)
    changes = Changes((30, 60), (0.5, 0.0, 0.0, 0.2))
    row = replace(film, changes=changes.encode())
    assert [(p.first_frame, p.frames) for p in Cutting(scenes=True).rows(row, None)] == [(0, 30), (30, 30), (60, 40)]
    kept = Cutting(every=1.0, still=0.1).rows(row, None)
    assert [part.split for part in kept] == ["train", STILL, STILL, "train"]


def test_changes_are_kept_as_text() -> None:
    changes = Changes((3, 500, 216_000), (0.1, 0.25, 0.0))
    assert decode_changes(changes.encode()) == changes
    assert decode_changes("") is None and decode_changes("eJw=") is None
    assert changes.motion(0, 2) == pytest.approx(0.175) and changes.motion(1.2, 1.5) == 0.25
    assert changes.motion(9, 10) == 0.0
    times, values = np.array([0, 0.5, 1.0, 3.2]), np.array([1, 3, 5, 7], np.float32)
    assert by_second(times, values, np.ones(4, bool)) == (2.0, 5.0, 5.0, 7.0)
    assert by_second(times, values, np.array([False, True, False, True])) == (3.0, 5.0, 5.0, 7.0)


def test_samples_an_epoch_are_drawn_as_often_as_is_wished(film: VideoRow) -> None:
    short = replace(film, video="/b.mp4", duration_seconds=0.2, frames=5)
    manifest = Manifest([film, short])
    row = tiny_experiment(schedule={"single": {"global_batch": 2}, "cross": {"global_batch": 2}})
    assert training_samples(row, manifest) == (film, short)
    often = make_experiment(row.model_dump(mode="json") | {"data": {"samples_an_epoch": "1s"}}, "often")
    assert training_samples(often, manifest) == (film,) * 4 + (short,)
    plan = make_plan(often, manifest)
    assert plan.stages[0].steps_per_epoch == 2 and plan.rows == (film, short)
    epochs = [plan.sample(plan.stages[0], 0, number).starts for number in range(4)]
    assert len(set(epochs)) > 1  # each draws its own clips
    for value in ("0s", "often", 3, "10 minutes"):
        with pytest.raises(UserError, match=r"samples_an_epoch: .*is neither row"):
            make_experiment({"data": {"samples_an_epoch": value}}, "bad")


def test_found_parts_pass_through_split_rules(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").touch()
    (tmp_path / "t.csv").write_text("video,start,end\na.mp4,0,1\na.mp4,1,2\nb.mp4,0,1\nb.mp4,1,2\n")
    found: Found = scan(tmp_path / "t.csv", split_rule="random:0.5")
    splits: dict[str, set[str]] = {Path(c.path).name: set() for c in found}
    for candidate in found:
        splits[Path(candidate.path).name].add(candidate.split)
    assert sorted(map(len, splits.values())) == [1, 1]  # parts of one file never meet across a split
