"""What one worker can hand over when the others are gone: the state of the last finished step, from its own memory. No Ray.

Workers hold the same weights, optimiser and (as a copy) queue. Batch norm's running statistics are each worker's own until they
are averaged; those of the workers that are left are, by the rows that they have learnt from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vicc_ray.runs.checkpoint import State


@dataclass(frozen=True)
class OwnState:
    """A learner's `state_dict` as one worker has it.

    Attributes:
        part: the key of `state` whose tensors named in `statistics` are this worker's own.
        rows: samples that they have learnt from since all workers had the same ones.
    """

    state: dict[str, Any]
    part: str
    statistics: Sequence[str]
    rows: int


@dataclass(frozen=True)
class Kept:
    """A finished step as one worker hands it over; plain values and bytes, for another process.

    Attributes:
        step: global steps done.
        state: a `State` of the training loop as `torch.save` wrote it.
        part, statistics, rows: of `OwnState`; the statistics are the tensors themselves, written in the same way.
    """

    step: int
    part: str
    rows: int
    statistics: bytes
    state: bytes = field(repr=False, default=b"")


@dataclass(frozen=True)
class Finished:
    """The last finished step on this worker, and how to take its state: the loop's `State` around a learner's `OwnState`."""

    step: int
    about: Mapping[str, Any]
    own_state: Callable[[], OwnState | None]

    def take(self, whole: bool = True) -> Kept | None:
        """A copy that training does not change; without the state itself where another worker has handed it over."""
        own = self.own_state()
        if own is None:
            return None
        mine = {name: own.state[own.part][name] for name in own.statistics}
        state = _pack({**self.about, "step": self.step, "trainer": own.state}) if whole else b""
        return Kept(self.step, own.part, own.rows, _pack(mine), state)


def merged(state: bytes, workers: Sequence[Kept]) -> State:
    """The state to go on from, with the statistics of all these workers of one step, by their rows."""
    whole: State = _unpack(state)
    weights = [worker.rows for worker in workers]
    if sum(weights) and len(workers) > 1:
        theirs = [_unpack(worker.statistics) for worker in workers]
        target = whole["trainer"][workers[0].part]
        for name in theirs[0]:
            target[name] = sum(one[name] * weight for one, weight in zip(theirs, weights, strict=True)) / sum(weights)
    return whole


class Undo:
    """Takes back what an unfinished step did to tensors that change in the middle of one.

    Weights and optimiser change at a step's very end, without a message in between. A forward pass changes buffers, and an
    objective may change its parameters before it (prototypes are scaled to unit length).
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)
        self.before = [torch.empty_like(tensor) for tensor in self.tensors.values()]
        self.underway = False

    @torch.no_grad()
    def begin(self) -> None:
        """A step begins."""
        if self.before:
            torch._foreach_copy_(self.before, list(self.tensors.values()))
        self.underway = True

    def end(self) -> None:
        """The step is done."""
        self.underway = False

    def undone(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The module's `state_dict` as it was at the end of the last finished step."""
        if not self.underway:
            return dict(state)
        before = dict(zip(self.tensors, self.before, strict=True))
        return {name: before.get(name, value) for name, value in state.items()}


def running_statistics(module: nn.Module) -> list[str]:
    """The names of the running means and variances in a module's state, which each worker has its own of."""
    return [name for name, _ in module.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _pack(content: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _unpack(content: bytes) -> dict[str, Any]:
    # Tensors and plain values only: nothing that comes from another process is ever unpickled beyond that.
    found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return found
