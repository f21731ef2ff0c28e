"""Two nodes with a network of their own each, as on two machines: the doctor sees both, a run trains across them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, tiny_manifest

from benchmarks.nodes import STORE_BYTES, Node
from vicc_ray.runs.records import read_records

ADDRESSES = ("10.231.7.1", "10.231.7.2")
PORT = 6399


def ip(*words: str) -> None:
    """Run `ip`, which changes this machine's networks."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


def namespaces_allowed() -> bool:
    """Whether this process may make networks; containers and users that are not root mostly may not."""
    name = f"vicc-try-{os.getpid()}"
    if not shutil.which("ip") or subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    ip("netns", "del", name)
    return True


@contextmanager
def two_networks() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a wire, each with one address; their names."""
    names = (f"vicc-a-{os.getpid()}", f"vicc-b-{os.getpid()}")
    try:
        for name in names:
            ip("netns", "add", name)
        ends = (f"va{os.getpid()}", f"vb{os.getpid()}")
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name, "name", "eth0")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))} | {
    "RAY_AUTH_MODE": "disabled",  # nothing else is in these networks
    "RAY_USAGE_STATS_ENABLED": "0",
    "GLOO_SOCKET_IFNAME": "eth0",  # the machine's name stands for an address that is in neither network
}


def inside(name: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """A program of this environment in a namespace."""
    program = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    return subprocess.Popen(["ip", "netns", "exec", name, *program], env=ENVIRONMENT, text=True, **options)


def finished(name: str, *words: str, seconds: float = 300) -> tuple[int, str]:
    """The status of a program in a namespace, and what it said."""
    process = inside(name, *words, stdout=subprocess.PIPE)
    try:
        told = process.communicate(timeout=seconds)[0]
        return process.returncode, told
    finally:
        process.kill()


def start(name: str, address: str, temp: Path, *words: str) -> Node:
    """Ray in a namespace, when it runs."""
    options = ["--block", f"--node-ip-address={address}", "--num-cpus=1", f"--object-store-memory={STORE_BYTES}"]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats", *words]
    log = temp / f"{name}.log"
    with log.open("w") as file:
        process: Any = inside(name, "ray", "start", *options, stdout=file, stderr=subprocess.STDOUT)
    node = Node(process, temp)
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            node.kill()
            raise AssertionError(log.read_text()[-2000:])
        time.sleep(0.2)
    return node


def where(name: str, address: str) -> dict[str, set[str]]:
    """The addresses at which the newest job's workers and decode actors were."""

    def listed(what: str) -> list[dict[str, Any]]:
        words = ("list", what, "--address", address, "--detail", "--format", "json", "--limit", "1000")
        status, told = finished(name, "ray", *words, seconds=60)
        assert status == 0, told
        entries: list[dict[str, Any]] = json.loads(told)
        return entries

    nodes = {entry["node_id"]: entry["node_ip"] for entry in listed("nodes")}
    actors = listed("actors")
    newest = max(actor["job_id"] for actor in actors)
    kinds = {"trains": "RayTrainWorker", "decodes": "MapWorker"}
    return {
        kind: {
            nodes[a["node_id"]] for a in actors if a["job_id"] == newest and title in a["class_name"] and a["node_id"]
        }
        for kind, title in kinds.items()
    }


@pytest.mark.cluster
@pytest.mark.skipif(not namespaces_allowed(), reason="making network namespaces needs root and iproute2")
def test_a_run_across_two_networks(tmp_path: Path) -> None:
    tiny_manifest(tmp_path / "data").write(tmp_path / "videos.parquet")
    tree = TINY | {"runs": str(tmp_path / "runs"), "data": {"manifest": str(tmp_path / "videos.parquet")}}
    # Two workers for two nodes of one CPU, so that the run has to use both.
    tree["train"] = TINY["train"] | {"workers": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    address = f"{ADDRESSES[0]}:{PORT}"
    nodes = []
    with (
        tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as folder,
        two_networks() as names,
    ):
        temp = Path(folder)
        try:
            head = ("--head", f"--port={PORT}", f"--temp-dir={temp / 'ray'}", "--dashboard-host=127.0.0.1")
            nodes.append(start(names[0], ADDRESSES[0], temp, *head, "--labels=vicc-role=train"))
            nodes.append(start(names[1], ADDRESSES[1], temp, f"--address={address}", "--labels=vicc-role=decode"))
            words = [str(tmp_path / "tiny.yaml"), "--address", address]
            status, told = finished(names[0], "vicc", "doctor", *words, "--json")
            assert status == 0, told
            found = {entry["check"]: entry for entry in json.loads(told)["findings"]}
            assert found["nodes"]["message"] == f"2 of 2 answered: {', '.join(ADDRESSES)}"
            assert "->" in found["network"]["message"] and "fits now: 2 workers" in found["room"]["message"]
            status, told = finished(names[0], "vicc", "train", *words)
            assert status == 0, told
            place = (
                "train.place.train={vicc-role: train}",
                "train.place.decode={vicc-role: decode}",
                "train.workers=1",
            )
            changes = [word for change in ("name=placed", *place) for word in ("--set", change)]
            status, told = finished(names[0], "vicc", "train", *words, *changes)
            assert status == 0, told
            assert "1 workers on CPU (vicc-role=train), 1 decode actors (vicc-role=decode)" in told
            placed = where(names[0], address)
        finally:
            for node in reversed(nodes):
                node.kill()
    events = list(read_records(tmp_path / "runs" / "tiny" / "events.jsonl"))
    assert [event["nodes"] for event in events if event["kind"] == "start"] == [2]
    workers = {r["workers"] for r in read_records(tmp_path / "runs" / "tiny" / "metrics.jsonl") if r["kind"] == "train"}
    assert workers == {2}
    assert placed == {"trains": {ADDRESSES[0]}, "decodes": {ADDRESSES[1]}}
