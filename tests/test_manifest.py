"""The manifest: what is really in a file, and what was refused and why."""

from __future__ import annotations

import itertools
import os
import shutil
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from videos import numbered_frames, spoil, truncate, write_video
from web import web_server

from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.console import console
from vicc_ray.data.decode import VideoError, timeline_of
from vicc_ray.data.frame_table import encode_table
from vicc_ray.data.guarded import Failure
from vicc_ray.data.manifest import Manifest, VideoRow, check, content_hash, probe
from vicc_ray.errors import UserError

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
        frame_table=encode_table(timeline_of(str(path))),
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


def test_content_hash_sees_size_head_middle_and_tail(tmp_path: Path) -> None:
    def of(data: bytes, every: bool = False) -> str:
        (tmp_path / "x").write_bytes(data)
        return content_hash(str(tmp_path / "x"), every, edge=4)

    variants = [b"", b"abc", b"abcdefgh", b"Xbcdefgh", b"abcdefgX", b"abcd__efgh", b"abcd--efgh", b"abcd____efgh"]
    assert len({of(data) for data in variants}) == len(variants)
    assert [of(data) for data in variants] == [of(data, every=True) for data in variants]
    # Of more than 64 blocks those from the first to the last byte are read, which is bounded; with `every` all.
    long = bytes(1000)
    for place in (0, 3, 506, 996, 999):
        assert of(long[:place] + b"x" + long[place + 1 :]) != of(long), place
    between = long[:10] + b"x" + long[11:]
    assert of(between) == of(long)
    assert of(between, every=True) != of(long, every=True) != of(long)


def test_a_file_with_another_middle_is_another_video(tmp_path: Path) -> None:
    """8 MiB that differ by one byte; the hash of a file up to 2 MiB is what it always was."""
    data = bytearray(8 << 20)
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(data)
    data[4 << 20] = 1
    other.write_bytes(data)
    assert content_hash(str(one)) != content_hash(str(other))
    one.write_bytes(b"a video")
    assert content_hash(str(one)) == blake2b(b"7:a video", digest_size=16).hexdigest()


def test_check_hashes_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.data.manifest.BLOCKS", 2)
    monkeypatch.setattr("vicc_ray.data.manifest.content_hash", partial(content_hash, edge=16))
    path = write_video(tmp_path / "a.mkv", numbered_frames(12))
    before = probe(str(path)), check(str(path))
    spoil(path, 0.5, 0.51)
    assert probe(str(path)).content_hash == before[0].content_hash
    try:
        assert check(str(path)).content_hash != before[1].content_hash
    except VideoError as error:
        assert "damaged" in str(error)  # noqa: PT017 - either outcome is right


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
        assert (read.dataset, read.fold, list(read.videos)) == (dataset, fold, rows)
        assert read.fingerprint() == Manifest(rows).fingerprint()
    # Files of before, and of others, tell nothing.
    table = pq.read_table(tmp_path / "m.parquet")
    for metadata in (None, {"other": "x"}, {"vicc_ray": "no JSON"}, {"vicc_ray": "[1]"}, {"vicc_ray": '{"fold": "1"}'}):
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "old.parquet")
        old = Manifest.read(tmp_path / "old.parquet")
        assert (old.dataset, old.fold, len(old)) == (None, None, 1)


def test_an_earlier_versions_choice_of_reader_is_not_believed(
    tmp_path: Path,
) -> None:
    """It trusted decord with files that decord reads wrong; PyAV reads all that decord does, and the same."""
    clips, target = tmp_path / "clips", tmp_path / "m.parquet"
    clips.mkdir()
    write_video(clips / "a.mp4", numbered_frames(12))
    index_videos(str(clips), target, IndexOptions())
    fresh = Manifest.read(target)
    assert (fresh.outdated, fresh.videos[0].decoder) == (False, "decord")
    pq.write_table(pq.read_table(target).replace_schema_metadata({"vicc_ray": "{}"}), target)
    old = Manifest.read(target)
    assert (old.outdated, old.videos[0].decoder) == (True, "pyav")
    # Runs that began with it, and have a copy of it, still know it.
    old.write(tmp_path / "copy.parquet")
    copy = Manifest.read(tmp_path / "copy.parquet")
    assert (copy.outdated, copy.videos) == (True, old.videos)
    assert copy.earlier_fingerprint() == old.earlier_fingerprint() == fresh.earlier_fingerprint()
    assert copy.fingerprint() == old.fingerprint() == fresh.fingerprint() != fresh.earlier_fingerprint()
    with console.capture() as told:
        index_videos(str(clips), target, IndexOptions())
    assert "written by an earlier version; every video is probed again" in " ".join(told.get().split())
    assert Manifest.read(target).videos == fresh.videos


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


