"""What a decode actor does: a unit of work in, a block of decoded clips out. No Ray.

One unit stands for one block: worker `rank`'s share of a step, or some windows of an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.cluster.resources import clips_bytes
from vicc_ray.config import CHANNELS, ClipConfig, Decoded, Experiment
from vicc_ray.data.clips import all_evaluation_starts, random_start
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.reader import make_reader
from vicc_ray.data.rows import WALK, Rows
from vicc_ray.data.samples import Clips, all_positions, empty_clips
from vicc_ray.data.store.store import PackedStore
from vicc_ray.training.batches import Block, TrainingPlan, decode_shares

# Of a block of the monitor's windows: delivering one costs some 10 ms of CPU, and none is waited for longer than the first step is.
MONITOR_WINDOWS, MONITOR_BYTES = 16, 16 << 20


class DecodeWindows:
    """A decode actor of evaluation: some windows, perhaps of several videos, in; a row a window out.

    `windows` names all of them as (video number, first frame), int64 [W, 2], in order; unit u stands for `size` of them from
    u * size on. A row whose video cannot be read carries the reason. Only the `streams` named are decoded.
    """

    def __init__(
        self,
        videos: Sequence[VideoRow],
        windows: NDArray[np.int64],
        size: int,
        experiment: Experiment,
        streams: Sequence[Decoded] = tuple(CHANNELS),
        opened: dict[str, PackedStore] | None = None,
    ) -> None:
        self.videos, self.windows, self.size, self.experiment = videos, windows, size, experiment
        self.streams = tuple(streams)
        self.reader = make_reader(experiment, opened)

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` int64 [1] -> video, start, key, refused, rgb uint8 [w, T, H, W, 3] and flow uint8 [w, T, H, W, 2]."""
        first = int(rows["unit"][0]) * self.size
        wanted: list[tuple[int, int]] = self.windows[first : first + self.size].tolist()
        runs = {number: [start for _, start in run] for number, run in groupby(wanted, key=lambda window: window[0])}
        clips = empty_clips(len(wanted), self.streams, self.experiment.clip)
        counts = [len(starts) for starts in runs.values()]
        ends = np.cumsum(counts).tolist()
        into: list[Clips] = [
            {name: clips[name][end - len(starts) : end] for name in self.streams}
            for end, starts in zip(ends, runs.values(), strict=True)
        ]
        videos = [self.videos[number] for number in runs]
        requests = [(video, starts, self.streams) for video, starts in zip(videos, runs.values(), strict=True)]
        answers = self.reader.read_all(requests, into)
        reasons = [(str(answer) or "cannot be read") if isinstance(answer, VideoError) else "" for answer in answers]
        block: Block = {
            "video": np.array([number for number, _ in wanted], np.int64),
            "start": np.array([start for _, start in wanted], np.int64),
            "key": np.repeat(np.array([video_key(video) for video in videos], np.uint64), counts),
            "refused": np.repeat(np.array(reasons, object), counts),
        }
        return block | {name: clips[name] for name in clips}


class DecodeShares:
    """A decode actor of training: a unit (step and rank in one number) in, its block out, of one step or several.

    Units below 0 count the monitor's blocks (`monitor_units`): the centre windows of the videos that this worker was given.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        workers: int,
        monitored: Sequence[VideoRow],
        opened: dict[str, PackedStore] | None = None,
    ) -> None:
        self.plan, self.workers = plan, workers
        clip = plan.experiment.clip
        windows = list_windows(monitored, clip, "centre")
        self.monitored = len(monitor_units(len(windows), clip))
        self.decode_windows = DecodeWindows(monitored, windows, _windows_a_block(clip), plan.experiment, opened=opened)

    def __call__(self, rows: dict[str, Any]) -> Block:
        """`unit` and `steps` int64 [1] -> the block of so many steps from unit // workers on, for worker unit % workers."""
        unit = int(rows["unit"][0])
        if unit < 0:
            return self.decode_windows({"unit": [unit + self.monitored]})
        step, rank = divmod(unit, self.workers)
        steps = range(step, step + (int(rows["steps"][0]) if "steps" in rows else 1))
        return decode_shares(self.plan, steps, rank, self.workers, self.decode_windows.reader.read_all)


def monitor_units(videos: int, clip: ClipConfig) -> range:
    """The units of a worker's monitored videos, in order, all below 0."""
    return range(-math.ceil(videos / _windows_a_block(clip)), 0)


def _windows_a_block(clip: ClipConfig) -> int:
    return max(min(MONITOR_WINDOWS, MONITOR_BYTES // clips_bytes(clip, 1)), 1)


def list_windows(videos: Sequence[VideoRow], clip: ClipConfig, windows: str, seed: int = 0) -> NDArray[np.int64]:
    """The evaluation windows of videos as (video number, first frame), int64 [W, 2], in order.

    `windows`: all or centre (`evaluation_starts`), or random: one at a place drawn from the seed and the video.
    """
    videos = Rows.of(videos)
    places = all_positions(videos, clip)
    if windows == "random":
        drawn = (
            random_start(seed, key, own, clip.frames, clip.stride)
            for key, own in zip(_keys(videos), places.tolist(), strict=True)
        )
        return np.stack([np.arange(len(videos)), np.fromiter(drawn, np.int64, len(videos))], 1)
    owners, starts = all_evaluation_starts(places, clip.frames, clip.stride, windows)
    return np.stack([owners, starts], 1)


def _keys(videos: Rows) -> Iterator[int]:
    """`video_key` of each, from columns."""
    for start in range(0, len(videos), WALK):
        part = videos[start : start + WALK]
        columns = [part.texts(name).to_pylist() for name in ("content_hash", "video", "start", "first_frame")]
        for content, video, begin, first in zip(*columns, strict=True):
            yield _key(content or video, None if begin is None else first)


def video_key(video: VideoRow) -> int:
    """A number that stands for a video's content, wherever its file lies and whatever its place in a list."""
    return _key(video.content_hash or video.video, video.first_frame if video.is_part else None)


def _key(content: str, first_frame: int | None) -> int:
    part = "" if first_frame is None else f"@{first_frame}"
    return int.from_bytes(blake2b(f"{content}{part}".encode(), digest_size=8).digest(), "big")
