"""Ray Train's part of a run: start the workers, give each its blocks and its checkpoint, survive what can be survived.

Ray Train restarts the group of workers after a failure and when the cluster grows or shrinks. Each time the workers find
the newest whole checkpoint themselves and go on from it, whatever their number now is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig

from vicc_ray import distributed, storage
from vicc_ray.cluster import ray_private
from vicc_ray.cluster.host import RayHost
from vicc_ray.cluster.keeper import forget, kept_state, survivor
from vicc_ray.cluster.progress import RunProgress
from vicc_ray.cluster.resources import ResourcePlan, plan_local, this_machine
from vicc_ray.cluster.session import ray_session
from vicc_ray.cluster.trainer import RunTrainer
from vicc_ray.cluster.warm import start as warm
from vicc_ray.config import Experiment
from vicc_ray.console import console, quiet
from vicc_ray.data.flow.bound import with_bound
from vicc_ray.data.identity import flow_identity
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.rows import TRAINING, Rows
from vicc_ray.data.store.checking import check_stored, open_stores, with_absolute_stores
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.machine import usable_cpus
from vicc_ray.objective import NonFiniteError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import RecordWriter, read_events
from vicc_ray.runs.sinks import check_sinks
from vicc_ray.training.batches import TrainingPlan
from vicc_ray.training.driver import alone_in, check_refused, report_videos, sigterm_stops
from vicc_ray.training.loop import train
from vicc_ray.training.monitor import MonitorPlan, monitor_plan
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.restore import count_attempt, event, restore
from vicc_ray.training.task import Task

# How long workers wait for each other before the first step, while worker 0 starts decode actors on machines that may be
# busy. A worker that hangs as a whole is missed by Ray within `train.collective_timeout` all the same.
START_SECONDS = 300.0


def run_training(
    experiment: Experiment,
    address: str | None = None,
    verbose: bool = False,
    last: str | None = None,
    manifest: Manifest | None = None,
    pause: int | None = None,
) -> RunFolder:
    """Pretrain an experiment to its end, resuming where an earlier call left off; returns the run's folder.

    `last`: the stage after which the run ends; None: the schedule's last one. `manifest`: the run's, where it is read already.
    `pause`: global step; the run ends at the first recall measured from there on, and the next call goes on from it.
    UserError for what the reader has to change, Interrupted after Ctrl-C, a request to stop or a pause.
    """
    folder = RunFolder.at(experiment.run_folder)
    manifest = manifest or folder.read_manifest(experiment)
    check_refused(experiment, manifest)
    return run_task(Pretraining(last, pause), experiment, manifest, folder, address, verbose)


def run_task(
    task: Task,
    experiment: Experiment,
    manifest: Manifest,
    folder: RunFolder,
    address: str | None = None,
    verbose: bool = False,
) -> RunFolder:
    """As `run_training`, for any task, into `folder`; an open Ray session is used as it is."""
    check_sinks(experiment)
    experiment = with_bound(with_absolute_stores(experiment), manifest, console.print, folder.begun)
    plan = task.plan(experiment, manifest)
    streams = sorted({stream for stage in plan.stages for stream in stage.decoded}, reverse=True)
    without = check_stored(experiment, plan.rows, streams)
    if without:
        console.print(
            f"note: {len(without)} of {len(plan.rows)} videos are not in the store; stages that need them leave them out (the "
            f"first: {without[0].video})",
        )
    # A session that is open already may be anybody's, with other users.
    alone = address is None and not ray.is_initialized()
    # Refuses what cannot fit before anything is written.
    local = plan_local(experiment.train, this_machine()) if address is None else None
    flow = flow_identity(experiment) if "flow" in streams else None
    # Nothing of a run that another driver is at work on is changed, so the lock comes first.
    with alone_in(folder):
        with folder.as_user_errors():
            folder.pull(alone=True)
            times = manifest.times_fingerprint() if experiment.clip.fps else None
            resumes = folder.open(experiment, manifest.fingerprint(), flow, times, manifest.earlier_fingerprint())
            plan = replace(plan, listed=folder.order_is_listed)
            folder.keep_manifest(manifest)
        left = [stage for stage in plan.stages if not task.is_finished(folder, stage)]
        if not left:
            console.print(f"{folder}: every stage is finished; nothing to train")
            return folder
        if resumes:
            done = [stage.name for stage in plan.stages if stage not in left]
            console.print(f"{folder}: going on" + (f" after {', '.join(done)}" if done else ""))
        with (
            quiet(folder.logs / "ray.log", verbose),
            ray_session(experiment.train, address, verbose, local) as resources,
        ):
            folder.forget_stop()
            console.print(f"training {' -> '.join(stage.name for stage in left)}: {resources.describe()}")
            with RunProgress(folder, plan.stages), sigterm_stops(folder):
                _fit(task, plan, monitor_plan(experiment, manifest), folder, resources, alone)
        with folder.as_user_errors():
            folder.pull()
    report_videos(plan, folder, len(manifest.refused))
    return folder


def _fit(
    task: Task,
    plan: TrainingPlan,
    monitored: MonitorPlan | None,
    folder: RunFolder,
    resources: ResourcePlan,
    alone: bool,
) -> None:
    experiment = plan.experiment
    settings = experiment.train
    _set_timeouts(experiment)
    ray_private.keep_data_actors_here()
    elastic = resources.min_workers != resources.workers
    session = uuid4().hex
    spares = warm.is_on() and not alone
    make_trainer = partial(
        RunTrainer,
        _worker,
        session=session,
        folder=str(folder),
        alone=alone,
        spares=spares,
        train_loop_config={
            "task": task,
            # Once a node, for all workers and decode actors there.
            "rows": ray.put(plan.videos.only(TRAINING)),
            "stores": ray.put(open_stores(experiment)),
            "plan": replace(plan, videos=Rows.of(())),
            "monitored": monitored,
            "folder": str(folder),
            "resources": resources,
            "session": session,
            "spares": spares,
        },
        torch_config=TorchConfig(timeout_s=int(max(START_SECONDS, settings.collective_timeout))),
        scaling_config=ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if elastic else resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if resources.use_gpu else {"CPU": 1},
            label_selector=dict(resources.train_labels) or None,
            elastic_resize_monitor_interval_s=settings.resize_after,
        ),
        # Checkpoints are ours; Ray keeps only its own notes here. How often a run may fail is decided by how
        # far it came between the failures (see `training.restore`), which Ray does not know.
        run_config=RunConfig(
            name=session,
            storage_path=storage.join(str(folder), "logs", "train"),
            failure_config=FailureConfig(max_failures=-1),
            callbacks=[_NoteFailures(str(folder))],
        ),
    )
    stopped = f"stopped; the same command goes on from the last checkpoint in {folder}"
    try:
        result = _watched(make_trainer, folder, settings.max_failures, alone)
    except (SystemExit, KeyboardInterrupt):
        raise Interrupted(stopped) from None
    except ray.train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", {})
        reasons = "; ".join(f"worker {rank}: {_last_line(cause)}" for rank, cause in sorted(causes.items())) or str(
            error
        )
        raise RuntimeError(f"training failed ({reasons}); see {folder.logs}") from error
    outcome = result.return_value
    if outcome is None or outcome.get("stopped"):
        raise Interrupted(stopped)
    if "error" in outcome:
        raise UserError(outcome["error"])


def _watched(make_trainer: Callable[[], RunTrainer], folder: RunFolder, allowed: int, alone: bool) -> ray.train.Result:
    """Train to the end, through the deaths of the process in which Ray Train watches the workers.

    Up to `allowed` in a row may come before the workers start from further on than before. The workers end with it, and the next
    ones go on from the last checkpoint. KeyboardInterrupt where the reader ended it.
    """
    lost, reached = 0, -1
    while True:
        _give_back(folder, alone and lost > 0)
        trainer = make_trainer()
        try:
            return trainer.fit()
        except ray.exceptions.RayActorError as error:
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            started = max(
                (int(one["step"]) for one in read_events(folder.events) if one["kind"] == "start"), default=-1
            )
            lost, reached = (lost + 1 if started <= reached else 1), max(started, reached)
            reason = f"the process that watches over the workers died: {_last_line(error)}"
            if lost > allowed:
                raise RuntimeError(
                    f"{reason}; {lost} times in a row (train.max_failures: {allowed}); see {folder.logs}"
                ) from error
            if folder.remote is None:
                RecordWriter(folder.events).add(event("failed", text=reason[:500]))


def _give_back(folder: RunFolder, everything: bool) -> None:
    """Give back what the run's earlier workers had reserved, whose controller or driver may have died without doing it.

    `everything`: whatever this cluster's workers have, as it has no other user.
    """
    with suppress(OSError):  # away: what the mirror has
        folder.fetch(folder.events)
    earlier = read_events(folder.events)
    ray_private.release({event["requester"] for event in earlier if event.get("requester")})
    groups = {event["group"] for event in earlier if event.get("group")}
    if everything or groups:
        ray_private.remove_placement_groups(None if everything else groups)


class _NoteFailures(UserCallback):  # type: ignore[misc]
    """Why workers were lost, among the run's events; called in the process that Ray Train watches them from."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """One event for all workers that are gone; in a store, worker 0 alone adds to the events."""
        folder = RunFolder.at(self.folder)
        if folder.remote is None:
            text = "; ".join(f"worker {rank}: {_last_line(error)}" for rank, error in sorted(worker_exceptions.items()))
            RecordWriter(folder.events).add(event("failed", text=text[:500]))


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__


