"""What a run needs of a cluster, worked out before anything starts. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vicc_ray.config import ClipConfig, PlaceConfig, TrainConfig
from vicc_ray.errors import UserError
from vicc_ray.machine import memory_bytes, usable_cpus


@dataclass(frozen=True)
class Machine:
    """What there is: CPUs and GPUs that Ray may allocate, memory in bytes."""

    cpus: int
    gpus: int
    memory: int


@dataclass(frozen=True)
class Decoders:
    """Decode actors: how many, the CPUs that Ray reserves for each, the labels of the nodes that they go to (none: any)."""

    actors: int
    cpus: float = 1
    labels: Mapping[str, str] = field(default_factory=dict)

    def share(self, rank: int, workers: int) -> Decoders:
        """Those of worker `rank` of `workers`: dealt out in turn, or one with its part of the CPUs where they are too few."""
        if self.actors < workers:
            # Rounded down to the part of a CPU that Ray counts in.
            return replace(self, actors=1, cpus=int(1e4 * self.cpus * self.actors / workers) / 1e4)
        return replace(self, actors=len(range(rank, self.actors, workers)))


@dataclass(frozen=True)
class ResourcePlan:
    """The request: from `min_workers` to `workers` workers with one CPU (and GPU) each, decode actors beside them.

    `decode_actors` None: one a worker. `decode_cpus` is what Ray reserves for each of them: nothing where workers may take
    every CPU as they come, and decode actors share them, so that neither can starve the other.
    `object_store` caps it, in bytes. `train_labels` and `decode_labels` are those of the nodes that both go to; none: any.
    """

    min_workers: int
    workers: int
    use_gpu: bool
    decode_actors: int | None
    decode_cpus: float
    object_store: int
    train_labels: Mapping[str, str] = field(default_factory=dict)
    decode_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpus(self) -> int:
        """CPUs that Ray must be able to allocate; Ray Data gets only what Ray Train has not reserved."""
        return self.workers + (self.decode_actors or self.workers)

    def decoders(self, workers: int) -> Decoders:
        """The decode actors of `workers` workers."""
        return Decoders(self.decode_actors or workers, self.decode_cpus, self.decode_labels)

    def describe(self) -> str:
        """One line for the reader."""
        device = "GPU" if self.use_gpu else "CPU"
        count = str(self.workers) if self.min_workers == self.workers else f"{self.min_workers} to {self.workers}"
        actors = str(self.decode_actors) if self.decode_actors else "as many"
        store = f"object store up to {self.object_store / 2**30:.1f} GiB"
        return f"{count} workers on {device}{_on(self.train_labels)}, {actors} decode actors{_on(self.decode_labels)}, {store}"


def _on(labels: Mapping[str, str]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in labels.items())})" if labels else ""


def this_machine() -> Machine:
    """CPUs that this process may use and memory of this machine; GPUs as torch sees them."""
    return Machine(usable_cpus(), _gpus(), memory_bytes())


def _gpus() -> int:
    """GPUs as torch counts them, without its import (seconds) where the system has no device of the kinds that it knows."""
    if sys.platform == "linux" and not any(Path("/dev").glob(kind) for kind in ("nvidia[0-9]*", "kfd", "dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def plan_local(train: TrainConfig, machine: Machine, object_store_limit: int = 8 * 2**30) -> ResourcePlan:
    """The plan on one machine, where workers and decode actors share the CPUs; UserError where workers exceed them."""
    low, high = train.workers.min, train.workers.max
    if low > machine.cpus:
        raise UserError(
            f"train.workers: {low} workers need as many CPUs, this machine has {machine.cpus}; "
            f"set train.workers to {machine.cpus} or less, or give the address of a cluster"
        )
    high = min(high, machine.cpus)
    use_gpu = _use_gpu(train, machine.gpus)
    if use_gpu:
        high = min(high, machine.gpus)
    actors = train.decode_actors or max(1, machine.cpus - high if use_gpu else machine.cpus // 2)
    store = min(int(machine.memory * train.object_store_share), object_store_limit)
    # The size of this machine does not change, so neither does the number of its workers.
    return ResourcePlan(high, high, use_gpu, actors, 1, store)


def plan_placed(train: TrainConfig, machine: Machine, decoding: Machine) -> ResourcePlan:
    """The plan on a cluster whose nodes for training, `machine`, and for decoding have labels of their own.

    Decode actors stand in no worker's way, so each has a CPU: `train.decode_actors` of them, else all of those nodes'.
    UserError as `plan_cluster`, and where there is nothing to decode on.
    """
    if decoding.cpus < 1:
        raise UserError(
            f"train.place.decode:{_on(train.place.decode)} nodes have no CPU to decode on; give them some, or clear it"
        )
    actors = min(train.decode_actors or decoding.cpus, decoding.cpus)
    plan = plan_cluster(train, machine)
    return replace(plan, decode_actors=actors, decode_cpus=1, decode_labels=train.place.decode)


def plan_cluster(train: TrainConfig, machine: Machine) -> ResourcePlan:
    """The plan on a cluster that is already running; UserError where it can never fit.

    A range of workers may exceed what is there now: nodes may come. `machine` is that of the nodes that may train.
    """
    low, high = train.workers.min, train.workers.max
    use_gpu = _use_gpu(train, machine.gpus)
    fixed = low == high
    if fixed and low > machine.cpus:
        raise UserError(
            f"train.workers: {low} workers need as many CPUs, the cluster has {machine.cpus}; set train.workers to "
            f"{machine.cpus} or less or to a range such as {{min: 1, max: {low}}}, or add nodes"
        )
    free = machine.cpus - high
    if free > 0 and (fixed or use_gpu):
        return ResourcePlan(low, high, use_gpu, min(train.decode_actors or free, free), 1, machine.memory)
    return ResourcePlan(low, high, use_gpu, train.decode_actors, 0, machine.memory)


def _use_gpu(train: TrainConfig, gpus: int) -> bool:
    needed = train.workers.min
    if train.use_gpu == "auto":
        return gpus >= needed
    if train.use_gpu and gpus < needed:
        raise UserError(
            f"train.use_gpu: {needed} workers need as many GPUs, there are {gpus}; "
            f"set train.workers to {max(gpus, 1)} or train.use_gpu to false"
        )
    return train.use_gpu


# Decode actors that are requested from an autoscaler where `train.decode_actors` does not say.
DECODERS_A_WORKER = 8
# How many CPUs or GPUs an autoscaler may bring that does not say, as those of 'ray up' and KubeRay do not.
UNKNOWN = 10**6
NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Node:
    """A node of the cluster: what Ray may allocate of it, and its labels."""

    machine: Machine
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it has all these labels."""
        return labels.items() <= self.labels.items()


