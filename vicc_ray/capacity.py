"""What a connected Ray cluster has, and the most that its autoscaler may make of it."""

from __future__ import annotations

import ray

from vicc_ray.resources import Machine

# Ray says `sys.maxsize` for a kind of node without a limit.
_UNLIMITED = 10**6


def machine_now() -> Machine:
    """CPUs, GPUs and object store of all nodes that are there."""
    there = ray.cluster_resources()
    return Machine(int(there.get("CPU", 0)), int(there.get("GPU", 0)), int(there.get("object_store_memory", 0)))


def machine_grown(now: Machine) -> Machine | None:
    """The most that the autoscaler may bring; None without one. No public interface of Ray tells it.

    The object store is what is there now, or more where the autoscaler's kinds of nodes name theirs.
    """
    from ray._private.state import state

    most = state.get_max_resources_from_cluster_config()
    if not most:
        return None
    cpus, gpus = (min(int(most.get(kind, 0)), _UNLIMITED) for kind in ("CPU", "GPU"))
    memory = max(now.memory, int(most.get("object_store_memory", 0)))
    return Machine(max(cpus, now.cpus), max(gpus, now.gpus), memory)
