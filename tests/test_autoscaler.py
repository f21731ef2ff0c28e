"""From no worker at all: Ray's own autoscaler with nodes that it starts on this machine, a run submitted to its jobs server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vicc_ray.bench.drill import EXPERIMENT, make_videos
from vicc_ray.bench.nodes import STORE_BYTES, LocalCluster, Node, command_line, descendants, send
from vicc_ray.records import read_records

HEAD = "f" * 51 + "00000"
IDLE_SECONDS = 30
HEAD_TYPE = "ray.head.default"  # the name that the fake provider gives its head
TYPES = {
    HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {
        "resources": {"CPU": 1, "object_store_memory": STORE_BYTES},
        "labels": {"vicc-role": "train"},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 2,
    },
}


def address_here() -> str:
    """An address of this machine that is not the loopback's: Ray's nodes find each other by it. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


def answers(host: str, port: int) -> bool:
    """Whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


class AutoscaledCluster(LocalCluster):
    """A head whose autoscaler starts and ends nodes of one CPU as processes of this machine; with a token, as elsewhere."""

    def __init__(self, folder: Path) -> None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        super().__init__(folder, token)
        self.host = address_here()
        with socket.socket() as probe:
            probe.bind(("", 0))
            self.dashboard = probe.getsockname()[1]

    @property
    def jobs(self) -> str:
        return f"http://{self.host}:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return super().environment | {"PATH": path, "RAY_API_SERVER_ADDRESS": self.jobs}

    def start_head(self) -> Node:
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD,
            "gcs_address": f"{self.host}:{self.port}",
        }
        empty = ("auth", "docker", "file_mounts")
        commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        config: dict[str, Any] = {
            "cluster_name": "fake",
            "max_workers": 2,
            "upscaling_speed": 1.0,
            "provider": provider,
        }
        config |= {
            "idle_timeout_minutes": IDLE_SECONDS / 60,
            "available_node_types": TYPES,
            "head_node_type": HEAD_TYPE,
        }
        config |= {name: {} for name in empty} | {f"{name}_commands": [] for name in commands}
        config |= {name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
        (self.folder / "autoscaler.json").write_text(json.dumps(config | {"file_mounts_sync_continuously": False}))
        temp = self.folder / "n0"
        temp.mkdir()
        ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--head", f"--port={self.port}"]
        ray += [f"--node-ip-address={self.host}", f"--dashboard-host={self.host}", f"--dashboard-port={self.dashboard}"]
        ray += ["--num-cpus=0", f"--object-store-memory={STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        ray += ["--dashboard-agent-listen-port=0", "--disable-usage-stats", f"--temp-dir={temp}"]
        ray += [f"--autoscaling-config={self.folder / 'autoscaler.json'}"]
        environment = self.environment | {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,  # as 'ray up' and KubeRay do
        }
        with (temp / "start.log").open("wb") as log:
            process = subprocess.Popen(ray, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.head = Node(process, temp)
        wait(lambda: b"Ray runtime started" in (temp / "start.log").read_bytes(), "the head", 90)
        wait(lambda: answers(self.host, self.dashboard), "the dashboard", 90)
        return self.head

    def words(self) -> str:
        """What the autoscaler and the jobs' drivers said last."""
        logs = [path for path in self.folder.rglob("*") if path.name.startswith(("monitor.", "job-driver"))]
        return "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in sorted(logs))

    def workers(self) -> list[int]:
        """Processes that are a node of the autoscaler's (its raylet)."""
        assert self.head
        raylets = [pid for pid in descendants(self.head.process.pid) if "/raylet/raylet" in command_line(pid)]
        return [pid for pid in raylets if not command_line(pid).count(HEAD)]


