"""From the facts of all nodes to findings: what is right, what is not, what to do about it. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vicc_ray.doctor.facts import NodeFacts

State = Literal["ok", "warning", "failure"]
# Packages whose versions have to be equal: Ray refuses to join others, the rest decides numbers.
DECISIVE = (
    "python",
    "ray",
    "torch",
    "torchvision",
    "numpy",
    "vicc-ray",
    "decord",
    "av",
    "opencv-contrib-python-headless",
)
CLOCK_WARNING, CLOCK_FAILURE = 2.0, 60.0
SLOW_CLIP_SECONDS = 2.0
# Of a GPU in training, for orientation; what yours does is in the run's progress.
GPU_SAMPLES = 100
SLOW_NETWORK = 100e6
MEMORY_FREE_SHARE = 0.1


@dataclass(frozen=True)
class Finding:
    """One line of the table; `remedy` is what to do about a warning or failure."""

    check: str
    state: State
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Transfer:
    """Bytes a second at which one node got an object of another; the reason where it did not."""

    source: str
    target: str
    rate: float
    error: str | None = None


def check_nodes(nodes: Sequence[NodeFacts], driver: dict[str, str], folder: str | None) -> list[Finding]:
    """Findings about nodes; `driver`: the packages of the process that would drive the run, `folder` of its runs."""
    answering = [node for node in nodes if node.error is None]
    findings = [
        Finding("nodes", "ok", f"{len(answering)} of {len(nodes)} answered: {', '.join(n.name for n in answering)}")
    ]
    findings += [
        Finding(
            "nodes",
            "failure",
            f"{node.name}: {node.error}",
            "is the project installed there (cluster/Containerfile), and the machine alive? 'ray status' lists nodes",
        )
        for node in nodes
        if node.error is not None
    ]
    checks: list[Callable[[], list[Finding]]] = [
        lambda: check_versions(answering, driver),
        lambda: check_processors(answering),
        lambda: check_gpus(answering),
        lambda: check_memory(answering),
        lambda: check_clocks(answering),
        lambda: check_storage(answering, folder) if folder else [],
        lambda: check_stores(answering),
        lambda: check_videos(answering),
        lambda: check_supply(answering),
    ]
    return findings + [finding for check in checks for finding in check()]


def check_versions(nodes: Sequence[NodeFacts], driver: dict[str, str]) -> list[Finding]:
    """Python to the second number and the decisive packages are the driver's on every node."""
    findings = []
    for package in DECISIVE:
        wanted = _comparable(package, driver.get(package))
        other = [node for node in nodes if _comparable(package, node.packages.get(package)) != wanted]
        if other:
            message = ", ".join(f"{node.name} has {node.packages.get(package, 'none')}" for node in other)
            findings.append(
                Finding(
                    "versions",
                    "failure",
                    f"{package}: the driver has {driver.get(package, 'none')}, {message}",
                    "start every node from one image (cluster/Containerfile) or install requirements.lock everywhere",
                )
            )
    same = ", ".join(f"{name} {driver[name]}" for name in ("python", "ray", "torch") if name in driver)
    return findings or [Finding("versions", "ok", f"the same everywhere: {same}")]


