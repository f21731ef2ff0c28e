"""A Ray cluster for the time of a verb: one started on this machine, or one that is already running."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from vicc_ray.cluster import ray_private
from vicc_ray.cluster.kept_clips import forget_clips
from vicc_ray.cluster.resources import UNKNOWN, Machine, Node, ResourcePlan, plan_local, plan_on, this_machine, total
from vicc_ray.cluster.warm import start as warm
from vicc_ray.cluster.warm.head import Head
from vicc_ray.cluster.warm.imports import refresh_settings
from vicc_ray.config import TrainConfig
from vicc_ray.console import console
from vicc_ray.errors import UserError

CONNECT_SECONDS = 10.0
# A job's rows are small: paths in, one row of facts out.
JOB_OBJECT_STORE = 256 * 2**20


@contextmanager
def ray_session(
    train: TrainConfig,
    address: str | None = None,
    verbose: bool = False,
    local: ResourcePlan | None = None,
    dashboard: bool = False,
) -> Iterator[ResourcePlan]:
    """A connected Ray with room for the plan, which is yielded; what was started here is shut down at the end.

    `address` None starts a cluster of its own on this machine, whatever else runs here; else it connects. A session that
    is open in this process already is used as it is. `local`: the plan on this machine, where it is known. `dashboard`: whether
    a cluster that is started has one, which trials of sweeps need. UserError where the plan cannot fit or the address does not
    answer.
    """
    plan = None
    if address is None and not ray.is_initialized():
        plan = local or plan_local(train, this_machine())
    with _connected(address, plan.cpus if plan else 0, plan.object_store if plan else 0, verbose, dashboard):
        yield plan or _plan(train)


@contextmanager
def job_session(
    workers: int | None = None, use_gpu: bool = False, address: str | None = None, verbose: bool = False
) -> Iterator[int]:
    """As `ray_session` for a job without training; yields how many actors of one CPU (GPU) each it may start.

    `workers` None: as many as there are CPUs, or GPUs.
    """
    here = this_machine()
    wanted = workers or (here.gpus if use_gpu else here.cpus)
    if use_gpu and address is None and not here.gpus:
        raise UserError(
            "a GPU was requested, but this machine has none; leave --gpu out, or give a cluster's --address"
        )
    with _connected(address, max(wanted, 1), JOB_OBJECT_STORE, verbose):
        there = int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 0))
        if not there:
            raise UserError(f"the cluster at {address} has no {'GPU' if use_gpu else 'CPU'} to work on")
        yield min(workers or there, there)


@contextmanager
def _connected(
    address: str | None, cpus: int, object_store: int, verbose: bool, dashboard: bool = False
) -> Iterator[None]:
    if ray.is_initialized():
        yield
    elif address is not None:
        for name, value in warm.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            join(address, verbose, logging.INFO if verbose else logging.WARNING)
            yield
        finally:
            ray.shutdown()
    else:
        settings = warm.init_settings(cpus, object_store, verbose, dashboard)
        with warm.cluster_here(settings) as head:
            session = None
            try:
                _start_here(settings, head)
                session = ray_private.session_folder()
                yield
            finally:
                ray.shutdown()
                forget_clips(session)


def join(address: str, verbose: bool, level: int) -> None:
    """Connect to a cluster that is running; UserError where none answers, it needs a token or is of another version."""
    _check_listens(address)
    try:
        environment = {"py_executable": warm.interpreter_of_nodes()} if warm.is_on() else None
        ray.init(address=address, log_to_driver=verbose, logging_level=level, runtime_env=environment)
    except AuthenticationError:
        raise UserError(
            f"--address {address}: the cluster requires its token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
            "(or RAY_AUTH_TOKEN) with the token that its nodes were started with"
        ) from None
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: cannot join the Ray cluster there ({' '.join(str(error).split())[:300]}); run this on "
            "one of its nodes, or send it to its dashboard with 'vicc submit ... --address http://HOST:8265'"
        ) from None


def _check_listens(address: str) -> None:
    """UserError where nothing listens at HOST:PORT. Ray itself would try for a minute and may end the process."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"--address {address}: cannot join the Ray cluster there ({error.strerror or error}); is its head running, and is "
            "this its port?"
        ) from None


def _start_here(settings: Mapping[str, Any], head: Head | None) -> None:
    """A cluster of this machine alone, with a second try: Ray gives its own parts 30 s, too few on a busy machine.

    `head`: a process that is starting it already.
    """
    if head is not None:
        with suppress(RuntimeError):  # its start failed; the one below says why, or is the second try
            address = head.address()
            refresh_settings()  # the head has decided about Ray's token
            quiet = {name: settings[name] for name in ("log_to_driver", "logging_level")}
            ray.init(address=address, **quiet)
            return
    for last_try in (False, True):
        try:
            # More logical CPUs than there are: workers and decode actors take turns on the real ones.
            launcher, light = warm.LAUNCHER if warm.is_on() else None, not settings["log_to_driver"]
            with ray_private.workers_start_by(launcher), ray_private.head_of_one_machine(light):
                ray.init(**settings)
            return
        except Exception as error:
            ray.shutdown()
            if last_try or "timed out during startup" not in str(error):
                raise


def _plan(train: TrainConfig) -> ResourcePlan:
    nodes = nodes_now()
    plan, notes = plan_on(train, nodes, machine_grown(total(nodes)))
    for note in notes:
        console.print(f"note: {note}")
    return plan


def nodes_now() -> list[Node]:
    """The nodes that are there, with their CPUs, GPUs and object stores."""

    def machine(there: Mapping[str, float]) -> Machine:
        return Machine(*(int(there.get(kind, 0)) for kind in ("CPU", "GPU", "object_store_memory")))

    return [Node(machine(node["Resources"]), node["Labels"]) for node in ray.nodes() if node["Alive"]]


def machine_grown(now: Machine) -> Machine | None:
    """The most that the autoscaler may bring, `UNKNOWN` of what has no known limit; None without one.

    The object store is what is there now, or more where the autoscaler's kinds of nodes name theirs.
    """
    most = ray_private.most_resources()
    if most is None:
        return Machine(UNKNOWN, UNKNOWN, now.memory) if ray_private.has_autoscaler() else None
    # Ray says `sys.maxsize` for a kind of node without a limit.
    cpus, gpus = (min(int(most.get(kind, 0)), UNKNOWN) for kind in ("CPU", "GPU"))
    memory = max(now.memory, int(most.get("object_store_memory", 0)))
    return Machine(max(cpus, now.cpus), max(gpus, now.gpus), memory)
