"""The head of a cluster of this machine alone, started by a process of its own while the driver still imports.

Starting Ray is mostly waiting for its processes, and importing keeps one core busy: side by side they take the longer of the two.
The process is a driver of Ray without work, which ends the cluster with itself, and is ended with the driver it was made for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vicc_ray.cluster.warm.launcher import SERVER
from vicc_ray.cluster.warm.server import detach, end_with_parent


@dataclass
class Head:
    """The process that runs a cluster; `pipe` says where it answers."""

    process: int
    pipe: int
    settings: Mapping[str, Any]

    def address(self) -> str:
        """Wait for the cluster: HOST:PORT. RuntimeError where it did not start."""
        with os.fdopen(self.pipe, "rb") as pipe:
            answer = json.loads(pipe.read() or b"{}")
        if "address" not in answer:
            raise RuntimeError(f"Ray did not start: {answer.get('error', 'its process ended')}")
        if answer["auth"]:
            os.environ["RAY_AUTH_MODE"] = answer["auth"]
        address: str = answer["address"]
        return address

    def end(self) -> None:
        """End the cluster."""
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGTERM)
        with suppress(ChildProcessError):
            os.waitpid(self.process, 0)


def start_head(settings: Mapping[str, Any], light: bool, launcher: Path) -> Head:
    """Begin to start a cluster with these arguments of `ray.init`, whose workers `launcher` starts.

    `light`: without Ray's followers of logs and of demand.
    """
    ours, theirs = os.pipe()
    process = os.fork()
    if process:
        os.close(theirs)
        return Head(process, ours, settings)
    try:
        os.close(ours)
        detach(theirs)
        end_with_parent(signal.SIGTERM)
        _run(theirs, settings, light, launcher)
    finally:
        os._exit(1)


def _run(pipe: int, settings: Mapping[str, Any], light: bool, launcher: Path) -> NoReturn:
    import ray

    from vicc_ray.cluster import ray_private

    def end(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ray.shutdown()
        shutil.rmtree(os.path.dirname(os.environ[SERVER]), ignore_errors=True)  # of a driver that was killed
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    try:
        with ray_private.head_of_one_machine(light), ray_private.workers_start_by(launcher):
            ray.init(**settings)
        signal.signal(signal.SIGTERM, end)  # Ray has set one of its own, which leaves without ending the cluster
        answer = {"address": ray.get_runtime_context().gcs_address, "auth": os.environ.get("RAY_AUTH_MODE", "")}
    except BaseException as error:
        answer = {"error": str(error)[-2000:] or type(error).__name__}
    with os.fdopen(pipe, "wb") as file:
        file.write(json.dumps(answer).encode())
    if "error" in answer:
        os._exit(1)
    while True:
        signal.pause()
