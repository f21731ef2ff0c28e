"""The queue against an obvious list, and its life on 4, 3 and 1 processes."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_processes

from vicc_ray import distributed
from vicc_ray.errors import UserError
from vicc_ray.objective.queue import Queue

VIEWS, DIM = 2, 3


class ListTwin:
    """The whole queue as a list of row numbers, newest first; None where a sample was refused."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.rows: list[int | None] = []

    def push(self, batch: list[int | None]) -> None:
        self.rows = (batch + self.rows)[: self.length]

    def held(self) -> list[tuple[int, int]]:
        return [(place, row) for place, row in enumerate(self.rows) if row is not None]


def embed(numbers: list[int]) -> torch.Tensor:
    """An embedding [VIEWS, n, DIM] that tells which row and which view it is."""
    rows = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1)
    return rows + torch.arange(VIEWS).view(-1, 1, 1) / 4 + torch.arange(DIM).view(1, 1, -1) / 16


def held(queue: Queue) -> list[tuple[int, int]]:
    """(place, row number) of what one worker holds, in its order; checks that all views and columns belong together."""
    numbers = [int(number) for number in queue.rows[0, :, 0].tolist()]
    assert torch.equal(queue.rows, embed(numbers))
    return list(zip(queue.positions.tolist(), numbers, strict=True))


def resplit(state: dict[str, Any], workers: int, asked: int, global_batch: int) -> list[Queue]:
    queues = []
    for worker in range(workers):
        queue = Queue(asked, global_batch=global_batch, views=VIEWS, dim=DIM)
        with (
            mock.patch.object(distributed, "world_size", return_value=workers),
            mock.patch.object(distributed, "rank", return_value=worker),
        ):
            queue.load_state_dict(state)
        queues.append(queue)
    return queues


