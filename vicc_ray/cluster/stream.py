"""Manifest -> clips on the cluster: Ray Data actors decode and measure flow, workers get their blocks in plan order.

One input row stands for one block: worker `rank`'s share of a step. Each worker has a dataset, a scheduling loop and decode actors
of its own, so what delivery costs a worker does not depend on how many there are. Blocks keep their order; each names its step,
and the worker checks it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from itertools import count, cycle
from threading import Event
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions, ExecutionResources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vicc_ray.cluster import ray_private
from vicc_ray.cluster.decode_actors import DecodeShares, DecodeWindows, monitor_units
from vicc_ray.cluster.resources import (
    PREFETCH,
    Decoders,
    ResourcePlan,
    buffer_bytes,
    steps_a_block,
    tasks_an_actor,
    training_buffer_bytes,
)
from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.checking import open_stores, with_absolute_stores
from vicc_ray.training.batches import Block, TrainingPlan, split_steps
from vicc_ray.training.schedule import Stage, locate

# Blocks of one dataset at most: each costs the driver of the stream a little memory before anything runs.
SEGMENT_BLOCKS = 2048
# Of a start's first dataset: putting a block into the store takes Ray 0.7 ms here and 0.6 ms in the node's process, before anything
# is decoded. The next ones are GROWTH times as long each, so that it stays little of the time trained since the start.
FIRST_BLOCKS = 128
GROWTH = 4
# Windows that an evaluation block holds, of one long video or of several short ones.
WINDOWS_A_BLOCK = 16
_NUMBERS = count()  # of the datasets of this process
# Whether actors of one pool can be placed one by one (`InTurn`); Ray 2.64 ends it.
CAN_TAKE_TURNS = "ray_remote_args_fn" in signature(Dataset.map_batches).parameters


class PaceScheduling:
    """A rest for Ray Data's scheduling loop after each of its rounds.

    While the workers are slower than the decoders, which is the aim, finished blocks wait to be taken and the loop finds
    them at once, round after round: it was seen to take 70 % of a core from the training that it waits for, and 10 % with a
    short pause in each round. So after some rounds that found something at once it rests until a worker wants its next block
    (`iterate_blocks`), and goes on as long as one is waiting. A round that waited for a decoder ends that. (An execution
    callback, see `DataContext.custom_execution_callback_classes`.)
    """

    SECONDS, MOST_SECONDS = 0.02, 2.0
    # A round that took so long waited for a task: Ray waits for 0.1 s at most.
    WAITED = 0.05
    QUICK_ROUNDS = 10
    # Set while a block of a dataset is wanted, by the number that its context has under this name.
    NAME = "vicc_ray.pace"
    WANTED: ClassVar[dict[int, Event]] = {}

    def __init__(self) -> None:
        self.wanted: Event | None = None
        self.quick, self.rested = 0, time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """Find out what is set while a block is wanted."""
        self.wanted = self.WANTED.get(ray_private.data_setting(executor, self.NAME))

    def on_execution_step(self, executor: Any) -> None:
        """Called by the loop after each round."""
        self.quick = 0 if time.monotonic() - self.rested > self.WAITED else self.quick + 1
        time.sleep(self.SECONDS)
        if self.wanted and self.quick > self.QUICK_ROUNDS:
            self.wanted.wait(self.MOST_SECONDS)
        self.rested = time.monotonic()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to clean up."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to clean up."""


class DecodePlanned:
    """`DecodeShares` with the plan's videos and the stores' indexes from Ray's object store, of which a node has one copy for all
    of its processes."""

    def __init__(
        self,
        plan: TrainingPlan,
        rows: ray.ObjectRef,
        workers: int,
        monitored: Sequence[VideoRow],
        stores: ray.ObjectRef,
    ) -> None:
        self.decode = DecodeShares(replace(plan, videos=ray.get(rows)), workers, monitored, ray.get(stores))

    def __call__(self, units: dict[str, Any]) -> Block:
        """As `DecodeShares`."""
        return self.decode(units)


class DecodeListed:
    """`DecodeWindows` with videos, windows and the stores' indexes from Ray's object store, of which a node has one copy."""

    def __init__(
        self, listed: Sequence[ray.ObjectRef], size: int, experiment: Experiment, streams: Sequence[Decoded]
    ) -> None:
        videos, windows, stores = ray.get(list(listed))
        self.decode = DecodeWindows(videos, windows, size, experiment, streams, stores)

    def __call__(self, units: dict[str, Any]) -> Block:
        """As `DecodeWindows`."""
        return self.decode(units)


