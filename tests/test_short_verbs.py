"""Verbs that end as soon as they have read a table: the process leaves with the documented status, however busy the machine is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny import tiny_experiment

from vicc_ray.config import dump_experiment
from vicc_ray.data.manifest import Manifest

RUNS = 40
THREADS = """
import os
from vicc_ray.data.layouts.tables import read_parquet
from vicc_ray.data.manifest import Manifest
import pyarrow.parquet

def threads():
    names = [open(f"/proc/self/task/{number}/comm").read() for number in os.listdir("/proc/self/task")]
    return sum("jemalloc" not in name for name in names)  # the allocator's own ends without a word

before = threads()
Manifest.read("m.parquet")
read_parquet("m.parquet")
print(threads() - before)
"""


@pytest.fixture
def folder(tmp_path: Path, videos: Manifest) -> Path:
    videos.write(tmp_path / "m.parquet")
    (tmp_path / "tiny.yaml").write_text(dump_experiment(tiny_experiment(data={"manifest": "m.parquet"})))
    return tmp_path


@pytest.fixture
def busy() -> Iterator[None]:
    """As many processes that only count as the machine has processors."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list threads")
def test_reading_a_table_starts_no_thread(folder: Path) -> None:
    """pyarrow's threads that are still starting when the process leaves end it with SIGABRT."""
    done = subprocess.run([sys.executable, "-c", THREADS], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]


@pytest.mark.usefixtures("busy")
def test_a_short_verb_leaves_with_its_status_on_a_busy_machine(folder: Path) -> None:
    """Nothing comes after the manifest: it has too few videos for the plan."""
    words = [sys.executable, "-m", "vicc_ray.cli", "train", "tiny.yaml", "--plan"]
    changes = ["--set", "schedule.single.global_batch=64"]

    def status(_: int) -> int:
        return subprocess.run([*words, *changes], cwd=folder, capture_output=True, check=False).returncode

    with ThreadPoolExecutor(2) as pool:
        assert Counter(pool.map(status, range(RUNS))) == {2: RUNS}
