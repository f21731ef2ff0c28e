"""Imports that processes forked later can share: no state of Ray's that must be each process' own is made by them."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

# What a run's processes import, each of them most of it. LATE is what optimisers, backbones and records load late, and what Ray
# does when a process first gives an answer (10 MiB and some 50 ms in each of them).
RAY = ("ray.data", "ray.train", "ray.train.torch", "ray.train.collective")
OURS = ("vicc_ray.cluster.launch", "vicc_ray.cluster.decode_actors", "vicc_ray.evaluation.model_actors")
LATE = (
    "torch._dynamo",
    "tensorboardX",
    "vicc_ray.data.guarded",
    "ray._private.arrow_serialization",
    "pyarrow.json",
    "pydantic.v1",
    "starlette.datastructures",
)

NO_JOB = "ffffffff"  # a job comes with the first task


def import_ray(alive: int) -> None:
    """Import Ray for a process that will be forked; `alive`: the process that its workers are to end with.

    Two things that Ray makes at its import are no fork's own. Classes that become actors get a random identity where they are
    defined, and that seeds the generator that every later identity comes from (of tasks, workers and objects: two forks would
    use the same ones); here those identities are drawn from the system. And what Ray tells each worker at its start, its job
    and the process that it watches, is read once (`refresh_settings` reads the rest again): no job, and `alive`.
    """
    # A node's server is started for a worker of one job and forks those of others too.
    before = {name: os.environ.get(name) for name in ("RAY_JOB_ID", "RAY_RAYLET_PID")}
    os.environ |= {"RAY_JOB_ID": NO_JOB, "RAY_RAYLET_PID": before["RAY_RAYLET_PID"] or str(alive)}
    try:
        actor: Any = import_module("ray.actor")
        kind = actor.ActorClassID
        actor.ActorClassID = _Identities(kind)
        try:
            for name in RAY:
                import_module(name)
        finally:
            actor.ActorClassID = kind
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def refresh_settings() -> None:
    """Let Ray read its settings from this process' environment again; it has read them at its import."""
    config: Any = import_module("ray._raylet").Config
    config.initialize("")


def import_late() -> None:
    """What most workers import after their start, as far as it is there."""
    for name in (*OURS, *LATE):
        with suppress(ImportError):
            import_module(name)


def shares_random_numbers() -> bool:
    """Whether two forks of this process would draw the same identities, tried with two forks."""
    return _identity_of_a_fork() == _identity_of_a_fork()


def _identity_of_a_fork() -> bytes:
    from ray import ObjectID

    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, ObjectID.from_random().binary())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        identity = pipe.read()
    os.waitpid(child, 0)
    return identity


def is_imported() -> bool:
    """Whether Ray has been imported in this process already."""
    return "ray" in sys.modules


class _Identities:
    """Ray's identities of actor classes, drawn from the system."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def from_random(self) -> Any:
        """A new one."""
        return self.kind(os.urandom(self.kind.size()))
