"""How many trials run side by side, worked out against the machine or cluster before anything starts. Pure.

Ray Tune places a trial's driver and nothing else; Ray Train's workers and Ray Data's decode actors come after it. Trials that
hold their workers while no CPU is left for anybody's decode actors would wait for each other for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vicc_ray.cluster.resources import Machine, plan_cluster, plan_local
from vicc_ray.config import Experiment, SearchConfig, TrainConfig, WorkerRange
from vicc_ray.errors import UserError


@dataclass(frozen=True)
class TrialsPlan:
    """`concurrency` trials with the `train` settings each; `remark` says what differs from the settings."""

    concurrency: int
    train: TrainConfig
    use_gpu: bool
    available: int  # CPUs that Ray can allocate
    note: str = ""

    @property
    def whole(self) -> TrainConfig:
        """What all trials at once need, as if they were one run."""
        workers, actors = self.train.workers.min * self.concurrency, self.train.decode_actors
        return self.train.model_copy(
            update={
                "workers": WorkerRange(min=workers, max=workers),
                "decode_actors": actors * self.concurrency if actors else None,
            }
        )

    def describe(self) -> str:
        """One line for the reader."""
        low, high, actors = self.train.workers.min, self.train.workers.max, self.train.decode_actors
        count = f"{low} to {high} workers" if low != high else f"{low} worker{'s' * (low != 1)}"
        beside = f"{actors} decode actor{'s' * (actors != 1)}" if actors else "a decode actor a worker"
        line = (
            f"{self.concurrency} trial{'s' * (self.concurrency != 1)} at a time x ({count} on "
            f"{'GPU' if self.use_gpu else 'CPU'} + {beside}), {self.available} CPUs there"
        )
        return f"{line}; {self.note}" if self.note else line


def with_drivers(plan: TrialsPlan, memory: int, driver: int) -> TrialsPlan:
    """The plan with no more trials at once than drivers of `driver` bytes fit into the nodes' `memory`.

    UserError where not even one does.
    """
    room = memory // driver
    if room < 1:
        raise UserError(
            f"search.concurrency: a trial's driver takes {driver / 2**20:.0f} MiB, the cluster has {memory / 2**20:.0f} MiB of "
            "memory to hand out; add nodes, or start them with more ('ray start --memory')"
        )
    if plan.concurrency <= room:
        return plan
    note = f"memory for {room} drivers only"
    return replace(plan, concurrency=room, note=f"{plan.note}; {note}" if plan.note else note)


def with_room_for_one(now: Machine, grown: Machine | None, train: TrainConfig) -> Machine:
    """What trials are planned on: what is there, and with an autoscaler as much of what it may bring as one trial needs."""
    if grown is None:
        return now
    workers = train.workers.min
    cpus = workers + (train.decode_actors or workers)
    gpus = 0 if train.use_gpu is False else workers
    return replace(now, cpus=max(now.cpus, min(grown.cpus, cpus)), gpus=max(now.gpus, min(grown.gpus, gpus)))


def plan_trials(experiment: Experiment, search: SearchConfig, machine: Machine, local: bool) -> TrialsPlan:
    """The plan on this machine (`local`) or on a cluster; UserError where not even one fits.

    On this machine workers and decode actors take turns on the CPUs, so workers alone count. On a cluster each has its own.
    With a range of workers (`train.workers: {min, max}`) a concurrency beyond what is there is kept, as nodes may come:
    such trials share CPUs between workers and decode actors and cannot starve each other.
    """
    train = experiment.train
    if local:
        train = train.model_copy(update={"workers": WorkerRange(min=train.workers.min, max=train.workers.min)})
    one = plan_local(train, machine) if local else plan_cluster(train, machine)
    workers, elastic = train.workers.min, train.workers.min != train.workers.max
    actors = train.decode_actors or (1 if local else workers)
    each = workers if local or elastic else workers + actors
    room = max(machine.cpus // each, 1)
    if one.use_gpu:
        room = max(min(room, machine.gpus // workers), 1)
    wanted = search.concurrency or room
    note = ""
    if wanted > room and elastic:
        note = f"{room} fit now, the others wait for nodes"
    elif wanted > room:
        note = f"search.concurrency {search.concurrency} does not fit"
        wanted = room
    settings = _with_threads(_with_actors(train, machine, local, elastic, wanted), machine, wanted)
    return TrialsPlan(wanted, settings, one.use_gpu, machine.cpus, note)


def _with_threads(train: TrainConfig, machine: Machine, concurrency: int) -> TrainConfig:
    """Workers of trials that take turns on a node's CPUs: with a node's worth of threads each, they would mostly wait."""
    share = max(machine.cpus // (concurrency * train.workers.min), 1)
    return train.model_copy(update={"threads": min(share, train.threads or share)})


def _with_actors(train: TrainConfig, machine: Machine, local: bool, elastic: bool, concurrency: int) -> TrainConfig:
    """The settings of one trial, whose decode actors are its share of what is there: Train would take all for each."""
    if train.decode_actors or (elastic and not local):
        return train
    share = machine.cpus // concurrency
    actors = share // 2 if local else share - train.workers.min
    return train.model_copy(update={"decode_actors": max(actors, 1)})
