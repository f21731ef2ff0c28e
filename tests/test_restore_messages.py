"""What a start of several workers goes on from, and what it believes of what it hears from the others."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from tiny import tiny_experiment

from vicc_ray import distributed
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.restore import restore

START = {"session": "one", "nodes": 1}


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def _restore(path: str) -> tuple[int, float] | None:
    state = restore(RunFolder(Path(path)), START, max_failures=1)
    return (state["step"], float(state["x"].sum())) if state else None


def _restore_beside_a_stranger(path: str, mark: str) -> str:
    """Worker 0 is not ours: it sends a pickle where worker 1 waits for what to go on from."""
    if distributed.rank() == 0:
        distributed.broadcast_bytes(pickle.dumps(Touch(mark)))
        return ""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - text that is no JSON, or no text
        restore(RunFolder(Path(path)), START, max_failures=1)
    return str(refusal.value)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.open(tiny_experiment(), "0" * 32)
    return folder


def test_every_worker_goes_on_from_the_newest_checkpoint(folder: RunFolder) -> None:
    assert run_processes(_restore, 2, str(folder.path)) == [None, None]
    about: dict[str, Any] = {"step": 4, "stage": "RGB-1", "samples": 32, "workers": 2, "recall": 0.5}
    folder.checkpoints.write({"step": 4, "x": torch.ones(3)}, about | {"versions": {"torch": "1"}})
    assert run_processes(_restore, 2, str(folder.path)) == [(4, 3.0), (4, 3.0)]


def test_nothing_that_another_worker_sends_is_unpickled(folder: RunFolder, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run_processes(_restore_beside_a_stranger, 2, str(folder.path), str(mark))
    assert not mark.exists()
