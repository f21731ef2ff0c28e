"""What the loop needs where it runs as one of Ray Train's workers: its blocks, its checkpoints, requests from outside."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import get_device

from vicc_ray import distributed
from vicc_ray.cluster import ray_private
from vicc_ray.cluster.decode_actors import monitor_units
from vicc_ray.cluster.keeper import Survivor
from vicc_ray.cluster.kept_clips import KeptClips
from vicc_ray.cluster.resources import ResourcePlan, clips_bytes
from vicc_ray.cluster.stream import nodes_with_cpus, segments, training_stream
from vicc_ray.config import decoded_for
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.samples import Clips, empty_clips
from vicc_ray.data.store.checking import see_stores
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import CheckpointWriter, State, snapshot
from vicc_ray.runs.folder import RunFolder, versions
from vicc_ray.runs.records import RecordWriter
from vicc_ray.training.batches import Block, TrainingPlan
from vicc_ray.training.loop import Notice
from vicc_ray.training.monitor import Monitor, MonitorPlan
from vicc_ray.training.restore import agree, event
from vicc_ray.training.survival import Finished

# Seconds before the end of a dataset at which the next one begins: its decode actors take some to start on busy machines. Both
# keep decoded blocks in the meantime, so not from the beginning.
LEAD_SECONDS = 10.0
# Seconds from a dataset's first block until processes are started for what comes after a failure: the first steps have the cores.
SPARE_DELAY = 5.0
# Blocks whose pace says when that is.
RECENT = 8


class RayHost:
    """What the loop needs, from Ray."""

    def __init__(
        self,
        plan: TrainingPlan,
        rows: ray.ObjectRef,
        stores: ray.ObjectRef,
        folder: RunFolder,
        resources: ResourcePlan,
        survivor: Survivor,
        spares: bool = False,
    ) -> None:
        # spares: whether this node keeps processes that wait for the next group's worker and decode actors
        self.plan, self.rows, self.stores = plan, rows, stores  # the plan's videos are in the object store too
        self.folder, self.resources, self.survivor = folder, resources, survivor
        self.spares = spares
        self.device: torch.device = get_device()
        self.stream: Iterator[Block] = iter(())
        self.versions = versions()
        self.events = RecordWriter(folder.events)
        self.writer: CheckpointWriter | None = None
        if distributed.rank() == 0:
            keep = plan.experiment.train.keep_checkpoints
            self.writer = CheckpointWriter(folder.checkpoints, keep, self._report_failure, self._push)
        self.saved = time.monotonic()
        self.warned = False

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Hand a copy of the state to the writer."""
        self.saved = time.monotonic()
        if self.writer:
            self.writer.submit(snapshot(state), about | {"versions": self.versions})

    def finished(self, step: Finished) -> None:
        """Note a finished step, for a worker that comes after this one."""
        self.survivor.finished(step)

    def notice(self) -> Notice:
        """A checkpoint because time is up or a node is about to go; an end because the driver requests it."""
        requests = torch.zeros(3)
        cadence = self.plan.experiment.train.checkpoint_every
        if distributed.rank() == 0:
            requests[0] = cadence.unit == "minutes" and time.monotonic() - self.saved >= 60 * cadence.value
            requests[1] = self.folder.stop_requested()
            requests[2] = ray_private.has_notice()
        distributed.broadcast_(requests)
        due, stop, leaving = (bool(request) for request in requests)
        warns, self.warned = leaving and not self.warned, leaving
        if warns and self.writer:
            self.events.add(event("preemption notice"))
        return Notice(save=due or warns, stop=stop)

    def close(self) -> None:
        """Wait for the last checkpoint."""
        if self.writer:
            self.writer.close()
            self._push()

    def _report_failure(self, text: str, step: int) -> None:
        self.events.add(event("checkpoint failed", step=step, text=text))

    def _push(self) -> None:
        folder = self.folder
        folder.push(folder.metrics, folder.events, folder.refused, *folder.tensorboard.glob("events*"))

    def open(self, first_step: int, plan: MonitorPlan | None) -> Monitor | None:
        """Start the stream at a global step; returns the monitor with this worker's share of its clips, if there is one."""
        if first_step >= self.plan.steps:
            return None
        if plan is None or not plan.videos:
            self.stream = self._blocks(first_step, ())
            return None
        clips = self._monitored(first_step, plan.videos)
        rows = sorted(clips)
        streams = decoded_for(self.plan.experiment.streams)
        nothing = empty_clips((0,), streams, self.plan.experiment.clip)
        tensors = {
            stream: torch.from_numpy(np.concatenate([nothing[stream], *(clips[row][stream] for row in rows)]))
            for stream in streams
        }
        return Monitor(plan, rows, tensors, self.plan.experiment, self.device)

    def _monitored(self, first_step: int, videos: Sequence[VideoRow]) -> dict[int, Clips]:
        """This worker's share of the monitor's clips by number: as this node kept them, else off the stream, which begins here."""
        experiment, clip = self.plan.experiment, self.plan.experiment.clip
        streams = decoded_for(experiment.streams)
        kept = KeptClips(ray_private.session_folder(), experiment, streams, clips_bytes(clip, len(videos)))
        mine = range(distributed.rank(), len(videos), distributed.world_size())
        found = {row: clips for row in mine if (clips := kept.read(videos[row])) is not None}
        left = [row for row in mine if row not in found]
        self.stream = self._blocks(first_step, [videos[row] for row in left])
        lost: dict[str, str] = {}
        for _ in monitor_units(len(left), clip):
            block = next(self.stream)
            for place, number in enumerate(block["video"].tolist()):
                row, reason = left[number], str(block["refused"][place])
                if reason:
                    lost[videos[row].id] = reason
                    continue
                found[row] = {stream: block[stream][place : place + 1] for stream in streams}
                kept.keep(videos[row], found[row])
        self._report_lost(lost)
        return found

    def _report_lost(self, lost: dict[str, str]) -> None:
        """Worker 0 notes which videos the recall in training has to do without, of all workers."""
        for part in distributed.gather_bytes(json.dumps(lost).encode()):
            for video, reason in json.loads(part).items():
                if distributed.rank() == 0:
                    text = f"{video}: {reason}; left out of the recall in training"
                    self.events.add(event("unreadable", text=text))

    def blocks(self, first_step: int) -> Iterator[Block]:
        """The rest of the stream, which `open` started at this step."""
        return self.stream

    def _blocks(self, first_step: int, monitored: Sequence[VideoRow]) -> Iterator[Block]:
        """The monitor's blocks, then the training blocks of this worker, from one dataset after the other.

        The first dataset starts now: decode actors take seconds to start, and the networks are made in the meantime.
        """
        problem = None
        try:
            see_stores(self.plan.experiment)
        except UserError as error:  # a store that the driver sees and this node does not
            problem = str(error)
        agree(problem)
        first, *left = segments(first_step, self.plan.steps)
        length = len(monitor_units(len(monitored), self.plan.experiment.clip)) + len(first)
        dataset = partial(self._dataset, first, monitored, None)
        return self._drain(_Segment(dataset, length, self._spares(1 + self._decoders_here())), left)

    def _drain(self, segment: _Segment, left: Sequence[range]) -> Iterator[Block]:
        for steps in left:
            following: _Segment | None = None
            recent = deque([time.monotonic()], RECENT + 1)
            for number, block in enumerate(segment.blocks()):
                recent.append(time.monotonic())
                if following is None and ends_soon(number, segment.length, recent):
                    following = self._following(steps, _pace(recent))
                yield block
            segment = following or self._following(steps, _pace(recent))
        yield from segment.blocks()

    def _following(self, steps: range, pace: float) -> _Segment:
        return _Segment(partial(self._dataset, steps, (), pace), len(steps), self._spares(self._decoders_here()))

    def _spares(self, number: int) -> int:
        return number if self.spares else 0

    def _decoders_here(self) -> int:
        """Decode actors of this worker that start on its own node."""
        decoders = self.resources.decoders(distributed.world_size())
        return 0 if decoders.labels else decoders.share(distributed.rank(), distributed.world_size()).actors

    def _dataset(self, steps: range, monitored: Sequence[VideoRow], pace: float | None) -> Iterator[Block]:
        rank, workers = distributed.rank(), distributed.world_size()
        decoders = self.resources.decoders(workers).share(rank, workers)
        places = _homes(), self.rows, self.stores
        return training_stream(self.plan, steps, rank, workers, decoders, monitored, *places, pace)


