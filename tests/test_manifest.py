"""The manifest: what is really in a file, and what was refused and why."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from videos import numbered_frames, spoil, truncate, write_video

from vicc_ray.console import console
from vicc_ray.data.decode import VideoError
from vicc_ray.data.manifest import Manifest, VideoRow, content_hash, probe
from vicc_ray.errors import UserError
from vicc_ray.indexing import IndexOptions, index_videos

# What is in a file ---------------------------------------------------------------------------------------------------


def test_probe_reads_the_file_not_its_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(30, 48, 80), fps=20)
    row = probe(str(path))
    assert row == VideoRow(
        video=str(path),
        frames=30,
        declared_frames=30,
        fps=20.0,
        width=80,
        height=48,
        duration_seconds=1.5,
        codec="h264",
        bytes=path.stat().st_size,
        modified=row.modified,
        content_hash=content_hash(str(path)),
        decoder="decord",
    )
    assert row.modified == pytest.approx(path.stat().st_mtime, abs=1e-3)
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
    VideoRow(
        "/v/a.mp4", "run", "train", "g01", 10, 10, 25.0, True, 64, 48, 0, 0.4, "h264", 100, 1.5, "aa", True, "decord"
    ),
    VideoRow(
        "/v/b ü'\".mp4",
        None,
        "query",
        None,
        20,
        0,
        29.97,
        False,
        48,
        64,
        90,
        0.7,
        "vp9",
        200,
        2.0,
        "bb",
        False,
        "pyav-sequential",
    ),
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


def test_a_manifest_knows_its_data_set(tmp_path: Path) -> None:
    rows = [VideoRow("a.mp4", frames=9)]
    for dataset, fold in (("ucf101", 3), ("kinetics", None), (None, None)):
        manifest = Manifest(rows, dataset, fold)
        manifest.write(tmp_path / "m.parquet")
        read = Manifest.read(tmp_path / "m.parquet")
        assert (read.dataset, read.fold, read.videos) == (dataset, fold, rows)
        assert read.fingerprint() == Manifest(rows).fingerprint()
    # Files of before, and of others, tell nothing.
    table = pq.read_table(tmp_path / "m.parquet")
    for metadata in (None, {"other": "x"}, {"vicc_ray": "no JSON"}, {"vicc_ray": "[1]"}, {"vicc_ray": '{"fold": "1"}'}):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
        old = Manifest.read(tmp_path / "old.parquet")
        assert (old.dataset, old.fold, old.videos) == (None, None, rows)


@pytest.mark.parametrize(
    ("options", "known"),
    [
        (IndexOptions("ucf101", fold=2), ("ucf101", 2)),
        (IndexOptions(), ("ucf101", 1)),  # recognised
        (IndexOptions(split="random:0.5"), ("ucf101", None)),  # the videos of it, on other sides
        (IndexOptions("folders"), (None, None)),
    ],
)
def test_index_names_the_data_set_and_its_split(
    tmp_path: Path, options: IndexOptions, known: tuple[str | None, int | None]
) -> None:
    clip = numbered_frames(12)
    names = [f"{label}/v_{label}_g0{group}_c01.mp4" for label in "AB" for group in (1, 2)]
    for name in names:
        (tmp_path / "UCF101" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "UCF101" / name, clip)
    for kind, fold in itertools.product(("train", "test"), (1, 2)):
        lines = [
            name + " 1" * (kind == "train") for name in names if ("_g01" in name) == ((kind == "test") == (fold == 1))
        ]
        (tmp_path / "UCF101" / f"{kind}list0{fold}.txt").write_text("\n".join(lines))
    index_videos(str(tmp_path / "UCF101"), tmp_path / "m.parquet", options)
    read = Manifest.read(tmp_path / "m.parquet")
    assert (read.dataset, read.fold) == known
    assert len(read) == 4


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.parquet"
    Manifest(ROWS).write(target)

    def fail(*_: object, **__: object) -> None:
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


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    Manifest([replace(ROWS[0], content_hash="3f9a1c7be2d8460518f2a6c4d9e0b753")]).write(path)
    content = path.read_bytes()
    where = content.index(b"3f9a1c7be2d84605")
    for place in range(where, where + 16, 5):
        path.write_bytes(content[:place] + b"x" + content[place + 1 :])
        with pytest.raises(UserError, match="not a Parquet file, or damaged"):
            Manifest.read(path)


def test_a_manifest_lies_in_a_store_as_well(bucket: str, videos: Manifest) -> None:
    videos.write(f"{bucket}/data/tiny.parquet")
    read = Manifest.read(f"{bucket}/data/tiny.parquet")
    assert read.videos == videos.videos and read.refused == videos.refused
    with pytest.raises(UserError, match=f"manifest {bucket}/none.parquet: no such file"):
        Manifest.read(f"{bucket}/none.parquet")


def test_an_index_goes_to_a_store_and_is_known_there(
    bucket: str, videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the journal of such an index lies
    source = str(Path(videos.videos[0].video).parent)
    first = index_videos(source, f"{bucket}/tiny.parquet")
    with console.capture() as told:
        again = index_videos(source, f"{bucket}/tiny.parquet")
    assert first.videos == again.videos
    assert f"{len(first)} of {len(first)} videos are known and unchanged" in told.get()
    assert list(tmp_path.iterdir()) == []
