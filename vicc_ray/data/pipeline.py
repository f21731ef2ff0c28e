"""Manifest -> clips on the cluster: Ray Data actors decode and measure flow, workers get their blocks in plan order.

One input row stands for one block: worker `rank`'s share of a step. Blocks keep their order and all have the same number
of rows, so that `streaming_split` deals them out in turn: the j-th block goes to worker j mod n. The block names its step
and the worker checks it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import cycle, groupby
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions, ExecutionResources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vicc_ray.config import STREAMS, ClipConfig, Experiment, Stream
from vicc_ray.data.clips import evaluation_starts, random_start
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.reader import ClipReader
from vicc_ray.data.samples import empty_clips, positions
from vicc_ray.train.batches import Block, TrainingPlan, decode_share

# Blocks of one dataset: each costs the driver of the stream a little memory before anything runs.
SEGMENT_BLOCKS = 2048
# Blocks that a worker holds beside the one it works on.
PREFETCH = 2
# Windows that an evaluation block holds, of one long video or of several short ones.
WINDOWS_A_BLOCK = 16
MIN_BUFFER_BYTES = 128 * 2**20


class PaceScheduling:
    """A rest for Ray Data's scheduling loop after each of its rounds.

    While the workers are slower than the decoders, which is the aim, finished blocks wait to be taken and the loop finds
    them at once, round after round: it was seen to take 70 % of a core from the training that it waits for. A pause far
    shorter than a step costs nothing. (An execution callback, see `DataContext.custom_execution_callback_classes`.)
    """

    SECONDS = 0.02

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to prepare."""

    def on_execution_step(self, executor: Any) -> None:
        """Called by the loop after each round."""
        time.sleep(self.SECONDS)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to clean up."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to clean up."""


class DecodeWindows:
    """A decode actor of evaluation: some windows, perhaps of several videos, in; a row a window out.

    `windows` names all of them as (video number, first frame), in order; unit u stands for `size` of them from u * size on.
    A row whose video cannot be read carries the reason. Only the `streams` named are decoded.
    """

    def __init__(
        self,
        videos: Sequence[VideoRow],
        windows: Sequence[tuple[int, int]],
        size: int,
        experiment: Experiment,
        streams: Sequence[Stream] = STREAMS,
    ) -> None:
        self.videos, self.windows, self.size, self.experiment = videos, windows, size, experiment
        self.streams = tuple(streams)
        self.reader = ClipReader(experiment.clip, experiment.flow, experiment.data)

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` int64 [1] -> video, start, refused, rgb uint8 [w, T, H, W, 3] and flow uint8 [w, T, H, W, 2]."""
        first = int(rows["unit"][0]) * self.size
        wanted = self.windows[first : first + self.size]
        parts = [
            self._read(video, [start for _, start in run])
            for video, run in groupby(wanted, key=lambda window: window[0])
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, number: int, starts: list[int]) -> Block:
        experiment = self.experiment
        try:
            clips, reason = self.reader.read(self.videos[number], starts, self.streams), ""
        except VideoError as error:
            clips, reason = empty_clips(len(starts), self.streams, experiment.clip), str(error) or "cannot be read"
        block: Block = {
            "video": np.full(len(starts), number, np.int64),
            "start": np.array(starts, np.int64),
            "refused": np.array([reason] * len(starts), object),
        }
        return block | dict(clips)


class DecodeShares:
    """A decode actor of training: a unit (step and rank in one number) in, its block out.

    Units below 0 count the monitor's videos from the end of their list, one centre window each.
    """

    def __init__(self, plan: TrainingPlan, workers: int, monitored: Sequence[VideoRow]) -> None:
        self.plan, self.workers = plan, workers
        windows = list_windows(monitored, plan.experiment.clip, "centre")
        windows += windows[-1:] * (-len(windows) % workers)  # the last one fills up the last round
        self.monitored = len(windows)
        self.decode_windows = DecodeWindows(monitored, windows, 1, plan.experiment)

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` int64 [1] -> the block of step unit // workers for worker unit % workers."""
        unit = int(rows["unit"][0])
        if unit < 0:
            return self.decode_windows({"unit": [unit + self.monitored]})
        step, rank = divmod(unit, self.workers)
        return decode_share(self.plan, step, rank, self.workers, self.decode_windows.reader.read)


