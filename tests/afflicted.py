"""Functions that crash, hang, leak or send much, for processes that import this file and little else."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def work(item: str) -> str:
    if item == "segfault":
        ctypes.string_at(0)
    if item == "hang":
        time.sleep(600)
    if item == "exit":
        os._exit(3)
    if item == "raise":
        raise ValueError("two\nlines")
    return item.upper()


def pid(_: object) -> int:
    return os.getpid()


_KEPT: list[bytes] = []


def leak(megabytes: int) -> int:
    _KEPT.append(b"x" * (megabytes << 20))
    return os.getpid()


def arrays(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    size = (1, 3, 0, 2)[seed % 4] * 100_000
    image = rng.integers(0, 255, (size, 2, 3), np.uint8)
    return {
        "image": image,
        "turned": image.T,
        "empty": np.zeros((0, 4)),
        "number": np.float32(seed),
        "text": "ü" * seed,
    }


def unpicklable(_: object) -> Callable[[], int]:
    return lambda: 1


def killed(marker: str) -> str:
    """Killed from outside at every call until the file has two letters."""
    with open(marker, "a+") as file:
        file.seek(0)
        if len(file.read()) < 2:
            file.write("x")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    return "done"


_MAPPED: list[mmap.mmap] = []


def maps(size: int) -> int:
    """The process's number; the address space that it takes stays taken."""
    _MAPPED.append(mmap.mmap(-1, size))
    return os.getpid()
