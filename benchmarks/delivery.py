"""What delivering blocks costs that hold nothing: each worker with a dataset of its own, and one dataset dealt out by one actor.

`vicc bench delivery`: workers are Ray actors of this machine, so with more of them than cores the sum of blocks/s is the
machine's; what must not grow with their number is the CPU time of a block, of all processes that the bench has started. Many
workers are simulated: consumers with a dataset and a decode actor each, which live as threads in 8 processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import ray
from ray.data import DataContext, DataIterator

from benchmarks import Bar, Outcome
from vicc_ray.cluster.resources import Decoders
from vicc_ray.cluster.session import job_session
from vicc_ray.cluster.stream import PaceScheduling, decode_units, iterate_blocks
from vicc_ray.console import quiet, scratch_log
from vicc_ray.training.batches import Block

WORKERS = (1, 4, 16)
BLOCKS, RAMP = 120, 20  # that each worker takes, as fast as they come; those before the clock
PACE_WORKERS, PACED_SECONDS, A_SECOND = 4, 15.0, 2.0
MANY = (32, 256)  # consumers that are simulated
PROCESSES, MANY_BLOCKS, MANY_RAMP = 8, 24, 4
ACTOR_BYTES = 40 << 20  # that a decode actor has for itself
BUFFER = 128 << 20
MOST_PACED = 0.03  # of a core, a worker


class Nothing:
    """A decode actor of blocks without content."""

    def __call__(self, rows: dict[str, Any]) -> Block:
        """The unit's number."""
        return {"unit": rows["unit"], "video": np.zeros(1, np.int64)}


def dataset(first: int, stop: int, step: int, actors: int) -> Any:
    """Units first, first + step, ... of blocks."""
    units = [{"unit": unit} for unit in range(first, stop, step)]
    return decode_units(units, Nothing, (), Decoders(actors, 0), BUFFER, [ray.get_runtime_context().get_node_id()], 4)


class Worker:
    """Takes its blocks, of its own dataset or of one that is dealt out."""

    def __init__(self, rest: bool = True, ramp: int = RAMP) -> None:
        self.blocks: Iterator[Block] = iter(())
        self.ramp = ramp
        if not rest:  # Ray Data as it is
            DataContext.get_current().custom_execution_callback_classes = []
            PaceScheduling.SECONDS = 0.0

    def own(self, rank: int, workers: int, count: int) -> None:
        """Begin a dataset of this worker alone; returns when its first blocks are here."""
        self._begin(dataset(rank, (count + self.ramp) * workers, workers, 1).iterator())

    def shared(self, iterator: DataIterator) -> None:
        """Begin with a handle on the dataset of all."""
        self._begin(iterator)

    def _begin(self, iterator: DataIterator) -> None:
        self.blocks = iterate_blocks(iterator)
        for _ in range(self.ramp):
            next(self.blocks)

    def take(self, count: int, a_second: float | None = None) -> int:
        """Take so many blocks, at most `a_second`; their number."""
        due = time.monotonic()
        for taken in range(count):
            if next(self.blocks, None) is None:
                return taken
            if a_second is not None:
                due += 1 / a_second
                time.sleep(max(due - time.monotonic(), 0))
        return count


class Group:
    """Consumers of these ranks in one process, a thread each."""

    def __init__(self, ranks: list[int]) -> None:
        self.workers = {rank: Worker(ramp=MANY_RAMP) for rank in ranks}
        self.threads = ThreadPoolExecutor(len(ranks))

    def own(self, consumers: int, count: int) -> None:
        """Begin each one's dataset; returns when the first blocks of all are here."""
        list(self.threads.map(lambda rank: self.workers[rank].own(rank, consumers, count), self.workers))

    def take(self, count: int) -> int:
        """Take so many blocks each; their number."""
        return sum(self.threads.map(lambda worker: worker.take(count), self.workers.values()))


