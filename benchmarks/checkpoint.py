"""What a healthy run pays for surviving: records, polls for requests and checkpoints, beside bare optimiser steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import Bar, Outcome, take_turns
from vicc_ray.config import load_experiment
from vicc_ray.config.published import shipped_experiment
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.runs.checkpoint import CheckpointWriter, State, snapshot
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import Block, TrainingPlan, make_plan, to_batch
from vicc_ray.training.loop import Notice, train
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.survival import Finished

STEPS = 20
WARM_UP = 3
SHARE_ALLOWED = 0.03
# Far more often than the default of 5 minutes: a step of the quickstart's network takes a third of a second here.
SETTINGS = [
    "schedule.cycles=0",
    "schedule.single.global_batch=32",
    "optim.precision=fp32",
    f"schedule.single.length={{rgb: {STEPS} steps, flow: 1 steps}}",
    "train.checkpoint_every=8 steps",
    "evaluate.monitor_every=0",
]


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Seconds a step of the quickstart's RGB-1 on made-up blocks: bare, and in the loop with a checkpoint every 8 steps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        experiment = load_experiment(shipped_experiment("quickstart"), SETTINGS)
        rows = [VideoRow(f"{number}.mp4", label="a", frames=64, content_hash=f"{number:032x}") for number in range(64)]
        plan = make_plan(experiment, Manifest(rows))
        folder = RunFolder(Path(scratch) / "run")
        folder.open(experiment, "bench")
        blocks = [_block(plan, step) for step in range(STEPS)]
        sizes: list[int] = []
        contenders = {
            "bare steps": lambda: _bare(plan, folder, blocks),
            "with records and checkpoints": lambda: _whole(plan, folder, blocks, sizes),
        }
        outcome = Outcome("s a step", take_turns(contenders, rounds))
    share = outcome.ratio("with records and checkpoints", "bare steps") - 1
    outcome.bars = [Bar("share of the step that checkpoints and records take", share, SHARE_ALLOWED, at_least=False)]
    outcome.facts = {"checkpoint": f"every 8 steps, {sizes[-1] / 2**20:.1f} MiB", "steps a round": STEPS - WARM_UP}
    return outcome


def _block(plan: TrainingPlan, step: int) -> Block:
    """A block of noise with the shapes of a decoded one."""
    clip, batch = plan.experiment.clip, plan.stages[0].global_batch
    rng = np.random.default_rng(step)
    _, videos = plan.epoch_and_videos(step)
    return {
        "step": np.full(batch, step),
        "slot": np.arange(batch),
        "video": videos,
        "refused": np.array([""] * batch, object),
        "rgb": rng.integers(0, 256, (batch, 2, clip.frames, *clip.decode_size, 3), np.uint8),
    }


def _bare(plan: TrainingPlan, folder: RunFolder, blocks: list[Block]) -> float:
    trainer = Pretraining().open_stage(plan, folder, plan.stages[0], torch.device("cpu"))
    for step in range(STEPS):
        if step == WARM_UP:
            started = time.perf_counter()
        trainer.step(to_batch(plan, step, blocks[step])[0], step)
    return (time.perf_counter() - started) / (STEPS - WARM_UP)


class _Stop(Exception):
    """The first stage is over."""


class _Host:
    """A plain process that writes checkpoints as a worker does."""

    def __init__(self, folder: RunFolder, blocks: list[Block]) -> None:
        self.device = torch.device("cpu")
        self.ready = blocks
        self.writer = CheckpointWriter(folder.checkpoints, 2, lambda text, step: None)
        self.started = 0.0

    def blocks(self, first_step: int) -> Iterator[Block]:
        for step, block in enumerate(self.ready):
            if step == WARM_UP:
                self.started = time.perf_counter()
            yield block
        raise _Stop

    def save(self, state: State, about: dict[str, Any]) -> None:
        self.writer.submit(snapshot(state), about)

    def finished(self, step: Finished) -> None:
        """Nothing is kept."""

    def notice(self) -> Notice:
        return Notice()


def _whole(plan: TrainingPlan, folder: RunFolder, blocks: list[Block], sizes: list[int]) -> float:
    host = _Host(folder, blocks)
    try:
        train(Pretraining(), plan, folder, host, None, None)
    except _Stop:
        seconds = (time.perf_counter() - host.started) / (STEPS - WARM_UP)
    host.writer.close()
    sizes.append(max(info.bytes for info in folder.checkpoints.listing()))  # that of a stage's end holds no state
    return seconds
