"""A worker's share of a step as a block of plain arrays, and such a block as a training batch.

A block is what travels from a decode actor to a worker: `width` rows, the same for every worker and step so that Ray
Data can deal blocks out in turn. Rows beyond the worker's share are padding with slot -1; a row whose video could not
be read carries the reason. `decode_share` runs in decode actors and imports no torch; `to_batch` runs in the worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.clips import SamplePlan, batch_videos, grid_points, share, training_sample
from vicc_ray.data.manifest import Manifest, VideoError
from vicc_ray.data.reader import read_here
from vicc_ray.data.rows import Rows
from vicc_ray.data.samples import Clips, ReadAll, Request, empty_clips
from vicc_ray.training.schedule import Stage, locate, make_stages

if TYPE_CHECKING:
    from torch import Tensor

Block = dict[str, np.ndarray[Any, Any]]
PADDING = -1


@dataclass(frozen=True)
class Batch:
    """A worker's share of one global batch, as decoded; b samples of `views` clips (2 in pretraining)."""

    slots: Tensor  # int64 [b], place of each sample in the global batch
    videos: Tensor  # int64 [b], each sample's place in the plan's videos
    full: np.ndarray[Any, np.dtype[np.bool_]]  # [b, views], which clips get the full augmentation chain
    keys: tuple[tuple[tuple[int, ...], ...], ...]  # b times one a view, of the augmentation draws
    clips: dict[Decoded, Tensor]  # uint8 [b, views, T, H, W, 3] of rgb, [b, views, T, H, W, 2] of flow (u, v)


@dataclass(frozen=True)
class TrainingPlan:
    """All that decides what each step reads, and where the run ends.

    `videos` has the row of each sample of an epoch; a row may come several times.
    """

    experiment: Experiment
    stages: tuple[Stage, ...]
    videos: Rows
    views: int = 2  # clips a sample: the first ones of the two that are drawn
    listed: bool = False  # as `data.clips.batch_videos`: of a run that an earlier version began
    # The run ends after a checkpoint at the first recall that is measured at this global step or later.
    pause: int | None = None

    @cached_property
    def rows(self) -> Rows:
        """The training rows, each once."""
        return self.videos.once()

    @property
    def steps(self) -> int:
        """Global steps of the run."""
        return self.stages[-1].end

    def epoch_and_videos(self, step: int) -> tuple[int, np.ndarray[Any, np.dtype[np.int64]]]:
        """Epoch within its stage and the videos [B] of a global step."""
        stage, within = locate(self.stages, step)
        seed, samples = self.experiment.seed, len(self.videos)
        return batch_videos(seed, stage.index, within, samples, stage.global_batch, self.listed)

    def sample(self, stage: Stage, epoch: int, video: int) -> SamplePlan:
        """The two clips of a video in an epoch of a stage."""
        clip, augment = self.experiment.clip, self.experiment.augment
        return training_sample(
            self.experiment.seed,
            stage.index,
            epoch,
            video,
            self.positions(video),
            clip_frames=clip.frames,
            stride=clip.stride,
            same_window_p=augment.same_window_p,
            full_chain_p=augment.full_chain_p,
        )

    def positions(self, video: int) -> int:
        """`data.samples.positions` of one of the plan's videos, from a column alone."""
        clip = self.experiment.clip
        if clip.fps is None:
            return int(self.videos.cell(video, "frames"))
        return grid_points(self.videos.cell(video, "duration_seconds"), clip.fps)


def make_plan(experiment: Experiment, manifest: Manifest) -> TrainingPlan:
    """The plan of a run: its stages over the manifest's training videos."""
    videos = training_samples(experiment, manifest)
    return TrainingPlan(experiment, tuple(make_stages(experiment, len(videos))), videos)


def training_samples(experiment: Experiment, manifest: Manifest) -> Rows:
    """The row of each sample of an epoch: the training rows, each as often as `data.samples_an_epoch` says."""
    rows = manifest.select(experiment.data.train_split)
    seconds = experiment.data.seconds_a_sample
    if seconds is None:
        return rows
    often = np.maximum((rows.numbers("duration_seconds") / seconds + 0.5).astype(np.int64), 1)
    return rows.take(np.repeat(np.arange(len(rows)), often))


