"""A Ray cluster of several nodes on this machine, each its own `ray start`, to be killed and joined for real.

For the recovery bench and the fault tests. Bound to the loopback address, so no token is needed. Nothing else that
runs on this machine is touched: a node ends by the numbers of its own processes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.product import Product, this_checkout

START_SECONDS = 90.0
STORE_BYTES = 160 * 2**20
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else anything that runs beside them makes them wait (the default is 15)
    # The head counts a node as dead after 3 s of silence instead of 25 s: spot machines go without a word.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True)
class Node:
    """A node by its `ray start` process; `temp` is Ray's folder of it."""

    process: subprocess.Popen[bytes]
    temp: Path

    def tree(self) -> list[int]:
        """The process numbers of the node, children first."""
        return [*descendants(self.process.pid), self.process.pid]

    def kill(self) -> None:
        """End the node as a spot machine ends: at once and all of it."""
        numbers = self.tree()
        for number in numbers:
            send(number, signal.SIGKILL)
        self.process.wait()
        _wait_until_gone(numbers)


class LocalCluster:
    """A head without CPUs and nodes that come and go, each started with the `ray` of a product (default: this checkout)."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, product: Product | None = None) -> None:
        self.folder, self.settings = folder, dict(settings or {})
        self.product = product or this_checkout()
        self.port = free_port()
        self.nodes: list[Node] = []
        self.head: Node | None = None

    @property
    def address(self) -> str:
        """What `--address` takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For nodes and drivers of this cluster."""
        return self.product.environment() | _SETTINGS | self.settings

    def start_head(self) -> Node:
        """Start the head and wait until it answers."""
        options = ["--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=true"]
        self.head = self._start([*options, f"--dashboard-port={free_port()}", "--dashboard-host=127.0.0.1"])
        return self.head

    def add_node(self, cpus: int = 1, core: int | None = None) -> Node:
        """Start a node and wait until it has joined; all its processes stay on `core`, where one is named."""
        node = self._start([f"--address={self.address}", f"--num-cpus={cpus}"], core)
        self.nodes.append(node)
        return node

    def add_nodes(self, count: int) -> None:
        """Start so many nodes of one CPU and wait until all have joined.

        One after the other: of three at once on two busy cores, one did not hear of its head within Ray's 30 s.
        """
        for _ in range(count):
            self.add_node()

    def kill(self, node: Node) -> None:
        """Kill a node."""
        node.kill()
        if node in self.nodes:
            self.nodes.remove(node)

    def stop(self) -> None:
        """Kill all nodes and the head."""
        for node in [*self.nodes, *([self.head] if self.head else [])]:
            node.kill()
        self.nodes.clear()
        self.head = None

    def _start(self, options: Sequence[str], core: int | None = None) -> Node:
        temp = Path(tempfile.mkdtemp(prefix="n", dir=self.folder))
        command = [str(self.product.ray), "start", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--object-store-memory={STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats", *options]
        if "--head" in options:
            command += [f"--temp-dir={temp}"]
        log = (temp / "start.log").open("wb")
        process = self.product.start(command, log, self.environment)
        if core is not None:
            os.sched_setaffinity(process.pid, {core})  # before it has a child: they inherit it
        node = Node(process, temp)
        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in (temp / "start.log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                node.kill()
                raise RuntimeError(f"a node did not start: {(temp / 'start.log').read_text()[-2000:]}")
            time.sleep(0.2)
        return node


@contextmanager
def local_cluster(
    nodes: int, settings: Mapping[str, str] | None = None, product: Product | None = None
) -> Iterator[LocalCluster]:
    """A running cluster with `nodes` one-CPU nodes of a product, gone at the end with all that it wrote.

    `settings` are added to the environment of its processes.
    """
    # Ray's sockets lie below its folder, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="vn", dir="/tmp"))
    cluster = LocalCluster(folder, settings, product)
    try:
        cluster.start_head()
        cluster.add_nodes(nodes)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int, children: Mapping[int, list[int]] | None = None) -> list[int]:
    """Process numbers below `pid`, deepest first; by a table of `children_now` where one is at hand."""
    table = children_now() if children is None else children
    found: list[int] = []
    for child in table.get(pid, []):
        found += [*descendants(child, table), child]
    return found


def command_line(pid: int) -> str:
    """What a process is called; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; nothing where the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def children_now() -> Mapping[int, list[int]]:
    """The numbers of all processes of this machine by that of their parent."""
    table: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            table.setdefault(parent, []).append(int(entry.name))
    return table


def _wait_until_gone(numbers: Sequence[int], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(alive(number) for number in numbers):
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
