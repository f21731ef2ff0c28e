"""The manifest: what is really in a file, what was refused and why, which split a video falls into."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from videos import numbered_frames, spoil, truncate, write_video

from vicc_ray.data.decode import VideoError
from vicc_ray.data.layouts import Candidate, assign_splits, index, scan
from vicc_ray.data.manifest import Manifest, VideoRow, content_hash, probe
from vicc_ray.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data"


# What is in a file ---------------------------------------------------------------------------------------------------


def test_probe_reads_the_file_not_its_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(30, 48, 80), fps=20)
    row = probe(str(path))
    assert row == VideoRow(
        video=str(path),
        frames=30,
        fps=20.0,
        width=80,
        height=48,
        duration_seconds=1.5,
        codec="h264",
        bytes=path.stat().st_size,
        content_hash=content_hash(str(path)),
        decoder="decord",
    )
    truncate(path, 0.6)
    try:
        frames = probe(str(path)).frames
    except VideoError as error:
        reason = str(error)
        assert "damaged" in reason or "cut short" in reason
    else:
        assert 1 <= frames < 30


def test_damage_is_refused_or_counted(tmp_path: Path) -> None:
    """Noise at the end of the data is met by the probe's decoding of the last stretch."""
    path = write_video(tmp_path / "a.avi", numbered_frames(40), "mpeg4", gop=40)
    spoil(path, 0.3, 0.95)
    try:
        decoder = probe(str(path)).decoder
    except VideoError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert decoder != "decord"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "not readable as a video"),
        ("text.mp4", b"this is a text, not a video\n" * 50, "not readable as a video"),
        ("zeros.mkv", bytes(5000), "not readable as a video"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=reason) as refusal:
        probe(str(tmp_path / name))
    assert "\n" not in str(refusal.value)
    with pytest.raises(VideoError, match="no such file"):
        probe(str(tmp_path / "gone.mp4"))
    with pytest.raises(VideoError, match=r"a folder|not readable"):
        probe(str(tmp_path))


def test_content_hash_sees_size_head_and_tail(tmp_path: Path) -> None:
    def of(data: bytes) -> str:
        (tmp_path / "x").write_bytes(data)
        return content_hash(str(tmp_path / "x"), edge=4)

    variants = [b"", b"abc", b"abcdefgh", b"Xbcdefgh", b"abcdefgX", b"abcd__efgh", b"abcd____efgh", b"abcdeXfgh"]
    assert len({of(data) for data in variants}) == len(variants)
    assert of(b"abcd__efgh") == of(b"abcd--efgh"), "the middle of a long file is not read"


# The table -----------------------------------------------------------------------------------------------------------

ROWS = [
    VideoRow("/v/a.mp4", "run", "train", "g01", 10, 25.0, 64, 48, 0, 0.4, "h264", 100, "aa", "decord"),
    VideoRow("/v/b ü'\".mp4", None, "query", None, 20, 29.97, 48, 64, 90, 0.7, "vp9", 200, "bb", "pyav-sequential"),
    VideoRow("/v/c.mp4", "jump", "train", "g02", refused="no video stream"),
]


def test_manifest_goes_through_a_file_unchanged(tmp_path: Path) -> None:
    target = tmp_path / "new" / "m.parquet"
    manifest = Manifest(ROWS)
    manifest.write(target)
    manifest.write(target)
    again = Manifest.read(target)
    assert again.videos == ROWS[:2]
    assert again.refused == ROWS[2:]
    assert again.labels == ["run"]
    assert again.fingerprint() == manifest.fingerprint()
    assert os.listdir(target.parent) == ["m.parquet"]
    assert [row.video for row in again.select("query")] == ["/v/b ü'\".mp4"]
    with pytest.raises(UserError, match=r"no video in split 'test'; it has: query \(1\), train \(1\)"):
        again.select("test")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.parquet"
    Manifest(ROWS).write(target)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pyarrow.parquet.write_table", fail)
    with pytest.raises(OSError, match="no space"):
        Manifest(ROWS[:1]).write(target)
    assert os.listdir(tmp_path) == ["m.parquet"]
    assert len(Manifest.read(target)) == 2


def test_fingerprint_is_of_contents_not_of_places() -> None:
    base = Manifest(ROWS).fingerprint()
    moved = [replace(row, video=row.video.replace("/v/", "/elsewhere/")) for row in ROWS]
    assert Manifest(moved).fingerprint() == base
    for change in ({"label": "walk"}, {"split": "query"}, {"group": "g3"}, {"content_hash": "x"}, {"frames": 9}):
        assert Manifest([replace(ROWS[0], **change), *ROWS[1:]]).fingerprint() != base  # type: ignore[arg-type]


