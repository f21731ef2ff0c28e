"""Runs on two nodes of this machine with faults or without: how fast they recover, what they get done, how fast they are."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.builds import BuildBench, Limit, Measured, Turn
from benchmarks.builds.usage import memory, private_memory
from benchmarks.fault_run import EXPERIMENT, FaultRun, make_table
from benchmarks.nodes import local_cluster, send
from vicc_ray.runs.checkpoint import STATE_FILE

NODES = 2
BEFORE = 60  # steps before the first fault, so that going back to the beginning shows
BETWEEN = 40
SETTLED = 2.0
STEADY_FROM = 50
BACK_SECONDS = 10.0  # from a node's death to the start of another
CHECKPOINT = (
    "400 steps"  # more than from fault to fault: what is lost is not hidden by a checkpoint that has just been made
)

DIED, JOINED, KILLED = "a node dies", "a node joins", "a worker is killed"
GOODPUT = "useful samples/s with faults / undisturbed"
STEADY = "samples/s undisturbed"
KEPT = "MiB of keepers on a node / MiB of the state"


@contextmanager
def two_nodes(turn: Turn, checkpoint_every: str, model: dict[str, Any] | None = None) -> Iterator[FaultRun]:
    """A started run of the product on two one-CPU nodes, interrupted at the end."""
    changes: dict[str, Any] = {
        "data": {"manifest": str(turn.manifest(make_table))},
        # A build that loses all its work again and again has the figures of that; it is not to give up.
        "train": {"checkpoint_every": checkpoint_every, "max_failures": 1000},
        "evaluate": {"monitor_every": 0},
        "schedule": {"cross": EXPERIMENT["schedule"]["cross"] | {"length": {"rgb": "100000 steps", "flow": "3 steps"}}},
        "model": model or {},
    }
    folder = turn.folder / ("wide" if model else "run")
    folder.mkdir()
    with local_cluster(NODES, product=turn.product) as cluster:
        run = FaultRun(folder, cluster, changes)
        run.start()
        try:
            yield run
        finally:
            run.stop()


def recovery(turn: Turn) -> Measured:
    """A node dies, another one joins, a worker is killed: seconds to the next step and steps lost."""
    with two_nodes(turn, CHECKPOINT) as run:
        run.wait(lambda: run.step() >= BEFORE, "the first steps")
        found = {DIED: run.recover(partial(run.cluster.kill, run.cluster.nodes[turn.number % NODES]), workers=1)}
        run.wait_steps(BETWEEN)
        found[JOINED] = run.recover(run.cluster.add_node, workers=NODES)
        run.wait_steps(BETWEEN)
        workers = run.processes("RayTrainWorker")
        found[KILLED] = run.recover(partial(send, workers[turn.number % len(workers)], signal.SIGKILL))
    figures = {f"{name}, s to the next step": cost.seconds for name, cost in found.items()}
    return Measured(figures | {f"{name}, steps lost": float(cost.steps_lost) for name, cost in found.items()})


def goodput(turn: Turn) -> Measured:
    """A node is killed every period and another starts 10 s later; what is done again is not counted twice."""
    sizes = turn.sizes
    # By the clock, at half a period: who can lose work loses a quarter of a period each time in the mean.
    with two_nodes(turn, f"{sizes.period / 120:g} minutes") as run:
        run.wait(lambda: run.step() >= STEADY_FROM, "the first steps")
        undisturbed = run.pace(sizes.undisturbed)
        before, began = run.records()[-1]["samples"], time.monotonic()
        kills = max(int(sizes.seconds // sizes.period), 1)
        for number in range(kills):
            run.let_train(max(began + number * sizes.period - time.monotonic(), 0))
            run.cluster.kill(run.cluster.nodes[0])  # the one that has been there longer
            run.let_train(BACK_SECONDS)
            run.cluster.add_node()
        run.let_train(max(began + sizes.seconds - time.monotonic(), 0))
        useful = (run.records()[-1]["samples"] - before) / (time.monotonic() - began)
    figures = {
        "samples/s undisturbed": undisturbed,
        "useful samples/s with faults": useful,
        "nodes killed": float(kills),
    }
    return Measured({GOODPUT: useful / undisturbed} | figures)


def steady(turn: Turn) -> Measured:
    """Two workers undisturbed; where a build keeps the state in memory, what that takes beside the state, for a wide model."""
    with two_nodes(turn, "100000 steps") as run:
        run.wait(lambda: run.step() >= STEADY_FROM, "the first steps")
        figures = {STEADY: run.pace(turn.sizes.steady)}
        keeps = bool(run.processes("Keeper"))
    return Measured(figures | (_kept(turn) if keeps else {}))


def _kept(turn: Turn) -> dict[str, float]:
    """Of a model wide enough for its state to outweigh what any process takes."""
    with two_nodes(turn, "5 steps", {"width": 1.0}) as run:
        run.wait(lambda: run.step() >= 30, "steps of the wide model", 600)
        state = max(file.stat().st_size for file in run.run_folder.path.glob(f"checkpoints/*/{STATE_FILE}"))
        keepers = run.processes("Keeper")
        run.wait(lambda: all(private_memory(pid) > state for pid in keepers), "a copy on each node", 300)
        time.sleep(SETTLED)  # the last part has come, and what its way took is given back
        kept, own = (sum(map(size, keepers)) / NODES for size in (memory, private_memory))
    figures = {
        "MiB of keepers on a node": kept,
        "... of which no other process has": own,
        "MiB of the state": state,
    }
    return {name: size / 2**20 for name, size in figures.items()} | {KEPT: kept / state}


RECOVERY = BuildBench(
    "a node dies, a node joins, a worker is killed: seconds to the next step, steps lost",
    recovery,
    (
        Limit(f"{DIED}, s to the next step", 0.4),
        Limit(f"{KILLED}, s to the next step", 0.3),
        Limit(f"{DIED}, steps lost", 1, of="new"),
        Limit(f"{KILLED}, steps lost", 1, of="new"),
    ),
)
GOODPUT_BENCH = BuildBench(
    "useful samples/s while nodes die and come back, beside an undisturbed run",
    goodput,
    (Limit(GOODPUT, 0.75, at_least=True, of="new"), Limit(GOODPUT, 2.0, at_least=True)),
    rounds=1,
)
STEADY_BENCH = BuildBench(
    "samples/s of an undisturbed run; memory of what keeps the state",
    steady,
    (Limit(STEADY, 0.99, at_least=True), Limit(KEPT, 1.2, of="new")),
)
