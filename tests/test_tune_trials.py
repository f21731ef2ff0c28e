"""One trial around a made-up run: what it tells on the way, when it asks its run to stop, how its end is named."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from vicc_ray.config import Experiment
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record
from vicc_ray.training.driver import alone_in
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune import trials
from vicc_ray.tune.trials import LostRun, TrialSpec, pause_step, run_trial

Run = Callable[[RunFolder], dict[str, str]]


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], list[dict[str, Any]]]:
    """Runs a trial whose training is a function; gives what it reported."""
    monkeypatch.setattr(trials, "POLL_SECONDS", 0.02)
    experiment = tiny_experiment(runs=str(tmp_path), name="0007")
    folder = RunFolder.at(experiment.run_folder)

    def attempt(run: Run, allowed: int | None = None) -> list[dict[str, Any]]:
        def train(asked: Experiment, last: str, address: str, pause: int | None) -> dict[str, str]:
            assert asked == experiment
            assert last == "RGB-2"  # Flow-2 is not needed
            assert pause == (None if allowed is None else 6)  # RGB-2 begins after 4 steps, two of 8 samples are 16
            return run(folder)

        monkeypatch.setattr(trials, "_train", train)
        told: list[dict[str, Any]] = []
        tree = experiment.model_dump(mode="json")
        run_trial(TrialSpec(7, tree, str(folder), None, 16, [("RGB-2", "R@1")], "auto", allowed), told.append)
        return told

    return attempt


def start(folder: RunFolder) -> None:
    append_record(folder.events, {"kind": "start", "time": time.time(), "step": 0, "workers": 1})


def look(folder: RunFolder, step: int, recall: float) -> None:
    append_record(folder.metrics, {"kind": "monitor", "stage": "RGB-2", "step": step, "R@1": recall})


def test_a_trial_tells_each_look_and_ends_with_the_measured_stage(tried: Any) -> None:
    def run(folder: RunFolder) -> dict[str, str]:
        start(folder)
        look(folder, 6, 0.3)
        look(folder, 8, 0.4)
        return {"outcome": "finished"}

    told = tried(run)
    assert told[:2] == [{"value": 0.3, "samples": 16}, {"value": 0.4, "samples": 32}]
    assert told[2]["outcome"] == "finished"


def test_a_trial_that_is_done_already_is_not_run_again(tried: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0007")
    folder.encoder("RGB-2").parent.mkdir(parents=True)
    folder.encoder("RGB-2").touch()
    look(folder, 8, 0.4)

    def run(folder: RunFolder) -> dict[str, str]:
        raise AssertionError

    assert [one.get("outcome") for one in tried(run)] == [None, "finished"]


def test_a_trial_that_was_asked_to_stop_says_so(tried: Any) -> None:
    def run(folder: RunFolder) -> dict[str, str]:
        start(folder)
        look(folder, 6, 0.3)
        folder.request_stop()
        return {"outcome": "stopped"}

    assert tried(run)[-1]["outcome"] == "stopped"


def test_a_trial_ends_at_the_rung_that_it_may_train_to(tried: Any, tmp_path: Path) -> None:
    def run(folder: RunFolder) -> dict[str, str]:
        start(folder)
        look(folder, 6, 0.3)
        return {"outcome": "stopped"}

    told = tried(run, allowed=16)
    assert told[0] == {"value": 0.3, "samples": 16}
    assert told[1]["outcome"] == "stopped"

    def again(folder: RunFolder) -> dict[str, str]:
        raise AssertionError

    # Its driver was killed before it knew: the next one gets the same, and nothing is trained.
    assert [{k: v for k, v in one.items() if k in ("value", "outcome")} for one in tried(again, allowed=16)] == [
        {"value": 0.3},
        {"outcome": "stopped"},
    ]


@pytest.mark.parametrize("recall", [None, math.nan])
def test_a_run_that_ended_at_its_rung_without_a_figure_is_begun_again(tried: Any, recall: float | None) -> None:
    def run(folder: RunFolder) -> dict[str, str]:
        start(folder)
        if recall is not None:
            look(folder, 6, recall)
        return {"outcome": "stopped"}

    with pytest.raises(LostRun):
        tried(run, allowed=16)


def test_a_rung_before_the_last_measured_stage_has_begun_is_its_first_step() -> None:
    stages = make_stages(tiny_experiment(), 16)
    both = {"Flow-1", "RGB-2"}  # steps 3 and 4, 5 to 8, each of 8 samples
    assert [pause_step(stages, both, allowed) for allowed in (1, 16, 17, 24, 25, 47)] == [5, 5, 5, 5, 6, 8]


def test_a_run_that_ended_by_itself_is_begun_again(tried: Any) -> None:
    with pytest.raises(LostRun):
        tried(lambda folder: {"outcome": "stopped"})


def test_what_ends_one_trial_and_what_would_end_every_trial(tried: Any) -> None:
    def before(folder: RunFolder) -> dict[str, str]:
        return {"outcome": "refused", "reason": "videos.parquet: cannot be read"}

    def workers(folder: RunFolder) -> dict[str, str]:
        start(folder)
        return {"outcome": "refused", "reason": "training failed\n2 times in a row"}

    def not_finite(folder: RunFolder) -> dict[str, str]:
        append_record(folder.events, {"kind": "not finite", "step": 5, "time": time.time()})
        return workers(folder)

    def unmeasured(folder: RunFolder) -> dict[str, str]:
        return {"outcome": "finished"}

    ends = [tried(run)[-1] for run in (before, workers, unmeasured, not_finite)]
    assert [end["outcome"] for end in ends] == ["refused", "failed", "failed", "not finite"]
    assert ends[1]["reason"] == "training failed 2 times in a row"
    assert "never reported" in ends[2]["reason"]


def test_a_trial_waits_for_the_same_one_of_a_driver_that_was_killed(tried: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0007")
    folder.path.mkdir()
    held = alone_in(folder)
    held.__enter__()
    began: list[float] = []

    def run(folder: RunFolder) -> dict[str, str]:
        began.append(time.monotonic())
        folder.request_stop()
        return {"outcome": "stopped"}

    freed: list[float] = []

    def free() -> None:
        freed.append(time.monotonic())
        held.__exit__(None, None, None)

    threading.Timer(0.5, free).start()
    tried(run)
    assert began[0] >= freed[0]
