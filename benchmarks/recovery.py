"""A node that dies under training: how long until the next optimiser step, and how much work is lost."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from benchmarks import Bar, Outcome
from benchmarks.fault_run import EXPERIMENT, FaultRun, make_videos
from benchmarks.nodes import local_cluster
from vicc_ray.console import console

SECONDS_ALLOWED = 60.0


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Each round kills one of two one-CPU nodes under a run with one worker on each, then lets another one join."""
    interval = int(str(EXPERIMENT["train"]["checkpoint_every"]).split()[0])
    died: list[float] = []
    joined: list[float] = []
    lost: list[float] = []
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch, local_cluster(2) as cluster:
        folder = Path(scratch)
        make_videos(folder)
        run = FaultRun(folder, cluster)
        run.start()
        run.wait(lambda: run.step() > 2 * interval, "the first steps", 240)
        for number in range(rounds):
            node = cluster.nodes[number % 2]
            death = run.recover(partial(cluster.kill, node), workers=1)
            died.append(death.seconds)
            lost.append(death.steps_lost)
            run.wait_steps(interval)
            joined.append(run.recover(cluster.add_node, workers=2).seconds)
            run.wait_steps(2 * interval)
            console.print(
                f"round {number + 1}: died {died[-1]:.0f} s, joined {joined[-1]:.0f} s, lost {lost[-1]:.0f} steps"
            )
        run.stop()
    outcome = Outcome("s", {"a node dies, to the next step": died, "a node joins, to the next step": joined})
    outcome.bars = [
        Bar(
            "seconds from a node's death to the next step",
            outcome.median("a node dies, to the next step"),
            SECONDS_ALLOWED,
            False,
        ),
        Bar("most steps lost / checkpoint interval", max(lost) / interval, 1.0, False),
    ]
    outcome.facts = {"steps lost each round": lost, "checkpoint interval": f"{interval} steps"}
    return outcome
