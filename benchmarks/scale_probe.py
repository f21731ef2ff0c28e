"""What a manifest of a size costs a run before its first step, printed as JSON: `python scale_probe.py MANIFEST [--further]`.

Run with the Python of a build; it imports nothing but that build's package, in a process that has done nothing else. `--further`:
what it costs each decode actor beside that, in real actors of a Ray of this machine's own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from importlib import import_module
from typing import Any

STEPS, BATCH = 40, 32


def main(manifest: str, further: bool) -> None:
    """Open, plan, draw; then the actors."""
    from vicc_ray.config import make_experiment
    from vicc_ray.data.manifest import Manifest

    try:
        batches = import_module("vicc_ray.training.batches")
    except ImportError:  # an earlier build
        batches = import_module("vicc_ray.train.batches")

    before = private()
    began = time.perf_counter()
    found = Manifest.read(manifest)
    schedule = {"single": {"global_batch": BATCH}, "cross": {"global_batch": BATCH}}
    plan = batches.make_plan(make_experiment({"name": "scale", "schedule": schedule}, "scale"), found)
    figures = {"s to open and plan": time.perf_counter() - began, "MiB of the first process": private() - before}
    began = time.perf_counter()
    found.fingerprint()
    figures["s for the fingerprint"] = time.perf_counter() - began
    figures["ms to draw a step"] = 1000 * statistics.median(draw(plan, step) for step in range(STEPS))
    if further:
        del found
        figures |= actors(plan)
    print(json.dumps(figures))


def draw(plan: Any, step: int) -> float:
    """Seconds for a step's videos and their clips."""
    began = time.perf_counter()
    stage = plan.stages[0]
    epoch, videos = plan.epoch_and_videos(step)
    for video in videos.tolist():
        plan.sample(stage, epoch, video)
        _ = plan.videos[video].video
    return time.perf_counter() - began


class Actor:
    """A decode actor, but that it decodes nothing."""

    def memory(self) -> float:
        """MiB of this process alone."""
        return private()

    def open(self, handed: Any, rows: Any) -> float:
        """Take what a decode actor is handed, and draw with it; the seconds."""
        import ray

        began = time.perf_counter()
        plan = ray.cloudpickle.loads(handed)
        self.plan = replace(plan, videos=ray.get(rows[0])) if rows else plan
        taken = time.perf_counter() - began
        for step in range(3):
            draw(self.plan, step)
        return taken


def actors(plan: Any) -> dict[str, float]:
    """What two decode actors of a node take and hold, the plan's videos in Ray's object store where this build has them there."""
    import ray

    ray.init(
        num_cpus=2, object_store_memory=5 * 2**30, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    rows: list[Any] = []
    began = time.perf_counter()
    try:
        from vicc_ray.data.rows import TRAINING, Rows

        rows = [ray.put(plan.videos.only(TRAINING))]
        handed = ray.cloudpickle.dumps(replace(plan, videos=Rows.of(())))
    except ImportError:  # an earlier build
        handed = ray.cloudpickle.dumps(plan)
    figures = {"s to hand over": time.perf_counter() - began, "MiB pickled to an actor": len(handed) / 2**20}
    held, seconds = [], []
    for _ in range(2):
        actor = ray.remote(Actor).options(num_cpus=0.5).remote()
        before = ray.get(actor.memory.remote())
        seconds.append(ray.get(actor.open.remote(handed, rows)))
        held.append(ray.get(actor.memory.remote()) - before)
    ray.shutdown()
    return figures | {"s of an actor": max(seconds), "MiB of an actor": max(held)}


def private() -> float:
    """MiB of memory that no other process shares with this one."""
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_")) / 1024


if __name__ == "__main__":
    main(sys.argv[1], "--further" in sys.argv[2:])