def decode_share(plan: TrainingPlan, step: int, rank: int, workers: int, read: ReadAll | None = None) -> Block:
    """The block of worker `rank` for a global step: step, slot, video, refused and the clips, `width` rows each.

    `read` gives the clips of all its samples, by default in this process.
    """
    return decode_shares(plan, range(step, step + 1), rank, workers, read)


def decode_shares(plan: TrainingPlan, steps: range, rank: int, workers: int, read: ReadAll | None = None) -> Block:
    """As `decode_share`, for consecutive global steps of one stage, one after another in one block; see `split_steps`."""
    stage, _ = locate(plan.stages, steps.start)
    slots = share(stage.global_batch, rank, workers)
    width = -(-stage.global_batch // workers)
    padding = [PADDING] * (width - len(slots))
    wanted: list[Request] = []
    numbers: list[int] = []
    places: list[int] = []  # in the block, of the rows that are no padding
    for step in steps:
        epoch, videos = plan.epoch_and_videos(step)
        own = videos[slots.start : slots.stop].tolist()
        places += range(len(numbers), len(numbers) + len(own))
        numbers += [*own, *padding]
        wanted += [
            (plan.videos[video], plan.sample(stage, epoch, video).starts[: plan.views], stage.decoded) for video in own
        ]
    clips = empty_clips((len(numbers), plan.views), stage.decoded, plan.experiment.clip)
    into: list[Clips] = [{name: clips[name][place] for name in stage.decoded} for place in places]
    answers = (read or partial(read_here, plan.experiment))(wanted, into)
    reasons = np.full(len(numbers), "", object)
    for place, answer in zip(places, answers, strict=True):
        if isinstance(answer, VideoError):
            reasons[place] = str(answer) or "cannot be read"
    block: Block = {
        "step": np.repeat(np.array(steps, np.int64), width),
        "slot": np.array([*slots, *padding] * len(steps), np.int64),
        "video": np.array(numbers, np.int64),
        "refused": reasons,
    }
    return block | {name: clips[name] for name in clips}


def split_steps(block: Block) -> Iterator[Block]:
    """The blocks of the single steps that a block holds, in order: views of its arrays."""
    edges = [0, *(np.flatnonzero(np.diff(block["step"])) + 1).tolist(), len(block["step"])]
    for start, stop in pairwise(edges):
        yield {name: rows[start:stop] for name, rows in block.items()}


def to_batch(plan: TrainingPlan, step: int, block: Mapping[str, Any]) -> tuple[Batch, list[tuple[str, str]]]:
    """The batch of a block and its refused videos as (path, reason).

    Raises RuntimeError where the block is not the expected step's: the stream and the loop disagree, which no run
    survives with the samples that it promises.
    """
    import torch

    stage, _ = locate(plan.stages, step)
    if not (np.asarray(block["step"]) == step).all():
        raise RuntimeError(f"the data stream delivered step {block['step'][0]} where step {step} is due")
    epoch, _ = plan.epoch_and_videos(step)
    slots, videos = np.asarray(block["slot"]), np.asarray(block["video"])
    refused = np.array([bool(reason) for reason in block["refused"]], bool)
    taken = np.flatnonzero((slots != PADDING) & ~refused)
    samples = [plan.sample(stage, epoch, int(video)) for video in videos[taken]]
    whole = len(taken) == len(slots)
    clips: dict[Decoded, Tensor] = {}
    for name in stage.decoded:
        rows = np.asarray(block[name])
        # Indexing copies only where rows are left out. Nobody writes to clips: augmenting and moving them makes new tensors.
        clips[name] = torch.from_numpy(_shared(rows) if whole else rows[taken])
    batch = Batch(
        slots=torch.from_numpy(slots[taken].copy()),
        videos=torch.from_numpy(videos[taken].copy()),
        full=np.array([sample.full[: plan.views] for sample in samples], bool).reshape(-1, plan.views),
        keys=tuple(sample.keys[: plan.views] for sample in samples),
        clips=clips,
    )
    return batch, [(plan.videos[videos[row]].id, str(block["refused"][row])) for row in np.flatnonzero(refused)]


class _Shared:
    """Read-only memory, which Ray gives, behind the interface of writable arrays: torch warns of any other."""

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self.rows = rows  # keeps the memory
        facts = dict(rows.__array_interface__)
        self.__array_interface__ = facts | {"data": (facts["data"][0], False)}


def _shared(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same memory and shape; nobody may write to it."""
    return rows if rows.flags.writeable else np.asarray(_Shared(rows))
