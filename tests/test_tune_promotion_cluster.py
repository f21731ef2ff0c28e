"""Pauses for real: trials that end at a rung go on from their checkpoints in their folders; the driver is killed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_tune_cluster import status, vicc, wait
from tiny import TINY

from vicc_ray.data.manifest import Manifest
from vicc_ray.runs.records import read_records
from vicc_ray.tune.folder import SweepFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

TRIALS = 2


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
            "cross": {"length": {"rgb": "40 steps", "flow": "2 steps"}, "global_batch": 8, "queue_start": "2 steps"},
        },
        "train": {**TINY["train"], "threads": 1, "checkpoint_every": "10 steps"},
        "evaluate": {**TINY["evaluate"], "monitor_every": "20 steps"},
        "search": {
            "space": {"objective.temperature": {"log": [0.03, 0.3]}},
            "budget": f"{TRIALS} trials",
            "concurrency": 1,
            "scheduler": "promotion",
            "grace": "20 steps",
            "reduction": 2,
            "share": "single",
        },
    }
    file, log = folder / "sweep.yaml", folder / "driver.log"
    file.write_text(yaml.safe_dump(tree))
    sweep = SweepFolder.at(folder / "runs" / "sweep")
    driver = vicc("tune", str(file), log=log)
    wait(driver, lambda: sweep.trial(1).path.is_dir(), log)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver = vicc("tune", str(file), "--resume", log=log)
    try:
        assert driver.wait(900) == 0, log.read_text()[-3000:]
    finally:
        driver.kill()
    return sweep, file, log


def test_the_sweep_ends_with_exactly_its_trials(swept: tuple[SweepFolder, Path, Path]) -> None:
    sweep, file, log = swept
    found = status(file)
    assert found["state"] == "finished"
    assert found["trials"] == TRIALS
    assert found["outcomes"] == {"finished": 2}  # `reduction` trials come to their ends
    assert found["starts"] == 2
    assert sorted(path.name for path in Path(sweep.trials).iterdir()) == [f"{n:04d}" for n in range(TRIALS)]
    before = sweep.history.read_bytes()
    assert vicc("tune", str(file), log=log).wait(120) == 0
    assert sweep.history.read_bytes() == before


def test_a_paused_trial_goes_on_from_its_checkpoint(swept: tuple[SweepFolder, Path, Path]) -> None:
    """No step is recorded twice, and the trial that was paused when its driver was killed begins again where it paused."""
    sweep, _, _ = swept
    for number in range(TRIALS):
        records = read_records(sweep.trial(number).metrics)
        steps = [record["step"] for record in records if record["kind"] == "train" and record["stage"] == "RGB-2"]
        assert steps == list(range(5, 45))
    starts = [event["step"] for event in read_records(sweep.trial(0).events) if event["kind"] == "start"]
    assert starts == [4, 24]  # with its rung's measurement, not a step later, however fast the machine is
