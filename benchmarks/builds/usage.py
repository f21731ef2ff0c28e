"""Processes that a command has started, by what they are for: how many, their CPU time and memory."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.nodes import alive, children_now, command_line, descendants

SAMPLE_SECONDS = 0.25
# The kernel walks all pages of a process for its PSS, which would slow down what is watched if it were read every time.
MEMORY_EVERY = 4
_TICK = os.sysconf("SC_CLK_TCK")
IDLE, STARTING = "idle worker", "worker that starts"

# The first word that a command line has says what the process is.
ROLES = (
    ("vicc_ray.data.guarded", "decode child"),  # first, as its command line names folders of Ray too
    ("gcs_server", "gcs_server"),
    ("raylet/raylet", "raylet"),
    ("log_monitor.py", "log monitor"),
    ("autoscaler/_private/monitor.py", "autoscaler"),
    ("autoscaler/v2/monitor.py", "autoscaler"),
    ("runtime_env/agent", "agents"),
    ("ray::RuntimeEnvAgent", "agents"),
    ("dashboard/agent.py", "agents"),
    ("ray::DashboardAgent", "agents"),
    ("dashboard/dashboard.py", "dashboard"),
    ("ray-dashboard", "dashboard"),
    ("ray::IDLE", IDLE),
    ("default_worker.py", STARTING),
    ("setup_worker.py", STARTING),
    ("multiprocessing.resource_tracker", "resource tracker"),
)


def role(title: str) -> str:
    """What a process is for, by its command line: an actor's or task's own name where Ray has put it there."""
    for word, name in ROLES:
        if word in title:
            return name
    if "ray::" in title:
        return title.split("ray::", 1)[1].split("(")[0].split(".")[0].split()[0]
    words = title.split()
    return Path(words[0]).name if words else "?"


@dataclass
class Seen:
    """A process: what it was last called for, CPU seconds and the bytes that it holds."""

    role: str
    cpu: float = 0.0
    bytes: int = 0


class Usage:
    """What a command and all that it started use; sampled, so that processes of less than a sample's time are missed."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.seen: dict[tuple[int, str], Seen] = {}
        self.peaks: Counter[str] = Counter()
        self.peak = 0
        self.samples = 0

    def sample(self) -> None:
        """Look at all processes once; those that left their parent are still known."""
        known, children = {self.root, *(pid for pid, _ in self.seen)}, children_now()
        pids = known | {below for pid in known for below in descendants(pid, children)}
        held: Counter[str] = Counter()
        for pid in pids:
            with suppress(OSError, IndexError, ValueError):
                now = self._look(pid, with_memory=self.samples % MEMORY_EVERY == 0)
                held[now.role] += now.bytes
        for name, size in held.items():
            self.peaks[name] = max(self.peaks[name], size)
        self.peak = max(self.peak, sum(held.values()))
        self.samples += 1

    def _look(self, pid: int, with_memory: bool) -> Seen:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        key = (pid, fields[19])  # numbers are used again; with the time of its start a process is known
        if key not in self.seen and any(other == pid for other, _ in self.seen):
            raise ValueError("another process of the same number, not ours")
        title = command_line(pid)
        now = self.seen.setdefault(key, Seen("?"))
        found = "driver" if pid == self.root else role(title)
        # A worker is idle before it is an actor, and a process that ends has no command line.
        if title and (found not in (IDLE, STARTING) or now.role in ("?", STARTING)):
            now.role = found
        now.cpu = (int(fields[11]) + int(fields[12])) / _TICK
        if with_memory:
            now.bytes = memory(pid)
        return now

    def table(self) -> dict[str, dict[str, float]]:
        """{role: processes, CPU seconds, most memory at one time in MiB}, the most CPU first, with a row of all."""
        everyone = [*self.seen.values()]  # while samples go on
        rows: dict[str, dict[str, float]] = defaultdict(lambda: {"processes": 0.0, "CPU s": 0.0, "peak MiB": 0.0})
        for seen in sorted(everyone, key=lambda seen: -seen.cpu):
            rows[seen.role]["processes"] += 1
            rows[seen.role]["CPU s"] += seen.cpu
        for name, row in rows.items():
            row["peak MiB"] = self.peaks[name] / 2**20
        total = {
            "processes": float(len(everyone)),
            "CPU s": sum(seen.cpu for seen in everyone),
            "peak MiB": self.peak / 2**20,
        }
        return {**dict(sorted(rows.items(), key=lambda item: -item[1]["CPU s"])), "all": total}

    def left(self) -> list[int]:
        """Processes of those seen that are still there."""
        here = []
        for pid, started in self.seen:
            with suppress(OSError, IndexError):
                same = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19] == started
                here += [pid] if same and alive(pid) else []
        return here


def memory(pid: int) -> int:
    """Bytes that a process holds: its proportional share where the kernel tells it, else what is resident; 0 for one gone."""
    held = _rollup(pid, "Pss:")
    if held is not None:
        return held
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def private_memory(pid: int) -> int:
    """Bytes that would be free without this process; 0 where the kernel does not tell."""
    return (_rollup(pid, "Private_Clean:") or 0) + (_rollup(pid, "Private_Dirty:") or 0)


def _rollup(pid: int, name: str) -> int | None:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return None


@contextmanager
def watched(usage: Usage) -> Iterator[None]:
    """Sample until the block ends."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            began = time.monotonic()
            usage.sample()
            over.wait(max(SAMPLE_SECONDS - (time.monotonic() - began), 0.01))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
