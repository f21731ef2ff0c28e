"""Keepers: a process a node that holds the newest finished step of a run in memory, for the workers that come after a failure.

Workers hand their state over when their group is about to end, because one of them died or others are to join, and now and then
in between, in case that all of them die at once. So a fault costs the step that was under way. Only where every node is gone
does the last checkpoint count.
"""

from __future__ import annotations

import ctypes
import io
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from vicc_ray import distributed
from vicc_ray.cluster import ray_private
from vicc_ray.runs.checkpoint import State
from vicc_ray.runs.folder import versions
from vicc_ray.training.survival import Finished, Kept, merged

NAMESPACE = "vicc_ray"
# A copy in between costs at most this share of the time, and comes at most this often.
COPY_SHARE = 0.003
COPY_SECONDS = 3.0
ANSWER_SECONDS = 10.0
# Of a state, at a time; in pieces that Ray sends with the call itself (up to 100 KiB each, 10 MiB together). What is larger goes
# through its object store, whose pages a keeper would then hold beside the state: 60 MiB of them for a state of 168 MiB.
PART_BYTES = 3 << 19
PIECE_BYTES = 96 << 10
# How long a group that ends waits for what its workers hand over, and for the others once one has.
HANDOVER_SECONDS = 20.0
OTHERS_SECONDS = 1.0
# After which a worker that handed over on request, and was not ended, ends by itself.
END_SECONDS = 60.0


class GroupEnded(RuntimeError):
    """This worker's group is no more; other workers go on."""


@dataclass
class _Step:
    """What a keeper has of one step: the state once it is whole, what came of it so far by worker, the workers' statistics."""

    state: bytes | bytearray = b""
    coming: dict[int, bytearray] = field(default_factory=dict)
    workers: dict[int, Kept] = field(default_factory=dict)


class Keeper:
    """The actor: of the newest step that it was given whole, the state and the workers' statistics; and of those that come.

    A state comes in parts, so that neither Ray's object store nor this process holds it twice on the way; the one before it
    stays until it is whole, because whoever hands over may die in the middle.
    """

    def __init__(self) -> None:
        self.steps: dict[int, _Step] = {}

    def start_spares(self) -> None:
        """Let a worker and its decode actor find processes that wait for them, on a node that has just come."""
        ray_private.start_spares(2)

    def versions(self) -> dict[str, str]:
        """Of the packages that results depend on, on this node."""
        return versions()

    def wants_state(self, step: int) -> bool:
        """Whether the state of this step is not here yet."""
        return step > self._whole()

    def take(self, rank: int, step: int, start: int, *pieces: bytes) -> None:
        """The next part of a state, from byte `start` on."""
        if step > self._whole():
            held = self.steps.setdefault(step, _Step()).coming.setdefault(rank, bytearray())
            del held[start:]
            for piece in pieces:
                held += piece  # in place: a copy of what came before would cost as much again, part after part

    def keep(self, rank: int, kept: Kept, bytes_of_state: int = 0) -> None:
        """Take what a worker hands over, whose state of so many bytes came in parts; an older step than the newest is let go."""
        if kept.step < self._whole():
            return
        step = self.steps.setdefault(kept.step, _Step())
        step.workers[rank] = replace(kept, state=b"")
        if bytes_of_state and len(step.coming.get(rank, b"")) == bytes_of_state:
            step.state = step.coming.pop(rank)
            step.coming.clear()
            self.steps = {number: one for number, one in self.steps.items() if number >= kept.step}
            _trim()

    def newest(self) -> tuple[int, dict[int, Kept]]:
        """The newest step whose state is here (-1: none), and its workers' statistics."""
        whole = self._whole()
        return whole, self.steps[whole].workers if whole >= 0 else {}

    def state_of(self, step: int, start: int = 0) -> bytes | None:
        """A part of the state of a step, from byte `start` on; empty at its end, None where the step is not here (any more)."""
        state = self.steps[step].state if step in self.steps else b""
        return bytes(state[start : start + PART_BYTES]) if state else None

    def copy(self, other: ActorHandle, step: int, workers: dict[int, Kept]) -> None:
        """Take a step that another keeper holds whole, with its workers' statistics, unless as new a one is here."""
        if step > self._whole():
            with suppress(RayError):  # the other one goes meanwhile: what is here stays
                if state := _state(other, step):
                    self.steps = {step: _Step(state, {}, dict(workers))}

    def forget(self) -> None:
        """Hold nothing: what was kept is not sound."""
        self.steps = {}

    def _whole(self) -> int:
        return max((number for number, step in self.steps.items() if step.state), default=-1)


