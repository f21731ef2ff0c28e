"""Ray's part of the doctor: connect, query each node, measure the network between them, find what the cluster may grow to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vicc_ray.cluster.resources import total
from vicc_ray.cluster.session import join, machine_grown, nodes_now
from vicc_ray.doctor.checks import Transfer
from vicc_ray.doctor.demand import Capacity
from vicc_ray.doctor.facts import NodeFacts, Question, gather, unseen_files

# A node first unpacks the job's folder and imports; then it decodes three videos.
NODE_SECONDS = 180.0
CLOCK_TRIES = 3
NETWORK_BYTES = 32 * 2**20
MOST_WAYS = 16


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Ray at an address, or started on this machine for the time of the doctor. UserError where it does not answer."""
    try:
        if address is None:
            ray.init(
                address="local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=True,
                dashboard_port=0,
            )
        else:
            join(address, False, logging.ERROR)
        yield
    finally:
        ray.shutdown()


def query_nodes(question: Question) -> list[NodeFacts]:
    """The facts of every node that is alive, the driver's first."""
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    nodes.sort(key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"]))
    names = _names(nodes)
    pending = {
        name: _on(node, gather).remote(name, replace(question, gpus=bool(node["Resources"].get("GPU"))))
        for name, node in names.items()
    }
    facts = {name: _answer(name, reference) for name, reference in pending.items()}
    answering = [name for name, fact in facts.items() if fact.error is None]
    for name in answering:
        node, fact = names[name], facts[name]
        resources = node["Resources"]
        clock, error = _clock(node)
        unseen = ()
        if question.folder:
            writers = [other for other in answering if facts[other].storage_error is None]
            unseen = ray.get(_on(node, unseen_files).remote(question.folder, writers), timeout=NODE_SECONDS)
        facts[name] = replace(
            fact,
            head="node:__internal_head__" in resources,
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            object_store=int(resources.get("object_store_memory", 0)),
            clock=clock,
            clock_error=error,
            unseen=unseen,
        )
    return list(facts.values())


def measure_network() -> list[Transfer]:
    """How fast an object goes from each node to the next, in a ring; nothing where there is one node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = list(_names(nodes))
    if len(nodes) < 2:
        return []
    ways = [(number, (number + 1) % len(nodes)) for number in range(len(nodes))][:MOST_WAYS]
    return [_transfer(names[a], nodes[a], names[b], nodes[b]) for a, b in ways]


def capacity(nodes: Sequence[NodeFacts]) -> Capacity:
    """What the cluster has, and what its autoscaler may make of it."""
    there = nodes_now()
    return Capacity(tuple(there), machine_grown(total(there)), sum(node.memory_free for node in nodes))


def _names(nodes: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes by a name for the reader: the address, with a part of Ray's number where several share one."""
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        address if addresses.count(address) == 1 else f"{address}-{node['NodeID'][:6]}": node
        for address, node in zip(addresses, nodes, strict=True)
    }


def _on(node: dict[str, Any], function: Any) -> Any:
    """The function as a task that runs on the node and takes none of its CPUs."""
    where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=where)


def _answer(name: str, reference: Any) -> NodeFacts:
    try:
        facts: NodeFacts = ray.get(reference, timeout=NODE_SECONDS)
        return facts
    except GetTimeoutError:
        return NodeFacts(name, error=f"did not answer within {NODE_SECONDS:.0f} s")
    except RayError as error:
        return NodeFacts(name, error=str(error).strip().splitlines()[-1][:300])


def _clock(node: dict[str, Any]) -> tuple[float, float]:
    """How far the node's clock is ahead, and how far that may be wrong: half of the quickest question's way."""
    measure = _on(node, _time)
    tries = []
    for _ in range(CLOCK_TRIES):
        sent = time.time()
        there = ray.get(measure.remote(), timeout=NODE_SECONDS)
        back = time.time()
        tries.append(((back - sent) / 2, there - (sent + back) / 2))
    error, ahead = min(tries)
    return ahead, error


def _time() -> float:
    return time.time()  # wrapped, as Ray takes no built-in function


def _transfer(source: str, source_node: dict[str, Any], target: str, target_node: dict[str, Any]) -> Transfer:
    try:
        thing = _on(source_node, _make).remote(NETWORK_BYTES)
        ray.wait([thing], timeout=NODE_SECONDS, fetch_local=False)
        seconds = ray.get(_on(target_node, _take).remote([thing]), timeout=NODE_SECONDS)
        return Transfer(source, target, NETWORK_BYTES / seconds)
    except RayError as error:
        return Transfer(source, target, 0.0, str(error).strip().splitlines()[-1][:200])


def _make(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def _take(reference: list[Any]) -> float:
    """Seconds to get the object of a reference, which Ray does not fetch by itself as it lies in a list."""
    began = time.perf_counter()
    ray.get(reference[0])
    return max(time.perf_counter() - began, 1e-9)
