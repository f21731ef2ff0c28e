"""The recall that is measured in training, for runs in this process."""

from __future__ import annotations

import numpy as np
import torch

from vicc_ray import distributed
from vicc_ray.data.clips import share
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.samples import read_clips
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.monitor import Monitor, monitor_plan


def plain_monitor(plan: TrainingPlan, manifest: Manifest) -> Monitor:
    """The monitor of an experiment that has one, with this worker's clips."""
    subset = monitor_plan(plan.experiment, manifest)
    assert subset is not None
    rows = share(len(subset.videos), distributed.rank(), distributed.world_size())
    clips = [
        read_clips(subset.videos[row], [2], ("rgb", "flow"), plan.experiment.clip, plan.experiment.flow) for row in rows
    ]
    tensors = {s: torch.from_numpy(np.concatenate([clip[s] for clip in clips])) for s in ("rgb", "flow")}
    return Monitor(subset, rows, tensors, plan.experiment, torch.device("cpu"))  # type: ignore[arg-type]
