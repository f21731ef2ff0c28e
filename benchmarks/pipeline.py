"""The quickstart's stream: what Ray Data's decode actor delivers to a consumer, beside the same work in a bare loop."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import Bar, Outcome, take_turns
from vicc_ray.cluster.resources import Decoders
from vicc_ray.cluster.session import ray_session
from vicc_ray.cluster.stream import training_stream
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.console import quiet
from vicc_ray.data.layouts import scan
from vicc_ray.data.probing import index
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import TrainingPlan, decode_share, make_plan

STEPS = 24
SHARE_OF_BARE = 0.85
# Batches as the bar was set with; the quickstart's own are smaller, and read from a store.
SETTINGS = ["train.workers=1", "train.decode_actors=1", "schedule.cross.global_batch=32"]


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Samples/s of cross-stream steps (both streams, two clips a sample) with one decoding process on either side.

    Always of the quickstart's own videos; `vicc bench data` measures on a given manifest.
    """
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        folder = RunFolder(Path(scratch))
        table = make_dataset(folder.path / "data", train_per_class=16, query_per_class=1)
        videos = index(scan(table))
        experiment = load_experiment(shipped_experiment("quickstart"), SETTINGS)
        plan = make_plan(experiment, videos)
        first = next(stage for stage in plan.stages if stage.guide).first_step
        samples = STEPS * plan.stages[-1].global_batch
        with quiet(folder.logs / "ray.log"), ray_session(experiment.train):
            contenders = {
                "bare loop, one process": lambda: samples / _bare(plan, first),
                "Ray Data, one decode actor": lambda: samples / _streamed(plan, first),
            }
            outcome = Outcome("samples/s", take_turns(contenders, rounds))
    ratio = outcome.ratio("Ray Data, one decode actor", "bare loop, one process")
    outcome.bars = [Bar("stream / bare loop", ratio, SHARE_OF_BARE)]
    outcome.facts = {
        "samples a round": samples,
        "clip": f"2 x {experiment.clip.frames} frames of {experiment.clip.decode_size}, RGB and flow",
    }
    return outcome


def _bare(plan: TrainingPlan, first: int) -> float:
    started = time.perf_counter()
    for step in range(first, first + STEPS):
        decode_share(plan, step, 0, 1)
    return time.perf_counter() - started


def _streamed(plan: TrainingPlan, first: int) -> float:
    """Seconds for the steps after the first, whose arrival says that the actor has started."""
    blocks = training_stream(plan, range(first - 1, first + STEPS), 0, 1, Decoders(1))
    next(blocks)
    started = time.perf_counter()
    for _ in blocks:
        pass
    return time.perf_counter() - started