def plan_on(train: TrainConfig, nodes: Sequence[Node], grown: Machine | None) -> tuple[ResourcePlan, list[str]]:
    """The plan, and lines for the reader; `grown` is the most that an autoscaler may bring, None where there is none.

    UserError where it can never fit, and where only the reader can know whether GPUs will come.
    """
    if grown is not None and grown.gpus >= UNKNOWN and train.use_gpu == "auto" and not total(nodes).gpus:
        raise UserError(
            "train.use_gpu: auto cannot decide: the cluster has no GPU now, and how many its autoscaler brings is not known; "
            "set train.use_gpu to true or false"
        )
    place, notes = _place(train.place, nodes, grown is not None)
    apart = _apart(place)
    machine, decoding = total(nodes, place.train), total(nodes, place.decode)
    if grown is not None:
        # It may bring thousands of CPUs: decode actors are not to take them all.
        beside = train.workers.max * DECODERS_A_WORKER
        most = max(machine.cpus, train.workers.max + (0 if apart else beside))
        machine = replace(grown, cpus=min(grown.cpus, most))
        decoding = replace(grown, cpus=min(grown.cpus, max(decoding.cpus, beside)))
    placed = train.model_copy(update={"place": place})
    plan = plan_placed(placed, machine, decoding) if apart else plan_cluster(placed, machine)
    return replace(plan, train_labels=place.train, decode_labels=place.decode), notes


