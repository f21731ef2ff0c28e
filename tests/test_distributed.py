"""Messages between workers: on four processes, on one with and without a group."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from processes import run_processes
from torch import nn

from vicc_ray import distributed


def _exchange() -> dict[str, Any]:
    me = distributed.rank()
    first, second = torch.tensor([1.0 + me, -me]), torch.tensor([[float(me)]])
    distributed.traffic.reset()
    distributed.all_reduce_sum_(first, second)
    sums, used = (first.tolist(), second.tolist()), (distributed.traffic.messages, distributed.traffic.elements)
    maximum = torch.tensor([float(me), -torch.inf])
    distributed.all_reduce_max_(maximum)
    transposed = (torch.arange(6.0) * (me == 2)).view(2, 3).T  # not contiguous
    distributed.broadcast_(transposed, source=2)
    gathered = distributed.gather_rows(torch.full((me, 2), float(me)))
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None and norm.num_batches_tracked is not None
    norm.running_mean.fill_(me)
    norm.num_batches_tracked.fill_(me)
    distributed.traffic.reset()
    distributed.average_buffers_(nn.Sequential(nn.Linear(2, 2), norm), rows=[0, 6, 2, 0][me])
    before = norm.running_mean.tolist()
    distributed.average_buffers_(norm, rows=0)
    assert norm.running_mean.tolist() == before
    distributed.barrier()
    return {
        "me": (me, distributed.world_size()),
        "sums": sums,
        "used": used,
        "max": maximum.tolist(),
        "broadcast": transposed.tolist(),
        "gathered": [part.tolist() for part in gathered],
        "statistics": (norm.running_mean.tolist(), int(norm.num_batches_tracked), distributed.traffic.messages),
        "gradient": _ddp_gradient(),
        "bytes": [distributed.broadcast_bytes(word * (me == 1), source=1).decode() for word in (b"", b"one", b"")],
        "first": [distributed.first_with(name) for name in ("a node", f"node {me}")],
    }


def _ddp_gradient() -> dict[str, Any]:
    """Of the mean over the rows of all workers; worker 1 has none."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    plain = nn.Linear(2, 1).requires_grad_(False)
    wrapped = distributed.wrap_ddp(layer, torch.device("cpu"))
    assert wrapped is not layer and distributed.unwrap(wrapped) is layer
    assert distributed.wrap_ddp(plain, torch.device("cpu")) is plain, "nothing to average"
    x = torch.arange(15.0).view(5, 3)
    mine = x[[0, 0, 1, 3][distributed.rank()] : [0, 1, 3, 5][distributed.rank()]]
    (wrapped(mine).square().sum() * distributed.world_size() / 5).backward()  # rank 0 has no rows
    assert layer.weight.grad is not None
    alone = nn.Linear(3, 2)
    alone.load_state_dict(layer.state_dict())
    (alone(x).square().sum() / 5).backward()
    return {"workers": layer.weight.grad, "one": alone.weight.grad}


def test_four_processes() -> None:
    for me, result in enumerate(run_processes(_exchange, 4)):
        assert result["me"] == (me, 4)
        assert result["sums"] == ([10.0, -6.0], [[6.0]])
        assert result["used"] == (1, 3), "several tensors travel in one message"
        assert result["max"] == [3.0, -torch.inf]
        assert result["broadcast"] == torch.arange(6.0).view(2, 3).T.tolist()
        assert result["gathered"] == [[[float(rank)] * 2] * rank for rank in range(4)]
        assert result["bytes"] == ["", "one", ""], "an empty message too"
        assert result["first"] == [me == 0, True], "of all with the same name, the lowest rank"
        assert result["statistics"] == ([1.25, 1.25], me, 3), (
            "by rows; one message each (and the barrier); counters stay"
        )
        torch.testing.assert_close(result["gradient"]["workers"], result["gradient"]["one"])


def _exchange_alone() -> bool:
    tensor = torch.ones(2)
    distributed.traffic.reset()
    distributed.all_reduce_sum_(tensor)
    distributed.all_reduce_max_(tensor)
    distributed.broadcast_(tensor)
    distributed.barrier()
    module = nn.BatchNorm1d(2)
    distributed.average_buffers_(module, rows=3)
    assert distributed.wrap_ddp(module, torch.device("cpu")) is module and distributed.unwrap(module) is module
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    rows = torch.ones(3, 2)
    assert [part.tolist() for part in distributed.gather_rows(rows)] == [rows.tolist()]
    return tensor.tolist() == [1.0, 1.0] and distributed.traffic.messages == 0


def test_one_worker_sends_nothing() -> None:
    assert _exchange_alone()
    assert run_processes(_exchange_alone, 1) == [True]


def _fail_on_one() -> None:
    if distributed.rank() == 1:
        raise RuntimeError("this one breaks")


def test_a_failure_in_a_process_fails_the_test_with_its_traceback() -> None:
    with pytest.raises(AssertionError, match="this one breaks"):
        run_processes(_fail_on_one, 2, timeout=20)


def _miss_one() -> None:
    late, number = distributed.rank() == 1, torch.ones(1)
    time.sleep(2.0 * late)
    distributed.all_reduce_sum_(number)  # a slow start is waited for
    distributed.set_patience(1.0)
    time.sleep(4.0 * late)
    distributed.all_reduce_sum_(number)


def test_silence_is_an_error_as_soon_as_patience_says() -> None:
    with pytest.raises(AssertionError, match="Timed out waiting 1000ms"):
        run_processes(_miss_one, 2)