def _trim() -> None:
    """Give what calls left free on the heap back to the system; only glibc has a way to."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Keepers:
    """The keepers of a run, seen from the process that watches its workers: it starts one a node where workers are."""

    session: str
    handles: dict[str, ActorHandle] = field(default_factory=dict)

    def on(self, nodes: Sequence[str]) -> None:
        """See to it that these nodes have one that answers."""
        for node in sorted(set(nodes)):
            if node not in self.handles or not _answers(self.handles[node]):
                self.handles[node] = (
                    ray.remote(Keeper)
                    .options(
                        name=_name(self.session, node),
                        namespace=NAMESPACE,
                        get_if_exists=True,
                        num_cpus=0,
                        label_selector={ray._raylet.RAY_NODE_ID_KEY: node},
                    )
                    .remote()
                )

    def versions(self, node: str) -> dict[str, str] | None:
        """The versions that a node's keeper reports; None while it starts."""
        self.on([node])
        with suppress(RayError):
            found: dict[str, str] = ray.get(self.handles[node].versions.remote(), timeout=0.5)
            return found
        return None

    def spread(self, nodes: Collection[str]) -> None:
        """Where one of these nodes alone holds the newest step, let another one copy it, while new workers start.

        So that no node's death takes the only copy, also of a step that one worker alone came to hand over.
        """
        found = _newest({node: handle for node, handle in self.handles.items() if node in nodes}, OTHERS_SECONDS)
        step = max((step for step, _ in found.values()), default=-1)
        holders = [node for node, (held, _) in found.items() if held == step]
        others = sorted(found.keys() - set(holders))
        if step >= 0 and len(holders) == 1 and others:
            self.handles[others[0]].copy.remote(self.handles[holders[0]], step, found[holders[0]][1])


def _newest(handles: Mapping[str, ActorHandle], seconds: float) -> dict[str, tuple[int, dict[int, Kept]]]:
    """What each keeper that answers in so many seconds holds: its newest step and the statistics of that step's workers."""
    calls = {node: handle.newest.remote() for node, handle in handles.items()}
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else None
    found = {}
    for node, call in calls.items():
        with suppress(RayError):
            found[node] = ray.get(call, timeout=0.1)
    return found


def kept_state(session: str) -> tuple[int, State] | None:
    """The newest step that a keeper of the run holds and the state to go on from, of all nodes that live."""
    handles = _handles(session)
    found = _newest(handles, ANSWER_SECONDS)
    here = ray.get_runtime_context().get_node_id()
    # The newest first; an older one counts where the node that held the newest has gone since.
    for step in sorted({step for step, _ in found.values() if step >= 0}, reverse=True):
        holders = [node for node, (held, _) in found.items() if held == step]
        for node in sorted(holders, key=lambda node: node != here):
            with suppress(RayError):
                state = _state(handles[node], step)
                if state:
                    workers: dict[int, Kept] = {}
                    for holder in holders:  # a copy names the same workers again
                        workers |= found[holder][1]
                    return step, merged(state, [workers[rank] for rank in sorted(workers)])
    return None


def _state(keeper: ActorHandle, step: int) -> bytes:
    """The state that a keeper holds of a step; empty where it holds none, or has let it go before it was here whole."""
    state = io.BytesIO()
    while part := ray.get(keeper.state_of.remote(step, state.tell()), timeout=ANSWER_SECONDS):
        state.write(part)
    return b"" if part is None else state.getvalue()


def forget(session: str) -> None:
    """Let every keeper of the run forget what it holds."""
    for handle in _handles(session).values():
        with suppress(RayError):
            ray.get(handle.forget.remote(), timeout=ANSWER_SECONDS)


def _handles(session: str) -> dict[str, ActorHandle]:
    """The keepers of the nodes that live."""
    handles = {}
    for node in (node["NodeID"] for node in ray.nodes() if node["Alive"]):
        with suppress(ValueError):  # there is none
            handles[node] = ray.get_actor(_name(session, node), NAMESPACE)
    return handles


def _name(session: str, node: str) -> str:
    return f"keeper-{session}-{node}"


def _answers(handle: ActorHandle) -> bool:
    try:
        ray.get(handle.newest.remote(), timeout=2.0)
    except ray.exceptions.GetTimeoutError:
        return True  # busy, or starting
    except RayError:
        return False
    return True


