"""Run a function on several real processes joined by gloo, and give back what each of them returned."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 120.0  # the first call also waits for the server's imports, on a machine that may be busy


def run_processes(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = TIMEOUT_SECONDS
) -> list[Any]:
    """Results of ``function(*args)`` on ``world_size`` processes in one gloo group, in the order of the ranks.

    ``function`` stands at the top of a module; arguments and results can be pickled. A failure in any process, or
    ``timeout`` seconds without an end, is an AssertionError with the processes' tracebacks; none is left running.

    The processes are forked from a server that has imported torch and done nothing else: forking the test process
    itself would take over its autograd threads, and a fresh interpreter for each would import torch each time.
    """
    context = multiprocessing.get_context("forkserver")
    # Making a DistributedDataParallel imports torch._dynamo: seconds of work, better done once than in every process.
    context.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_member, args=(function, rank, world_size, folder, timeout, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        failures = [text.read_text() for text in sorted(folder.glob("*.failed"))]
        results = [folder / f"{rank}.result" for rank in range(world_size)]
        missing = [rank for rank, result in enumerate(results) if not result.exists()]
        assert not failures and not missing, f"ranks {missing} of {world_size} gave no result\n" + "\n".join(failures)
        return [pickle.loads(result.read_bytes()) for result in results]


def _member(
    function: Callable[..., Any], rank: int, world_size: int, folder: Path, timeout: float, args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        if Path("/sys/class/net/lo").exists():
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name that resolves is not needed then
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )
        result = pickle.dumps(function(*args))
        dist.barrier()
        dist.destroy_process_group()
        (folder / f"{rank}.result").write_bytes(result)
    except BaseException:
        (folder / f"{rank}.failed").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise
