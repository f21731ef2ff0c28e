"""Every fault caused for real on a cluster of several nodes of this machine, in one run that must come to the same end.

What each fault costs is measured by `vicc bench faults` with the same causes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fault_run import FaultRun
from benchmarks.faults import Survived, cause_all, fault_run, possible_faults
from vicc_ray import distributed
from vicc_ray.config import load_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.runs.checkpoint import State
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records
from vicc_ray.training.batches import Block, TrainingPlan, decode_share, make_plan
from vicc_ray.training.loop import Notice, train
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.survival import Finished

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

# More than all faults need, so that the run is still going on when the last one is over.
STEPS = 760


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultRun, list[Survived]]]:
    """The run, finished, after all faults."""
    began = time.monotonic()
    with fault_run(STEPS) as run:
        faults = []
        for done in cause_all(run, possible_faults()):
            print(
                f"{done.fault.name}: {done.seconds:.0f} s, {done.steps_lost} steps lost; at step {run.step()}, "
                f"{time.monotonic() - began:.0f} s from the start",
                flush=True,
            )
            faults.append(done)
        assert run.driver
        assert run.driver.wait(600) == 0, (run.folder / "driver.log").read_text()[-3000:]
        print(f"the run's end: {time.monotonic() - began:.0f} s from the start", flush=True)
        yield run, faults


def _plan(run: FaultRun) -> TrainingPlan:
    experiment = load_experiment(run.folder / "faults.yaml")
    return make_plan(experiment, Manifest.read(run.folder / "videos.parquet"))


# Faults that leave no worker, or none whose state is sound: what was kept a moment ago or the last checkpoint counts.
FROM_EARLIER = ("all workers", "watches", "NaN", "driver", "cut short", "SIGTERM", "head node")


def test_no_fault_needed_a_hand_and_little_was_lost(survived: tuple[FaultRun, list[Survived]]) -> None:
    """Ten steps from checkpoint to checkpoint, and as many again while one is being written or could not be."""
    run, faults = survived
    assert [done.fault for done in faults] == list(possible_faults())
    assert max(done.steps_lost for done in faults) <= 25
    lost = {done.fault.name: done.steps_lost for done in faults if done.steps_lost > 1}
    assert [name for name in lost if not any(word in name for word in FROM_EARLIER)] == []
    assert all(done.seconds < 240 for done in faults)  # the usual figures are those of `vicc bench faults`
    assert run.events("preemption notice")
    assert run.events("checkpoint failed")
    assert run.events("damaged checkpoint")
    assert run.events("not finite")
    assert run.events("failed")


def test_the_run_came_to_its_end(survived: tuple[FaultRun, list[Survived]]) -> None:
    run, _ = survived
    plan = _plan(run)
    records = run.records()
    assert [record["step"] for record in records] == list(range(1, plan.steps + 1))
    assert records[-1]["samples"] == 8 * plan.steps
    assert run.run_folder.encoders() == ["Flow-0", "Flow-1", "Flow-2", "RGB-0", "RGB-1", "RGB-2"]
    assert {record["workers"] for record in records} >= {1, 2, 3}


def test_every_planned_sample_was_trained_once(survived: tuple[FaultRun, list[Survived]]) -> None:
    """The history that survived: of each step what was consumed last, by all workers that the step then had."""
    run, _ = survived
    plan = _plan(run)
    consumed: dict[int, dict[int, dict[str, Any]]] = {}  # step -> rank -> newest record
    for file in sorted(run.run_folder.samples.glob("worker-*.jsonl")):
        rank = int(file.stem.rsplit("-", 1)[1])
        for record in read_records(file):
            consumed.setdefault(record["step"], {})[rank] = record
    times = {record["step"] - 1: record for record in run.records()}
    assert sorted(consumed) == list(range(plan.steps))
    for step, by_rank in consumed.items():
        workers = times[step]["workers"]
        slots: dict[int, int] = {}
        for rank in range(workers):
            assert by_rank[rank]["workers"] == workers
            for slot, video in zip(by_rank[rank]["slot"], by_rank[rank]["video"], strict=True):
                assert slot not in slots
                slots[slot] = video
        assert [slots[slot] for slot in sorted(slots)] == plan.epoch_and_videos(step)[1].tolist()


# Of the undisturbed run: half of the faults have been by then, and what comes later starts from the same state.
COMPARED = 200


class _EnoughError(Exception):
    """The undisturbed run has come far enough."""


class _PlainHost:
    """The same run in this process, undisturbed."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan, self.device = plan, torch.device("cpu")

    def blocks(self, first_step: int) -> Iterator[Block]:
        for step in range(first_step, COMPARED):
            yield decode_share(self.plan, step, distributed.rank(), distributed.world_size())
        raise _EnoughError

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Nothing is kept."""

    def finished(self, step: Finished) -> None:
        """Nothing is kept."""

    def notice(self) -> Notice:
        return Notice()


def test_the_loss_is_that_of_an_undisturbed_run(survived: tuple[FaultRun, list[Survived]], tmp_path: Path) -> None:
    run, _ = survived
    plan = _plan(run)
    folder = RunFolder(tmp_path / "undisturbed")
    folder.open(plan.experiment, "same")
    with pytest.raises(_EnoughError):
        train(Pretraining(), plan, folder, _PlainHost(plan), None, None)
    ours = [record["loss"] for record in run.records()][:COMPARED]
    theirs = [record["loss"] for record in read_records(folder.metrics) if record["kind"] == "train"]
    assert len(ours) == len(theirs)
    # Batch norm of one worker and of three differ, so the curves do step by step; smoothed they must not, beyond what the
    # loss itself moves by in the meantime, which is much in the first steps and little later.
    for start in range(0, COMPARED, 100):
        window = slice(start, start + 100)
        assert abs(np.mean(ours[window]) - np.mean(theirs[window])) < max(statistics.stdev(theirs[window]), 0.05)
