"""What this project needs of Ray and Ray has no public interface for. Each part may be different in another version.

None of it is needed for a right result: where it fails, something takes longer or costs more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import ray

_DATA = "ray.data._internal"
_SINGLE_ACTORS = (
    (f"{_DATA}.stats", "get_or_create_stats_actor"),
    (f"{_DATA}.execution.node_trackers.actor_location", "get_or_create_actor_location_tracker"),
    (f"{_DATA}.cluster_autoscaler.default_autoscaling_coordinator", "get_or_create_autoscaling_coordinator"),
)

# How long a worker that waits for its first actor may do so; Ray ends others that are idle after a second.
SPARE_SECONDS = 7 * 24 * 3600
# Between two that are started: a node of one CPU starts one at a time and forgets what else it was to start.
SPARE_PAUSE = 1.5


def requester() -> str | None:
    """The name under which Ray Train reserves the resources of the run whose worker this is."""
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return f"train-{get_train_context().train_run_context.run_id}"
    except (ImportError, AttributeError):
        return None


def session_folder() -> Path | None:
    """The folder of this node's Ray session, which is this cluster's alone."""
    with suppress(Exception):
        return Path(ray._private.worker._global_node.get_session_dir_path())
    return None


def has_notice() -> bool:
    """Whether a node of this worker's group has notice to go, as far as this worker knows.

    `ray.train.get_preemption_info` makes a collective of the same question, through an actor, whose waiting has no end.
    """
    try:
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError):
        return False


def leaving_nodes() -> set[str]:
    """Nodes with notice to go, on which Ray starts nothing more."""
    from ray._private.state import state

    with suppress(Exception):
        return set(state.get_draining_nodes())
    return set()


def decode_to_the_end() -> None:
    """Let datasets of this process go on giving work to actors on nodes with notice to go.

    Ray Data stops at the notice, so that no task has to be repeated elsewhere. A worker whose decode actors are on its own node
    would wait for blocks from the notice to the node's end, minutes in which it could train.
    """
    with suppress(ImportError):
        pool = import_module(f"{_DATA}.execution.operators.actor_pool_map_operator")
        pool.get_draining_nodes = dict  # type: ignore[attr-defined]


def data_setting(executor: Any, name: str) -> Any:
    """A setting (`DataContext.set_config`) of the dataset that Ray Data's executor runs; None where it has none."""
    context = getattr(executor, "_data_context", None)
    return context.get_config(name) if context is not None else None


def release(requesters: Iterable[str]) -> None:
    """Give back what runs had reserved whose drivers died without a word.

    Ray keeps a dead driver's reservation for 3 minutes, in which the same command would wait for room that is there.
    """
    names = list(requesters)
    if names:
        with suppress(Exception):
            coordinator = _maker(*_SINGLE_ACTORS[-1])()
            ray.get([coordinator.cancel_request.remote(requester_id=name) for name in names], timeout=10)


def placement_group() -> str | None:
    """The name of the placement group that this process is in."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return None if group is None else str(group.id.hex())


def remove_placement_groups(names: Iterable[str] | None) -> None:
    """Give back the places of workers that nobody watches any more; None: all, on a cluster that has no other user.

    On other clusters Ray Train has a process for it, which ends without a word when the head does not answer it once (2.60).
    """
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    chosen = None if names is None else set(names)
    with suppress(Exception):
        for name, facts in placement_group_table().items():
            if facts["state"] != "REMOVED" and (chosen is None or name in chosen):
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def start_spares(number: int, delay: float = 0.0) -> None:
    """Let this node start so many worker processes that wait for actors of this job with this process' environment.

    Returns at once; they are started after `delay` seconds, one after another.
    """
    later = threading.Timer(delay, _start_spares, (number,))
    later.daemon = True
    later.start()


def _start_spares(number: int) -> None:
    """By a call of Ray's nodes that has no name in Python. It starts one process a call, whatever the number in it (2.60)."""
    with suppress(Exception):
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import node_manager_pb2 as messages
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        context = ray.get_runtime_context()
        (node,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        request = messages.PrestartWorkersRequest(
            job_id=bytes.fromhex(context.get_job_id()), keep_alive_duration_secs=SPARE_SECONDS, num_workers=1
        )
        request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
        with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
            for _ in range(number):
                NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=5)
                time.sleep(SPARE_PAUSE)


def keep_data_actors_here() -> None:
    """Start those of Ray Data's single actors on this process' node that a run's streams want.

    They outlive every job and stay where they are first wanted. That would be a worker's node, which an autoscaler then could
    never take away, as it is never idle.
    """
    for module, name in _SINGLE_ACTORS:
        with suppress(Exception):
            _maker(module, name)()


def most_resources() -> dict[str, int] | None:
    """The most of each resource that an autoscaler may bring; None without one, or where it does not say."""
    from ray._private.state import state

    most: dict[str, int] | None = state.get_max_resources_from_cluster_config()
    return most or None


def has_autoscaler() -> bool:
    """Whether nodes may be brought to this cluster: an autoscaler reports on it, and its nodes are of groups.

    Every cluster has something that reports, for its readers only; groups are given by what starts nodes: 'ray up', KubeRay.
    """
    grouped = any(ray._raylet.RAY_NODE_GROUP_KEY in node["Labels"] for node in ray.nodes() if node["Alive"])
    return grouped and (_reports_as_before() or _reports())


def _reports_as_before() -> bool:
    """Whether Ray's first autoscaler does."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(DEBUG_AUTOSCALING_STATUS) is not None


def _reports() -> bool:
    """Whether the one that followed it does."""
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = ray._raylet.GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    return bool(reply.autoscaling_state.autoscaler_state_version > 0)


@contextmanager
def head_of_one_machine(light: bool) -> Iterator[None]:
    """Let a head that is started meanwhile have what a cluster of this machine alone needs, with settings that `ray.init` hides.

    Any port for what it listens on: at a port that another cluster here has, Ray tries for 4 s. `light`: no process that
    follows the logs of workers, which nobody reads, and none that would ask a provider for nodes, as there is none.
    """
    from ray._private.node import Node

    init = Node.__init__
    settings: dict[str, Any] = {"dashboard_agent_listen_port": 0}
    if light:
        settings |= {"include_log_monitor": False, "no_monitor": True}

    def with_settings(node: Any, ray_params: Any, *arguments: Any, **named: Any) -> None:
        ray_params.update(**settings)
        init(node, ray_params, *arguments, **named)

    Node.__init__ = with_settings
    try:
        yield
    finally:
        Node.__init__ = init


@contextmanager
def workers_start_by(script: Path | None) -> Iterator[None]:
    """Let a node that is started meanwhile run `script` for each of its workers in the place of Ray's `setup_worker.py`.

    Ray joins the name to a folder of its own, which an absolute path replaces. None: in Ray's way.
    """
    from ray._private import ray_constants

    before = ray_constants.SETUP_WORKER_FILENAME
    if script is not None:
        ray_constants.SETUP_WORKER_FILENAME = str(script)
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = before


def _maker(module: str, name: str) -> Callable[[], Any]:
    maker: Callable[[], Any] = getattr(import_module(module), name)
    return maker
