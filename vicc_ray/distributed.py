"""Rank, world size and every message between training workers.

The only file that calls a collective of ``torch.distributed``. Each function does nothing (or the obvious thing for
one worker) when there is no process group or the group has one member, so the code that uses them is written once for
one process and for many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


@dataclass
class Traffic:
    """Messages that this process has taken part in (those of DistributedDataParallel are its own and not counted)."""

    messages: int = 0
    elements: int = 0

    def reset(self) -> None:
        """Start counting at zero again."""
        self.messages = self.elements = 0


traffic = Traffic()


@contextmanager
def group(file: str, rank: int, workers: int, seconds: float = 300) -> Iterator[None]:
    """A gloo group of processes of this machine, which meet in a new file; for what runs without Ray."""
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=workers, timeout=timedelta(seconds=seconds)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this worker, 0 without a process group."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """Number of workers, 1 without a process group."""
    return dist.get_world_size() if _initialised() else 1


def all_reduce_sum_(*tensors: Tensor) -> None:
    """Replace every tensor by its sum over the workers, in place, all of them in one message.

    The tensors share one floating or integer dtype and one device; shapes are the same on every worker.
    """
    _all_reduce_(tensors, dist.ReduceOp.SUM)


def all_reduce_max_(*tensors: Tensor) -> None:
    """Replace every tensor by its elementwise maximum over the workers, in place, all of them in one message."""
    _all_reduce_(tensors, dist.ReduceOp.MAX)


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Rows of every worker, in the order of the ranks: W tensors [n_r, ...]; n_r may differ and may be 0.

    Two messages, the second as large as the largest share: meant for saving state, not for every step. The results
    are on the device of ``rows``.
    """
    if world_size() == 1:
        return [rows]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = rows.shape[0]
    all_reduce_sum_(counts)
    lengths = [int(count) for count in counts.tolist()]
    message = rows.new_zeros((max(lengths), *rows.shape[1:]))
    message[: rows.shape[0]] = rows
    message = message.to(_message_device(rows)).contiguous()
    received = [torch.empty_like(message) for _ in lengths]
    _count(message)
    dist.all_gather(received, message)
    return [part[:length].to(rows.device) for part, length in zip(received, lengths, strict=True)]


def broadcast_(*tensors: Tensor, source: int = 0) -> None:
    """Replace every tensor by that of worker ``source``, in place, in one message (one dtype and device)."""
    if world_size() > 1 and tensors:
        _exchange_(tensors, lambda message: dist.broadcast(message, src=source))


def broadcast_bytes(message: bytes, source: int = 0) -> bytes:
    """The bytes that worker ``source`` has, on every worker; two messages. What the others pass is not used."""
    if world_size() == 1:
        return message
    length = torch.tensor([len(message)])
    broadcast_(length, source=source)
    if not int(length):
        return b""
    content = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == source:
        content = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    broadcast_(content, source=source)
    return content.numpy().tobytes()


def gather_bytes(message: bytes) -> list[bytes]:
    """The message of every worker, in the order of the ranks, on every worker; lengths may differ."""
    if world_size() == 1:
        return [message]
    rows = torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.zeros(0, dtype=torch.uint8)
    return [part.numpy().tobytes() for part in gather_rows(rows)]


def first_with(name: str) -> bool:
    """Whether no worker of a lower rank gives the same name: one worker of each node, say."""
    return gather_bytes(name.encode()).index(name.encode()) == rank()


def barrier() -> None:
    """Wait until every worker has come here."""
    if world_size() > 1:
        traffic.messages += 1
        dist.barrier()


def set_patience(seconds: float) -> None:
    """From now on a message that takes longer than this is an error: a worker is silent."""
    if _initialised():
        # Under its older name in torch before 2.15.
        change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
        change(timedelta(seconds=seconds), dist.group.WORLD)


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """Let ``module`` average its gradients over the workers during backward; the module itself where nothing is to do.

    Nothing is to do with one worker or without a parameter that takes a gradient. Buffers are not broadcast: batch
    norm statistics are either synchronised (SyncBN) or averaged by ``average_buffers_`` when they are needed.
    """
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def unwrap(module: nn.Module) -> nn.Module:
    """The module that ``wrap_ddp`` was given."""
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    assert isinstance(inner, nn.Module)
    return inner


@torch.no_grad()
def average_gradients_(module: nn.Module, summed: Sequence[Tensor] = ()) -> None:
    """Replace every gradient in ``module`` by its mean over the workers, and ``summed`` by their sums, in one message.

    For a backward pass outside ``wrap_ddp``; the same parameters have a gradient on every worker. The tensors of ``summed``
    have the gradients' dtype and device.
    """
    grads = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if world_size() > 1 and (grads or summed):
        all_reduce_sum_(*grads, *summed)
        if grads:
            torch._foreach_div_(grads, world_size())


@torch.no_grad()
def average_buffers_(module: nn.Module, rows: int) -> None:
    """Replace running mean and variance of every batch norm in ``module`` by their mean over the workers.

    Each worker counts by its ``rows``, those that its statistics have learnt from since the last call: a worker without
    any has nothing to say. Where no worker has any, the statistics are the same already and stay. One message. The mean
    of variances leaves out the spread between the workers' means; with random shares of one batch that spread is of the
    order of variance / rows per worker.
    """
    statistics = list(_running_statistics(module))
    if world_size() > 1 and statistics:
        weighted = [tensor * rows for tensor in statistics]
        total = statistics[0].new_tensor([rows])
        all_reduce_sum_(*weighted, total)
        if total:
            for tensor, weighed in zip(statistics, weighted, strict=True):
                tensor.copy_(weighed / total)


def idle_workers(global_batch: int) -> list[str]:
    """A line for the reader where there are more workers than samples in a step; none otherwise."""
    idle = world_size() - global_batch
    if idle <= 0:
        return []
    return [f"train.workers: {idle} of {world_size()} have nothing to do, as a step has {global_batch} samples"]


def _running_statistics(module: nn.Module) -> Iterable[Tensor]:
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            yield from (tensor for tensor in (part.running_mean, part.running_var) if tensor is not None)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _all_reduce_(tensors: tuple[Tensor, ...], operation: Any) -> None:
    if world_size() > 1 and tensors:
        _exchange_(tensors, lambda message: dist.all_reduce(message, op=operation))


def _exchange_(tensors: tuple[Tensor, ...], collective: Callable[[Tensor], object]) -> None:
    """Pack the tensors into one contiguous message, run the collective on it, unpack it into the tensors."""
    message = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).to(_message_device(tensors[0]))
    _count(message)
    collective(message)
    parts = torch.split(message.to(tensors[0].device), [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def _message_device(tensor: Tensor) -> torch.device:
    """Where a message with this tensor must lie: NCCL carries nothing from the host's memory, gloo (in all of its
    operations) nothing from a GPU's."""
    backend = dist.get_backend()
    if backend == "nccl" and tensor.device.type == "cpu":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if backend == "gloo" else tensor.device


def _count(message: Tensor) -> None:
    traffic.messages += 1
    traffic.elements += message.numel()
