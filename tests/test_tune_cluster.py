"""A sweep for real: trials under Ray Tune, the driver killed in the middle, the best one trained again from its file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY

from vicc_ray.data.manifest import Manifest
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records
from vicc_ray.tune.folder import SweepFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

TRIALS = 4


def vicc(*arguments: str, log: Path) -> subprocess.Popen[bytes]:
    command = [str(Path(sys.executable).parent / "vicc"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + 600
    while not ready():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < until, log.read_text()[-2000:]
        time.sleep(0.2)


def looks(trial: RunFolder) -> list[tuple[int, float]]:
    return [
        (r["step"], r["R@1"]) for r in read_records(trial.metrics) if r["kind"] == "monitor" and r["stage"] == "RGB-2"
    ]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, videos: Manifest) -> tuple[SweepFolder, Path, Path]:
    """The sweep's folder, its file and what its drivers said; the first driver was killed in the middle of a trial."""
    folder = tmp_path_factory.mktemp("tune")
    videos.write(folder / "videos.parquet")
    tree: dict[str, Any] = {
        **TINY,
        "name": "sweep",
        "runs": str(folder / "runs"),
        "data": {"manifest": str(folder / "videos.parquet")},
        "schedule": {
            **TINY["schedule"],
            "cross": {"length": {"rgb": "32 steps", "flow": "2 steps"}, "global_batch": 8, "queue_start": "2 steps"},
        },
        # As trials that share a machine have it: sums in another order would make other looks of so small networks.
        "train": {**TINY["train"], "threads": 1},
        "search": {
            "space": {"objective.temperature": {"log": [0.03, 0.3]}, "objective.queue": {"choice": [0, 16]}},
            "budget": f"{TRIALS} trials",
            "random_starts": 2,
            "reduction": 2,
            "share": "single",
        },
    }
    file, log = folder / "sweep.yaml", folder / "driver.log"
    file.write_text(yaml.safe_dump(tree))
    sweep = SweepFolder.at(folder / "runs" / "sweep")
    driver = vicc("tune", str(file), log=log)
    wait(driver, lambda: bool(looks(sweep.trial(0))), log)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver = vicc("tune", str(file), "--resume", log=log)
    assert driver.wait(900) == 0, log.read_text()[-3000:]
    return sweep, file, log


def status(file: Path) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "vicc"), "tune", str(file), "--status", "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def test_the_sweep_ends_with_exactly_its_trials(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, file, _ = swept
    found = status(file)
    assert found["state"] == "finished"
    assert found["trials"] == TRIALS
    assert set(found["outcomes"]) <= {"finished", "pruned"}
    assert found["starts"] == 2
    assert found["device_hours"] > 0
    assert sorted(path.name for path in Path(sweep.trials).iterdir()) == [f"{n:04d}" for n in range(TRIALS)]


def test_trials_begin_with_the_shared_stages_and_end_with_the_measured_one(
    swept: tuple[SweepFolder, Path, Path],
) -> None:
    sweep, _, _ = swept
    for number in range(TRIALS):
        trial = sweep.trial(number)
        stages = {record["stage"] for record in read_records(trial.metrics)}
        assert "RGB-2" in stages
        assert not stages & {"RGB-1", "Flow-1"}
        assert trial.encoder("RGB-1").read_bytes() == sweep.shared.encoder("RGB-1").read_bytes()


def test_a_killed_trial_goes_on_in_its_own_folder(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, _, log = swept
    starts = [event for event in read_records(sweep.trial(0).events) if event["kind"] == "start"]
    assert len({start["session"] for start in starts}) == 2
    assert starts[-1]["step"] > starts[0]["step"] == 4
    assert "going on after 0 finished trials" in log.read_text()


def test_the_same_command_again_has_nothing_to_do(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, file, log = swept
    before = sweep.history.read_bytes()
    assert vicc("tune", str(file), log=log).wait(120) == 0
    assert sweep.history.read_bytes() == before


def test_the_best_file_repeats_the_best_trial(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, file, log = swept
    best = status(file)["best"]
    driver = vicc("train", str(sweep.best_config), log=log)
    assert driver.wait(600) == 0, log.read_text()[-3000:]
    again = RunFolder(sweep.path / f"best-{best['trial']:04d}")
    assert {"RGB-2", "Flow-2"} <= set(again.encoders())
    assert looks(again) == looks(sweep.trial(best["trial"]))
