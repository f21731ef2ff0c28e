"""What delivering blocks costs that hold nothing: each worker with a dataset of its own, and one dataset dealt out by one actor.

`vicc bench delivery`: workers are Ray actors of this machine, so with more of them than cores the sum of blocks/s is the
machine's; what must not grow with their number is the CPU time of a block, of all processes that the bench has started. Many
workers are simulated: consumers with a dataset and a decode actor each, which live as threads in 8 processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import ray
from ray.data import DataContext, DataIterator

from benchmarks import Bar, Outcome
from vicc_ray.cluster.resources import PREFETCH, Decoders
from vicc_ray.cluster.session import job_session
from vicc_ray.cluster.stream import PaceScheduling, decode_units, iterate_blocks
from vicc_ray.console import quiet, scratch_log
from vicc_ray.training.batches import Block

WORKERS = (1, 4, 16)
BLOCKS, RAMP = 120, 20  # that each worker takes, as fast as they come; those before the clock
# At the pace of training: a worker is sent as many steps in a block as it trains in a second (`resources.steps_a_block`).
PACE_WORKERS, PACED_SECONDS, A_SECOND = (4, 32), 30.0, 1.0
IDLE_SECONDS = 10.0
MANY = (8, 32)  # consumers that are simulated, as fast as they come: more than 32 are too many for two cores
PROCESSES, MANY_BLOCKS, MANY_RAMP = 8, 44, 4
# Of consumers at a pace and of many, as many blocks lie ready as of a training run: where all did, their loops would have ended
# before the clock starts. So that none ends before it stops, their datasets are longer than what is taken.
AHEAD = PREFETCH + 3 + 4
CONTENT = {"size": 128 << 10, "buffer": AHEAD * (128 << 10)}
BUFFER = 128 << 20
MOST_PACED = 0.03  # of a core, a worker
# Ray's processes that a cluster has one of, whatever the number of its workers.
SINGLE = ("_AutoscalingCoordinatorActor", "ActorLocationTracker", "_StatsActor", "gcs_server")

_Shares = tuple[float, float]


class Nothing:
    """A decode actor of blocks without content, of so many bytes."""

    def __init__(self, size: int) -> None:
        self.content = np.zeros((1, size), np.uint8)

    def __call__(self, rows: dict[str, Any]) -> Block:
        """The unit's number."""
        return {"unit": rows["unit"], "video": self.content}


def dataset(first: int, stop: int, step: int, actors: int, size: int = 8, buffer: int = BUFFER) -> Any:
    """Units first, first + step, ... of blocks of `size` bytes, of which `buffer` bytes lie ready."""
    units = [{"unit": unit} for unit in range(first, stop, step)]
    here = [ray.get_runtime_context().get_node_id()]
    return decode_units(units, Nothing, (size,), Decoders(actors, 0), buffer, here, 4)


class Worker:
    """Takes its blocks, of its own dataset or of one that is dealt out."""

    def __init__(self, rest: bool = True, ramp: int = RAMP) -> None:
        self.blocks: Iterator[Block] = iter(())
        self.ramp = ramp
        if not rest:  # Ray Data as it is
            DataContext.get_current().custom_execution_callback_classes = []
            PaceScheduling.SECONDS, PaceScheduling.QUICK_ROUNDS = 0.0, 1 << 60

    def own(self, rank: int, workers: int, count: int, **content: int) -> None:
        """Begin a dataset of this worker alone; returns when its first blocks are here."""
        self._begin(iterate_blocks(dataset(rank, (count + self.ramp) * workers, workers, 1, **content)))

    def shared(self, iterator: DataIterator) -> None:
        """Begin with a handle on the dataset of all."""
        self._begin(iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH))

    def _begin(self, blocks: Iterable[Block]) -> None:
        self.blocks = iter(blocks)
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

    def __init__(self, ranks: list[int], rest: bool = True) -> None:
        self.workers = {rank: Worker(rest, MANY_RAMP) for rank in ranks}
        self.threads = ThreadPoolExecutor(len(ranks))

    def own(self, consumers: int, count: int) -> None:
        """Begin each one's dataset, one after another: hundreds of processes that start at once time out. Returns when the first
        blocks of all are here."""
        for rank, worker in self.workers.items():
            worker.own(rank, consumers, count, **CONTENT)

    def take(self, count: int, a_second: float | None = None) -> int:
        """Take so many blocks each, at most `a_second`; their number."""
        return sum(self.threads.map(lambda worker: worker.take(count, a_second), self.workers.values()))


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
    """CPU milliseconds a block, of this process and all that it started. The manifest is not read."""
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    with quiet(scratch_log("bench-delivery")), job_session(4):
        for workers in WORKERS:
            for name, own in (("each its own", True), ("one dealt out", False)):
                found = [_fast(workers, own) for _ in range(rounds)]
                title = f"{workers} workers, {name}"
                figures[title] = [cpu for cpu, _ in found]
                details[title] = {"blocks/s": float(np.median([pace for _, pace in found]))}
        paced = {workers: [_paced(workers) for _ in range(rounds)] for workers in PACE_WORKERS}
        restless = [_paced(PACE_WORKERS[0], rest=False) for _ in range(rounds)]
        for consumers in MANY:
            title = f"{consumers} consumers in {PROCESSES} processes"
            many = [_many(consumers) for _ in range(rounds)]
            figures[title] = [cpu for cpu, _ in many]
            details[title] = {"blocks/s": float(np.median([pace for _, pace in many]))}
    outcome = Outcome("CPU ms a block", figures, details=details)
    outcome.facts = _facts(paced, restless)
    fewer, more = (outcome.median(f"{workers} workers, each its own") for workers in WORKERS[1:])
    some, most = (outcome.median(f"{consumers} consumers in {PROCESSES} processes") for consumers in MANY)
    outcome.bars = [
        Bar(f"blocks a CPU second, {WORKERS[2]} workers / {WORKERS[1]}", fewer / more, 0.8),
        Bar(f"blocks a CPU second, {MANY[1]} consumers / {MANY[0]}", some / most, 0.8),
        *(
            Bar(
                f"share of a core a worker, {workers} at {A_SECOND:g} blocks/s",
                _median(paced[workers], 0),
                MOST_PACED,
                False,
            )
            for workers in PACE_WORKERS
        ),
    ]
    return outcome