def test_a_path_is_kept_once() -> None:
    assert len(Manifest([ROWS[0], replace(ROWS[0], label="other"), ROWS[1]])) == 2
    assert Manifest([ROWS[0], replace(ROWS[0], label="other")]).labels == ["run"]


def test_manifests_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UserError, match="no such file"):
        Manifest.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("video,label\n")
    with pytest.raises(UserError, match="not a Parquet file"):
        Manifest.read(tmp_path / "text.parquet")
    pq.write_table(pa.table({"video": ["a"], "label": ["b"]}), tmp_path / "short.parquet")
    with pytest.raises(UserError, match="missing columns split, group, frames"):
        Manifest.read(tmp_path / "short.parquet")
    Manifest([replace(ROWS[0], decoder="magic")]).write(tmp_path / "m.parquet")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="decoder 'magic'"):
        Manifest.read(tmp_path / "m.parquet")


# Layouts -------------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_class_folders(tmp_path: Path) -> None:
    names = [
        "Run/v_Run_g07_c01.avi",
        "Run/deep/b.MP4",
        "Ju mp/-x'\".mp4",
        "größe/視.webm",
        "Run/notes.txt",
        ".cache/a.mp4",
    ]
    found = scan(touch(tmp_path, *names, "readme"))
    assert found.layout == "folders"
    assert found.ignored == Counter({".txt": 1, "no extension": 1})
    assert {(Path(c.path).name, c.label, c.split, c.group) for c in found} == {
        ("v_Run_g07_c01.avi", "Run", "train", "g07"),
        ("b.MP4", "Run", "train", None),
        ("-x'\".mp4", "Ju mp", "train", None),
        ("視.webm", "größe", "train", None),
    }
    assert all(os.path.isabs(c.path) for c in found)
    assert {c.label for c in scan(tmp_path, "flat")} == {None}


