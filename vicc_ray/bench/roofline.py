"""What a device can do at most, and what a piece of work asks of it: rates, counted operations, memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

_MATRIX = {"cpu": 1536, "cuda": 8192}  # side of the square matrices
_COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes
_TRIES = 5


def now(device: torch.device) -> float:
    """Seconds on a clock that only goes on once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product; float32 on a GPU as convolutions take it (TF32 or not)."""
    side = _MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with _convolutions_float32():
        return 2 * side**3 / _seconds(lambda: torch.mm(a, b), device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second of a large copy in the device's memory, read and written ones together."""
    source = torch.zeros(_COPIED[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _seconds(lambda: target.copy_(source), device)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in `work`, backward included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def peak_memory(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `work` takes beyond what was taken before; of the process on a CPU, None where nobody counts them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark of this process begins again
        before = _status("VmRSS")
        work()
        return _status("VmHWM") - before
    except (OSError, StopIteration):
        return None


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_TRIES + 1):
        start = now(device)
        work()
        times.append(now(device) - start)
    return statistics.median(times[1:])


@contextmanager
def _convolutions_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