def _facts(paced: Mapping[int, Sequence[_Shares]], restless: Sequence[_Shares]) -> dict[str, float]:
    facts = {}
    for workers, found in paced.items():
        facts[f"share of a core a worker, {workers} workers at {A_SECOND:g} blocks/s"] = _median(found, 0)
        facts[f"... of which in the single processes of a cluster, {workers} workers"] = _median(found, 1)
    return facts | {"... without the rest of the scheduling loop": _median(restless, 0)}


def _median(shares: Sequence[_Shares], which: int) -> float:
    return round(float(np.median([one[which] for one in shares])), 4)


def _fast(workers: int, own: bool) -> tuple[float, float]:
    """CPU ms a block and blocks/s of all workers together."""
    actors, owner = _workers(workers, own, BLOCKS)
    before, began = _cpu(), time.perf_counter()
    taken = sum(ray.get([actor.take.remote(BLOCKS - RAMP) for actor in actors]))
    seconds, spent = time.perf_counter() - began, _since(before)
    _end(actors, owner)
    return 1000 * spent / taken, taken / seconds


def _many(consumers: int) -> tuple[float, float]:
    """CPU ms a block and blocks/s of all simulated consumers together."""
    groups = _groups(consumers, MANY_BLOCKS)
    before, began = _cpu(), time.perf_counter()
    taken = sum(ray.get([group.take.remote(MANY_BLOCKS - MANY_RAMP) for group in groups]))
    seconds, spent = time.perf_counter() - began, _since(before)
    _end(groups, None)
    return 1000 * spent / taken, taken / seconds


def _paced(workers: int, rest: bool = True) -> _Shares:
    """Shares of a core a worker: of all processes, and of those that a cluster has one of."""
    count = int(PACED_SECONDS * A_SECOND)
    groups = _groups(workers, count + MANY_RAMP, rest)
    before, began = _cpu(), time.perf_counter()
    ray.get([group.take.remote(count, A_SECOND) for group in groups])
    seconds, after = time.perf_counter() - began, _cpu()
    single = [process for process in after if process in before and _is_single(process)]
    _end(groups, None)
    # Ray without a dataset is no delivery. Measured afterwards: just started, it has more to do than later.
    idle = _cpu()
    time.sleep(IDLE_SECONDS)
    later = _cpu()
    shares = []
    for processes in (list(after), single):
        busy = sum(after[one] - before.get(one, 0.0) for one in processes) / seconds
        resting = sum(later[one] - idle[one] for one in processes if one in later and one in idle) / IDLE_SECONDS
        shares.append((busy - resting) / workers)
    return shares[0], shares[1]


def _is_single(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        command = " ".join(process.cmdline())
        return any(name in command for name in SINGLE)
    return False


def _groups(consumers: int, count: int, rest: bool = True) -> list[Any]:
    """Simulated consumers with a dataset each, of which the first blocks are here."""
    ranks = [list(range(first, consumers, PROCESSES)) for first in range(min(PROCESSES, consumers))]
    groups = [ray.remote(Group).options(num_cpus=0, max_concurrency=2).remote(own, rest) for own in ranks]
    ray.get([group.own.remote(consumers, count + AHEAD) for group in groups])
    return groups


def _workers(workers: int, own: bool, count: int) -> tuple[list[Any], Any]:
    actors = [ray.remote(Worker).options(num_cpus=0).remote() for _ in range(workers)]
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
