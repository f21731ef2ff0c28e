"""Starts of the workers are counted before anything is read, so that no damage to a run's folder starts them for ever."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import run_processes
from tiny import tiny_experiment

from vicc_ray import distributed, storage
from vicc_ray.cluster.launch import run_task
from vicc_ray.config import Experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import MARKER
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record, read_events
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.restore import agree, count_attempt, restore
from vicc_ray.training.schedule import Stage

START = {"session": "this", "nodes": 1, "requester": None}


def _attempts(folder: RunFolder, allowed: int, session: str = "this") -> int:
    """Attempts that are let through, of at most 20 that come to no start."""
    for number in range(20):
        with suppress(UserError):
            count_attempt(folder, session, allowed)
            continue
        return number
    raise AssertionError("without end")


@pytest.mark.parametrize("allowed", [0, 1, 5])
def test_attempts_that_come_to_no_start_have_an_end(tmp_path: Path, allowed: int) -> None:
    folder = RunFolder(tmp_path / "run")
    assert _attempts(folder, allowed) == allowed + 1
    assert _attempts(folder, allowed, "another driver") == allowed + 1


def test_the_reason_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    count_attempt(folder, "this", 0)
    append_record(folder.events, {"kind": "failed", "time": time.time(), "text": "worker 0: no such codec"})
    with pytest.raises(UserError, match=r"train.max_failures: 0\): worker 0: no such codec; see"):
        count_attempt(folder, "this", 0)


def test_a_start_begins_the_count_anew_and_has_its_own(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for _ in range(2):
        count_attempt(folder, "this", 1)
        count_attempt(folder, "this", 1)
        assert restore(folder, START, 1) is None
    count_attempt(folder, "this", 1)
    with pytest.raises(UserError, match="training failed 2 times in a row at the checkpoint of step 0"):
        restore(folder, START, 1)


def test_a_damaged_line_hides_no_attempt(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for number in range(3):
        count_attempt(folder, "this", 2)
        with folder.events.open("ab") as file:
            file.write((b"\xff\xfe\n", b"{}\n", b'{"kind": "start"}\n')[number])
    with pytest.raises(UserError, match="failed 3 times"):
        count_attempt(folder, "this", 2)


def test_what_is_damaged_leads_to_the_checkpoint_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (3, 5):
        about = {"step": step, "stage": "RGB-1", "samples": 8 * step, "workers": 1}
        folder.checkpoints.write({"step": step, "trainer": {}}, about)
    storage.write_bytes(storage.join(folder.checkpoints.folder, "step-000000005", MARKER), b"\xff\xfe\x00")
    found = restore(folder, START, 1)
    assert found
    assert found["step"] == 3


def test_attempts_are_counted_in_a_store_too(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt may be on another machine."""
    for machine in range(3):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(machine)))
        folder = RunFolder.at(f"{bucket}/runs/mine", mirror="worker-0")
        if machine == 2:
            with pytest.raises(UserError, match="failed 2 times"):
                count_attempt(folder, "this", 1)
        else:
            count_attempt(folder, "this", 1)
            folder.pull()
            assert [event["kind"] for event in read_events(folder.events)] == ["attempt"] * (machine + 1)


def _one_has_a_problem(path: str) -> list[str]:
    told = []
    try:
        agree("cut" if distributed.rank() == 1 else None)
    except UserError as error:
        told.append(str(error))
    agree(None)
    try:
        for _ in range(3):
            count_attempt(RunFolder(Path(path)), "this", 1)
    except UserError as error:
        told.append(str(error)[:33])
    return told


def test_every_worker_comes_to_the_same_end(tmp_path: Path) -> None:
    ends = run_processes(_one_has_a_problem, 2, str(tmp_path / "run"))
    assert ends == [["cut", "the workers failed 2 times in a row"[:33]]] * 2
    assert len(read_events(tmp_path / "run" / "events.jsonl")) == 2


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_workers_that_fail_before_their_start_end_the_run(tmp_path: Path, videos: Manifest) -> None:
    """With `train.max_failures: 1` two attempts are made, whatever it is that fails."""

    driver = os.getpid()

    class FailsInWorkers(TrainingPlan):
        """Has its settings once, for the worker to count its attempt, and no more."""

        def __getattribute__(self, name: str) -> Any:
            if name == "experiment" and os.getpid() != driver:
                if "asked" in self.__dict__:
                    raise OSError(5, "Input/output error")
                self.__dict__["asked"] = True
            return super().__getattribute__(name)

    class Broken:
        """Plans what no worker comes to start."""

        def plan(self, experiment: Experiment, manifest: Manifest) -> TrainingPlan:
            plan = Pretraining().plan(experiment, manifest)
            return FailsInWorkers(plan.experiment, plan.stages, plan.videos)

        def is_finished(self, folder: RunFolder, stage: Stage) -> bool:
            return False

        def open_stage(self, *_: Any) -> Any:
            raise AssertionError

        def close_stage(self, *_: Any) -> None:
            raise AssertionError

    experiment = tiny_experiment(runs=str(tmp_path))
    folder = RunFolder.at(experiment.run_folder)
    with pytest.raises(UserError, match=r"the workers failed 2 times in a row .*Input/output error"):
        run_task(Broken(), experiment, videos, folder)
    kinds = [event["kind"] for event in read_events(folder.events)]
    assert kinds.count("attempt") == 2
    assert "start" not in kinds