def whole_state(queues: list[Queue]) -> dict[str, Any]:
    with mock.patch.object(distributed, "gather_rows") as gather:
        gather.side_effect = [
            [queue.positions for queue in queues],
            [queue.rows.transpose(0, 1) for queue in queues],
        ]
        return queues[0].state_dict()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_workers_together_are_the_list(data: st.DataObject) -> None:
    global_batch = data.draw(st.integers(1, 6), label="global batch")
    asked = data.draw(st.integers(global_batch, 20), label="asked")
    workers = data.draw(st.integers(1, 4), label="workers")
    queues = [Queue(asked, global_batch=global_batch, views=VIEWS, dim=DIM) for _ in range(workers)]
    twin = ListTwin(asked // global_batch * global_batch)
    assert queues[0].length == twin.length
    number = 0
    for _ in range(data.draw(st.integers(1, 12), label="steps")):
        owner = [data.draw(st.integers(-1, len(queues) - 1)) for _ in range(global_batch)]  # -1: refused
        batch = [number + slot if owner[slot] >= 0 else None for slot in range(global_batch)]
        for worker, queue in enumerate(queues):
            slots = data.draw(st.permutations([slot for slot in range(global_batch) if owner[slot] == worker]))
            queue.push(embed([number + slot for slot in slots]), torch.tensor(slots, dtype=torch.int64))
        twin.push(batch)
        number += global_batch
        for queue in queues:
            assert held(queue) == sorted(held(queue)), "newest first"
            assert queue.full == (len(twin.rows) >= twin.length)
        assert sorted(pair for queue in queues for pair in held(queue)) == twin.held()
        if data.draw(st.booleans(), label="restart"):
            state = whole_state(queues)
            assert state["positions"].tolist() == [place for place, _ in twin.held()]
            queues = resplit(state, data.draw(st.integers(1, 4)), asked, global_batch)
            assert [pair for queue in queues for pair in held(queue)] == twin.held()
            shares = [len(queue.positions) for queue in queues]
            assert max(shares) - min(shares) <= 1


def _push_some(start: int, steps: int, state: dict[str, Any] | None) -> tuple[list[tuple[int, int]], dict[str, Any]]:
    """On one of W processes: restore, push ``steps`` batches of 12 whose slot s belongs to worker s % W, save."""
    queue = Queue(40, global_batch=12, views=VIEWS, dim=DIM)
    if state is not None:
        queue.load_state_dict(state)
    slots = list(range(distributed.rank(), 12, distributed.world_size()))
    for step in range(steps):
        queue.push(embed([start + 12 * step + slot for slot in slots]), torch.tensor(slots))
    return held(queue), queue.state_dict()


def test_four_processes_then_three_then_one() -> None:
    twin = ListTwin(36)
    state: dict[str, Any] | None = None
    start = 0
    for workers, steps in ((4, 2), (3, 2), (1, 1)):
        results = run_processes(_push_some, workers, start, steps, state)
        for step in range(steps):
            twin.push(list(range(start + 12 * step, start + 12 * step + 12)))
        start += 12 * steps
        assert sorted(pair for local, _ in results for pair in local) == twin.held()
        state = results[0][1]
        for _, other in results:
            assert torch.equal(other["rows"], state["rows"]) and torch.equal(other["positions"], state["positions"])
        assert torch.equal(state["rows"], embed([row for _, row in twin.held()]))
        assert (state["pushed"], state["length"]) == (min(start, 36), 36)


def test_length_is_rounded_down_and_said() -> None:
    queue = Queue(1920, global_batch=100, views=1, dim=4)
    assert (queue.configured, queue.length) == (1920, 1900)
    note = queue.rounding_note()
    assert note is not None and "1920" in note and "1900" in note and "100" in note
    assert Queue(1900, global_batch=100, views=1, dim=4).rounding_note() is None
    with pytest.raises(UserError, match="fewer than one global batch"):
        Queue(99, global_batch=100, views=1, dim=4)


def test_restored_into_another_length() -> None:
    queue = Queue(12, global_batch=4, views=VIEWS, dim=DIM)
    for step in range(3):
        queue.push(embed(list(range(4 * step, 4 * step + 4))), torch.arange(4))
    assert queue.full
    shorter = Queue(8, global_batch=4, views=VIEWS, dim=DIM)
    shorter.load_state_dict(queue.state_dict())
    assert shorter.full and held(shorter) == held(queue)[:8]
    longer = Queue(20, global_batch=4, views=VIEWS, dim=DIM)
    longer.load_state_dict(queue.state_dict())
    assert held(longer) == held(queue)
    full = [longer.full]
    for step in range(3, 5):
        longer.push(embed(list(range(4 * step, 4 * step + 4))), torch.arange(4))
        full.append(longer.full)
    assert full == [False, False, True] and len(held(longer)) == 20


def test_what_does_not_fit_is_refused() -> None:
    queue = Queue(4, global_batch=4, views=VIEWS, dim=DIM)
    with pytest.raises(ValueError, match="distinct"):
        queue.push(embed([0, 1]), torch.tensor([2, 2]))
    with pytest.raises(ValueError, match=r"0\.\.3"):
        queue.push(embed([0, 1]), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="expected"):
        queue.push(embed([0]), torch.tensor([0, 1]))
    queue.push(embed([0, 1, 2, 3]), torch.arange(4))
    with pytest.raises(UserError, match="width 5"):
        Queue(4, global_batch=4, views=VIEWS, dim=5).load_state_dict(queue.state_dict())
    state = queue.state_dict()
    state["rows"][0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        queue.load_state_dict(state)


def test_rows_are_copies_without_gradient() -> None:
    queue = Queue(2, global_batch=2, views=VIEWS, dim=DIM)
    z = embed([0, 1]).requires_grad_()
    queue.push(z, torch.arange(2))
    assert not queue.rows.requires_grad
    with torch.no_grad():
        z.zero_()
    assert held(queue) == [(0, 0), (1, 1)]