class Owner:
    """Who owns the dataset that is dealt out."""

    def split(self, workers: int, count: int) -> list[DataIterator]:
        """A handle for each worker."""
        found: list[DataIterator] = dataset(0, (count + RAMP) * workers, 1, workers).streaming_split(
            workers, equal=False
        )
        self.held = found
        return found


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """CPU milliseconds a block, of this process and all that it started. The manifest is not read.

    Many consumers are measured once, and only as many as there is memory for.
    """
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    with quiet(scratch_log("bench-delivery")), job_session(4):
        for workers in WORKERS:
            for name, own in (("each its own", True), ("one dealt out", False)):
                found = [_fast(workers, own) for _ in range(rounds)]
                title = f"{workers} workers, {name}"
                figures[title] = [cpu for cpu, _ in found]
                details[title] = {"blocks/s": float(np.median([pace for _, pace in found]))}
        paced = {rest: [_paced(rest) for _ in range(rounds)] for rest in (True, False)}
        simulated: dict[int, float] = {}
        for consumers in MANY:
            if psutil.virtual_memory().available < consumers * ACTOR_BYTES:
                break
            simulated[consumers], pace, memory = _many(consumers)
            figures[f"{consumers} consumers in {PROCESSES} processes"] = [simulated[consumers]]
            details[f"{consumers} consumers in {PROCESSES} processes"] = {
                "blocks/s": pace,
                "MiB of all processes": memory,
            }
    outcome = Outcome("CPU ms a block", figures, details=details)
    fewer, more = (outcome.median(f"{workers} workers, each its own") for workers in WORKERS[1:])
    share = float(np.median(paced[True]))
    outcome.facts = {
        f"share of a core a worker at {A_SECOND:g} blocks/s": round(share, 3),
        "... without the rest of the scheduling loop": round(float(np.median(paced[False])), 3),
    }
    outcome.bars = [
        Bar(f"blocks a CPU second, {WORKERS[2]} workers / {WORKERS[1]}", fewer / more, 0.8),
        Bar(f"share of a core a worker at {A_SECOND:g} blocks/s", share, MOST_PACED, at_least=False),
    ]
    if len(simulated) == len(MANY):
        ratio = simulated[MANY[0]] / simulated[MANY[-1]]
        outcome.bars.append(Bar(f"blocks a CPU second, {MANY[-1]} consumers / {MANY[0]}", ratio, 0.8))
    else:
        outcome.facts["consumers there was no memory for"] = MANY[len(simulated)]
    return outcome


def _fast(workers: int, own: bool) -> tuple[float, float]:
    """CPU ms a block and blocks/s of all workers together."""
    actors, owner = _workers(workers, own, BLOCKS)
    before, began = _cpu(), time.perf_counter()
    taken = sum(ray.get([actor.take.remote(BLOCKS - RAMP) for actor in actors]))
    seconds, spent = time.perf_counter() - began, _since(before)
    _end(actors, owner)
    return 1000 * spent / taken, taken / seconds


def _many(consumers: int) -> tuple[float, float, float]:
    """CPU ms a block and blocks/s of all simulated consumers together, and MiB of all processes (their shares of common pages)."""
    ranks = [list(range(first, consumers, PROCESSES)) for first in range(PROCESSES)]
    groups = [ray.remote(Group).options(num_cpus=0, max_concurrency=2).remote(own) for own in ranks]
    ray.get([group.own.remote(consumers, MANY_BLOCKS) for group in groups])
    before, began = _cpu(), time.perf_counter()
    taken = sum(ray.get([group.take.remote(MANY_BLOCKS - MANY_RAMP) for group in groups]))
    seconds, spent = time.perf_counter() - began, _since(before)
    memory = sum(_shares())
    _end(groups, None)
    return 1000 * spent / taken, taken / seconds, memory / 2**20


def _paced(rest: bool) -> float:
    """Share of a core a worker."""
    before = _cpu()
    time.sleep(5)  # Ray without a dataset, which is no delivery
    idle = _since(before) / 5
    count = int(PACED_SECONDS * A_SECOND)
    actors, owner = _workers(PACE_WORKERS, True, count + RAMP, rest)
    before, began = _cpu(), time.perf_counter()
    ray.get([actor.take.remote(count, A_SECOND) for actor in actors])
    seconds = time.perf_counter() - began
    spent = _since(before) - idle * seconds
    _end(actors, owner)
    return spent / seconds / PACE_WORKERS


def _workers(workers: int, own: bool, count: int, rest: bool = True) -> tuple[list[Any], Any]:
    actors = [ray.remote(Worker).options(num_cpus=0).remote(rest) for _ in range(workers)]
    if own:
        ray.get([actor.own.remote(rank, workers, count) for rank, actor in enumerate(actors)])
        return actors, None
    owner = ray.remote(Owner).options(num_cpus=0).remote()
    handles = ray.get(owner.split.remote(workers, count))
    ray.get([actor.shared.remote(handle) for actor, handle in zip(actors, handles, strict=True)])
    return actors, owner


def _end(actors: list[Any], owner: Any) -> None:
    for actor in [*actors, owner]:
        if actor is not None:
            ray.kill(actor)
    time.sleep(2)


def _ours() -> Iterator[psutil.Process]:
    """This process and all that it has started, directly or not."""
    here = psutil.Process()
    yield from (here, *here.children(recursive=True))


def _cpu() -> dict[psutil.Process, float]:
    """CPU seconds of each of our processes so far."""
    found = {}
    for process in _ours():
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process] = times.user + times.system
    return found


def _since(before: dict[psutil.Process, float]) -> float:
    """CPU seconds that our processes have taken since then; of one that has ended meanwhile, nothing."""
    return sum(seconds - before.get(process, 0.0) for process, seconds in _cpu().items())


def _shares() -> Iterator[int]:
    """Bytes of each of our processes, its share of pages that several have in common."""
    for process in _ours():
        with suppress(psutil.Error):
            yield process.memory_full_info().pss
