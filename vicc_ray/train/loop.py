"""Ray Train's part of a run: start the workers, give each its blocks and its checkpoint, take its checkpoints."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, CheckpointUploadMode, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from vicc_ray import distributed
from vicc_ray.checkpoint import RunFolder, load_state, save_state
from vicc_ray.config import STREAMS, Experiment
from vicc_ray.console import console, quiet
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pipeline import iterate_blocks, segments, training_iterators
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.progress import RunProgress
from vicc_ray.resources import ResourcePlan, plan_local, this_machine
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
    manifest = folder.read_manifest(experiment)
    plan = make_plan(experiment, manifest)
    if address is None:
        plan_local(experiment.train, this_machine())  # refuses what cannot fit before anything is written
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
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.use_gpu, resources_per_worker=per_worker
        ),
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
        causes = {
            rank: str(cause).strip().splitlines() for rank, cause in getattr(error, "worker_failures", {}).items()
        }
        told = "; ".join(f"worker {rank}: {lines[-1]}" for rank, lines in sorted(causes.items()) if lines) or str(error)
        raise RuntimeError(
            f"training failed after {settings.max_failures} restarts ({told}); see {folder.logs}"
        ) from error
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
    restored = _restored()
    try:
        monitor = host.open(int(restored["step"]) if restored else 0, manifest)
        return {"step": train(plan, folder, host, restored, monitor)}
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
        self.stream: Iterator[Block] = iter(())

    def open(self, first_step: int, manifest: Manifest) -> Monitor | None:
        """Start the stream at a global step; returns the monitor with this worker's share of its clips, if there is one."""
        plan = monitor_plan(self.plan.experiment, manifest)
        videos = plan.videos if plan and first_step < self.plan.steps else ()
        self.stream = self._blocks(first_step, videos)
        if plan is None or not videos:
            return None
        rank, workers = distributed.rank(), distributed.world_size()
        mine = [next(self.stream) for _ in range(-(-len(videos) // workers))]
        rows = range(rank, len(videos), workers)
        for block in mine:
            if block["refused"][0]:
                video = videos[int(block["video"][0])].video
                raise UserError(f"{video}: {block['refused'][0]}; it could be read when it was indexed, so index again")
        # Where the videos do not come out even, the last block only filled up the round.
        clips = {
            stream: torch.from_numpy(np.concatenate([block[stream] for block in mine[: len(rows)]]))
            for stream in STREAMS
        }
        return Monitor(plan, rows, clips, self.plan.experiment, self.device)

    def blocks(self, first_step: int) -> Iterator[Block]:
        """The rest of the stream, which `open` started at this step."""
        return self.stream

    def _blocks(self, first_step: int, monitored: Sequence[VideoRow]) -> Iterator[Block]:
        """The monitor's blocks, then the training blocks of this worker, from one dataset after the other."""
        workers = distributed.world_size()
        for start, end in segments(first_step, self.plan.steps, workers):
            streams = None
            if distributed.rank() == 0:
                streams = training_iterators(self.plan, start, end, workers, self.decode_actors, monitored)
            # Worker 0 owns the stream, the others get a handle on it (from worker 0, so it is safe to unpickle).
            handles = pickle.loads(distributed.broadcast_bytes(ray.cloudpickle.dumps(streams)))
            yield from iterate_blocks(handles[distributed.rank()])
            distributed.barrier()  # the stream must live until every worker has drained it
            monitored = ()
            if streams is not None:
                # Handles that went through a message are not counted by Ray, so the coordinator would stay for ever.
                ray.kill(streams[0]._coord_actor)

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
