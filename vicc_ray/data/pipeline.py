"""Manifest -> clips on the cluster: Ray Data actors decode and measure flow, workers get their blocks in plan order.

One input row stands for one block: worker `rank`'s share of a step. Blocks keep their order and all have the same number
of rows, so that `streaming_split` deals them out in turn: the j-th block goes to worker j mod n. The block names its step
and the worker checks it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, ExecutionOptions, ExecutionResources

from vicc_ray.config import ClipConfig, Experiment
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.samples import empty_clips, read_clips
from vicc_ray.train.batches import Block, TrainingPlan, decode_share

# Blocks of one dataset: each costs the driver of the stream a little memory before anything runs.
SEGMENT_BLOCKS = 4096
# Blocks that a worker holds beside the one it works on.
PREFETCH = 2
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


class DecodeShares:
    """A decode actor of training: a unit (step and rank in one number) in, its block out."""

    def __init__(self, plan: TrainingPlan, workers: int) -> None:
        self.plan, self.workers = plan, workers

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` int64 [1] -> the block of step unit // workers for worker unit % workers."""
        step, rank = divmod(int(rows["unit"][0]), self.workers)
        return decode_share(self.plan, step, rank, self.workers)


class DecodeWindows:
    """A decode actor of evaluation: one video in, one row a window out; an unreadable video gives one row with its reason."""

    def __init__(self, videos: Sequence[VideoRow], experiment: Experiment, windows: str) -> None:
        self.videos, self.experiment, self.windows = videos, experiment, windows

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` int64 [1], a video's number -> video, refused, rgb [w, T, H, W, 3] and flow [w, T, H, W, 2]."""
        number = int(rows["unit"][0])
        video, clip = self.videos[number], self.experiment.clip
        starts = evaluation_starts(video.frames, clip.frames, clip.stride, self.windows)
        try:
            clips, reason = read_clips(video, starts, ("rgb", "flow"), clip, self.experiment.flow), ""
        except VideoError as error:
            starts, reason = starts[:1], str(error) or "cannot be read"
            clips = empty_clips(1, ("rgb", "flow"), clip)
        block: Block = {"video": np.full(len(starts), number, np.int64), "refused": np.array([reason] * len(starts), object)}
        return block | dict(clips)


def training_iterators(plan: TrainingPlan, first_step: int, last_step: int, workers: int, actors: int) -> list[DataIterator]:
    """One iterator a worker over the blocks of global steps first_step..last_step-1, decoded by `actors` actors."""
    units = range(first_step * workers, last_step * workers)
    samples = max(-(-stage.global_batch // workers) for stage in plan.stages)
    buffer = _buffer_bytes(plan.experiment.clip, clips=2 * samples, blocks=workers * (PREFETCH + 2) + 2 * actors)
    return _decode(units, DecodeShares, (plan, workers), actors, buffer).streaming_split(workers, equal=False)


def evaluation_windows(videos: Sequence[VideoRow], experiment: Experiment, windows: str, actors: int) -> Dataset:
    """The evaluation clips of videos as a dataset, a block a video, in order: video, refused, rgb, flow."""
    buffer = _buffer_bytes(experiment.clip, clips=8, blocks=8 * actors)
    return _decode(range(len(videos)), DecodeWindows, (tuple(videos), experiment, windows), actors, buffer)


def window_iterators(
    videos: Sequence[VideoRow], experiment: Experiment, windows: str, workers: int, actors: int
) -> list[DataIterator]:
    """One iterator a worker over `evaluation_windows`: video j goes to worker j mod n where each has one window."""
    return evaluation_windows(videos, experiment, windows, actors).streaming_split(workers, equal=False)


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


def _decode(units: range, actor: type, arguments: tuple[Any, ...], actors: int, buffer: int) -> Dataset:
    configure_context()
    # Ready-made one-row blocks, because reading tasks would ask for CPUs of their own.
    source = ray.data.from_arrow([pa.table({"unit": [unit]}) for unit in units])
    decoded = source.map_batches(
        actor,
        fn_constructor_args=arguments,
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        compute=ActorPoolStrategy(min_size=1, max_size=actors, max_tasks_in_flight_per_actor=2),
    )
    limits = ExecutionResources.for_limits(object_store_memory=buffer)
    decoded.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    return decoded


def segments(first_step: int, steps: int, workers: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of steps, each small enough for one dataset."""
    length = max(SEGMENT_BLOCKS // workers, 1)
    for start in range(first_step, steps, length):
        yield start, min(start + length, steps)
