"""A run's folder: claimed once, resumed by the same experiment only, records trimmed, mirrored for an object store."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vicc_ray.config import make_experiment
from vicc_ray.errors import UserError
from vicc_ray.records import RecordWriter, append_record, forget_records_after, read_records, write_text
from vicc_ray.run_folder import RunFolder


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
