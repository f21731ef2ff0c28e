"""Pauses for real: trials that end at a rung go on from their checkpoints in their folders; the driver is killed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_tune_cluster import looks, status, vicc, wait
from tiny import TINY

from vicc_ray.data.manifest import Manifest
from vicc_ray.runs.records import read_records
from vicc_ray.tune.folder import SweepFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

TRIALS = 3


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, videos: Manifest) -> tuple[SweepFolder, Path, Path]:
    """The sweep's folder, its file and what its drivers said; the first driver was killed once a trial had been paused."""
    folder = tmp_path_factory.mktemp("promotion")
    videos.write(folder / "videos.parquet")
    tree: dict[str, Any] = {
        **TINY,
        "name": "sweep",
        "runs": str(folder / "runs"),
        "data": {"manifest": str(folder / "videos.parquet")},
        "schedule": {
            **TINY["schedule"],
            "cross": {"length": {"rgb": "160 steps", "flow": "2 steps"}, "global_batch": 8, "queue_start": "2 steps"},
        },
        # Long enough for a request to stop to come in time.
        "train": {**TINY["train"], "threads": 1, "checkpoint_every": "20 steps"},
        "evaluate": {**TINY["evaluate"], "monitor_every": "20 steps"},
        "search": {
            "space": {"objective.temperature": {"log": [0.03, 0.3]}},
            "budget": f"{TRIALS} trials",
            "concurrency": 1,
            "scheduler": "promotion",
            "grace": "60 steps",
            "reduction": 2,
            "share": "single",
        },
    }
    file, log = folder / "sweep.yaml", folder / "driver.log"
    file.write_text(yaml.safe_dump(tree))
    sweep = SweepFolder.at(folder / "runs" / "sweep")
    driver = vicc("tune", str(file), log=log)
    wait(driver, lambda: bool(looks(sweep.trial(1))), log)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver = vicc("tune", str(file), "--resume", log=log)
    assert driver.wait(900) == 0, log.read_text()[-3000:]
    return sweep, file, log


def test_the_sweep_ends_with_exactly_its_trials(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, file, log = swept
    found = status(file)
    assert found["state"] == "finished"
    assert found["trials"] == TRIALS
    assert found["outcomes"]["finished"] >= 2
    assert found["starts"] == 2
    assert sorted(path.name for path in Path(sweep.trials).iterdir()) == [f"{n:04d}" for n in range(TRIALS)]
    before = sweep.history.read_bytes()
    assert vicc("tune", str(file), log=log).wait(120) == 0
    assert sweep.history.read_bytes() == before


def test_a_paused_trial_goes_on_from_its_checkpoint(swept: tuple[SweepFolder, Path, Path]) -> None:
    """No step is recorded twice, none is missing, and what is begun again begins where it paused."""
    sweep, _, _ = swept
    begun_again = 0
    for number in range(TRIALS):
        trial = sweep.trial(number)
        steps = [r["step"] for r in read_records(trial.metrics) if r["kind"] == "train" and r["stage"] == "RGB-2"]
        assert steps == sorted(set(steps))
        starts = [event["step"] for event in read_records(trial.events) if event["kind"] == "start"]
        assert starts[0] == 4
        assert starts == sorted(starts)
        begun_again += len(starts) > 1 and starts[1] >= 4 + 60
    assert begun_again >= 2
