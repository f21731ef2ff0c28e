"""What differs from one machine to another: the CPUs and the memory that a process may use, what CPUs can do, locks of files."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOCK_RETRY_SECONDS = 0.2  # for which a process that checks whether a lock is held may hold it itself


def usable_cpus() -> int:
    """CPUs that this process may run on; those of the machine where the system has no affinity (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of this machine."""
    import psutil

    return int(psutil.virtual_memory().total)


def lock(handle: int) -> bool | None:
    """Lock an open file for this process until it is closed: whether that succeeded; None where there are no locks.

    The lock goes with its process, however that ends. There are none on some network file systems, and where Python was
    built without them.
    """
    # Of PyTorch's own requirements, and light.
    from filelock import lock_descriptor

    try:
        if lock_descriptor(handle, blocking=False):
            return True
        time.sleep(LOCK_RETRY_SECONDS)
        return lock_descriptor(handle, blocking=False)
    except OSError:
        return None


def cpu_has_matrix_units() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 (Intel's AMX, from Sapphire Rapids on); False where Linux does not say."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
