"""From the command to the first optimiser step, and what the processes that it takes use."""

from __future__ import annotations

import signal
import time
from typing import Any

from benchmarks.builds import BuildBench, Limit, Measured, Turn
from benchmarks.builds.usage import Usage, watched
from benchmarks.fault_run import LocalRun, make_table
from benchmarks.nodes import send
from vicc_ray.runs.records import read_records

SECONDS = "s from the command to the first step"
CHANGES: dict[str, Any] = {
    "train": {"workers": 2, "checkpoint_every": "1000 steps", "record_samples": False},
    "evaluate": {"monitor_every": 0},
}


def measure(turn: Turn) -> Measured:
    """`vicc train` with two workers on this machine alone, until its first record; then it is interrupted."""
    run = LocalRun(turn.folder, turn.product, CHANGES | {"data": {"manifest": str(turn.manifest(make_table))}})
    began = time.time()
    run.start()
    assert run.driver
    usage = Usage(run.driver.pid)
    try:
        with watched(usage):
            run.wait(lambda: run.step() > 0, "the first step")
        table, first = usage.table(), run.records()[0]["time"] - began
    finally:
        stopping = time.monotonic()
        run.stop()
        clear(usage)
    figures = {
        SECONDS: first,
        "processes": table["all"]["processes"],
        "CPU s of all": table["all"]["CPU s"],
        "peak MiB of all": table["all"]["peak MiB"],
        "s to stop": time.monotonic() - stopping,
    }
    milestones: dict[str, dict[str, float]] = {}
    for event in read_records(run.run_folder.events):
        milestones.setdefault(f"event {event['kind']}", {"s": event["time"] - began})
    return Measured(figures, {"processes": table, "milestones": milestones | {"first record": {"s": first}}})


def clear(usage: Usage, seconds: float = 20.0) -> None:
    """Wait until all processes seen have gone; those that have not are killed, so that the next turn has the machine alone."""
    deadline = time.monotonic() + seconds
    while usage.left() and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in usage.left():
        send(pid, signal.SIGKILL)


BENCH = BuildBench("seconds from `vicc train` to the first step, where they go", measure, (Limit(SECONDS, 0.4),))
