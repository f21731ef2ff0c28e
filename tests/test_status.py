"""`vicc status` reads a run's folder alone and says where the run is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_experiment, tiny_plan

from vicc_ray.commands.status import print_status, read_status, status_json
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record


@pytest.fixture
def folder(tmp_path: Path, videos: Manifest) -> RunFolder:
    """A run that has been opened and has not begun: stages of 2, 2, 4 and 2 steps of 8 samples, 2 steps an epoch."""
    run = RunFolder(tmp_path / "tiny")
    run.open(tiny_experiment(train={"workers": {"min": 1, "max": 3}}), videos.fingerprint())
    videos.write(run.manifest)
    return run


def _train(folder: RunFolder, step: int, at: float, stage: str, workers: int = 2) -> None:
    record = {"kind": "train", "stage": stage, "step": step, "loss": 2.0 - step / 10, "samples_per_second": 4.0}
    append_record(folder.metrics, record | {"workers": workers, "time": at})


def test_a_run_that_has_not_begun(folder: RunFolder) -> None:
    status = read_status(folder)
    assert (status.state, status.step, status.steps, status.stage) == ("not started", 0, 10, "RGB-1")
    assert status.left is None
    assert status.checkpoint is None
    append_record(folder.events, {"kind": "start", "step": 0, "time": time.time()})
    assert read_status(folder).state == "starting"


def test_a_run_in_its_middle(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    for name in ("RGB-1", "Flow-1"):
        folder.encoder(name).parent.mkdir(exist_ok=True)
        folder.encoder(name).write_bytes(b"")
    for step in range(1, 8):
        _train(folder, step, now - 8 + step, "RGB-2")
    append_record(folder.metrics, {"kind": "monitor", "stage": "RGB-2", "step": 6, "R@1": 0.25, "time": now})
    for number, kind in enumerate(("start", "start", "checkpoint failed", "start")):
        append_record(folder.events, {"kind": kind, "step": number, "time": now, "text": "no room"})
    append_record(folder.refused, {"video": "a.mp4", "reason": "gone", "step": 1})
    info = {"step": 6, "stage": "RGB-2", "samples": 48, "workers": 2}
    folder.checkpoints.write({"w": torch.zeros(4)}, info)
    status = read_status(folder)
    assert (status.state, status.stage, status.stages_done) == ("running", "RGB-2", ["RGB-1", "Flow-1"])
    assert (status.step, status.samples, status.epoch) == (7, 56, 1.5)
    assert status.samples_per_second == 4.0
    assert status.left == pytest.approx((80 - 56) / 4)
    assert (status.workers, status.workers_min, status.workers_max, status.starts) == (2, 1, 3, 3)
    assert status.recall == {"RGB-2": 0.25}
    assert status.checkpoint
    assert status.checkpoint.step == 6
    assert status.unreadable_videos == 1
    assert status_json(status)["checkpoint"]["step"] == 6
    print_status(status)


def test_a_run_that_has_gone_silent_and_one_that_is_finished(folder: RunFolder) -> None:
    for step in range(1, 4):
        _train(folder, step, time.time() - 4000 + step, "RGB-1")
    assert read_status(folder).state.startswith("silent")
    for name in ("RGB-1", "Flow-1", "RGB-2", "Flow-2"):
        folder.encoder(name).parent.mkdir(exist_ok=True)
        folder.encoder(name).write_bytes(b"")
    status = read_status(folder)
    assert (status.state, status.step, status.stage, status.left) == ("finished", 10, None, 0.0)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        read_status(RunFolder(tmp_path))


def test_the_plan_of_the_fixture(videos: Manifest) -> None:
    assert tiny_plan(tiny_experiment(), videos).steps == 10


@pytest.mark.parametrize("name", ["[/x]", "[red]mine[/red]"])
def test_a_runs_name_is_no_markup(name: str, tmp_path: Path, videos: Manifest) -> None:
    run = RunFolder(tmp_path / name)
    run.open(tiny_experiment(), videos.fingerprint())
    videos.write(run.manifest)
    with console.capture() as shown:
        print_status(read_status(run))
    assert name in shown.get()
