"""Which videos a source names, with labels, groups and splits; split rules."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from s3 import s3_bucket

from vicc_ray.data.layouts import Candidate, Found, Source, assign_splits, scan
from vicc_ray.data.layouts.candidates import stem
from vicc_ray.data.layouts.tree import matches
from vicc_ray.errors import UserError

REAL = Path(__file__).parents[2] / "shared" / "data"
ODD_NAMES = ["Run/v_Run_g07_c01.avi", "Run/deep/b.MP4", "Ju mp/-x'\".mp4", "größe/視 %41.webm", "-dash/#1?&;[a]*.mp4"]


def touch(root: Path, *names: str) -> Path:
    """Files of one byte."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def foreign(query: str, train: str) -> str:
    """The note on queries whose classes are not in training."""
    return (
        f"no class of split 'query' ({query}) is one of split 'train' ({train}), so no query finds its class there; are these "
        "folders or columns the classes?"
    )


def inner(found: Found, root: Path) -> list[str]:
    """The candidates' names below a folder."""
    return [os.path.relpath(candidate.path, root) for candidate in found]


# Folders -------------------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    found = scan(touch(tmp_path, *ODD_NAMES, "Run/notes.txt", ".cache/a.mp4", "readme"))
    assert found.layout == "folders"
    assert found.ignored == Counter({".txt": 1, "no extension": 1})
    assert {(Path(c.path).name, c.label, c.split, c.group) for c in found} == {
        ("v_Run_g07_c01.avi", "Run", "train", "g07"),
        ("b.MP4", "Run", "train", None),
        ("-x'\".mp4", "Ju mp", "train", None),
        ("視 %41.webm", "größe", "train", None),
        ("#1?&;[a]*.mp4", "-dash", "train", None),
    }
    assert all(os.path.isabs(c.path) for c in found)
    assert [c.path for c in found] == sorted(c.path for c in found)
    assert {c.label for c in scan(tmp_path, "flat")} == {None}
    assert found.notes == []


def test_the_listing_tells_size_and_time(tmp_path: Path) -> None:
    from vicc_ray.storage import describe

    path = touch(tmp_path, "a b.mp4") / "a b.mp4"
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    entry = describe(str(path))
    (candidate,) = scan(tmp_path)
    assert entry is not None
    assert (
        (candidate.bytes, candidate.modified) == (entry.bytes, entry.modified) == (1, 1_700_000_000_123_456_789 / 1e9)
    )
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    assert [(Path(c.path).name, c.bytes) for c in scan(tmp_path)] == [("a b.mp4", 1), ("gone.mp4", None)]


def test_folders_that_tell_no_class_are_noted(tmp_path: Path) -> None:
    touch(tmp_path, "videos/A/a.mp4", "videos/B/b.mp4", "notes/a.txt")
    (tmp_path / "empty").mkdir()
    notes = scan(tmp_path).notes
    assert notes[0] == "2 class folders without videos: empty, notes"
    assert notes[1].startswith("all videos lie below 'videos', so that is the one class")
    touch(tmp_path, "loose.mp4")
    found = scan(tmp_path)
    assert found.notes[1] == "1 videos lie in no class folder and have no label"
    assert [c.label for c in found] == [None, "videos", "videos"]


def test_sources_without_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        scan(tmp_path / "none")
    with pytest.raises(UserError, match="the source is an empty name"):
        scan("")
    with pytest.raises(UserError, match="no video in it"):
        scan(tmp_path)
    touch(tmp_path, "a.jpg", "b.jpg")
    for layout in ("auto", "folders", "ucf101", "hmdb51", "kinetics"):
        with pytest.raises(UserError, match=r"no video in it \(only 2 .jpg\)"):
            scan(tmp_path, layout)
    with pytest.raises(
        UserError, match=r"--layout: data layout 'ucf' is unknown .did you mean ucf101\?.; known: ucf101, hmdb51"
    ):
        scan(tmp_path, "ucf")
    with pytest.raises(UserError, match="layout 'csv' does not fit a folder"):
        scan(tmp_path, "table")
    with pytest.raises(UserError, match="layout 'folders' does not fit a single file"):
        scan(tmp_path / "a.jpg", "folders")
    with pytest.raises(UserError, match="gs3://: nothing that is installed opens it"):
        scan("gs3://x/y")


