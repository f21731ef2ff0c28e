"""Scales of an experiment: full, as its file says, or smoke, every step of it at sizes that two cores finish in minutes.

A scale stands between the file and `--set`: it changes what the file says, and `--set` changes what the scale says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vicc_ray import storage
from vicc_ray.config import Experiment, experiment_with
from vicc_ray.config.published import experiment_file
from vicc_ray.data.manifest import count_videos

Scale = Literal["full", "smoke"]

SHORT_SIDE = 60  # pixels of a decoded frame
SIZE = 48  # pixels that the network sees
FRAMES = 8
BATCH = {"single": 8, "cross": 4}  # samples a step, where there are as many videos

# A part of everything that a run does comes: frozen prototypes, then learnt ones; a queue of one batch, once it is full;
# a cosine that is cut off; each drop of a classifier's learning rate, where the published lengths have it.
SMOKE: dict[str, Any] = {
    "scale": "smoke",
    "flow.algorithm": "dis",
    "flow.source": "stream",
    "model.width": 0.25,
    "objective.prototypes": 16,
    "objective.queue": 8,
    "schedule.total": None,
    "schedule.single.length": "3 steps",
    "schedule.single.cosine_over": "5 steps",
    "schedule.single.queue_start": "1 steps",
    "schedule.single.freeze_prototypes": "1 steps",
    "schedule.cross.length": "3 steps",
    "schedule.cross.cosine_over": None,
    "schedule.cross.queue_start": "1 steps",
    "schedule.cross.freeze_prototypes": "0 steps",
    "optim.warm_up": "0 steps",
    "train.checkpoint_every": "2 steps",
    "train.log_every": 1,
    "evaluate.monitor_videos": 16,
    "linear.length": "10 steps",
    "linear.drops": ["6 steps", "8 steps"],
    "linear.global_batch": 4,
    "finetune.length": "10 steps",
    "finetune.drops": ["4 steps", "6 steps", "8 steps", "9 steps"],
    "finetune.global_batch": 4,
}
MOST_WORKERS = 2


def experiment_at(path: Path | None, overrides: Sequence[str], scale: Scale, videos: int | None = None) -> Experiment:
    """The experiment of a file, or a shipped one by its name (None: of the defaults), at a scale, with `path=value` overrides
    applied last.

    `videos` is the number of training videos, where it is not to be read from the manifest: no batch of a trial exceeds
    it. UserError as `load_experiment`.
    """
    path = path and experiment_file(str(path))
    return experiment_with(path, [*scale_changes(path, overrides, scale, videos), *overrides])


def scale_changes(path: Path | None, overrides: Sequence[str], scale: Scale, videos: int | None = None) -> list[str]:
    """What a scale changes of an experiment file, as `path=value`; nothing where it is full, or the file is a trial's already."""
    full = experiment_with(path, overrides)
    if scale == "full" or full.scale == "smoke":
        return []
    changes = SMOKE | _sizes(full, videos or _videos(full))
    return [f"{field}={json.dumps(value)}" for field, value in changes.items()]


def _sizes(full: Experiment, videos: int | None) -> dict[str, Any]:
    """What depends on the experiment: its name, the aspect of its frames, and no size above its own."""
    height, width = full.clip.decode_size
    share = min(SHORT_SIDE / min(height, width), 1.0)
    decode_size = [round(share * height), round(share * width)]
    frames = min(FRAMES, full.clip.frames)
    return {
        "name": f"{full.name}-smoke",
        "clip.frames": frames,
        # A clip covers as much time as a full one, so a video has about as many windows and not four times as many.
        "clip.stride": full.clip.stride if full.clip.fps else full.clip.stride * (full.clip.frames // frames),
        "clip.fps": full.clip.fps and full.clip.fps * frames / full.clip.frames,
        "clip.decode_size": decode_size,
        "clip.size": min(SIZE, full.clip.size),
        "clip.source": "stream",
        "flow.store": f"flow/smoke_{SMOKE['flow.algorithm']}_{decode_size[0]}x{decode_size[1]}",
        "schedule.cycles": min(full.schedule.cycles, 2),
        "train.workers": min(MOST_WORKERS, full.train.workers.max),
    } | {f"schedule.{kind}.global_batch": _batch(most, videos) for kind, most in BATCH.items()}


def _batch(most: int, videos: int | None) -> int:
    """The largest of 8, 4, 2 that fits: it is dealt out to two workers alike."""
    batch = most
    while videos is not None and batch > max(videos, 2):
        batch //= 2
    return batch


def _videos(full: Experiment) -> int | None:
    """Training videos of the manifest, where there is one; what is wrong with it is reported when it is read."""
    if full.data.manifest is None or not storage.exists(full.data.manifest):
        return None
    return count_videos(full.data.manifest, full.data.train_split)
