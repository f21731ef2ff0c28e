"""What a connected Ray cluster has, and the most that its autoscaler may make of it."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from vicc_ray import ray_private
from vicc_ray.placement import UNKNOWN, Node
from vicc_ray.resources import Machine


def nodes_now() -> list[Node]:
    """The nodes that are there, with their CPUs, GPUs and object stores."""

    def machine(there: Mapping[str, float]) -> Machine:
        return Machine(*(int(there.get(kind, 0)) for kind in ("CPU", "GPU", "object_store_memory")))

    return [Node(machine(node["Resources"]), node["Labels"]) for node in ray.nodes() if node["Alive"]]


def machine_grown(now: Machine) -> Machine | None:
    """The most that the autoscaler may bring, `UNKNOWN` of what has no known limit; None without one.

    The object store is what is there now, or more where the autoscaler's kinds of nodes name theirs.
    """
    most = ray_private.most_resources()
    if most is None:
        return Machine(UNKNOWN, UNKNOWN, now.memory) if ray_private.has_autoscaler() else None
    # Ray says `sys.maxsize` for a kind of node without a limit.
    cpus, gpus = (min(int(most.get(kind, 0)), UNKNOWN) for kind in ("CPU", "GPU"))
    memory = max(now.memory, int(most.get("object_store_memory", 0)))
    return Machine(max(cpus, now.cpus), max(gpus, now.gpus), memory)
