"""Ray Train's part of a run: start the workers, give each its blocks and its checkpoint, take its checkpoints."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.data import DataIterator
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from vicc_ray import distributed
from vicc_ray.checkpoint import RunFolder, load_state, save_state
from vicc_ray.config import STREAMS, Experiment
from vicc_ray.console import console, quiet
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.pipeline import iterate_blocks, segments, training_iterators, window_iterators
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.progress import RunProgress
from vicc_ray.resources import ResourcePlan
from vicc_ray.session import ray_session
from vicc_ray.train.batches import Block, TrainingPlan
from vicc_ray.train.monitor import Monitor, monitor_plan
from vicc_ray.train.run import State, train
from vicc_ray.train.schedule import make_stages


def make_plan(experiment: Experiment, manifest: Manifest) -> TrainingPlan:
    """The plan of a run: its stages over the manifest's training videos."""
    videos = tuple(manifest.select(experiment.data.train_split))
    return TrainingPlan(experiment, tuple(make_stages(experiment, len(videos))), videos)


def run_training(experiment: Experiment, address: str | None = None, verbose: bool = False) -> RunFolder:
    """Train an experiment to its end, resuming where an earlier call left off; returns the run's folder.

    UserError for what the reader has to change, Interrupted after Ctrl-C.
    """
    folder = RunFolder(experiment.run_dir)
    manifest = _manifest(experiment, folder)
    plan = make_plan(experiment, manifest)
    resumes = folder.open(experiment, manifest.fingerprint())
    if not folder.manifest.is_file() or not resumes:
        manifest.write(folder.manifest)
    left = [stage for stage in plan.stages if not folder.encoder(stage.name).is_file()]
    if not left:
        console.print(f"{folder.path}: every stage is finished; nothing to train")
        return folder
    if resumes:
        done = [stage.name for stage in plan.stages if stage not in left]
        console.print(f"{folder.path}: going on" + (f" after {', '.join(done)}" if done else ""))
    with quiet(folder.logs / "ray.log", verbose), ray_session(experiment.train, address, verbose) as resources:
        console.print(f"training {' -> '.join(stage.name for stage in left)}: {resources.describe()}")
        with RunProgress(folder.metrics, plan.stages):
            _fit(experiment, folder, resources)
    return folder


def _manifest(experiment: Experiment, folder: RunFolder) -> Manifest:
    if experiment.data.manifest is None:
        if folder.manifest.is_file():
            return Manifest.read(folder.manifest)
        raise UserError("data.manifest: is not set; make one with 'vicc index DIR --out M.parquet' and --set data.manifest=M.parquet")
    return Manifest.read(experiment.data.manifest)


def _fit(experiment: Experiment, folder: RunFolder, resources: ResourcePlan) -> None:
    settings = experiment.train
    per_worker = {"CPU": 1, "GPU": 1} if resources.use_gpu else {"CPU": 1}
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "experiment": experiment.model_dump(mode="json"),
            "folder": str(folder.path),
            "decode_actors": resources.decode_actors,
            "threads": max(1, (os.cpu_count() or 1) // resources.workers),
        },
        torch_config=TorchConfig(timeout_s=int(settings.collective_timeout)),
        scaling_config=ScalingConfig(num_workers=resources.workers, use_gpu=resources.use_gpu, resources_per_worker=per_worker),
        run_config=RunConfig(
            name="ray",
            storage_path=str(folder.path),
            checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    try:
        result = trainer.fit()
    except (SystemExit, KeyboardInterrupt, ray.exceptions.RayActorError):
        raise Interrupted(f"stopped; the same command goes on from the last checkpoint in {folder.path}") from None
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"training failed after {settings.max_failures} restarts; see {folder.logs / 'ray.log'}") from error
    outcome = result.return_value
    if outcome is None:
        raise Interrupted(f"stopped; the same command goes on from the last checkpoint in {folder.path}")
    if "error" in outcome:
        raise UserError(outcome["error"])


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    torch.set_num_threads(settings["threads"])
    folder = RunFolder(Path(settings["folder"]))
    experiment = Experiment.model_validate(settings["experiment"])
    manifest = Manifest.read(folder.manifest)
    plan = make_plan(experiment, manifest)
    host = _RayHost(plan, settings["decode_actors"])
    try:
        return {"step": train(plan, folder, host, _restored(), host.monitor(manifest))}
    except UserError as error:
        # Trying again cannot help, so this is an end and not a failure for Ray to restart.
        return {"error": str(error)}


def _restored() -> State | None:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_state(Path(folder))


class _RayHost:
    """What the loop needs, from Ray."""

    def __init__(self, plan: TrainingPlan, decode_actors: int) -> None:
        self.plan, self.decode_actors = plan, decode_actors
        self.device: torch.device = get_device()

    def blocks(self, first_step: int) -> Iterator[Block]:
        """This worker's blocks, from one dataset after the other."""
        workers = distributed.world_size()
        for start, end in segments(first_step, self.plan.steps, workers):
            decode = partial(training_iterators, self.plan, start, end, workers)
            yield from self._dealt(decode)

    def _dealt(self, decode: Callable[..., list[DataIterator]]) -> Iterator[Block]:
        """This worker's part of a stream that worker 0 opens and that all of them drain."""
        streams = None
        if distributed.rank() == 0:
            streams = decode(actors=self.decode_actors)
        # Worker 0 owns the stream, the others get a handle on it (from worker 0, so it is safe to unpickle).
        handles = pickle.loads(distributed.broadcast_bytes(ray.cloudpickle.dumps(streams)))
        yield from iterate_blocks(handles[distributed.rank()])
        distributed.barrier()  # the stream must live until every worker has drained it

    def save(self, state: State, step: int) -> None:
        """Report a checkpoint, written by worker 0 and uploaded in the background."""
        name = f"step_{step:09d}"
        if distributed.rank():
            ray.train.report({}, checkpoint_dir_name=name)
            return
        local = Path(tempfile.mkdtemp(prefix="vicc-checkpoint-"))
        save_state(local, state)
        checkpoint = Checkpoint.from_directory(str(local))
        ray.train.report(
            {"step": step}, checkpoint, checkpoint_dir_name=name, checkpoint_upload_mode=CheckpointUploadMode.ASYNC
        )

    def monitor(self, manifest: Manifest) -> Monitor | None:
        """The monitor with this worker's share of its clips, or None where there is nothing to monitor."""
        experiment, workers = self.plan.experiment, distributed.world_size()
        plan = monitor_plan(experiment, manifest)
        if plan is None:
            return None
        blocks = list(self._dealt(partial(window_iterators, plan.videos, experiment, "centre", workers)))
        for block in blocks:
            if block["refused"][0]:
                video = plan.videos[int(block["video"][0])].video
                raise UserError(f"{video}: {block['refused'][0]}; it could be read when it was indexed, so index again")
        clips = {stream: torch.from_numpy(np.concatenate([block[stream] for block in blocks])) for stream in STREAMS}
        rows = range(distributed.rank(), len(plan.videos), workers)
        return Monitor(plan, rows, clips, experiment, self.device)
