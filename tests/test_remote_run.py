"""A run whose folder is in an object store: ended by a scheduler's SIGTERM, gone on with from another machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import TINY

from vicc_ray.data.manifest import Manifest
from vicc_ray.runs.checkpoint import CheckpointStore
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(560)]
VICC = str(Path(sys.executable).parent / "vicc")
STEPS = 2 + 2 + 200 + 2


def _environment(machine: Path) -> dict[str, str]:
    """As on another machine: with a mirror of its own."""
    kept = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return kept | {"XDG_CACHE_HOME": str(machine)}


def _reached(store: CheckpointStore, step: int) -> bool:
    """Whether a checkpoint of the step is there; one that the run replaces while it is being read is no fault."""
    try:
        return any(info.step >= step for info in store.listing())
    except OSError:
        return False


def test_a_run_in_a_store_goes_on_from_another_machine(
    bucket: str, videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos.write(tmp_path / "videos.parquet")
    schedule = TINY["schedule"] | {
        "cross": TINY["schedule"]["cross"] | {"length": {"rgb": "200 steps", "flow": "2 steps"}}
    }
    changes = {
        "runs": f"{bucket}/runs",
        "data": {"manifest": str(tmp_path / "videos.parquet")},
        "schedule": schedule,
        "train": TINY["train"] | {"checkpoint_every": "5 steps"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | changes))
    command = [VICC, "train", str(tmp_path / "tiny.yaml")]
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("XDG_CACHE_HOME", str(first))
    store = RunFolder.at(f"{bucket}/runs/tiny").checkpoints

    driver = subprocess.Popen(
        command, env=_environment(first), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while not _reached(store, 20):
        assert driver.poll() is None and time.monotonic() < deadline, driver.communicate()[0]
        time.sleep(0.5)
    driver.send_signal(signal.SIGTERM)
    told, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, told
    assert f"from the last checkpoint in {bucket}/runs/tiny" in told
    reached = store.listing()[0].step
    assert 20 <= reached < STEPS

    status = subprocess.run(
        [VICC, "status", f"{bucket}/runs/tiny"], env=_environment(second), capture_output=True, text=True
    )
    assert f"step {reached}, " in status.stdout, status.stderr
    again = subprocess.run(command, env=_environment(second), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on after RGB-1, Flow-1" in again.stdout

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))  # nothing but what the store has
    folder = RunFolder.at(f"{bucket}/runs/tiny")
    folder.pull()
    records = [record["step"] for record in read_records(folder.metrics) if record["kind"] == "train"]
    assert records == list(range(1, STEPS + 1))  # nothing skipped, nothing twice
    starts = [event["step"] for event in read_records(folder.events) if event["kind"] == "start"]
    assert starts == [0, reached]  # SIGTERM lost no step: its checkpoint came first
    assert folder.encoders() == ["Flow-0", "Flow-1", "Flow-2", "RGB-0", "RGB-1", "RGB-2"]