class Survivor:
    """A worker's side: its last finished step, handed to the keeper of its node when it is requested or time is up.

    The training thread notes each finished step; requests come on the actor's own thread. A state is only taken between steps,
    or after training has ended: whoever gets there first takes it.
    """

    # Whether its node's keeper has copies now and then from this worker. One of each node is enough, by Ray's number of the node:
    # Ray Train's local rank goes by its address, which several nodes of a machine share.
    copies = False

    def __init__(self, session: str, rank: int) -> None:
        self.session, self.rank = session, rank
        self.workers = distributed.world_size()
        self.last: Finished | None = None
        self.requested = threading.Event()
        self.ended = threading.Event()
        self.handed = threading.Event()
        self.due = time.monotonic() + COPY_SECONDS
        self.keeper: ActorHandle | None = None

    def finished(self, step: Finished) -> None:
        """The training thread, between two steps. `GroupEnded` where the step was made without the other workers.

        Ray Train takes the group's connections away before it ends the processes. A step that was under way then is this
        worker's alone, and nothing to go on from; nor is there anything to do after a hand-over on request.
        """
        if distributed.world_size() != self.workers:
            self.last = None  # its weights are changed, so nobody must take them for those of the step before
            raise GroupEnded("the group of workers was ended in the middle of a step")
        self.last = step
        if self.requested.is_set():
            self._hand_over()
            time.sleep(END_SECONDS)
            raise GroupEnded("the group of workers was to end, and did not")
        if self.copies and time.monotonic() >= self.due:
            started = time.monotonic()
            self._hand_over()
            self.due = time.monotonic() + max(COPY_SECONDS, (time.monotonic() - started) / COPY_SHARE)

    def end(self, sound: bool) -> None:
        """The training thread has ended; `sound` False: its last step is nothing to go on from."""
        if not sound:
            self.last = None
        self.ended.set()

    def answer(self, seconds: float) -> int:
        """On request: hand the last finished step over; returns it, -1 where there is none or no time was left."""
        self.requested.set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.handed.wait(0.02):
                break
            if self.ended.is_set():
                self._hand_over()
                break
        return self.last.step if self.last is not None and self.handed.is_set() else -1

    def _hand_over(self) -> None:
        if self.last is None:
            return
        for _ in range(2):
            with suppress(RayError, ValueError):  # no keeper: the checkpoint counts
                self._give(self.last)
                return
            self.keeper = None  # it died, and another one has its name by now

    def _give(self, last: Finished) -> None:
        node = ray.get_runtime_context().get_node_id()
        self.keeper = self.keeper or ray.get_actor(_name(self.session, node), NAMESPACE)
        kept = last.take(ray.get(self.keeper.wants_state.remote(last.step), timeout=ANSWER_SECONDS))
        if kept is None:
            return
        state = memoryview(kept.state)
        for start in range(0, len(state), PART_BYTES):
            part = _pieces(state[start : start + PART_BYTES])
            ray.get(self.keeper.take.remote(self.rank, kept.step, start, *part), timeout=ANSWER_SECONDS)
        whole = self.keeper.keep.remote(self.rank, replace(kept, state=b""), len(state))
        ray.get(whole, timeout=ANSWER_SECONDS)
        if self.requested.is_set() or self.ended.is_set():
            self.handed.set()


def _pieces(part: memoryview) -> list[bytes]:
    return [bytes(part[start : start + PIECE_BYTES]) for start in range(0, len(part), PIECE_BYTES)]


_here: Survivor | None = None


def survivor(session: str, rank: int) -> Survivor:
    """This process' survivor, which requests find."""
    global _here
    _here = Survivor(session, rank)
    return _here


def hand_over(seconds: float) -> int:
    """What is executed on every worker of a group that is about to end; see `Survivor.answer`."""
    return _here.answer(seconds) if _here is not None else -1


def collect(workers: Sequence[Any]) -> int:
    """Let the workers of a group that is about to end hand over; returns the newest step that was, -1 for none.

    `workers`: Ray Train's, some of them dead or deaf.
    """
    calls = [worker.actor.execute.remote(hand_over, HANDOVER_SECONDS) for worker in workers]
    deadline = time.monotonic() + HANDOVER_SECONDS
    newest = -1
    while calls and time.monotonic() < deadline:
        done, calls = ray.wait(calls, num_returns=1, timeout=deadline - time.monotonic())
        for call in done:
            with suppress(RayError):
                step = int(ray.get(call))
                if step >= 0 > newest:
                    deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
                newest = max(newest, step)
    return newest
