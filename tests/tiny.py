"""A data set and an experiment of the smallest useful size, shared by the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vicc_ray.config import Experiment, make_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.schedule import make_stages

# 2 + 2 + 4 + 2 steps of 8 samples over 16 videos: every kind of stage, more than one epoch, in seconds.
TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "clip": {"frames": 8, "decode_size": [32, 32], "size": 32},
    "flow": {"bound": 8},
    "model": {"backbone": "r2plus1d_10", "width": 0.0625, "embedding_dim": 16},
    "objective": {"prototypes": 8, "queue": 16},
    "schedule": {
        "cycles": 1,
        "single": {
            "length": "2 steps",
            "cosine_over": "100 %",
            "global_batch": 8,
            "queue_start": "0",
            "freeze_prototypes": "1 steps",
        },
        "cross": {"length": {"rgb": "4 steps", "flow": "2 steps"}, "global_batch": 8, "queue_start": "2 steps"},
    },
    "optim": {"name": "adamw", "lr": 0.001, "end_lr": 0.0001},
    "train": {"checkpoint_every": "1 steps", "log_every": 1, "max_failures": 1},
    "evaluate": {"ks": [1, 5], "monitor_every": "2 steps", "monitor_videos": 8, "neighbours": 4},
}


def tiny_experiment(**changes: Any) -> Experiment:
    """The tiny experiment with whole sections replaced or extended."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in TINY.items()}
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value if isinstance(value, dict) else value
    return make_experiment(tree, "tiny")


def tiny_manifest(folder: Path) -> Manifest:
    """16 training and 8 query videos of 8 classes, 12 frames of 32 x 32 pixels."""
    # Here, as the tests on a GPU use the experiment on machines that decode no videos.
    from vicc_ray.data.layouts import scan
    from vicc_ray.data.probing import index
    from vicc_ray.data.synthetic import make_dataset

    table = make_dataset(folder, train_per_class=2, query_per_class=1, frames=12, size=32, seed=5, workers=1)
    return index(scan(table), workers=2)


def tiny_plan(experiment: Experiment, manifest: Manifest) -> TrainingPlan:
    """The plan of a run over the manifest's training videos."""
    videos = manifest.select(experiment.data.train_split)
    return TrainingPlan(experiment, tuple(make_stages(experiment, len(videos))), videos)