def wait(holds: Callable[[], bool], what: str, seconds: float) -> float:
    """Seconds until a condition holds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)
    return time.monotonic() - began


@pytest.mark.cluster
def test_from_no_worker_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scales up for the request, trains, loses a node, goes on, gets another, and is empty again after the end."""
    make_videos(tmp_path)
    tree = EXPERIMENT | {"runs": str(tmp_path / "runs"), "data": {"manifest": str(tmp_path / "videos.parquet")}}
    tree["train"] = EXPERIMENT["train"] | {"start_timeout": 15}
    (tmp_path / "drill.yaml").write_text(yaml.safe_dump(tree))
    run = tmp_path / "runs" / "drill"

    def steps(workers: int) -> int:
        records = [r for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"] if run.exists() else []
        alike = 0
        for record in reversed(records):
            if record["workers"] != workers:
                break
            alike += 1
        return alike

    def went_on_after(moment: float) -> bool:
        starts = [e["time"] for e in read_records(run / "events.jsonl") if e["kind"] == "start" and e["time"] > moment]
        return bool(starts) and any(
            record["time"] > starts[0] for record in read_records(run / "metrics.jsonl") if record["kind"] == "train"
        )

    program = str(Path(sys.executable).parent / "vicc")
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="va", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = AutoscaledCluster(Path(folder))
        environment = cluster.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        try:
            times["head"] = wait(lambda: bool(cluster.start_head()), "head", 90)
            assert not cluster.workers()
            stranger = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
            told = subprocess.run([program, "jobs"], env=stranger | {"HOME": folder}, capture_output=True, text=True)
            assert told.returncode == 2 and "asks for its token" in told.stderr, told.stdout + told.stderr
            words = [program, "submit", str(tmp_path / "drill.yaml"), "--workers", "2", "--follow"]
            told = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
            assert told.returncode == 2 and "train.use_gpu: auto cannot tell" in told.stdout, told.stdout + told.stderr
            assert not cluster.workers()
            words = [*words[:3], "--workers", "1:2", "--set", "train.use_gpu=false"]
            began = time.monotonic()
            told = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
            assert told.returncode == 0, told.stdout + told.stderr
            times["submitted"] = time.monotonic() - began
            wait(lambda: bool(cluster.workers()), "the first node", 300)
            times["first node's processes"] = time.monotonic() - began
            wait(lambda: steps(1) + steps(2) > 0, "first step", 300)
            times["first step"] = time.monotonic() - began
            wait(lambda: steps(2) >= 5, "two workers", 300)
            times["steps on two workers"] = time.monotonic() - began

            lost, died = time.monotonic(), time.time()
            victim = cluster.workers()[0]
            for pid in [*descendants(victim), victim]:
                send(pid, signal.SIGKILL)
            # With one worker, or with two at once where the autoscaler is quicker than the workers.
            wait(lambda: went_on_after(died), "training goes on", 300)
            times["lost node -> next step"] = time.monotonic() - lost
            wait(lambda: steps(2) >= 3, "another node", 300)
            times["lost node -> step on two workers"] = time.monotonic() - lost

            words = [program, "jobs", "drill", "--stop", "--follow"]
            told = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
            ended = time.monotonic()
            assert told.returncode == 130, told.stdout + told.stderr
            wait(lambda: not cluster.workers(), "scaling down", 240)
            times[f"end -> no worker (idle time {IDLE_SECONDS} s)"] = time.monotonic() - ended
            listed = subprocess.run([program, "jobs", "--json"], env=environment, capture_output=True, text=True)
            kept = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
            assert not [
                text for text in [*kept, listed.stdout, told.stdout] if cluster.settings["RAY_AUTH_TOKEN"] in text
            ]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{cluster.words()}") from error
        finally:
            cluster.stop()
    starts = [event for event in read_records(run / "events.jsonl") if event["kind"] == "start"]
    assert len(starts) >= 2  # at first, and after the lost node
    with capsys.disabled():
        print("\nautoscaler:", ", ".join(f"{what} {seconds:.0f} s" for what, seconds in times.items()))
