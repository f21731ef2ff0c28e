"""Ray Train's trainer with what recovery in seconds needs: which nodes live, and the state of workers before they end.

It is built on hooks of Ray Train that have no public name, of the version that `pyproject.toml` pins.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from vicc_ray.cluster import ray_private
from vicc_ray.cluster.keeper import Keepers, collect
from vicc_ray.runs.folder import RunFolder, versions
from vicc_ray.runs.records import RecordWriter
from vicc_ray.training.restore import event

PROBE_SECONDS = 1.0
TICK_SECONDS = 5.0


class RunTrainer(TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` that starts no worker on a node that is gone.

    `alone`: the cluster ends with this driver, so nothing of the run outlives it that would have to be cleaned up. `spares`: nodes
    keep processes that wait for the next group's actors.
    """

    def __init__(self, *arguments: Any, session: str, folder: str, alone: bool, spares: bool, **settings: Any) -> None:
        self.session, self.folder, self.alone, self.spares = session, folder, alone, spares
        self.interrupted = False
        super().__init__(*arguments, **settings)

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        """Ray Train's own, with another choice of the number of workers where that is free."""
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = LivingNodes(self.scaling_config, self.session, self.folder, self.spares)
        parts["callbacks"] = [HandOver(self.session), *parts["callbacks"]]  # before the group's messages are ended
        if self.alone:
            parts["callbacks"] = [
                one for one in parts["callbacks"] if not isinstance(one, PlacementGroupCleanerCallback)
            ]
        return super()._initialize_and_run_controller(**parts)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray Train's own, noting that it was called: what follows looks like a controller that died."""
        super()._register_sigint_handler(controller)
        end: Any = signal.getsignal(signal.SIGINT)

        def noted(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            end(number, frame)

        signal.signal(signal.SIGINT, noted)


class HandOver(WorkerGroupCallback):  # type: ignore[misc]
    """Keeps what the workers of a group that ends know; runs in Ray Train's controller."""

    def __init__(self, session: str) -> None:
        self.keepers = Keepers(session)

    def after_worker_group_start(self, worker_group: Any) -> None:
        """One keeper on each node that has workers."""
        # How long a group that ends waits for a peer that hangs. Ray Train reads it in this process and does not bring it along
        # from the driver's environment, as it does with others (2.60).
        os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "2")
        self.keepers.on([worker.metadata.node_id for worker in worker_group.get_workers()])

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """The last finished step, from whoever is left; nothing where training came to its end."""
        status = worker_group.get_latest_poll_status()
        if status is not None and status.finished and not status.errors:
            return
        workers = worker_group.get_workers()
        living = living_nodes()
        self.keepers.on([worker.metadata.node_id for worker in workers if worker.metadata.node_id in living])
        collect([worker for worker in workers if worker.metadata.node_id in living])
        self.keepers.spread(living)


class LivingNodes(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy, of nodes that answer and have the versions of this one.

    The cluster's view of itself is up to half a minute old: a node that died is in it, and placing workers there costs the time
    until it is not. A node that has just come is counted when its keeper runs, so that training goes on until its modules are
    imported.
    """

    def __init__(self, scaling_config: Any, session: str, folder: str, spares: bool = False) -> None:
        super().__init__(scaling_config)
        self.keepers, self.folder, self.spares = Keepers(session), folder, spares
        self.versions = versions()
        self.seen: set[str] = set()
        self.ready: set[str] = set()
        self.refused: set[str] = set()
        self.usable: list[str] = []
        self.running = False

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Ray Train's, with nodes that are ready."""
        self.running = True
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def make_decision_for_non_running_worker_group(self) -> Any:
        """Ray Train's, with nodes that answer."""
        self.running = False
        return super().make_decision_for_non_running_worker_group()

    def on_controller_start_worker_group(self, *, scaling_config: Any, num_workers: int) -> dict[str, str] | None:
        """The nodes that may have the next group's workers, as a label."""
        if not self.usable:
            return None
        wanted: Mapping[str, str] = scaling_config.label_selector or {}
        return {**wanted, ray._raylet.RAY_NODE_ID_KEY: f"in({','.join(self.usable)})"}

    def _get_reserved_resources(self) -> Any:
        living = living_nodes()
        if living != self.seen:
            self.seen = living
            # The coordinator looks at the cluster every 20 s, or when it is called.
            with suppress(RayError, AttributeError):
                ray.get(self._autoscaling_coordinator._tick.remote(), timeout=TICK_SECONDS)
        reserved = super()._get_reserved_resources()
        if reserved is None:
            return None
        # A group that runs stays on a node with notice until the node goes; none can start there.
        usable = living if self.running else living - ray_private.leaving_nodes()
        self.usable = [node for node in reserved if node in usable and self._is_ready(node)]
        return {node: reserved[node] for node in self.usable}

    def _is_ready(self, node: str) -> bool:
        """Whether workers can start on the node at once, with the packages that the others have."""
        if node in self.ready:
            return True
        if node in self.refused:
            return False
        theirs = self.keepers.versions(node)
        if theirs is None:
            # Its keeper is starting; a group that does not run has nothing better to do than to start there.
            return not self.running
        if theirs != self.versions:
            self.refused.add(node)
            _note(self.folder, f"node {node[:8]} is left out: {_difference(theirs, self.versions)}")
            return False
        self.ready.add(node)
        if self.running and self.spares:
            self.keepers.handles[node].start_spares.remote()
        return True


def living_nodes() -> set[str]:
    """The nodes whose Ray answers now; how long the cluster takes to notice a death does not matter."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if not nodes:
        return set()
    with ThreadPoolExecutor(min(len(nodes), 32)) as pool:
        answers = pool.map(_answers, nodes)
        return {node["NodeID"] for node, answers in zip(nodes, answers, strict=True) if answers}


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _difference(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    names: Iterable[str] = sorted(theirs.keys() | ours.keys())
    return ", ".join(
        f"{name} {theirs.get(name, 'absent')} there, {ours.get(name, 'absent')} here"
        for name in names
        if theirs.get(name) != ours.get(name)
    )


def _note(folder: str, text: str) -> None:
    """A line among the run's events; in a store, worker 0 alone adds to them."""
    run = RunFolder.at(folder)
    if run.remote is None:
        RecordWriter(run.events).add(event("node refused", text=text))
