"""`vicc clean`: what goes, what never goes, and that the run is as good as before: it resumes, is evaluated and reported."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from runs import add_checkpoint, add_encoder, add_features, add_records, finished_run, open_run

from vicc_ray import storage
from vicc_ray.commands.clean import Removal, plan_removals, print_removals, remove
from vicc_ray.commands.status import read_status
from vicc_ray.config import dump_experiment
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.results import read_all
from vicc_ray.report import write_report
from vicc_ray.runs.disk import files_of, readable_bytes, sizes
from vicc_ray.runs.encoders import open_encoders
from vicc_ray.runs.folder import UNFINISHED_SECONDS, RunFolder
from vicc_ray.training.driver import alone_in


def names(removals: list[Removal], run: RunFolder) -> set[str]:
    return {file.name.removeprefix(str(run)).lstrip("/") for removal in removals for file in removal.files}


def aged(run: RunFolder) -> None:
    """As if all of it had been written long ago."""
    past = time.time() - 2 * UNFINISHED_SECONDS
    for path in run.path.rglob("*"):
        os.utime(path, (past, past))


def test_of_a_finished_run_the_state_of_training_and_the_logs_go(tmp_path: Path, videos: Manifest) -> None:
    run = finished_run(tmp_path / "runs" / "tiny", videos)
    before = files_of(run)
    found = plan_removals(str(run))
    assert names(found, run) == {
        *(f"checkpoints/step-{step:09d}/{file}" for step in (8, 10) for file in ("state.pt", "complete.json")),
        "logs/ray.log",
    }
    assert files_of(run).keys() == before.keys(), "nothing has gone yet"
    with console.capture() as shown:
        print_removals(found, removed=False)
    assert "nothing was removed: --yes does it" in shown.get() and "checkpoints" in shown.get()
    freed = sum(one.bytes for one in found)
    remove(found)
    assert sum(sizes(before).values()) - sum(sizes(files_of(run)).values()) == freed > 1000
    assert plan_removals(str(run)) == []
    # What it is good for afterwards.
    assert read_status(run).state == "finished" and len(open_encoders(run)) == 4 and len(read_all(run)) == 1
    assert (run.features / "RGB-2-tiny-00000000.parquet").is_file()
    write_report([run.path], tmp_path / "r.html")


def test_a_run_in_its_middle_keeps_what_a_resume_needs(tmp_path: Path, videos: Manifest) -> None:
    """The newest two, as training does, and the best of the stage; an older one and a half of one go once they are old."""
    run = open_run(tmp_path / "tiny", videos)
    add_records(run, videos, steps=7, began=time.time() - 9000)
    for step, recall in ((2, 0.9), (5, 0.8), (6, 0.2), (7, 0.3), (8, 0.1)):
        add_checkpoint(run, step, "RGB-1" if step == 2 else "RGB-2", recall=recall)
    half = run.path / "checkpoints" / "step-000000003" / "state.pt"
    half.parent.mkdir()
    half.write_bytes(b"half")
    assert plan_removals(str(run)) == [], "it may be on its way"
    aged(run)
    found = plan_removals(str(run))
    assert {name.split("/")[1] for name in names(found, run)} == {f"step-{step:09d}" for step in (2, 3, 6)}
    remove(found)
    assert [info.step for info in run.checkpoints.listing()] == [8, 7, 5]
    sound = run.checkpoints.newest()
    assert sound is not None and sound[0].step == 8 and torch.equal(sound[1]["w"], torch.zeros(1000))


def test_checkpoints_stay_where_none_of_them_is_whole(tmp_path: Path, videos: Manifest) -> None:
    run = open_run(tmp_path / "tiny", videos)
    add_checkpoint(run, 4, "RGB-2")
    (run.path / "checkpoints" / "step-000000004" / "complete.json").write_text("{")
    aged(run)
    assert plan_removals(str(run)) == []


def test_features_go_with_their_encoder_or_where_they_are_named(tmp_path: Path, videos: Manifest) -> None:
    run = finished_run(tmp_path / "tiny", videos)
    remove(plan_removals(str(run)))
    current = run.features / "RGB-2-tiny-00000000.parquet"
    stale = add_features(run, "RGB-1", "0" * 32, name="earlier")
    damaged = run.features / "RGB-2-damaged-00000000.parquet"
    damaged.write_bytes(b"PAR1")
    assert names(plan_removals(str(run)), run) == {f"features/{file.name}" for file in (stale, damaged)}
    everything = plan_removals(str(run), features=True)
    assert names(everything, run) == {f"features/{file.name}" for file in (stale, damaged, current)}


def test_runs_inside_a_run_and_a_sweep_are_thinned_too(tmp_path: Path, videos: Manifest) -> None:
    run = finished_run(tmp_path / "tiny", videos)
    remove(plan_removals(str(run)))
    inner = finished_run(run.path / "classifiers" / "linear-tiny-01234567", videos)
    for name in ("RGB-1", "Flow-1", "RGB-2"):
        inner.classifier(name).parent.mkdir(exist_ok=True)
        inner.classifier(name).write_bytes(b"")
    assert not any("checkpoints" in name for name in names(plan_removals(str(run)), run)), (
        "one classifier is not learnt"
    )
    inner.classifier("Flow-2").write_bytes(b"")
    prefix = "classifiers/linear-tiny-01234567/"
    assert {f"{prefix}logs/ray.log", f"{prefix}checkpoints/step-000000010/state.pt"} < names(
        plan_removals(str(run)), run
    )
    sweep = tmp_path / "sweep"
    for number in ("0000", "0001"):
        finished_run(sweep / "trials" / number, videos)
    (sweep / "sweep.yaml").write_text(dump_experiment(run.experiment()))
    assert len({one.run for one in plan_removals(str(sweep))}) == 2


def test_what_a_killed_process_began_goes_once_it_is_old(tmp_path: Path, videos: Manifest) -> None:
    run = open_run(tmp_path / "tiny", videos)
    partial = run.path / ".report.html.0123abcd"
    partial.write_bytes(b"half a page")
    assert plan_removals(str(run)) == []
    aged(run)
    assert names(plan_removals(str(run)), run) == {partial.name}


def test_nothing_is_planned_for_a_run_at_work(tmp_path: Path, videos: Manifest) -> None:
    run = open_run(tmp_path / "tiny", videos)
    with alone_in(run), pytest.raises(UserError, match="another process is at work in it"):
        plan_removals(str(run))
    add_records(run, videos, steps=3)  # of another machine, whose lock is not seen here
    with pytest.raises(UserError, match="was written to a moment ago"):
        plan_removals(str(run))


@pytest.mark.parametrize("name", ["", "absent"])
def test_no_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="is neither a run's folder nor a sweep's"):
        plan_removals(str(tmp_path / name))


def test_a_run_in_a_store(bucket: str, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the state of training goes; here the copies of what is there, and nothing that is here alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trainer = finished_run(f"{bucket}/runs/tiny", videos)
    where = f"{bucket}/runs/tiny"
    found = plan_removals(where)
    remove(found)
    left = {entry.name for entry in storage.list_files(where)}
    assert not any("/checkpoints/" in name for name in left)
    assert f"{where}/encoders/RGB-2.safetensors" in left and f"{where}/metrics.jsonl" in left
    assert not trainer.encoder("RGB-2").exists(), "the trainer's copy"
    assert (trainer.logs / "ray.log").is_file(), "the store has no logs"
    fresh = RunFolder.at(where)
    assert read_status(fresh).state == "finished" and fresh.encoder("RGB-2").is_file()


def test_an_imported_run_has_nothing_to_remove(tmp_path: Path, videos: Manifest) -> None:
    run = open_run(tmp_path / "tiny", videos)
    run.manifest.unlink()
    add_encoder(run, "RGB-2")
    assert plan_removals(str(run)) == []


def test_bytes_are_readable() -> None:
    assert [readable_bytes(n) for n in (0, 1023, 1024, 1.5 * 2**20, 3 * 2**40)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 MiB",
        "3072.0 GiB",
    ]