def check_processors(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Ray allocates no more CPUs than a node may use."""
    over = [node for node in nodes if node.cpus > node.cores + 0.5]
    if not over:
        counts = Counter(f"{node.cpus:g}" for node in nodes if node.cpus)
        message = ", ".join(f"{count} nodes of {cpus}" for cpus, count in sorted(counts.items())) or "none on any node"
        faster = sum(node.matrix_units for node in nodes if node.cpus)
        units = f"; {faster} with matrix units for bf16 (see optim.precision)" if faster else ""
        return [Finding("CPUs", "ok", message + units)]
    message = ", ".join(f"{node.name}: Ray allocates {node.cpus:g}, the machine allows {node.cores:g}" for node in over)
    return [
        Finding(
            "CPUs", "warning", message, "start its Ray with --num-cpus at what the machine (or its container) allows"
        )
    ]


def check_gpus(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Each GPU that Ray allocates is one that torch can compute on."""
    findings = []
    for node in nodes:
        if node.gpus > len(node.gpu_memory):
            findings.append(
                Finding(
                    "GPUs",
                    "failure",
                    f"{node.name}: Ray allocates {node.gpus:g}, torch can use {len(node.gpu_memory)}"
                    + (f" ({node.gpu_error})" if node.gpu_error else ""),
                    "check the driver with nvidia-smi there, the container's NVIDIA runtime, and that torch is a CUDA build",
                )
            )
    there = [node for node in nodes if node.gpus]
    if not findings and there:
        memory = ", ".join(f"{node.name}: " + " ".join(gibibytes(size) for size in node.gpu_memory) for node in there)
        findings.append(Finding("GPUs", "ok", memory))
    return findings


def check_memory(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Memory is left, and /dev/shm holds the object store."""
    findings = []
    for node in nodes:
        if node.memory_free < MEMORY_FREE_SHARE * node.memory:
            findings.append(
                Finding(
                    "memory",
                    "warning",
                    f"{node.name}: {gibibytes(node.memory_free)} of {gibibytes(node.memory)} are free",
                    "end what else runs there, or take a larger machine; Ray ends workers at 95 %",
                )
            )
        if node.object_store > node.shm:
            findings.append(
                Finding(
                    "shared memory",
                    "failure",
                    f"{node.name}: the object store may take {gibibytes(node.object_store)}, /dev/shm has {gibibytes(node.shm)}",
                    "docker: --shm-size; Kubernetes: an emptyDir of medium Memory there; else ray start --object-store-memory",
                )
            )
    if findings or not nodes:
        return findings
    least = min(nodes, key=lambda node: node.memory_free)
    store = sum(node.object_store for node in nodes)
    message = f"at least {gibibytes(least.memory_free)} free on a node ({least.name}); object stores {gibibytes(store)} together"
    return [Finding("memory", "ok", message)]


def check_clocks(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """The clocks agree, as far as the time of a message there and back allows."""
    off = [(max(abs(node.clock) - node.clock_error, 0.0), node) for node in nodes]
    worst = max((amount for amount, _ in off), default=0.0)
    if worst < CLOCK_WARNING:
        return [Finding("clocks", "ok", f"agree within {max(worst, 0.1):.1f} s")] if nodes else []
    state: State = "failure" if worst >= CLOCK_FAILURE else "warning"
    message = ", ".join(f"{node.name} is {node.clock:+.1f} s off" for amount, node in off if amount >= CLOCK_WARNING)
    return [Finding("clocks", state, message, "turn on time synchronisation (chrony or the cloud's own) on every node")]


def check_storage(nodes: Sequence[NodeFacts], folder: str) -> list[Finding]:
    """Every node can write where runs go, and sees what the others wrote."""
    broken = [node for node in nodes if node.storage_error]
    findings = [
        Finding(
            "storage",
            "failure",
            f"{node.name} cannot write to {folder}: {node.storage_error}",
            "give the node the right to (a role, a service account, the folder's owner), or choose another --set runs=...",
        )
        for node in broken
    ]
    gone = {node.name for node in broken}
    for node in nodes:
        unseen = [name for name in node.unseen if name not in gone]
        if unseen:
            findings.append(
                Finding(
                    "storage",
                    "failure",
                    f"{node.name} does not see in {folder} what {', '.join(unseen)} wrote",
                    "it is a folder of each node's own: mount one shared folder there, or --set runs=s3://bucket/runs",
                )
            )
    return findings or [Finding("storage", "ok", f"every node writes to {folder} and sees what the others wrote")]


def check_stores(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """The stores of clips and flow can be read from every node, where the experiment has any."""
    return [
        Finding("store", "failure", f"{node.name}: {node.store_error}", "name it by URI, or mount it on every node")
        for node in nodes
        if node.store_error
    ]


def check_supply(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """How many samples a second a core delivers, and so how many cores a GPU needs, from the videos and from a packed store."""
    rates = {}
    for source in ("videos", "store"):
        times = [one.sample_seconds[source] for node in nodes for one in node.videos if source in one.sample_seconds]
        if times:
            rates[source] = 1 / statistics.median(times)
    if not rates:
        return []
    names = {"videos": "from the videos", "store": "from the packed store"}
    parts = [f"{rate:.3g} samples/s {names[source]}" for source, rate in rates.items()]
    cores = [str(math.ceil(GPU_SAMPLES / rate)) for rate in rates.values()]
    message = (
        f"a core delivers {', '.join(parts)}; cores that feed a GPU at {GPU_SAMPLES} samples/s: {', '.join(cores)}"
    )
    remedy = (
        ""
        if "store" in rates
        else "train.decode_actors sets how many decode; 'vicc pack' stores the clips and needs fewer"
    )
    return [Finding("supply of clips", "ok", message, remedy)]


def check_videos(nodes: Sequence[NodeFacts]) -> list[Finding]:
    """The videos can be read and decoded on every node, and how fast."""
    findings = []
    for node in nodes:
        refused = [one for one in node.videos if one.refused]
        if refused:
            findings.append(
                Finding(
                    "videos",
                    "failure",
                    f"{node.name}: {len(refused)} of {len(node.videos)} cannot be read ({refused[0].video}: {refused[0].refused})",
                    "mount the videos at the manifest's paths on every node, or index them by URI (vicc index s3://...)",
                )
            )
    times = {node.name: min(one.seconds for one in node.videos) for node in nodes if node.videos}
    if findings or not times:
        return findings
    slowest = max(times, key=lambda name: times[name])
    if times[slowest] > SLOW_CLIP_SECONDS:
        message = f"{slowest}: {times[slowest]:.1f} s for a clip"
        return [Finding("videos", "warning", message, "bring the videos nearer, or shorten their groups of pictures")]
    return [Finding("videos", "ok", f"read and decoded on every node, {1e3 * times[slowest]:.0f} ms a clip at most")]


def check_network(transfers: Sequence[Transfer]) -> list[Finding]:
    """Objects go from node to node, and how fast."""
    findings = [
        Finding(
            "network",
            "failure",
            f"{one.source} -> {one.target}: {one.error}",
            "open all ports between the nodes (--object-manager-port and --node-manager-port fix Ray's)",
        )
        for one in transfers
        if one.error
    ]
    rates = [one for one in transfers if not one.error]
    if findings or not rates:
        return findings
    slowest = min(rates, key=lambda one: one.rate)
    message = f"{slowest.source} -> {slowest.target}: {slowest.rate / 1e6:.0f} MB/s, the slowest of {len(rates)} ways"
    if slowest.rate < SLOW_NETWORK:
        return [
            Finding(
                "network",
                "warning",
                message,
                "clips travel from decode to training: take nodes of one zone, or more Gb/s",
            )
        ]
    return [Finding("network", "ok", message)]


def gibibytes(size: float) -> str:
    """Bytes for the reader."""
    return f"{size / 2**30:.1f} GiB"


def _comparable(package: str, version: str | None) -> str | None:
    return ".".join(version.split(".")[:2]) if package == "python" and version else version
