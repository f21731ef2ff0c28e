"""From candidates to a manifest: order, refusals, what is probed again, and what an interruption leaves."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from s3 import s3_bucket
from videos import numbered_frames, write_video

from vicc_ray.data.guarded import Failure
from vicc_ray.data.layouts import Candidate, scan
from vicc_ray.data.manifest import Manifest, VideoRow, probe
from vicc_ray.data.probing import Journal, find_known, index, probe_named, row_of, whole_files
from vicc_ray.data.rows import Rows

ROW = VideoRow("/v/a.mp4", "run", "train", "g01", frames=10, bytes=100, modified=1000.25, content_hash="aa")


def candidate(path: str = "/v/a.mp4", size: int | None = 100, modified: float | None = 1000.25) -> Candidate:
    """A candidate as a listing tells it."""
    return Candidate(path, "walk", "query", "g02", size, modified)


def known_of(manifest: Manifest) -> Rows:
    """What is known of each video."""
    return whole_files(Rows.chain([manifest.videos, manifest.refused]))


# Indexing ------------------------------------------------------------------------------------------------------------


def test_index_keeps_order_and_lists_what_was_refused(tmp_path: Path) -> None:
    frames = numbered_frames(8)
    for name in ("Run/a.mp4", "Run/v_Run_g02_c01.mp4", "Walk/-x y'\".mp4"):
        write_video(tmp_path / name, frames)
    (tmp_path / "Run" / "bad.mp4").write_text("text")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    raw = os.fsencode(tmp_path) + b"/\xff/\xff.mp4"
    with open(raw, "wb") as file:
        file.write((tmp_path / "Run" / "a.mp4").read_bytes())
    manifest = index(scan(tmp_path), 2)
    assert [Path(row.video).name for row in manifest.videos] == ["a.mp4", "v_Run_g02_c01.mp4", "-x y'\".mp4"]
    assert [(row.label, row.group, row.frames) for row in manifest.videos] == [
        ("Run", None, 8),
        ("Run", "g02", 8),
        ("Walk", None, 8),
    ]
    reasons = {Path(row.video).name: row.refused or "" for row in manifest.refused}
    assert reasons["bad.mp4"].startswith("not readable as a video")
    assert reasons[r"\udcff.mp4"] == "its name is not valid UTF-8; rename it"
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").refused == manifest.refused


# What is probed again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "row", "again"),
    [
        (candidate(), ROW, False),
        (candidate(size=101), ROW, True),
        (candidate(modified=1000.26), ROW, True),
        (candidate(), replace(ROW, refused="broken"), True),
        (candidate(modified=0.0), replace(ROW, modified=0.0), True),
        (candidate("/v/b.mp4"), ROW, True),
        (candidate("s3://b/a", modified=1000.0), replace(ROW, video="s3://b/a", modified=1000.9), False),
        (candidate("s3://b/a", modified=1001.0), replace(ROW, video="s3://b/a", modified=1000.9), True),
    ],
)
def test_only_what_changed_is_probed(now: Candidate, row: VideoRow, again: bool) -> None:
    def refuse(path: str) -> None:
        raise AssertionError(f"{path}: the listing told all")

    others = [replace(ROW, video=f"/v/{name}") for name in ("other.mp4", "z.mp4")]
    places = find_known([candidate("/v/new.mp4"), now], Rows.of([others[0], row, others[1]]), refuse)
    assert places.tolist() == [-1, -1 if again else 1]


def test_files_that_no_listing_sized_are_asked_for() -> None:
    entries = {"/v/same": (100, 1000.25), "/v/longer": (101, 1000.25), "/v/gone": None}
    asked = []

    def describe(path: str) -> SimpleNamespace | None:
        asked.append(path)
        if path == "/v/closed":
            raise PermissionError(path)
        entry = entries[path]
        return SimpleNamespace(bytes=entry[0], modified=entry[1]) if entry else None

    names = ["/v/new", "/v/gone", "/v/same", "/v/closed", "/v/longer"]
    known = Rows.of(replace(ROW, video=name) for name in names[1:])
    places = find_known([candidate(name, None, None) for name in names], known, describe)
    assert places.tolist() == [-1, -1, 1, -1, -1]
    assert sorted(asked) == sorted(names[1:]), "one that is not known is opened anyway"


def test_rows_of_outcomes() -> None:
    row = row_of(candidate(modified=None), ROW)
    assert row == replace(ROW, label="walk", split="query", group="g02")
    assert row_of(candidate(modified=5.0), ROW).modified == 5.0, "the listing's time, which was before the probe's"
    refused = row_of(candidate("/v/\udcff.mp4"), Failure("it crashed"))
    assert (refused.video, refused.refused, refused.label) == (r"/v/\udcff.mp4", "it crashed", "walk")
    with pytest.raises(ValueError, match="its name is not valid UTF-8; rename it"):
        probe_named("/v/\udcff.mp4")


def test_a_second_index_opens_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A/a.mp4", "A/b.mp4", "B/c.mp4"):
        write_video(tmp_path / name, numbered_frames(6))
    (tmp_path / "B" / "bad.mp4").write_text("text")
    first = index(scan(tmp_path), 1)
    assert [row.frames for row in first.videos] == [6, 6, 6]
    write_video(tmp_path / "A" / "b.mp4", numbered_frames(9))
    os.utime(tmp_path / "B" / "c.mp4", ns=(1, 1))
    (tmp_path / "A" / "a.mp4").rename(tmp_path / "A" / "z.mp4")
    opened: list[str] = []
    monkeypatch.setattr("vicc_ray.data.probing.run_guarded", lambda f, paths, *_: _in_place(paths, opened))
    second = index(scan(tmp_path, split_rule="random:0.3"), 1, known=known_of(first))
    assert sorted(Path(path).name for path in opened) == ["b.mp4", "bad.mp4", "c.mp4", "z.mp4"]
    assert [row.frames for row in second.videos] == [9, 6, 6]
    opened.clear()
    third = index(scan(tmp_path), 1, known=known_of(second))
    assert [Path(path).name for path in opened] == ["bad.mp4"]
    assert {row.split for row in third.videos} == {"train"}, "the split is the scan's, not the earlier row's"
    assert third.fingerprint() == replace_splits(second).fingerprint()
    # Through a list, whose lines carry no sizes.
    (tmp_path / "list.txt").write_text("A/z.mp4\nA/b.mp4\n")
    opened.clear()
    index(scan(tmp_path / "list.txt"), 1, known=known_of(second))
    assert opened == []


def replace_splits(manifest: Manifest) -> Manifest:
    """All in training."""
    return Manifest(replace(row, split="train") for row in manifest.videos)


def _in_place(paths: list[str], opened: list[str]) -> list[tuple[int, VideoRow | Failure]]:
    opened += paths
    outcomes: list[tuple[int, VideoRow | Failure]] = []
    for place, path in enumerate(paths):
        try:
            outcomes.append((place, probe(path)))
        except Exception as error:
            outcomes.append((place, Failure(str(error))))
    return outcomes[::-1]


def test_objects_of_a_store_are_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_video(tmp_path / "a.mp4", numbered_frames(6)).read_bytes()
    with s3_bucket(monkeypatch) as bucket:
        for name in ("A/a b.mp4", "A/b.mp4"):
            bucket.put(name, data)
        bucket.put("list.txt", b"A/a b.mp4\nA/b.mp4\n")
        root = f"s3://{bucket.name}"
        first = index(scan(root), 1)
        assert [row.frames for row in first.videos] == [6, 6]
        known = known_of(first)
        assert find_known(scan(root), known).tolist() == [0, 1]
        assert find_known(scan(f"{root}/list.txt"), known).tolist() == [0, 1], "one object's time is in whole seconds"
        time.sleep(1.1)
        bucket.put("A/b.mp4", data)
        for source in (root, f"{root}/list.txt"):
            assert find_known(scan(source), known).tolist() == [0, -1]


# The journal ---------------------------------------------------------------------------------------------------------


def test_the_journal_outlives_an_interruption(tmp_path: Path) -> None:
    target = tmp_path / "new" / "m ü.parquet"
    rows = [
        replace(ROW, video=f"/v/{name}.mp4", label=label) for name, label in (("a", None), ('é\n"', "x"), ("c", "y"))
    ]
    with Journal(target) as journal:
        assert len(journal.rows()) == 0
        journal.add(rows[0])
        journal.add(rows[1])
    assert os.listdir(target.parent) == [".m ü.parquet.partial.jsonl"]
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-20])
    again = Journal(target)
    assert again.rows() == [rows[0]]
    again.add(rows[2])
    again.add(replace(rows[0], frames=11))
    assert again.rows() == [replace(rows[0], frames=11), rows[2]], "of two rows of a video the later one"
    again.remove()
    again.remove()
    assert os.listdir(target.parent) == []


def test_the_journal_passes_over_what_it_did_not_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "m.parquet")
    journal.path.write_bytes(b'\n[1]\nnull\n{"video": "/v/a.mp4"}\n\xff\xfe\n{"vi')
    journal.add(ROW)
    assert journal.rows() == [ROW]


def test_the_journal_of_a_remote_manifest_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Journal("s3://b/c/my%20m.parquet").path == tmp_path / ".my m.parquet.partial.jsonl"
    assert Journal(f"file://{tmp_path}/m.parquet").path == tmp_path / ".m.parquet.partial.jsonl"
    assert Journal("m.parquet").path == tmp_path / ".m.parquet.partial.jsonl"


def test_index_goes_on_from_its_journal(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_video(tmp_path / "videos" / name, numbered_frames(6))
    target = tmp_path / "m.parquet"

    class Killed(Journal):
        def add(self, row: VideoRow) -> None:
            super().add(row)
            if len(self.rows()) == 2:
                raise KeyboardInterrupt

    found = scan(tmp_path / "videos")
    with pytest.raises(KeyboardInterrupt), Killed(target) as journal:
        index(found, 1, journal=journal)
    rows = Journal(target).rows()
    assert len(rows) == 2
    with Journal(target) as journal:
        manifest = index(found, 1, known=rows, journal=journal)
        assert len(journal.rows()) == 3
    assert [Path(row.video).name for row in manifest.videos] == ["a.mp4", "b.mp4", "c.mp4"]
    assert manifest.fingerprint() == index(found, 1).fingerprint()
