"""From no worker at all: Ray's own autoscaler with nodes that it starts on this machine, a run submitted to its jobs server."""

from __future__ import annotations

import itertools
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

from benchmarks.fault_run import EXPERIMENT, make_videos
from benchmarks.nodes import STORE_BYTES, LocalCluster, Node, command_line, descendants, free_port, send
from vicc_ray.runs.records import read_records

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
        self.dashboard = free_port()

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


class Story:
    """A run on the cluster in `folder`, as a user sees it, and how long what happens to it takes."""

    def __init__(self, folder: Path, cluster: AutoscaledCluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.run = folder / "runs" / "run"
        self.environment = cluster.environment | {"XDG_CACHE_HOME": str(folder / "cache")}
        self.times: dict[str, float] = {}
        make_videos(folder)
        tree = EXPERIMENT | {"runs": str(folder / "runs"), "data": {"manifest": str(folder / "videos.parquet")}}
        tree["name"] = "run"
        tree["train"] = EXPERIMENT["train"] | {"start_timeout": 15}
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    def vicc(self, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).parent / "vicc")
        used = environment or self.environment
        return subprocess.run([program, *words], env=used, capture_output=True, text=True, timeout=240)

    def records(self) -> list[dict[str, Any]]:
        return (
            [r for r in read_records(self.run / "metrics.jsonl") if r["kind"] == "train"] if self.run.exists() else []
        )

    def starts(self) -> list[float]:
        return [event["time"] for event in read_records(self.run / "events.jsonl") if event["kind"] == "start"]

    def steps(self, workers: int) -> int:
        """The newest steps in a row that so many workers took."""
        alike = itertools.takewhile(lambda record: record["workers"] == workers, reversed(self.records()))
        return len(list(alike))

    def went_on_after(self, moment: float) -> bool:
        later = [start for start in self.starts() if start > moment]
        return bool(later) and any(record["time"] > later[0] for record in self.records())

    def is_refused(self) -> None:
        """A stranger without the token; a run of which nobody can tell whether it is to have GPUs."""
        stranger = {name: value for name, value in self.environment.items() if not name.startswith("RAY_AUTH")}
        told = self.vicc("jobs", environment=stranger | {"HOME": str(self.cluster.folder)})
        assert told.returncode == 2 and "requires its token" in told.stderr, told.stdout + told.stderr
        told = self.vicc("submit", str(self.folder / "run.yaml"), "--workers", "2", "--follow")
        assert told.returncode == 2 and "train.use_gpu: auto cannot decide" in told.stdout, told.stdout + told.stderr
        assert not self.cluster.workers()

    def scales_up(self) -> None:
        began = time.monotonic()
        told = self.vicc("submit", str(self.folder / "run.yaml"), "--workers", "1:2", "--set", "train.use_gpu=false")
        assert told.returncode == 0, told.stdout + told.stderr
        self.times["submitted"] = time.monotonic() - began
        wait(lambda: bool(self.cluster.workers()), "the first node", 300)
        self.times["first node's processes"] = time.monotonic() - began
        wait(lambda: bool(self.records()), "first step", 300)
        self.times["first step"] = time.monotonic() - began
        wait(lambda: self.steps(2) >= 5, "two workers", 300)
        self.times["steps on two workers"] = time.monotonic() - began

    def loses_a_node(self) -> None:
        lost, died = time.monotonic(), time.time()
        victim = self.cluster.workers()[0]
        for pid in [*descendants(victim), victim]:
            send(pid, signal.SIGKILL)
        # With one worker, or with two at once where the autoscaler is quicker than the workers.
        wait(lambda: self.went_on_after(died), "training goes on", 300)
        self.times["lost node -> next step"] = time.monotonic() - lost
        wait(lambda: self.steps(2) >= 3, "another node", 300)
        self.times["lost node -> step on two workers"] = time.monotonic() - lost

    def ends(self) -> None:
        """Asked to; no node is left, and the token is nowhere to be read."""
        told = self.vicc("jobs", "run", "--stop", "--follow")
        ended = time.monotonic()
        assert told.returncode == 130, told.stdout + told.stderr
        wait(lambda: not self.cluster.workers(), "scaling down", 240)
        self.times[f"end -> no worker (idle time {IDLE_SECONDS} s)"] = time.monotonic() - ended
        kept = [path.read_text(errors="replace") for path in self.folder.rglob("*") if path.is_file()]
        texts = [*kept, self.vicc("jobs", "--json").stdout, told.stdout]
        assert not [text for text in texts if self.cluster.settings["RAY_AUTH_TOKEN"] in text]


@pytest.mark.cluster
def test_from_no_worker_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scales up for the request, trains, loses a node, goes on, gets another, and is empty again after the end."""
    with tempfile.TemporaryDirectory(prefix="va", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = AutoscaledCluster(Path(folder))
        story = Story(tmp_path, cluster)
        try:
            cluster.start_head()
            assert not cluster.workers()
            story.is_refused()
            story.scales_up()
            story.loses_a_node()
            story.ends()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{cluster.words()}") from error
        finally:
            cluster.stop()
    assert len(story.starts()) >= 2  # at first, and after the lost node
    with capsys.disabled():
        print("\nautoscaler:", ", ".join(f"{what} {seconds:.0f} s" for what, seconds in story.times.items()))