def test_flat_folder_single_video_and_list(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4", "c.jpg")
    found = scan(tmp_path)
    assert found.layout == "flat"
    assert [(Path(c.path).name, c.label) for c in found] == [("a.mp4", None), ("b.mp4", None)]
    assert [c.path for c in scan(tmp_path / "b.mp4")] == [str(tmp_path / "b.mp4")]
    (tmp_path / "list.txt").write_text(f"b.mp4\n\n{tmp_path}/a.mp4\nfile:///x/y.mp4\n")
    paths = [c.path for c in scan(tmp_path / "list.txt")]
    assert paths == [str(tmp_path / "b.mp4"), str(tmp_path / "a.mp4"), "file:///x/y.mp4"]


def test_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "t.csv").write_text('video,label,group,extra\n"sub/a, b.mp4",007,1,z\n/abs/v_X_g02_c01.avi,,,z\n')
    wanted = [
        Candidate(str(tmp_path / "sub/a, b.mp4"), "007", "train", "1"),
        Candidate("/abs/v_X_g02_c01.avi", None, "train", "g02"),
    ]
    assert scan(tmp_path / "t.csv") == wanted
    table = pa.table({"video": ["a.mp4", "b.mp4"], "label": pa.array([3, None]), "split": ["query", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [(c.label, c.split) for c in scan(tmp_path / "t.parquet")] == [("3", "query"), (None, "train")]
    (tmp_path / "bad.csv").write_text("path,label\na,b\n")
    with pytest.raises(UserError, match="no column 'video'; it has: path, label"):
        scan(tmp_path / "bad.csv")
    (tmp_path / "ragged.csv").write_text("video,label\na\nb,c,d\n")
    with pytest.raises(UserError, match="cannot be read as a table"):
        scan(tmp_path / "ragged.csv")
    (tmp_path / "twice.csv").write_text("video,split\na.mp4,train\na.mp4,query\n")
    with pytest.raises(UserError, match="named twice, with split 'train' and 'query'"):
        scan(tmp_path / "twice.csv")


def test_sources_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        scan(tmp_path / "none")
    with pytest.raises(UserError, match="no video in it"):
        scan(tmp_path)
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(UserError, match=r"no video in it \(only 2 .jpg\)"):
        scan(tmp_path)
    with pytest.raises(UserError, match="layout 'ucf' is not known; allowed: auto, folders"):
        scan(tmp_path, "ucf")
    with pytest.raises(UserError, match="layout 'table' does not fit a folder"):
        scan(tmp_path, "table")


def test_a_link_back_to_the_folder_is_no_endless_walk(tmp_path: Path) -> None:
    touch(tmp_path, "Run/a.mp4")
    (tmp_path / "Run" / "loop").symlink_to(tmp_path)
    assert len(scan(tmp_path)) == 1


# Splits --------------------------------------------------------------------------------------------------------------


def videos(groups: list[str | None]) -> list[Candidate]:
    return [Candidate(f"/v/{i}.mp4", "c", "train", group) for i, group in enumerate(groups)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("train: group odd; query: group even", "tqtqt"),
        ("query: group 2,4-9; train: rest", "tqtqq"),
        (" query:group 1 ;  train : group 2 - 5 ", "qtttt"),
        ("query: group odd; train: rest;", "qtqtq"),
    ],
)
def test_split_clauses(rule: str, expected: str) -> None:
    placed = assign_splits(videos(["g01", "g02", "s3", "004", "g25_05"]), rule)
    assert "".join(candidate.split[0] for candidate in placed) == expected


def test_random_split_keeps_groups_whole_and_is_seeded() -> None:
    candidates = videos([f"g{i % 17:02d}" for i in range(100)])
    placed = assign_splits(candidates, "random:0.2")
    query = {c.group for c in placed if c.split == "query"}
    assert not query & {c.group for c in placed if c.split == "train"}
    assert 20 <= sum(c.split == "query" for c in placed) <= 26
    assert assign_splits(candidates[::-1], "random:0.2") == placed[::-1]
    assert assign_splits(candidates, "random:0.2:0") == placed
    assert assign_splits(candidates, "random:0.2:1") != placed
    single = assign_splits(videos([None] * 50), "random:0.5")
    assert sum(c.split == "query" for c in single) == 25


@pytest.mark.parametrize(
    ("rule", "groups", "message"),
    [
        ("odd", ["g1"], "cannot read 'odd'; a split rule is"),
        ("train: group 1-x", ["g1"], "cannot read"),
        ("train: group odd", ["g1", "g2"], r"no clause holds for /v/1.mp4 \(group 'g2'\)"),
        ("train: group odd; query: group even", ["g1", None], r"no clause holds for /v/1.mp4 \(no group\)"),
        ("train: group odd; query: group even", ["g1", "g3"], "no video falls into 'query'"),
        ("random:1.5", ["g1", "g2"], "FRACTION lies between 0 and 1"),
        ("random", ["g1", "g2"], "a split rule is"),
        ("random:0.5", ["g1", "g1"], "cannot be parted"),
        (" ; ", ["g1"], "a split rule is"),
    ],
)
def test_rules_that_cannot_be_followed(rule: str, groups: list[str | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assign_splits(videos(groups), rule)


@pytest.mark.skipif(not (REAL / "yoga").exists(), reason="the yoga clips are not here")
def test_yoga_is_split_by_subject() -> None:
    found = scan(REAL / "yoga", split_rule="train: group odd; query: group even")
    assert len(found) == 97
    assert len({c.label for c in found}) == 6
    assert all((int((c.group or "")[1:]) % 2 == 1) == (c.split == "train") for c in found)
    assert {c.split for c in found} == {"train", "query"}


# Indexing ------------------------------------------------------------------------------------------------------------


def test_index_keeps_order_and_lists_what_was_refused(tmp_path: Path) -> None:
    frames = numbered_frames(8)
    for name in ("Run/a.mp4", "Run/v_Run_g02_c01.mp4", "Walk/-x y'\".mp4"):
        write_video(tmp_path / name, frames)
    (tmp_path / "Run" / "bad.mp4").write_text("text")
    raw = os.fsencode(tmp_path / "Walk") + b"/\xff.mp4"
    with open(raw, "wb") as file:
        file.write((tmp_path / "Run" / "a.mp4").read_bytes())
    seen: list[tuple[int, int, str]] = []
    found = scan(tmp_path)
    manifest = index(found, 2, lambda done, total, row: seen.append((done, total, row.video)))
    assert [Path(row.video).name for row in manifest.videos] == ["a.mp4", "v_Run_g02_c01.mp4", "-x y'\".mp4"]
    assert [(row.label, row.group, row.frames) for row in manifest.videos] == [
        ("Run", None, 8),
        ("Run", "g02", 8),
        ("Walk", None, 8),
    ]
    reasons = {Path(row.video).name: row.refused or "" for row in manifest.refused}
    assert reasons["bad.mp4"].startswith("not readable as a video")
    assert reasons[r"\udcff.mp4"] == "its name is not valid UTF-8; rename it"
    assert [done for done, _, _ in seen] == [1, 2, 3, 4, 5]
    assert {total for _, total, _ in seen} == {5}
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").refused == manifest.refused
