"""What a run needs of a cluster, and whether that is there now, only after scaling up, or never. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from vicc_ray.cluster.resources import (
    UNKNOWN,
    Machine,
    Node,
    ResourcePlan,
    plan_on,
    steps_a_block,
    total,
    training_buffer_bytes,
)
from vicc_ray.config import Experiment
from vicc_ray.doctor.checks import Finding, gibibytes
from vicc_ray.errors import UserError

# Resident memory of a worker and of a decode actor with its reading child, without activations (docs/benchmarks.md).
WORKER_BYTES, DECODER_BYTES = int(1.5 * 2**30), int(0.6 * 2**30)


@dataclass(frozen=True)
class Capacity:
    """The cluster's nodes, and the most it may have; `grown` None: nothing scales it. `free_memory` of all nodes in bytes."""

    nodes: tuple[Node, ...]
    grown: Machine | None
    free_memory: int

    @property
    def now(self) -> Machine:
        """What is there."""
        return total(self.nodes)

    @property
    def most(self) -> Machine:
        """The most that can be had."""
        return self.grown or self.now


@dataclass(frozen=True)
class Demand:
    """What a run needs at its largest: bytes of decoded clips in the object store, resident memory of its processes."""

    plan: ResourcePlan
    actors: int
    buffer: int
    memory: int
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for the reader."""
        device = "one CPU and one GPU" if self.plan.use_gpu else "one CPU"
        low, high = self.plan.min_workers, self.plan.workers
        count = str(high) if low == high else f"{low} to {high}"
        share = "one CPU each" if self.plan.decode_cpus else "sharing the workers' CPUs"
        return (
            f"{count} workers of {device}, {self.actors} decode actors ({share}), {gibibytes(self.buffer)} of object store, "
            f"{gibibytes(self.memory)} of memory without activations"
        )


def demand_of(experiment: Experiment, largest_batch: int, capacity: Capacity) -> Demand:
    """What the experiment needs of this cluster; UserError where it can never fit."""
    plan, notes = plan_on(experiment.train, capacity.nodes, capacity.grown)
    shares = [plan.decoders(plan.workers).share(rank, plan.workers).actors for rank in range(plan.workers)]
    actors, clip, samples = sum(shares), experiment.clip, -(-largest_batch // plan.workers)
    return Demand(
        plan,
        actors,
        plan.workers * training_buffer_bytes(clip, samples, max(shares), steps_a_block(clip, samples, 0.0)),
        plan.workers * WORKER_BYTES + actors * DECODER_BYTES,
        tuple(notes),
    )


def check_demand(experiment: Experiment, largest_batch: int, capacity: Capacity) -> list[Finding]:
    """What the run needs, and whether there is room."""
    try:
        demand = demand_of(experiment, largest_batch, capacity)
    except UserError as error:
        return [Finding("room", "failure", str(error).split(";")[0], str(error).partition(";")[2].strip())]
    findings = [Finding("demand", "ok", demand.describe()), _room(demand.plan, capacity)]
    findings += [
        Finding("place", "warning", note, "give the nodes their labels, or clear train.place") for note in demand.notes
    ]
    if demand.buffer > capacity.most.memory:
        findings.append(
            Finding(
                "object store",
                "warning",
                f"decoded clips may take {gibibytes(demand.buffer)}, the object stores have {gibibytes(capacity.most.memory)}",
                "Ray writes to disk what does not fit: fewer train.decode_actors, a smaller clip.decode_size, or more memory",
            )
        )
    if capacity.grown is None and demand.memory > capacity.free_memory:
        findings.append(
            Finding(
                "room",
                "warning",
                f"the processes need {gibibytes(demand.memory)}, the nodes have {gibibytes(capacity.free_memory)} free",
                "fewer train.workers or train.decode_actors, or more memory",
            )
        )
    return findings


def _room(plan: ResourcePlan, capacity: Capacity) -> Finding:
    training = total(capacity.nodes, plan.train_labels)
    now, most = (_workers_in(machine, plan.use_gpu) for machine in (training, capacity.grown or training))
    kind = "GPUs" if plan.use_gpu else "CPUs"
    if now >= plan.workers:
        return Finding("room", "ok", f"fits now: {plan.workers} workers, {kind} for {now}")
    if now >= plan.min_workers:
        later = f"grows to {min(most, plan.workers)} as nodes come" if most > now else "grows if nodes join"
        return Finding("room", "ok", f"begins now with {now} of up to {plan.workers} workers, {later}")
    if most >= plan.min_workers:
        return Finding(
            "room",
            "ok",
            f"fits after scaling up, and waits for it: {kind} for {now} workers now, {_at_most(most)}",
        )
    return Finding(
        "room",
        "failure",
        f"{plan.min_workers} workers need as many {kind}, the cluster has {now}"
        + (f" and at most {most}" if most > now else ""),
        f"lower train.workers (to {max(most, 1)}), or add nodes",
    )


def _at_most(workers: int) -> str:
    return "and how many may come is not known" if workers >= UNKNOWN else f"for {workers} at most"


def _workers_in(machine: Machine, use_gpu: bool) -> int:
    return min(machine.cpus, machine.gpus) if use_gpu else machine.cpus