def test_rows_of_earlier_manifests_keep_their_hashes(tmp_path: Path) -> None:
    """An earlier version hashed size and ends only, and wrote no rule: rows stay what stores and runs know them by."""
    rows = [replace(ROWS[0], bytes=3 << 20), replace(ROWS[1], bytes=2 << 20)]
    Manifest(rows).write(tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet").drop_columns(["hash_rule"])
    pq.write_table(table, tmp_path / "old.parquet")
    old = Manifest.read(tmp_path / "old.parquet")
    assert [row.hash_rule for row in old.videos] == [1, 1]
    assert [row.hash_is_partial for row in old.videos] == [True, False], "of 2 MiB both rules read everything"
    assert not any(row.hash_is_partial for row in Manifest.read(tmp_path / "m.parquet").videos)
    assert old.fingerprint() == Manifest(rows).fingerprint()


def earlier_index(root: Path, hashes: dict[str, str]) -> Path:
    """A manifest of `root` as the earlier version wrote it, its files taken for long ones with these hashes."""
    index_videos(str(root), root / "m.parquet")
    rows = [
        replace(row, content_hash=hashes[Path(row.video).stem], hash_rule=1, checked=True)
        for row in Manifest.read(root / "m.parquet").videos
    ]
    Manifest(rows).write(root / "m.parquet")
    return root / "m.parquet"


def test_index_keeps_hashes_of_the_earlier_rule_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.data.rows.EARLIER_WHOLE", 100)  # bytes
    for number, name in enumerate("abc"):
        write_video(tmp_path / f"{name}.mp4", numbered_frames(8, start=number))
    target = earlier_index(tmp_path, {"a": "1" * 32, "b": "2" * 32, "c": "2" * 32})
    before = Manifest.read(target)
    with console.capture() as told:
        again = index_videos(str(tmp_path), target)
    # b and c may be two videos, which the earlier rule could not tell.
    assert again.videos[0] == before.videos[0]
    assert [row.hash_rule for row in again.videos] == [1, 2, 2]
    assert len({row.content_hash for row in again.videos}) == 3
    assert "note: 1 videos keep the content hash of an earlier version" in told.get()
    assert "note: 2 unchanged videos have another content hash" in told.get()
    with console.capture() as told:
        checked = index_videos(str(tmp_path), target, IndexOptions(check=True))
    assert [row.hash_rule for row in checked.videos] == [2, 2, 2]
    assert f"(the first: {tmp_path}/a.mp4)" in told.get()
    with console.capture() as told:
        index_videos(str(tmp_path), target, IndexOptions(check=True))
    assert "3 of 3 videos are known and unchanged" in told.get()
    assert "content hash" not in told.get()


def test_a_manifest_of_an_earlier_version_is_probed_again_and_keeps_its_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow stores and runs know its videos by them."""
    monkeypatch.setattr("vicc_ray.data.rows.EARLIER_WHOLE", 100)  # bytes
    for number, name in enumerate("abc"):
        write_video(tmp_path / f"{name}.mp4", numbered_frames(8, start=number))
    target = earlier_index(tmp_path, {"a": "1" * 32, "b": "2" * 32, "c": "2" * 32})
    pq.write_table(pq.read_table(target).replace_schema_metadata({"vicc_ray": "{}"}), target)
    write_video(tmp_path / "d.mp4", numbered_frames(8, start=9))
    again = index_videos(str(tmp_path), target)
    assert not Manifest.read(target).outdated
    assert again.videos[0].content_hash == "1" * 32
    assert [row.hash_rule for row in again.videos] == [1, 2, 2, 2]
    assert [row.decoder for row in again.videos] == ["decord"] * 4


def test_index_names_videos_that_are_there_twice(tmp_path: Path) -> None:
    """By content, whatever they are called: copies and links, in two splits, under two labels, or just twice."""
    for number, name in enumerate(("train/run/a.mp4", "train/run/b.mp4", "train/jump/c.mp4")):
        write_video(tmp_path / name, numbered_frames(8, start=number))
    (tmp_path / "val/run").mkdir(parents=True)
    (tmp_path / "val/run/z.mp4").symlink_to(tmp_path / "train/run/a.mp4")
    shutil.copy(tmp_path / "train/run/b.mp4", tmp_path / "train/run/b2.mp4")
    shutil.copy(tmp_path / "train/jump/c.mp4", tmp_path / "train/run/c.mp4")
    write_video(tmp_path / "val/jump/d.mp4", numbered_frames(8, start=9))
    with console.capture() as told:
        index_videos(str(tmp_path), tmp_path / "m.parquet")
    lines = [line.replace(f"{tmp_path}/", "") for line in told.get().splitlines() if "same content" in line]
    assert lines == [
        "note: 2 videos have the same content in several splits: train/run/a.mp4 (split train) and val/run/z.mp4 (split "
        "query); training videos are then among the queries, and recall too high",
        "note: 2 videos have the same content under several labels: train/jump/c.mp4 (label jump) and train/run/c.mp4 "
        "(label run)",
        "note: 2 videos have the same content as others: train/run/b.mp4 and train/run/b2.mp4",
    ]


def test_copies_are_told_once_whatever_their_order(tmp_path: Path) -> None:
    """The first and the last of three say the same, the one between says something else."""
    write_video(tmp_path / "a.mp4", numbered_frames(8))
    for name in ("b.mp4", "c.mp4"):
        shutil.copy(tmp_path / "a.mp4", tmp_path / name)
    for rows, where in (
        ("a.mp4,x,train\nb.mp4,y,train\nc.mp4,x,train\n", ["under several labels"]),
        ("a.mp4,x,train\nb.mp4,x,query\nc.mp4,x,train\n", ["in several splits"]),
        ("a.mp4,x,train\nb.mp4,x,train\nc.mp4,x,unused\n", ["as others"]),
    ):
        (tmp_path / "t.csv").write_text(f"video,label,split\n{rows}")
        with console.capture() as told:
            index_videos(str(tmp_path / "t.csv"), tmp_path / "m.parquet")
        lines = [line for line in told.get().splitlines() if "same content" in line]
        assert [line.partition("same content ")[2].partition(":")[0] for line in lines] == where


def test_index_counts_videos_that_are_shorter_than_the_clips_in_use(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(14))
    with console.capture() as told:
        index_videos(str(tmp_path), tmp_path / "m.parquet", IndexOptions(clip=12))
    assert "shorter" not in told.get()
    with console.capture() as told:
        index_videos(str(tmp_path), tmp_path / "m.parquet", IndexOptions(clip=16))
    assert "1 shorter than a clip of 16 frames" in told.get()


def test_a_list_of_paths_from_another_folder_says_where_they_start(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("videos/a.mp4 0\n")
    with pytest.raises(UserError, match=rf"none of its 1 videos .* start from the folder of the list: {tmp_path}\)"):
        index_videos(str(tmp_path / "list.txt"), tmp_path / "m.parquet")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.parquet"
    Manifest(ROWS).write(target)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", fail)
    with pytest.raises(OSError, match="no space"):
        Manifest(ROWS[:1]).write(target)
    assert os.listdir(tmp_path) == ["m.parquet"]
    assert len(Manifest.read(target)) == 2


def test_fingerprint_is_of_contents_not_of_places() -> None:
    base = Manifest(ROWS).fingerprint()
    moved = [replace(row, video=row.video.replace("/v/", "/elsewhere/")) for row in ROWS]
    assert Manifest(moved).fingerprint() == base
    for change in ({"label": "walk"}, {"split": "query"}, {"group": "g3"}, {"content_hash": "x"}, {"frames": 9}):
        assert Manifest([replace(ROWS[0], **change), *ROWS[1:]]).fingerprint() != base


def test_fingerprint_is_the_same_whichever_reader_an_indexer_had() -> None:
    """decord is not to be had everywhere; its pictures are PyAV's. Another way to count frames is another thing."""
    ours, theirs, other = (
        Manifest([replace(row, decoder=decoder) for row in ROWS]) for decoder in ("decord", "pyav", "pyav-sequential")
    )
    assert ours.fingerprint() == theirs.fingerprint() == theirs.earlier_fingerprint()
    assert theirs.fingerprint() != ours.earlier_fingerprint()
    assert other.fingerprint() not in (ours.fingerprint(), ours.earlier_fingerprint())


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


def test_videos_on_the_web_are_indexed_and_known_again(tmp_path: Path, videos: Manifest) -> None:
    """As a list of URLs, and as one URL whose query is no glob."""
    source = Path(videos.videos[0].video)
    with web_server() as (address, files):
        files["/v/one.mp4"] = files["/v/two.mp4?part=2"] = source.read_bytes()
        urls = [f"{address}/v/one.mp4", f"{address}/v/gone.mp4"]
        (tmp_path / "list.txt").write_text("\n".join(urls))
        made = index_videos(str(tmp_path / "list.txt"), tmp_path / "m.parquet")
        assert [(row.video, row.frames) for row in made.videos] == [(urls[0], videos.videos[0].frames)]
        assert [(row.video, row.refused) for row in made.refused] == [(urls[1], "no such file")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vicc_ray.commands.index.probe_named", lambda path: pytest.fail(f"{path} was opened again"))
            patch.setattr("vicc_ray.commands.index.run_guarded", lambda *_: iter([(0, Failure("no such file"))]))
            again = index_videos(str(tmp_path / "list.txt"), tmp_path / "m.parquet")
        assert again.videos == made.videos
        single = index_videos(f"{address}/v/two.mp4?part=2", tmp_path / "one.parquet")
        assert [row.content_hash for row in single.videos] == [made.videos[0].content_hash]


def test_a_list_with_signed_urls_is_refused_before_anything_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://host/a.mp4\nhttps://host/b.mp4?X-Amz-Signature=HUSH")
    with pytest.raises(UserError, match=r"list\.txt: a video: the URI carries credentials") as told:
        index_videos(str(tmp_path / "list.txt"), tmp_path / "m.parquet")
    assert "HUSH" not in str(told.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt"]


def test_a_manifest_whose_hash_is_a_path_is_refused(tmp_path: Path, videos: Manifest) -> None:
    for name in ("/elsewhere/evil", "../../evil", "a/b", "%2e"):
        Manifest([replace(videos.videos[0], content_hash=name)]).write(tmp_path / "m.parquet")
        with pytest.raises(UserError, match=f"content_hash '{name}' of .* is none"):
            Manifest.read(tmp_path / "m.parquet")