def training_stream(
    plan: TrainingPlan,
    steps: range,
    rank: int,
    workers: int,
    decoders: Decoders,
    monitored: Sequence[VideoRow] = (),
    nodes: Sequence[str] = (),
    rows: ray.ObjectRef | None = None,
    stores: ray.ObjectRef | None = None,
    seconds: float | None = None,
) -> Iterator[Block]:
    """The blocks of worker `rank` of `workers` for consecutive global steps, one a step, decoded by `decoders` of its own.

    Nothing of it goes through another worker: which samples a block has follows from the plan, the step and the rank. Actors
    that reserve no CPU go to one of `nodes` (Ray's node numbers), by default to all that have a CPU. `rows`, `stores`: the
    plan's videos and the experiment's opened stores in Ray's object store, where they are there already. `seconds`: what a step
    takes, as far as known; of short ones several travel together.

    Before the steps come blocks of `monitored`, this worker's share of the monitor's videos. They share the stream because a
    stream of their own would start actors of its own. Returned at once; decoding begins with the first block that is taken.
    """
    samples = max(-(-stage.global_batch // workers) for stage in plan.stages)
    clip = plan.experiment.clip
    most = steps_a_block(clip, samples, seconds)
    units = units_of(plan.stages, steps, rank, workers, monitor_units(len(monitored), clip), most)
    buffer = training_buffer_bytes(clip, samples, decoders.actors, most)
    rows, stores = rows or ray.put(plan.videos), stores or ray.put(open_stores(plan.experiment))
    arguments = replace(plan, videos=Rows.of(())), rows, workers, tuple(monitored), stores
    decoded = decode_units(units, DecodePlanned, arguments, decoders, buffer, nodes, tasks_an_actor(clip))
    return iterate_steps(decoded)


def units_of(
    stages: Sequence[Stage], steps: range, rank: int, workers: int, monitored: range, most: int
) -> list[dict[str, int]]:
    """A worker's units of work (see `DecodeShares`): those of its monitored videos, then its shares of at most `most` steps."""
    units = [{"unit": unit, "steps": 1} for unit in monitored]
    runs = step_runs(stages, steps, most)
    return units + [{"unit": run.start * workers + rank, "steps": len(run)} for run in runs]


def step_runs(stages: Sequence[Stage], steps: range, most: int) -> Iterator[range]:
    """Consecutive steps in runs of at most `most`, each of one stage."""
    start = steps.start
    while start < steps.stop:
        stage, _ = locate(stages, start)
        stop = min(start + most, stage.end, steps.stop)
        yield range(start, stop)
        start = stop


def modelled_windows(
    videos: Sequence[VideoRow],
    parts: Iterable[NDArray[np.int64]],
    experiment: Experiment,
    streams: Sequence[Decoded],
    actor: type,
    arguments: tuple[Any, ...],
    resources: ResourcePlan,
    on_windows: Callable[[int], None],
) -> Iterator[Block]:
    """What model actors, `actor(*arguments)` each, make of windows (video number, first frame), in order, 16 a block.

    Each of `parts`, int64 [w, 2], is a dataset of its own, for which an actor is sent its videos and windows only: cut them with
    `in_parts`, so that neither Ray's books nor what an actor holds grow with the number of videos. `on_windows` is called with
    the number of windows that have just been finished. Columns: video, start, key, refused and what the actor adds.
    """
    rows, stores = Rows.of(videos), _shared_stores(experiment, streams)
    for windows in parts:
        numbers, place = np.unique(windows[:, 0], return_inverse=True)
        decoded = _evaluation_windows(
            rows.take(numbers),
            np.stack([place, windows[:, 1]], 1),
            experiment,
            resources.decoders(resources.workers),
            streams,
            stores,
        )
        for block in _through_models(decoded, actor, arguments, resources, on_windows):
            yield {**block, "video": numbers[block["video"]]}


def in_parts(windows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Windows, int64 [W, 2], as the parts that a dataset each is made of."""
    size = SEGMENT_BLOCKS * WINDOWS_A_BLOCK
    return (windows[first : first + size] for first in range(0, len(windows), size))


def _evaluation_windows(
    videos: Sequence[VideoRow],
    windows: NDArray[np.int64],
    experiment: Experiment,
    decoders: Decoders,
    streams: Sequence[Decoded],
    stores: ray.ObjectRef | None,
) -> Dataset:
    """Windows (video number, first frame), int64 [W, 2], as a dataset of blocks of WINDOWS_A_BLOCK rows, in order.

    Columns: video, start, key, refused and the streams named. `stores`: as `_shared_stores` gives them.
    """
    buffer = buffer_bytes(experiment.clip, clips=WINDOWS_A_BLOCK, blocks=4 + 2 * decoders.actors)
    experiment = with_absolute_stores(experiment)
    listed = [ray.put(Rows.of(videos)), ray.put(windows), stores or ray.put(open_stores(experiment, streams))]
    arguments = (listed, WINDOWS_A_BLOCK, experiment, tuple(streams))
    units = [{"unit": unit} for unit in range(-(-len(windows) // WINDOWS_A_BLOCK))]
    return decode_units(units, DecodeListed, arguments, decoders, buffer)


def _shared_stores(experiment: Experiment, streams: Sequence[Decoded]) -> ray.ObjectRef | None:
    """The stores that an experiment's clips of these streams come from, in Ray's object store; None where there are none."""
    found = open_stores(with_absolute_stores(experiment), streams)
    return ray.put(found) if found else None


def _through_models(
    decoded: Dataset,
    actor: type,
    arguments: tuple[Any, ...],
    resources: ResourcePlan,
    on_windows: Callable[[int], None],
) -> Iterator[Block]:
    """What model actors, `actor(*arguments)` each, make of an evaluation's windows, in order.

    `on_windows` is called with the number of windows that have just been finished.
    """
    modelled = decoded.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.use_gpu else 0,
        label_selector=dict(resources.train_labels) or None,
        compute=ActorPoolStrategy(
            min_size=resources.min_workers, max_size=resources.workers, max_tasks_in_flight_per_actor=2
        ),
    )
    for block in iterate_blocks(modelled):
        on_windows(len(block["video"]))
        yield block


def iterate_blocks(dataset: Dataset) -> Iterator[Block]:
    """Blocks as they were made; the dataset's scheduling loop rests while none is wanted."""
    number, wanted = next(_NUMBERS), Event()
    dataset.context.set_config(PaceScheduling.NAME, number)
    PaceScheduling.WANTED[number] = wanted
    try:
        wanted.set()
        for block in dataset.iterator().iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH):
            wanted.clear()
            yield block
            wanted.set()
    finally:
        del PaceScheduling.WANTED[number]
        wanted.set()


def iterate_steps(dataset: Dataset) -> Iterator[Block]:
    """The blocks of training, one a step; those of the monitor's videos as they are."""
    for block in iterate_blocks(dataset):
        yield from split_steps(block) if "step" in block else (block,)


def configure_context() -> None:
    """Settings of Ray Data for this process: one block a call, whatever its size; quiet."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if PaceScheduling not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(PaceScheduling)


def decode_units(
    units: Sequence[Mapping[str, int]],
    actor: type,
    arguments: tuple[Any, ...],
    decoders: Decoders,
    buffer: int,
    nodes: Sequence[str] = (),
    tasks: int = 2,
) -> Dataset:
    """What `actor(*arguments)` makes of units of work, one row and one block each, in order.

    `buffer`: bytes of finished blocks that Ray Data may keep. `nodes`: of actors that reserve no CPU. `tasks`: units that one
    has at a time.
    """
    configure_context()
    # Ready-made one-row blocks. Anything else starts tasks (to read, to count rows) that need CPUs of their own, and
    # where training holds every CPU they wait for ever.
    source = ray.data.from_blocks([pa.Table.from_pylist([dict(unit)]) for unit in units])
    actors, cpus, labels = decoders.actors, decoders.cpus, dict(decoders.labels)
    anywhere = not cpus and not labels
    in_turn: dict[str, Any] = {}
    if anywhere and not nodes and CAN_TAKE_TURNS:
        in_turn = {"ray_remote_args_fn": InTurn(nodes_with_cpus())}
    elif anywhere:
        labels = {ray._raylet.RAY_NODE_ID_KEY: f"in({','.join(nodes or nodes_with_cpus())})"}
    decoded = source.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        label_selector=labels or None,
        # Actors that reserve no CPU are not started one by one as Ray Data finds room: there is always room.
        compute=ActorPoolStrategy(min_size=1 if cpus else actors, max_size=actors, max_tasks_in_flight_per_actor=tasks),
        **in_turn,
    )
    limits = ExecutionResources.for_limits(object_store_memory=buffer)
    decoded.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    return decoded


class InTurn:
    """Where the next decode actor goes that reserves nothing, so that Ray would put it anywhere, on a head without CPUs too.

    A label selector for all of these nodes does not spread them: Ray 2.60 was seen to put three of four on one. It is what is
    left from Ray 2.64 on, which takes no `ray_remote_args_fn`.
    """

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = cycle(nodes)

    def __call__(self) -> dict[str, Any]:
        """Arguments of the actor."""
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(self.nodes), soft=True)}


def nodes_with_cpus() -> list[str]:
    """The living nodes that have a CPU (Ray's node numbers)."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def segments(first_step: int, steps: int) -> Iterator[range]:
    """Consecutive ranges of steps, each small enough for one dataset."""
    start, length = first_step, FIRST_BLOCKS
    while start < steps:
        yield range(start, min(start + length, steps))
        start, length = start + length, min(length * GROWTH, SEGMENT_BLOCKS)