def total(nodes: Sequence[Node], labels: Mapping[str, str] = NONE) -> Machine:
    """What the nodes that have all these labels have together."""
    found = [node.machine for node in nodes if node.has(labels)]
    return Machine(sum(one.cpus for one in found), sum(one.gpus for one in found), sum(one.memory for one in found))


def _place(place: PlaceConfig, nodes: Sequence[Node], can_grow: bool) -> tuple[PlaceConfig, list[str]]:
    """The labels that are of use: with one kind of node, as on most clusters, an experiment runs all the same."""
    wanted = {"train": place.train, "decode": place.decode}
    absent = {name: labels for name, labels in wanted.items() if not any(node.has(labels) for node in nodes)}
    if can_grow or not absent:
        return place, []
    notes = [
        f"train.place.{name}: no node has {', '.join(f'{key}={value}' for key, value in labels.items())}; any node is taken"
        for name, labels in absent.items()
    ]
    # Workers that may go anywhere may take the decode nodes' CPUs too, so both are placed or none.
    return PlaceConfig(), notes


def _apart(place: PlaceConfig) -> bool:
    """Whether no node can be one that trains and one that decodes."""
    return any(place.decode.get(name, value) != value for name, value in place.train.items())


# Blocks that a worker holds beside the one it works on.
PREFETCH = 2
# The least of a stream: many blocks where clips are small. More would be decoded in vain where a start is soon followed by another.
MIN_BUFFER_BYTES = 32 * 2**20


# Delivering a block takes some 10 ms of CPU whatever its size, so steps travel together: of a packed store as many as 64 MB hold
# (reading 3 samples of 7 MB takes as long), of videos as many as are trained in BLOCK_SECONDS and 16 MiB hold.
PACKED_BLOCK_BYTES = 64 << 20
VIDEO_BLOCK_BYTES = 16 << 20
BLOCK_SECONDS = 1.0


def steps_a_block(clip: ClipConfig, samples: int, seconds: float | None = None) -> int:
    """Training steps whose samples travel together, where a worker has up to `samples` a step and one takes `seconds`.

    None: not known yet. The first block of a run is not to wait for more than its own step's videos.
    """
    most = PACKED_BLOCK_BYTES if clip.source == "store" else VIDEO_BLOCK_BYTES
    fit = max(most // clips_bytes(clip, 2 * samples), 1)
    if clip.source == "store":
        return fit
    return 1 if seconds is None else min(max(int(BLOCK_SECONDS / max(seconds, 1e-3)), 1), fit)


def tasks_an_actor(clip: ClipConfig) -> int:
    """Blocks that a decode actor has to do or to deliver at a time: a packed store is read faster than the scheduling loop
    passes blocks on."""
    return 4 if clip.source == "store" else 2


def training_buffer_bytes(clip: ClipConfig, samples: int, actors: int, steps: int) -> int:
    """Bytes of decoded clips that Ray Data may keep for one worker with its decode actors, of blocks of `steps` steps of up to
    `samples` samples."""
    # A worker holds the block that it works on, too.
    return buffer_bytes(clip, 2 * samples * steps, blocks=PREFETCH + 3 + tasks_an_actor(clip) * actors)


def buffer_bytes(clip: ClipConfig, clips: int, blocks: int) -> int:
    """Bytes that Ray Data may keep decoded: enough that nobody waits, however large the store and the data set are."""
    return max(blocks * clips_bytes(clip, clips), MIN_BUFFER_BYTES)


def clips_bytes(clip: ClipConfig, clips: int) -> int:
    """Bytes of some clips of both streams, RGB and flow: 5 bytes a pixel."""
    height, width = clip.decode_size
    return clips * clip.frames * height * width * 5