def _homes() -> list[str]:
    """Where this worker's decode actors may start: its own node, or those without notice to go where that has one."""
    here, leaving = ray.get_runtime_context().get_node_id(), ray_private.leaving_nodes()
    others = [node for node in nodes_with_cpus() if node not in leaving] if here in leaving else []
    return others or [here]


def ends_soon(number: int, length: int, recent: Sequence[float]) -> bool:
    """Whether the next dataset is to begin at block `number` of `length`; `recent`: when the last ones were taken, in s.

    Not in the first quarter: the first blocks are ready when they are taken, which says nothing about the pace.
    """
    left = length - number
    return number >= length // 4 and (left * _pace(recent) <= LEAD_SECONDS or left <= 2)


def _pace(recent: Sequence[float]) -> float:
    """Seconds from one block to the next, the median: an evaluation may have come between two of them."""
    return float(np.median(np.diff(recent)))


class _Segment:
    """One dataset of the stream, of `length` blocks; made in a thread, where it decodes from this moment.

    Handing Ray a thousand blocks takes most of a second, in which training goes on. `spares`: processes that are started when it
    is under way, in the place of those that its actors took.
    """

    def __init__(self, dataset: Callable[[], Iterator[Block]], length: int, spares: int = 0) -> None:
        self.length = length
        pool = ThreadPoolExecutor(1, thread_name_prefix="next-dataset")
        self.first: Future[tuple[Block, Iterator[Block]]] = pool.submit(_begin, dataset)
        pool.shutdown(wait=False)
        if spares:
            self.first.add_done_callback(partial(_add_spares, spares))

    def blocks(self) -> Iterator[Block]:
        """This worker's blocks."""
        first, rest = self.first.result()
        yield first
        yield from rest


def _begin(dataset: Callable[[], Iterator[Block]]) -> tuple[Block, Iterator[Block]]:
    blocks = dataset()
    return next(blocks), blocks


def _add_spares(number: int, first: Future[Any]) -> None:
    if first.exception() is None:
        ray_private.start_spares(number, SPARE_DELAY)
