"""A small run as it lies on disk once it is finished: what verbs that read run folders are tested on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import tiny_experiment, tiny_plan

from vicc_ray.data.manifest import Manifest
from vicc_ray.evaluation.feature_store import Source, VideoFeatures, write_features
from vicc_ray.evaluation.results import Evaluation, write
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.encoders import file_hash
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record

STAGES = ("RGB-1", "Flow-1", "RGB-2", "Flow-2")
WIDTH = 8


def open_run(where: str | Path, videos: Manifest, **changes: Any) -> RunFolder:
    """A run that has been opened and has not begun: stages of 2, 2, 4 and 2 steps of 8 samples, 2 steps an epoch."""
    run = RunFolder.at(where, mirror="the trainer's") if "://" in str(where) else RunFolder(Path(where))
    run.open(tiny_experiment(name=run.path.name, **changes), videos.fingerprint())
    videos.write(run.manifest)
    run.push(run.manifest)
    return run


def add_encoder(run: RunFolder, name: str, seed: int = 0) -> Path:
    """A finished stage's encoder."""
    model = run.experiment().model
    torch.manual_seed(seed)
    encoder = build_encoder(model.backbone, width=model.width, embedding_dim=WIDTH)
    stream = "flow" if name.startswith("Flow") else "rgb"
    save_encoder(run.encoder(name), EncoderFile(encoder.spec, stream, encoder.state_dict()))  # type: ignore[arg-type]
    run.push(run.encoder(name))
    return run.encoder(name)


def add_features(run: RunFolder, encoder: str, encoder_hash: str | None = None, name: str = "tiny") -> Path:
    """Stored features of an encoder, or of one that is no longer there, by its hash."""
    rows = 3
    table = VideoFeatures(
        ids=[f"{number}.mp4" for number in range(rows)],
        labels=["a"] * rows,
        groups=[None] * rows,
        splits=["train"] * rows,
        windows=[1] * rows,
        vectors=np.ones((rows, WIDTH), np.float32),
    )
    file = run.features / f"{encoder}-{name}-00000000.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_features(str(file), Source(encoder, encoder_hash or file_hash(str(run.encoder(encoder))), "m", {}), table)
    run.push(file)
    return file


def add_checkpoint(run: RunFolder, step: int, stage: str, **facts: Any) -> None:
    """A checkpoint that training could go on from, as far as files say."""
    run.checkpoints.write(
        {"w": torch.zeros(1000)}, {"step": step, "stage": stage, "samples": 8 * step, "workers": 2, **facts}
    )


def add_records(run: RunFolder, videos: Manifest, steps: int | None = None, began: float | None = None) -> None:
    """Metrics of the first steps (None: of all), a second apart, and a start."""
    plan = tiny_plan(run.experiment(), videos)
    began = time.time() - plan.steps if began is None else began
    append_record(run.events, {"kind": "start", "step": 0, "workers": 2, "time": began})
    for stage in plan.stages:
        for step in range(stage.first_step + 1, stage.end + 1):
            if steps is not None and step > steps:
                break
            figures = {"loss": 2.2 - step / 20, "ln_k": 2.079, "entropy": 1.5, "prototypes_used": 0.9}
            facts = {"stage": stage.name, "step": step, "samples": 8 * step, "time": began + step}
            append_record(
                run.metrics, {"kind": "train", **facts, **figures, "samples_per_second": 8.0, "workers": 2, "lr": 0.1}
            )
            if step % 2 == 0:
                append_record(run.metrics, {"kind": "monitor", **facts, "R@1": round(0.1 + step / 20, 4), "R@5": 0.8})
    run.push(run.metrics, run.events)


def finished_run(where: str | Path, videos: Manifest, **changes: Any) -> RunFolder:
    """A run with everything that training and retrieval leave: encoders, records, checkpoints, features, a result, logs."""
    run = open_run(where, videos, **changes)
    add_records(run, videos)
    for seed, name in enumerate(STAGES):
        add_encoder(run, name, seed)
    for step, stage in ((8, "RGB-2"), (10, "Flow-2")):
        add_checkpoint(run, step, stage)
    add_features(run, "RGB-2")
    write(run, evaluation(run.path.name))
    run.logs.mkdir(exist_ok=True)
    (run.logs / "ray.log").write_text("what Ray had to say\n" * 100)
    return run


def evaluation(run: str, **changes: Any) -> Evaluation:
    """A retrieval result of a run."""
    facts: dict[str, Any] = {"protocol": "retrieval", "run": run, "seed": 3, "data": "tiny", "fold": None}
    facts |= {"train_on": "train", "test_on": "query", "train": 16, "test": 8, "chance": 0.125, "seconds": 1.0}
    rows = [{"name": name, "R@1": 0.2 + 0.1 * number, "R@5": 0.9} for number, name in enumerate(STAGES)]
    return Evaluation(**{**facts, "rows": rows, **changes})