def _set_timeouts(experiment: Experiment) -> None:
    """Ray Train's own time-outs, which it reads from the environment of the driver."""
    settings = experiment.train
    # A restart first requests the room of the node that died, until the cluster's view of itself is fresh again.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{settings.start_timeout:g}")
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", f"{settings.collective_timeout:g}")
    # How soon a worker's end is seen; 2 s by default.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs."""
    folder = RunFolder.at(settings["folder"], mirror=f"worker-{ray.train.get_context().get_world_rank()}")
    plan: TrainingPlan = replace(settings["plan"], videos=ray.get(settings["rows"]))
    experiment = plan.experiment
    host: RayHost | None = None
    context, session = ray.train.get_context(), settings["session"]
    mine = survivor(session, context.get_world_rank())
    sound = True
    try:
        count_attempt(folder, session, experiment.train.max_failures, ray_private.placement_group())
        folder.pull(alone=True)  # each worker has a mirror of its own
        torch.set_num_threads(_threads(experiment))
        ray_private.decode_to_the_end()
        host = RayHost(
            plan, settings["rows"], settings["stores"], folder, settings["resources"], mine, settings["spares"]
        )
        start = {"session": session, "nodes": _nodes(), "requester": ray_private.requester()}
        mine.copies = distributed.first_with(ray.get_runtime_context().get_node_id())
        restored = restore(folder, start, experiment.train.max_failures, lambda: kept_state(session))
        monitor = host.open(int(restored["step"]) if restored else 0, settings["monitored"])
        step = train(settings["task"], plan, folder, host, restored, monitor)
        return {"step": step, "stopped": step < plan.steps}
    except NonFiniteError:
        sound = False
        if context.get_world_rank() == 0:
            forget(session)
        raise  # the last checkpoint may be sound, so Ray is to start the workers again
    except UserError as error:
        # Trying again cannot help, so this is an end and not a failure for Ray to restart.
        return {"error": str(error)}
    finally:
        mine.end(sound)
        if host:
            host.close()


def _threads(experiment: Experiment) -> int:
    """This worker's share of the CPUs of its node, of which other runs (trials) may want some too."""
    on_this_node: int = ray.train.get_context().get_local_world_size()
    share = max(1, usable_cpus() // on_this_node)
    return min(share, experiment.train.threads or share)


def _nodes() -> int:
    return sum(bool(node["Alive"]) for node in ray.nodes())