def training_iterators(
    plan: TrainingPlan,
    first_step: int,
    last_step: int,
    workers: int,
    actors: int,
    cpus_an_actor: float = 1,
    monitored: Sequence[VideoRow] = (),
    nodes: Sequence[str] = (),
) -> list[DataIterator]:
    """One iterator a worker over the blocks of global steps first_step..last_step-1, decoded by `actors` actors.

    Actors that reserve no CPU go to `nodes` (Ray's node numbers) in turn, by default to all that have a CPU.

    Before them come the monitor's videos: number j goes to worker j mod n, and the last one fills up the last round. They
    share the stream because a stream of their own would start actors of its own.
    """
    rounds = -(-len(monitored) // workers)
    units = [*range(-rounds * workers, 0), *range(first_step * workers, last_step * workers)]
    samples = max(-(-stage.global_batch // workers) for stage in plan.stages)
    buffer = _buffer_bytes(plan.experiment.clip, clips=2 * samples, blocks=workers * (PREFETCH + 2) + 2 * actors)
    decoded = _decode(units, DecodeShares, (plan, workers, tuple(monitored)), actors, cpus_an_actor, buffer, nodes)
    iterators: list[DataIterator] = decoded.streaming_split(workers, equal=False)
    return iterators


def evaluation_windows(
    videos: Sequence[VideoRow],
    windows: Sequence[tuple[int, int]],
    experiment: Experiment,
    actors: int,
    cpus_an_actor: float = 1,
    streams: Sequence[Stream] = STREAMS,
) -> Dataset:
    """Windows (video number, first frame) as a dataset of blocks of WINDOWS_A_BLOCK rows, in order.

    Columns: video, start, refused and the streams named.
    """
    buffer = _buffer_bytes(experiment.clip, clips=WINDOWS_A_BLOCK, blocks=4 + 2 * actors)
    arguments = (tuple(videos), tuple(windows), WINDOWS_A_BLOCK, experiment, tuple(streams))
    return _decode(range(-(-len(windows) // WINDOWS_A_BLOCK)), DecodeWindows, arguments, actors, cpus_an_actor, buffer)


def list_windows(videos: Sequence[VideoRow], clip: ClipConfig, windows: str, seed: int = 0) -> list[tuple[int, int]]:
    """The evaluation windows of videos as (video number, first frame), in order.

    `windows`: all or centre (`evaluation_starts`), or random: one at a place drawn from the seed and the video.
    """
    chosen = []
    for number, video in enumerate(videos):
        places = positions(video, clip)
        if windows == "random":
            starts = [random_start(seed, video_key(video), places, clip.frames, clip.stride)]
        else:
            starts = evaluation_starts(places, clip.frames, clip.stride, windows)
        chosen += [(number, start) for start in starts]
    return chosen


def video_key(video: VideoRow) -> int:
    """A number that stands for a video's content, wherever its file lies and whatever its place in a list."""
    return int.from_bytes(blake2b((video.content_hash or video.video).encode(), digest_size=8).digest(), "big")


def _buffer_bytes(clip: ClipConfig, clips: int, blocks: int) -> int:
    """What Ray Data may keep decoded: enough that nobody waits, however large the store and the data set are."""
    height, width = clip.decode_size
    return max(blocks * clips * clip.frames * height * width * 5, MIN_BUFFER_BYTES)


def iterate_blocks(iterator: DataIterator) -> Iterator[Block]:
    """Blocks as they were made."""
    yield from iterator.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=PREFETCH)


def configure_context() -> None:
    """Settings of Ray Data for this process: one block a call, whatever its size; quiet."""
    context = DataContext.get_current()
    context.target_max_block_size = None
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if PaceScheduling not in context.custom_execution_callback_classes:
        context.custom_execution_callback_classes.append(PaceScheduling)


def _decode(
    units: Sequence[int],
    actor: type,
    arguments: tuple[Any, ...],
    actors: int,
    cpus: float,
    buffer: int,
    nodes: Sequence[str] = (),
) -> Dataset:
    configure_context()
    # Ready-made one-row blocks. Anything else starts tasks (to read, to count rows) that ask for CPUs of their own, and
    # where training holds every CPU they wait for ever.
    source = ray.data.from_blocks([pa.table({"unit": [unit]}) for unit in units])
    decoded = source.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        num_cpus=cpus,
        ray_remote_args_fn=None if cpus else InTurn(nodes or _nodes_with_cpus(), strict=bool(nodes)),
        # Actors that ask for no CPU are not started one by one as Ray Data finds room: there is always room.
        compute=ActorPoolStrategy(min_size=1 if cpus else actors, max_size=actors, max_tasks_in_flight_per_actor=2),
    )
    limits = ExecutionResources.for_limits(object_store_memory=buffer)
    decoded.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    return decoded


class InTurn:
    """Where the next decode actor goes that reserves nothing, so that Ray would put it anywhere, on a head without CPUs too.

    `strict` holds it there, which Ray was seen not to do otherwise; it is for training, whose workers on those nodes start
    the stream anew when one of them goes.
    """

    def __init__(self, nodes: Sequence[str], strict: bool) -> None:
        self.nodes, self.strict = cycle(nodes), strict

    def __call__(self) -> dict[str, Any]:
        """Arguments of the actor."""
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(next(self.nodes), soft=not self.strict)}


def _nodes_with_cpus() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]


def segments(first_step: int, steps: int, workers: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of steps, each small enough for one dataset."""
    length = max(SEGMENT_BLOCKS // workers, 1)
    for start in range(first_step, steps, length):
        yield start, min(start + length, steps)
