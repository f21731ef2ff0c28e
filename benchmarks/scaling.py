"""Two nodes of one core beside one: samples/s with the same batch a worker, and what of a step is spent in messages."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from benchmarks import Bar, Outcome
from benchmarks.fault_run import FaultRun, make_videos
from benchmarks.nodes import local_cluster
from benchmarks.roofline import profiled
from vicc_ray import distributed
from vicc_ray.config import ClipConfig, load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.samples import Clips, Request, empty_clips
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import decode_share, make_plan, to_batch
from vicc_ray.training.pretraining import Pretraining

A_WORKER = 8  # samples a step
WARM_UP, STEPS = 10, 40
PROFILED = 6
EFFICIENCY = 0.7


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Each round trains the quickstart's RGB-1 on one node, then on two; each node has a core of its own, decoding included."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    figures: dict[str, list[float]] = {"one node": [], "two nodes": []}
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        for number in range(rounds):
            for count, name in enumerate(figures, start=1):
                folder = Path(scratch) / f"{number}-{count}"
                folder.mkdir()
                figures[name].append(_samples_per_second(folder, cores[:count]))
                console.print(f"round {number + 1}: {name}: {figures[name][-1]:.2f} samples/s")
        shares = _share_of_messages(Path(scratch) / "messages", cores)
    outcome = Outcome("samples/s", figures)
    efficiency = outcome.ratio("two nodes", "one node") / 2
    outcome.bars = [Bar("efficiency of two nodes", efficiency, EFFICIENCY)]
    outcome.facts = {"samples a step and worker": A_WORKER} | shares
    return outcome


def _samples_per_second(folder: Path, cores: list[int]) -> float:
    """Of the steps after `WARM_UP`, on as many one-core nodes as there are cores."""
    make_videos(folder)
    recipe = load_experiment(shipped_experiment("quickstart")).model_dump(mode="json")
    length = f"{WARM_UP + STEPS} steps"
    single = {"length": {"rgb": length, "flow": "1 steps"}, "global_batch": A_WORKER * len(cores)}
    changes: dict[str, Any] = {
        "clip": {"frames": 12, "decode_size": [64, 64], "size": 48},
        "model": recipe["model"],
        "objective": {"prototypes": 32, "queue": 0},
        "schedule": {
            "cycles": 0,
            "single": single | {"queue_start": 0, "freeze_prototypes": 0, "cosine_over": "100 %"},
        },
        "train": {"workers": len(cores), "decode_actors": len(cores), "checkpoint_every": "1000 steps", "log_every": 1},
        "evaluate": {"monitor_every": 0},
    }
    with local_cluster(0) as cluster:
        for core in cores:
            cluster.add_node(core=core)
        run = FaultRun(folder, cluster, changes)
        run.start()
        run.wait(lambda: run.step() >= WARM_UP + STEPS, "the last step", 600)
        times = {record["step"]: record["time"] for record in run.records()}
        run.stop()
    seconds: float = times[WARM_UP + STEPS] - times[WARM_UP]
    return STEPS * A_WORKER * len(cores) / seconds


def _share_of_messages(folder: Path, cores: list[int]) -> dict[str, str]:
    """How long messages between two processes are under way, beside the step, by gloo's own marks."""
    folder.mkdir()
    spawn(_profiled, (str(folder), cores), nprocs=len(cores))  # type: ignore[no-untyped-call]
    step, waiting = torch.load(folder / "figures.pt")
    return {
        "single-stream step of two processes of one core": f"{step * 1e3:.0f} ms",
        "of which messages are under way (waiting for the other included)": f"{waiting / step:.1%}",
    }


def _profiled(rank: int, folder: str, cores: list[int]) -> None:
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    with distributed.group(f"{folder}/store", rank, len(cores)):
        seconds, waiting = _step_and_messages(rank, len(cores), Path(folder))
    if rank == 0:
        torch.save((seconds, waiting), f"{folder}/figures.pt")


def _step_and_messages(rank: int, workers: int, folder: Path) -> tuple[float, float]:
    """Seconds of a step of the quickstart's RGB-1, and of the messages in it."""
    changes = [f"schedule.single.global_batch={A_WORKER * workers}", "schedule.cycles=0", "optim.precision=fp32"]
    experiment = load_experiment(shipped_experiment("quickstart"), changes)
    rows = [VideoRow(f"{number}.mp4", label="a", frames=64, content_hash=f"{number:032x}") for number in range(64)]
    plan = make_plan(experiment, Manifest(rows))
    run = RunFolder(folder / "run")
    if rank == 0:
        run.open(experiment, "bench")
    distributed.barrier()
    trainer = Pretraining().open_stage(plan, run, plan.stages[0], torch.device("cpu"))
    blocks = [decode_share(plan, step, rank, workers, partial(_noise, experiment.clip)) for step in range(2)]
    batches = [to_batch(plan, step, block)[0] for step, block in enumerate(blocks)]
    for step in range(2):
        trainer.step(batches[step], step)
    began = time.perf_counter()
    with profiled() as seen:
        for step in range(PROFILED):
            trainer.step(batches[step % 2], 2 + step)
    seconds = (time.perf_counter() - began) / PROFILED
    events = seen.events() or ()  # type: ignore[no-untyped-call]
    waiting = sum(event.time_range.elapsed_us() for event in events if event.name.startswith("gloo:"))
    return seconds, waiting / 1e6 / PROFILED


def _noise(clip: ClipConfig, requests: Sequence[Request], into: Sequence[Clips] | None = None) -> Sequence[Clips]:
    """Clips of the right shapes, without a file."""
    made = into or [empty_clips(len(starts), streams, clip) for _, starts, streams in requests]
    for (_, starts, _streams), clips in zip(requests, made, strict=True):
        rng = np.random.default_rng([abs(start) for start in starts])
        for array in clips.values():
            array[...] = rng.integers(0, 256, array.shape, np.uint8)
    return made
