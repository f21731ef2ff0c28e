"""A function over many items on the cluster, by Ray Data: one item at a time in a guarded process of each actor.

For jobs that end when the last item does (probing videos, filling a flow store). An item that crashes or hangs its
process is a `Failure` and costs nothing else; a node that dies costs the items in progress, which are done again elsewhere.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from vicc_ray.cluster.stream import configure_context
from vicc_ray.data.guarded import MEMORY_BYTES, Failure, Guarded

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items that travel together: enough that Ray's own work a block (some ms) is small beside theirs.
ITEMS_A_BLOCK = 4
MAX_BLOCKS = 4096
# Items of which a dataset is made at a time, where they are many: its actors start anew, so each should have some time's work.
ITEMS_AN_ACTOR = 1024


class _Worker:
    """An actor: pickled items in, pickled outcomes out."""

    def __init__(self, function: Callable[[Any], Any], memory_bytes: int | None) -> None:
        self.guarded = Guarded(function, 0, memory_bytes=memory_bytes)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        outcomes = []
        for item, seconds in zip(rows["item"], rows["seconds"], strict=True):
            self.guarded.timeout_seconds = float(seconds)
            outcomes.append(pickle.dumps(self.guarded(pickle.loads(item))))
        return {"place": rows["place"], "outcome": np.array(outcomes, object)}


def run_on_cluster(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    actors: int,
    timeout_seconds: Callable[[Item], float],
    gpus_an_actor: float = 0,
    memory_bytes: int | None = MEMORY_BYTES,
) -> Iterator[tuple[int, Result | Failure]]:
    """Yield (place in `items`, result or `Failure`) as they come, each place once; an open Ray session is needed.

    `function` and the items must be picklable, and the function's module importable on every node. `timeout_seconds`
    is how long an item may take, `memory_bytes` is what `Guarded` gives it. `actors` is the most that run at once; fewer
    start where the cluster is smaller. Of many items only so many are taken from the sequence at a time as give each actor some
    time's work, so they may be made as they are taken.
    """
    most = max(MAX_BLOCKS * ITEMS_A_BLOCK, actors * ITEMS_AN_ACTOR)
    for first in range(0, len(items), most):
        part = items[first : first + most]
        for place, outcome in _run(function, part, actors, timeout_seconds, gpus_an_actor, memory_bytes):
            yield first + place, outcome


def _run(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    actors: int,
    timeout_seconds: Callable[[Item], float],
    gpus_an_actor: float,
    memory_bytes: int | None,
) -> Iterator[tuple[int, Result | Failure]]:
    """As `run_on_cluster`, for so many items that they are in memory together."""
    configure_context()
    size = max(min(ITEMS_A_BLOCK, len(items) // (4 * actors)), 1, -(-len(items) // MAX_BLOCKS))
    blocks = [
        pa.table(
            {
                "place": list(range(start, min(start + size, len(items)))),
                "item": [pickle.dumps(item) for item in items[start : start + size]],
                "seconds": [float(timeout_seconds(item)) for item in items[start : start + size]],
            }
        )
        for start in range(0, len(items), size)
    ]
    done = ray.data.from_blocks(blocks).map_batches(
        _Worker,
        fn_constructor_args=(function, memory_bytes),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=gpus_an_actor,
        compute=ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=2),
    )
    for block in done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1):
        for place, outcome in zip(block["place"], block["outcome"], strict=True):
            yield int(place), pickle.loads(outcome)