def test_a_link_back_to_the_folder_is_no_endless_walk(tmp_path: Path) -> None:
    touch(tmp_path, "Run/a.mp4")
    (tmp_path / "Run" / "loop").symlink_to(tmp_path)
    assert len(scan(tmp_path)) == 1


def test_a_closed_folder_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed by hand here: root may read every folder."""
    touch(tmp_path, "A/a.mp4", "B/b.mp4")
    listing = os.scandir

    def scandir(folder: str) -> object:
        if folder == closed:
            raise PermissionError(13, "Permission denied", folder)
        return listing(folder)

    monkeypatch.setattr("os.scandir", scandir)
    closed = str(tmp_path / "B")
    assert scan(tmp_path).notes[0] == f"1 folders cannot be read and are left out: {closed}"
    closed = str(tmp_path)
    with pytest.raises(UserError, match="cannot be listed; may this user read it"):
        scan(tmp_path)


# Globs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("videos/**/*.mp4", ["videos/A/a.mp4", "videos/A/deep/c.mp4", "videos/top.mp4"]),
        ("videos/*/*", ["videos/A/a.mp4", "videos/A/b.avi"]),
        ("videos/*/[ab].*", ["videos/A/a.mp4", "videos/A/b.avi"]),
        ("**/?.mp4", ["other/x.mp4", "videos/A/a.mp4", "videos/A/deep/c.mp4"]),
        ("videos/**", ["videos/A/a.mp4", "videos/A/b.avi", "videos/A/deep/c.mp4", "videos/top.mp4"]),
        ("*/A/d*/c.mp4", ["videos/A/deep/c.mp4"]),
    ],
)
def test_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]) -> None:
    touch(tmp_path, "videos/A/a.mp4", "videos/A/b.avi", "videos/A/deep/c.mp4", "videos/A/n.txt", "videos/top.mp4")
    touch(tmp_path, "other/x.mp4", "other/.hidden/y.mp4")
    assert inner(scan(tmp_path / pattern), tmp_path) == expected
    monkeypatch.chdir(tmp_path)
    assert inner(scan(pattern), tmp_path) == expected
    assert inner(scan(f"file://{tmp_path}/{pattern}"), tmp_path) == expected
    assert expected == [n for n in sorted(expected) if matches(n.split("/"), pattern.split("/"))]


def test_a_glob_keeps_the_folders_as_classes_and_its_own_count(tmp_path: Path) -> None:
    touch(tmp_path, "A/a.mp4", "B/b.mp4", "B/b.avi", "B/c.txt")
    found = scan(tmp_path / "*" / "*.mp4")
    assert [(c.label, Path(c.path).name) for c in found] == [("A", "a.mp4"), ("B", "b.mp4")]
    assert found.ignored == Counter()
    assert scan(tmp_path / "*" / "a.mp4").notes == [], "B is left out on purpose"
    with pytest.raises(UserError, match="no file fits this pattern"):
        scan(tmp_path / "*.mp4")
    with pytest.raises(UserError, match="no such folder as"):
        scan(tmp_path / "none" / "*.mp4")
    touch(tmp_path, "[x]*.mp4", "x.mp4")
    assert inner(scan(tmp_path / "[x]*.mp4"), tmp_path) == ["[x]*.mp4"], "a file of that name is no pattern"


# One video, lists, tables --------------------------------------------------------------------------------------------


def test_flat_folder_single_video_and_list(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4", "c.jpg", "-x y.mp4")
    found = scan(tmp_path)
    assert found.layout == "flat"
    assert [(Path(c.path).name, c.label) for c in found] == [("-x y.mp4", None), ("a.mp4", None), ("b.mp4", None)]
    assert [c.path for c in scan(tmp_path / "b.mp4")] == [str(tmp_path / "b.mp4")]
    assert [c.path for c in scan(f"file://{tmp_path}/-x%20y.mp4")] == [str(tmp_path / "-x y.mp4")]
    assert [c.path for c in scan(tmp_path / "c.jpg", "video")] == [str(tmp_path / "c.jpg")]
    lines = ["b.mp4", "", f"{tmp_path}/a.mp4", "file:///x/y%20z.mp4", "s3://b/c.mp4", "-x y.mp4", "é/v_A_g03_c01.avi"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    found = scan(tmp_path / "list.txt")
    names = [f"{tmp_path}/b.mp4", f"{tmp_path}/a.mp4", "/x/y z.mp4", "s3://b/c.mp4", f"{tmp_path}/-x y.mp4"]
    assert [c.path for c in found] == [*names, f"{tmp_path}/é/v_A_g03_c01.avi"]
    assert [c.group for c in found] == [None] * 5 + ["g03"]
    assert found.layout == "list"
    (tmp_path / "latin.txt").write_bytes(b"\xe9.mp4\n")
    with pytest.raises(UserError, match="cannot be read as UTF-8 text"):
        scan(tmp_path / "latin.txt")


def test_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "t.csv").write_text('video,label,group,extra\n"sub/a, ""b"".mp4",007,1,z\n\n/abs/v_X_g02_c01.avi,,,z\n')
    wanted = [
        Candidate(str(tmp_path / 'sub/a, "b".mp4'), "007", "train", "1"),
        Candidate("/abs/v_X_g02_c01.avi", None, "train", "g02"),
    ]
    found = scan(tmp_path / "t.csv")
    assert found == wanted
    assert (found.layout, found.notes) == ("csv", ["1 columns are not used: extra"])
    assert scan(tmp_path / "t.csv", "table") == scan(tmp_path / "t.csv", "csv") == wanted
    table = pa.table({"video": ["a.mp4", "b.mp4"], "label": pa.array([3, None]), "split": ["query", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [(c.label, c.split) for c in scan(tmp_path / "t.parquet")] == [("3", "query"), (None, "train")]


def test_other_headers_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Filename,Class,Split\na.mp4,x,train\n")
    assert scan(tmp_path / "t.csv") == [Candidate(f"{tmp_path}/a.mp4", "x", "train")]
    (tmp_path / "t.csv").write_text("path,video\na.mp4,b.mp4\n")
    found = scan(tmp_path / "t.csv")
    assert [c.path for c in found] == [f"{tmp_path}/b.mp4"]
    assert found.notes == ["1 columns are not used: path"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name,label\na,b\n",
            r"no column 'video'; it has: name, label. Known: video\|path\|filename.*, label\|class, split",
        ),
        (
            "label,youtube_id\na,b\n",
            "its column of ids names files without their folder and extension, and none of its 1 is below",
        ),
        ("video,label\na\nb,c,d\n", "cannot be read as a table: line 2 has 1 cells, the header 2"),
        ('video\n"a', "cannot be read as a table: line 2"),
        ("", "it is empty"),
        ("video,label\n", "no video in it"),
        ("video,label\na.mp4,x\n,y\n", "row 2 names no video"),
        (
            "video,split\na.mp4,train\na.mp4,query\nb.mp4,train\nb.mp4,x\n",
            r"named twice, with split 'train' and 'query'; .*\(2 such",
        ),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        scan(tmp_path / "t.csv")


def test_a_group_of_a_table_that_crosses_splits_is_noted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("video,label,split,group\na,x,train,p1\nb,y,query,p1\nc,x,train,p2\n")
    assert scan(tmp_path / "t.csv").notes[0].startswith("1 of 2 groups cross splits (2 videos): p1 (query 1, train 1)")
    # Without the column a number in a name counts within its class.
    (tmp_path / "t.csv").write_text("video,label,split\nv_X_g01_c1.avi,x,train\nv_Y_g01_c1.avi,y,query\n")
    assert scan(tmp_path / "t.csv").notes == [foreign("y", "x")]


# Object stores -------------------------------------------------------------------------------------------------------


def test_every_source_may_lie_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket(monkeypatch) as bucket:
        for name in [*ODD_NAMES, "Run/notes.txt"]:
            bucket.put(f"pre fix/{name}", b"xy")
        bucket.put("t.csv", "path,label\npre fix/Ju mp/a%b.mp4,é\n/abs.mp4,y\n".encode())
        bucket.put("l.txt", b"pre fix/a.mp4\ns3://other/b.mp4\n")
        root = f"s3://{bucket.name}"
        found = scan(f"{root}/pre%20fix/")
        assert found.layout == "folders"
        assert found.ignored == Counter({".txt": 1})
        assert sorted(c.label or "" for c in found) == sorted(name.split("/")[0] for name in ODD_NAMES)
        assert {c.bytes for c in found} == {2} and all((c.modified or 0) > 1e9 for c in found)
        assert f"{root}/pre%20fix/Ju%20mp/-x%27%22.mp4" in [c.path for c in found]
        assert [c.group for c in scan(f"{root}/pre%20fix/*/*.avi")] == ["g07"]
        (one,) = scan(next(c.path for c in found if c.label == "-dash"))
        assert one.path == next(c.path for c in found if c.label == "-dash")
        table = scan(f"{root}/t.csv")
        assert [(c.path, c.label) for c in table] == [(f"{root}/pre%20fix/Ju%20mp/a%25b.mp4", "é"), ("/abs.mp4", "y")]
        assert [c.path for c in scan(f"{root}/l.txt")] == [f"{root}/pre%20fix/a.mp4", "s3://other/b.mp4"]
        with pytest.raises(UserError, match="no such file or folder"):
            scan(f"{root}/none")
        with pytest.raises(UserError, match="no such file or folder"):
            scan(f"{root}/pre%20fix/none.mp4")
        bucket.put("UCF-101/A/v_A_g01_c01.avi", b"x")
        bucket.put("UCF-101/A/v_A_g02_c01.avi", b"x")
        bucket.put("ucfTrainTestlist/trainlist01.txt", b"A/v_A_g01_c01.avi 1\n")
        bucket.put("ucfTrainTestlist/testlist01.txt", b"A/v_A_g02_c01.avi\n")
        found = scan(f"{root}/UCF-101")
        assert (found.layout, [c.split for c in found]) == ("ucf101", ["train", "query"])


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


class Cameras:
    """A layout of another package: `CAMERA_LABEL_NUMBER.mp4`, a camera is a group, numbers from 5 on are queries of fold 1."""

    takes = "folder"
    folds = (1, 2)
    dataset = True

    def read(self, source: Source) -> Found:
        candidates = []
        for file in source.files.videos:
            camera, label, number = stem(file.inner).split("_")
            query = int(number) >= 5 if source.fold == 1 else int(number) < 5
            candidates.append(file.candidate(label, "query" if query else "train", camera))
        return Found(candidates, "whatever", source.files.ignored(), ["a note"])


def test_a_layout_of_another_package(tmp_path: Path) -> None:
    for name in ("a_jump_1.mp4", "a_run_7.mp4", "b_jump_5.mp4", "notes.txt"):
        (tmp_path / name).touch()
    name = f"{__name__}:Cameras"
    found = scan(tmp_path, name)
    assert found.layout == name and found.ignored == {".txt": 1} and found.notes == ["a note"]
    assert [(c.label, c.split, c.group) for c in found] == [
        ("jump", "train", "a"), ("run", "query", "a"), ("jump", "query", "b"),
    ]  # fmt: skip
    assert [c.split for c in scan(tmp_path, name, fold=2)] == ["query", "train", "train"]
    with pytest.raises(UserError, match="has no fold 3"):
        scan(tmp_path, name, fold=3)
    with pytest.raises(UserError, match="does not fit a single file"):
        scan(tmp_path / "a_jump_1.mp4", name)
    with pytest.raises(UserError, match=r"--layout: data layout 'nowhere\.at:All' cannot be loaded"):
        scan(tmp_path, "nowhere.at:All")
