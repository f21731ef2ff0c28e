"""What a run asks of a cluster, worked out before anything starts. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vicc_ray.config import TrainConfig
from vicc_ray.errors import UserError


@dataclass(frozen=True)
class Machine:
    """What there is: CPUs and GPUs that Ray may hand out, memory in bytes."""

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class ResourcePlan:
    """What is asked: one CPU (and GPU) a worker, one CPU a decode actor, a cap on the object store in bytes."""

    workers: int
    use_gpu: bool
    decode_actors: int
    object_store: int

    @property
    def cpus(self) -> int:
        """CPUs that Ray must be able to hand out; Ray Data gets only what Ray Train has not reserved."""
        return self.workers + self.decode_actors

    def describe(self) -> str:
        """One line for the reader."""
        device = "GPU" if self.use_gpu else "CPU"
        return (
            f"{self.workers} workers on {device}, {self.decode_actors} decode actors, "
            f"object store up to {self.object_store / 2**30:.1f} GiB"
        )


def this_machine() -> Machine:
    """CPUs that this process may use and memory of this machine; GPUs as torch sees them."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(len(os.sched_getaffinity(0)), torch.cuda.device_count(), memory)


def plan_local(train: TrainConfig, machine: Machine, object_store_limit: int = 8 * 2**30) -> ResourcePlan:
    """The plan on one machine, where workers and decode actors share the CPUs; UserError where workers exceed them."""
    if train.workers > machine.cpus:
        raise UserError(
            f"train.workers: {train.workers} workers need as many CPUs, this machine has {machine.cpus}; "
            f"set train.workers to {machine.cpus} or less, or give the address of a cluster"
        )
    use_gpu = _use_gpu(train, machine.gpus)
    actors = train.decode_actors or max(1, machine.cpus - train.workers if use_gpu else machine.cpus // 2)
    store = min(int(machine.memory * train.object_store_share), object_store_limit)
    return ResourcePlan(train.workers, use_gpu, actors, store)


def plan_cluster(train: TrainConfig, machine: Machine) -> ResourcePlan:
    """The plan on a cluster that is already running; UserError where it can never fit."""
    use_gpu = _use_gpu(train, machine.gpus)
    if train.workers >= machine.cpus:
        raise UserError(
            f"train.workers: {train.workers} workers and at least one decode actor need {train.workers + 1} CPUs, the cluster has "
            f"{machine.cpus}; set train.workers to {max(machine.cpus - 1, 1)} or less, or add nodes"
        )
    actors = min(train.decode_actors or machine.cpus, machine.cpus - train.workers)
    return ResourcePlan(train.workers, use_gpu, actors, int(machine.memory * train.object_store_share))


def _use_gpu(train: TrainConfig, gpus: int) -> bool:
    if train.use_gpu == "auto":
        return gpus >= train.workers
    if train.use_gpu and gpus < train.workers:
        raise UserError(
            f"train.use_gpu: {train.workers} workers need as many GPUs, there are {gpus}; "
            f"set train.workers to {max(gpus, 1)} or train.use_gpu to false"
        )
    return train.use_gpu
