"""A run's folder: claimed once, resumed by the same experiment only, records trimmed, mirrored for an object store."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vicc_ray import storage
from vicc_ray.cluster.progress import RunProgress, Tail
from vicc_ray.config import make_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import (
    METRICS,
    RecordWriter,
    append_record,
    forget_records_after,
    last_records,
    read_events,
    read_metrics,
    read_records,
    unreadable_videos,
    write_text,
)


def test_a_folder_is_resumed_by_the_same_experiment_only(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    first = make_experiment({"seed": 1}, "x")
    assert folder.open(first, "data-a") is False
    assert folder.experiment() == first
    assert folder.open(make_experiment({"seed": 1, "train": {"workers": 2}}, "x"), "data-a") is True
    assert folder.experiment().train.workers.max == 2
    with pytest.raises(UserError, match=r"another experiment \(optim.lr: was 0.6, now 0.3\)"):
        folder.open(make_experiment({"seed": 1, "optim": {"lr": 0.3}}, "x"), "data-a")
    with pytest.raises(UserError, match="videos of the manifest are not the same"):
        folder.open(first, "data-b")
    assert folder.provenance()["data_fingerprint"] == "data-a"
    assert "torch" in folder.provenance()["versions"]


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder(tmp_path).experiment()


def test_records_survive_a_cut_line_and_forget_what_is_trained_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(read_records(path)) == []
    for step in range(1, 6):
        append_record(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    append_record(path, {"step": 7})  # is not swallowed by the cut line
    assert [record["step"] for record in read_records(path)] == [1, 2, 3, 4, 5, 7]
    forget_records_after(path, 3)
    assert path.read_text() == "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))


def test_records_that_a_full_disk_refuses_are_written_later(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    writer = RecordWriter(folder / "metrics.jsonl")
    writer.add({"step": 1})
    writer.add({"step": 2})
    folder.mkdir()
    writer.add({"step": 3})
    assert [record["step"] for record in read_records(writer.path)] == [1, 2, 3]


def test_a_text_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_in_an_object_store_is_the_same_from_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first = RunFolder.at(f"{bucket}/runs/mine")
    assert str(first) == f"{bucket}/runs/mine"
    experiment = make_experiment({"runs": f"{bucket}/runs", "name": "mine"}, "x")
    assert experiment.run_folder == str(first)
    first.open(experiment, "data-a")
    append_record(first.metrics, {"step": 1})
    first.encoder("RGB-1").parent.mkdir()
    first.encoder("RGB-1").write_bytes(b"weights")
    first.push(first.metrics, first.encoder("RGB-1"), first.results_csv)  # what is not there is passed over
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    second = RunFolder.at(f"{bucket}/runs/mine")
    assert second.path != first.path
    second.pull()
    assert second.experiment() == experiment
    assert [record["step"] for record in read_records(second.metrics)] == [1]
    assert second.encoders() == ["RGB-1"]
    with pytest.raises(UserError, match=f"{bucket}/runs/mine: holds a run of another"):
        second.open(make_experiment({"seed": 7}, "x"), "data-a")
    assert not second.stop_requested()
    first.request_stop()
    assert second.stop_requested()
    second.forget_stop()
    assert not first.stop_requested()


def test_who_watches_takes_nothing_from_a_workers_records(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one machine: what the worker has appended since its last push must not give way to the store's older copy."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    worker, watcher = RunFolder.at(f"{bucket}/runs/mine", mirror="worker-0"), RunFolder.at(f"{bucket}/runs/mine")
    worker.path.mkdir(parents=True)
    append_record(worker.metrics, {"step": 1})
    worker.push(worker.metrics)
    append_record(worker.metrics, {"step": 2})
    watcher.pull()
    assert [record["step"] for record in read_records(watcher.metrics)] == [1]
    watcher.fetch(watcher.metrics)
    assert [record["step"] for record in read_records(worker.metrics)] == [1, 2]


def test_a_file_is_fetched_again_where_it_changed_and_only_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine, other = RunFolder.at(f"{bucket}/runs/mine", mirror="a"), RunFolder.at(f"{bucket}/runs/mine", mirror="b")
    mine.path.mkdir(parents=True)
    mine.config.write_text("seed: 1")
    mine.push(mine.config)
    other.pull()
    fetched: list[Path] = []
    fetch = RunFolder.fetch

    def counted(folder: RunFolder, path: Path) -> Path:
        fetched.append(path)
        return fetch(folder, path)

    monkeypatch.setattr(RunFolder, "fetch", counted)
    other.pull()
    assert fetched == []
    time.sleep(1.1)  # the store tells whole seconds
    mine.config.write_text("seed: 2")  # as long as before
    mine.push(mine.config)
    other.pull()
    assert fetched == [other.config]
    assert other.config.read_text() == "seed: 2"


def test_a_mirror_has_nothing_that_its_store_has_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was deleted in its store is gone, whatever this machine still had of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    experiment = make_experiment({"runs": f"{bucket}/runs", "name": "mine"}, "x")
    folder = RunFolder.at(f"{bucket}/runs/mine")
    folder.open(experiment, "data-a")
    for path in (folder.encoder("RGB-1"), folder.metrics, folder.tensorboard / "events.1", folder.logs / "ray.log"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"{}\n")
    folder.push(folder.encoder("RGB-1"), folder.metrics)
    (folder.path / "lock").touch()
    folder.features.mkdir()
    (folder.features / "of-this-machine.parquet").touch()
    folder.pull(alone=True)
    assert folder.encoders() == ["RGB-1"]
    assert not list(folder.tensorboard.iterdir())  # never came to the store
    storage.remove(f"{bucket}/runs/mine/metrics.jsonl")
    folder.pull(alone=True)
    assert not folder.metrics.exists()
    assert folder.features.is_dir() and list(folder.features.iterdir())
    storage.remove_folder(f"{bucket}/runs/mine")
    folder.pull(alone=True)
    assert sorted(path.name for path in folder.path.rglob("*") if path.is_file()) == ["lock", "ray.log"]
    assert folder.encoders() == []
    assert folder.open(experiment, "data-b") is False


def test_what_is_on_its_way_to_the_store_stays(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of this machine, which looks at a run, takes nothing from one that writes there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    writer, watcher = (RunFolder.at(f"{bucket}/runs/mine") for _ in range(2))
    writer.path.mkdir(parents=True)
    writer.config.write_text("seed: 1")
    writer.push(writer.config)
    with storage.whole_file(writer.metrics) as partial:
        partial.write_text("{}\n")
        writer.results_csv.write_text("a,b\n")
        watcher.pull()
        assert partial.exists() and writer.results_csv.exists()
    os.utime(writer.results_csv, (1, 1))  # nobody pushed it for long
    watcher.pull()
    assert writer.metrics.exists() and not writer.results_csv.exists()


def test_a_file_that_is_gone_in_the_store_is_not_fetched_from_the_past(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = RunFolder.at(f"{bucket}/runs/mine")
    folder.path.mkdir(parents=True)
    folder.metrics.write_text("{}\n")
    assert not folder.fetch(folder.metrics).exists()


def test_runs_whose_names_have_marks_of_urls_are_two(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for number in (1, 2):
        experiment = make_experiment({"runs": f"{bucket}/exp#{number}", "name": "mine", "seed": number}, "x")
        assert RunFolder.at(experiment.run_folder).open(experiment, "data") is False
    for number in (1, 2):
        folder = RunFolder.at(f"{bucket}/exp#{number}/mine")
        folder.pull()
        assert folder.experiment().seed == number


DAMAGED = [
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"null",
    b"7",
    b'"x"',
    b"[1]",
    b'{"kind": 7}',
    b'{"kind": "train", "step": "x"}',
    b"{}",
]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_passed_over_wherever_records_are_read(line: bytes, tmp_path: Path) -> None:
    run, now = RunFolder(tmp_path), time.time()
    event = {"kind": "start", "step": 0, "workers": 1, "session": "a", "time": now}
    record = {"kind": "train", "stage": "RGB-1", "step": 4, "loss": 1.0, "time": now}
    for path, good in ((run.events, event), (run.metrics, record), (run.refused, {"video": "a", "reason": "gone"})):
        whole = json.dumps(good).encode()
        path.write_bytes(b"\n".join([whole, line, whole, b""]))
    assert [one["step"] for one in read_events(run.events)] == [0, 0]
    assert [one["step"] for one in read_metrics(run.metrics, "train")] == [4, 4]
    assert unreadable_videos(run.refused) == {"a": "gone"}
    assert [one["step"] for one in Tail(run.metrics, METRICS).read()] == [4, 4]
    forget_records_after(run.metrics, 3)
    assert read_metrics(run.metrics, "train") == []
    RunProgress(run, [])._read()


def test_provenance_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    experiment = make_experiment({}, "x")
    folder.open(experiment, "data-a")
    for data in (b"", b"\xff", b"[]", b'{"commit": 1}', b"[" * 100_000):
        (folder.path / "provenance.json").write_bytes(data)
        with pytest.raises(UserError, match=r"provenance\.json cannot be read"):
            folder.open(experiment, "data-a")


def test_a_video_counts_as_unreadable_until_it_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "refused.jsonl"
    for record in ({"video": "a", "reason": "gone"}, {"video": "b", "reason": "cut"}, {"video": "a", "readable": True}):
        append_record(path, record)
    assert unreadable_videos(path) == {"b": "cut"}
    append_record(path, {"video": "a", "reason": "gone again"})
    assert unreadable_videos(path) == {"b": "cut", "a": "gone again"}


def test_a_manifest_is_kept_as_it_is_now(tmp_path: Path, videos: Manifest) -> None:
    """Workers read the run's copy: of moved videos, or where that copy was damaged, it must not be the old one."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.keep_manifest(videos)
    moved = Manifest([replace(row, video=f"/elsewhere{row.video}") for row in videos.videos])
    assert moved.fingerprint() == videos.fingerprint()
    folder.keep_manifest(moved)
    assert Manifest.read(folder.manifest).videos == moved.videos
    before = folder.manifest.stat().st_mtime_ns
    folder.keep_manifest(moved)
    assert folder.manifest.stat().st_mtime_ns == before
    folder.manifest.write_bytes(folder.manifest.read_bytes()[:100])
    folder.keep_manifest(moved)
    assert Manifest.read(folder.manifest).videos == moved.videos


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ({"times": "c" * 32}, "the videos' times, which clip.fps counts by, are not the same"),
        ({"pictures": -1}, "pictures by other rules"),
        ({"times": None, "pictures": None}, None),  # a run of an earlier version
    ],
)
def test_what_decides_the_pictures_of_a_run_is_compared(
    tmp_path: Path, before: dict[str, Any], message: str | None
) -> None:
    experiment = make_experiment({"runs": str(tmp_path), "name": "mine"}, "x")
    folder = RunFolder.at(experiment.run_folder)
    assert folder.open(experiment, "a" * 32, None, "b" * 32) is False
    file = folder.path / "provenance.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | before))
    if message is None:
        assert folder.open(experiment, "a" * 32, None, "b" * 32) is True
        return
    with pytest.raises(UserError, match=message):
        folder.open(experiment, "a" * 32, None, "b" * 32)


@pytest.mark.parametrize("least", [0, 1, 7, 3000, 5000])
def test_the_last_records_are_found_from_the_end(tmp_path: Path, least: int) -> None:
    file = tmp_path / "metrics.jsonl"
    records = [{"kind": "train", "step": step, "text": "x" * 90} for step in range(4000)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tra')
    found = last_records(file, least)
    assert len(found) >= min(least, 4000)
    assert found == records[len(records) - len(found) :]
    assert len(found) < 4000 or least > 1000  # not all of a long file for a few
    assert last_records(tmp_path / "absent", least) == []
