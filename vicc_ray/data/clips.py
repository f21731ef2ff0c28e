"""Which videos a step takes and which frames of them: pure arithmetic keyed by (seed, stage, epoch, video).

Legend: T frames a clip, B samples a step (global batch), n videos, s stride. A sample is one video and two clips of it.
"Frames" here are the places that a clip can take its pictures from: the video's own frames, or with `clip.fps` the
points of an even grid in time, which `frames_at_rate` and `frames_at_stamps` turn into the video's frames.

Nothing here depends on the number of workers, on call order or on global state, so that any worker can draw any sample
again after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.randomness import RandomUse, key

# Videos of which an epoch's order is a list. It is part of what a seed stands for.
LISTED = 1 << 17
ROUNDS = 6
# Seconds by which a frame's time stamp may be off: containers round to milliseconds (Matroska) or 1/600 s (QuickTime).
STAMP_TOLERANCE = 1.5e-3


@dataclass(frozen=True)
class SamplePlan:
    """The two clips of one training sample."""

    starts: tuple[int, int]  # first frame of each clip; negative: the video is shorter, its first frame repeats
    full: tuple[bool, bool]  # which clips get the full augmentation chain
    keys: tuple[tuple[int, ...], tuple[int, ...]]  # of each clip's augmentation draw


@lru_cache(maxsize=8)
def epoch_order(seed: int, stage: int, epoch: int, videos: int) -> NDArray[np.int64]:
    """The order of an epoch: a permutation of range(videos), int64 [n]."""
    return np.random.default_rng(key(RandomUse.ORDER, seed, stage, epoch)).permutation(videos)


def permuted(places: NDArray[np.int64], size: int, entropy: Sequence[int]) -> NDArray[np.int64]:
    """Where a keyed permutation of range(size) puts these places: int64 [n] both. It costs the same for any size.

    A Feistel network of `ROUNDS` rounds (Luby and Rackoff, 1988) on the smallest 2^2h numbers that hold them; what it puts beyond
    `size` goes through it again until it does not (cycle walking, Black and Rogaway, 2002).
    """
    half = np.uint64(max((size - 1).bit_length() + 1, 2) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(list(entropy)).generate_state(ROUNDS, np.uint64)
    found = places.astype(np.uint64)
    beyond = np.arange(len(found))
    while len(beyond):
        left, right = found[beyond] >> half, found[beyond] & mask
        for one in keys:
            left, right = right, left ^ (_mixed(right ^ one) >> (np.uint64(64) - half))
        found[beyond] = left << half | right
        beyond = beyond[found[beyond] >= size]
    return found.astype(np.int64)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): every bit of the outcome depends on every bit."""
    numbers = (numbers ^ numbers >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ numbers >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ numbers >> np.uint64(31)


def batch_videos(
    seed: int, stage: int, step: int, videos: int, global_batch: int, listed: bool = False
) -> tuple[int, NDArray[np.int64]]:
    """The epoch of a stage's step and the videos of its batch, int64 [B].

    An epoch has n // B steps; the tail smaller than one batch is left out, another one each epoch. The order of up to `LISTED`
    videos is a list that is shuffled; that of more is a keyed permutation, of which only the step's places are worked out.
    `listed`: a list for any number, as earlier versions had it.
    """
    epoch, place = divmod(step, videos // global_batch)
    first, last = place * global_batch, (place + 1) * global_batch
    if listed or videos <= LISTED:
        return epoch, epoch_order(seed, stage, epoch, videos)[first:last]
    return epoch, permuted(np.arange(first, last), videos, key(RandomUse.ORDER, seed, stage, epoch))


def share(rows: int, rank: int, workers: int) -> range:
    """The contiguous slots of a batch of `rows` that worker `rank` takes; shares differ by at most one."""
    return range(rows * rank // workers, rows * (rank + 1) // workers)


def training_sample(
    seed: int,
    stage: int,
    epoch: int,
    video: int,
    frames: int,
    *,
    clip_frames: int,
    stride: int,
    same_window_p: float = 0.5,
    full_chain_p: float = 0.3,
) -> SamplePlan:
    """The two clips of a video in an epoch.

    With probability `same_window_p` both clips show the same time window (either of the two drawn) and exactly one of
    them gets the full augmentation chain; else the windows are independent and each gets it with `full_chain_p`.
    """
    place = (seed, stage, epoch, video)
    rng = np.random.default_rng(key(RandomUse.CLIPS, *place))
    last = frames - window_span(clip_frames, stride)
    first, second = (last, last) if last <= 0 else (int(start) for start in rng.integers(0, last + 1, 2))
    same = bool(rng.random() < same_window_p)
    chooser = int(rng.integers(2))
    chains = rng.random(2) < full_chain_p
    if same:
        first = second = (first, second)[int(rng.integers(2))]
    full = (chooser == 0, chooser == 1) if same else (bool(chains[0]), bool(chains[1]))
    return SamplePlan((first, second), full, ((*place, 0), (*place, 1)))


def window_span(clip_frames: int, stride: int) -> int:
    """Frames from a clip's first to its last frame, both counted."""
    return (clip_frames - 1) * stride + 1


def frame_indices(start: int, clip_frames: int, stride: int, frames: int) -> NDArray[np.int64]:
    """The frames of a clip, int64 [T], within 0..frames-1; before the first frame the first repeats."""
    return np.clip(start + stride * np.arange(clip_frames), 0, frames - 1)


def grid_points(seconds: float, fps: float) -> int:
    """How many pictures a video of this length has at `fps` a second; at least one."""
    return max(int(seconds * fps + 1e-6), 1)


def frames_at_rate(points: NDArray[np.int64], fps: float, rate: float, frames: int) -> NDArray[np.int64]:
    """The frames of a video with `rate` a second that are on show at points / fps seconds; any shape, int64."""
    shown = np.floor((points / fps + STAMP_TOLERANCE) * rate).astype(np.int64)
    return np.clip(shown, 0, frames - 1)


def frames_at_stamps(points: NDArray[np.int64], fps: float, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frames on show at points / fps seconds in a video whose frames come at `seconds` (ascending): any shape, int64."""
    shown = np.searchsorted(seconds, points / fps + STAMP_TOLERANCE, side="right") - 1
    return np.maximum(shown, 0).astype(np.int64)


def evaluation_starts(frames: int, clip_frames: int, stride: int, windows: str) -> list[int]:
    """First frames of a video's evaluation windows.

    `all`: every T/2 - 1 clip frames (docs/method.md section 6), the last window ending at the video's end; `centre`: one
    window in the middle. A video shorter than a window has one, left-padded (its start is negative).
    """
    last = frames - window_span(clip_frames, stride)
    if last <= 0:
        return [last]
    if windows == "centre":
        return [last // 2]
    starts = list(range(0, last + 1, max(clip_frames // 2 - 1, 1) * stride))
    return starts if starts[-1] == last else [*starts, last]


def all_evaluation_starts(
    frames: NDArray[np.int64], clip_frames: int, stride: int, windows: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`evaluation_starts` of many videos of `frames` (int64 [n]): which video and first frame, int64 [W] each, in order."""
    last = frames - window_span(clip_frames, stride)
    if windows == "centre":
        return np.arange(len(frames)), np.where(last > 0, last // 2, last)
    step = max(clip_frames // 2 - 1, 1) * stride
    counts = np.where(last > 0, -(-last // step) + 1, 1)
    owners = np.repeat(np.arange(len(frames)), counts)
    nth = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owners, np.minimum(nth * step, last[owners])


def random_start(seed: int, video: int, frames: int, clip_frames: int, stride: int) -> int:
    """First frame of one evaluation window at a random place of a video, keyed by (seed, video) alone.

    `video` is a number that stands for the video wherever it comes in a list. A video shorter than a window has its one
    window, left-padded.
    """
    last = frames - window_span(clip_frames, stride)
    return last if last <= 0 else int(np.random.default_rng(key(RandomUse.WINDOW, seed, video)).integers(0, last + 1))


def subset(seed: int, rows: int, size: int) -> NDArray[np.int64]:
    """A fixed random choice of `size` of `rows` (all where there are fewer), sorted, int64 [n]."""
    chosen = np.random.default_rng(key(RandomUse.SUBSET, seed)).permutation(rows)[:size]
    return np.sort(chosen)
