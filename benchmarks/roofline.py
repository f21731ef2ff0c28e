"""What a device can do at most, and what a piece of work needs: rates, counted operations, memory."""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

_MATRIX = {"cpu": 1536, "cuda": 8192}  # side of the square matrices
_COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}  # bytes
_TRIES = 5


def now(device: torch.device) -> float:
    """Seconds on a clock that only goes on once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product; float32 on a GPU as convolutions take it (TF32 or not).

    The faster one of the library for matrices and the library for convolutions, given the same product as a kernel of one
    pixel: on some CPUs the former leaves half of what the device can do (docs/benchmarks.md).
    """
    side = _MATRIX[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    pixels = a.view(side // 32, 4, 8, side).permute(0, 3, 1, 2)  # the rows of `a`, in channels-last memory
    kernel = b.view(side, side, 1, 1)
    with _convolutions_float32(), torch.inference_mode():
        seconds = min(_seconds(lambda: torch.mm(a, b), device), _seconds(lambda: F.conv2d(pixels, kernel), device))
    return 2 * side**3 / seconds


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


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that `work` holds at once beyond those that were there before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # Not the process' own size: what an earlier step has given back to the process is not requested from the system again.
    with profiled(profile_memory=True) as seen:
        work()
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(int(event["args"]["Total Allocated"]) for event in events if event.get("name") == "[memory]")


@contextmanager
def profiled(**what: Any) -> Iterator[profile]:
    """torch's profiler on the CPU, without its own lines on standard error."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], **what) as seen:
        yield seen


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
