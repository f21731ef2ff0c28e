"""One video and what is wanted of it -> uint8 clips of RGB and quantised flow. No Ray, no torch: decode actors stay small.

Legend: T frames a clip, H x W decode size, c clips. RGB is uint8 [c, T, H, W, 3]; flow is uint8 [c, T, H, W, 2], the
displacement (u right, v down) in decoded pixels from a frame to the video's next one, clipped and quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import ClipConfig, FlowConfig, Stream
from vicc_ray.data.clips import frame_indices, frames_at_rate, frames_at_stamps, grid_points
from vicc_ray.data.decode import fetched, read_frames, timeline_of
from vicc_ray.data.flow.algorithms import MOTION_VECTORS, flow_between, quantise
from vicc_ray.data.flow.motion_vectors import motion_vector_fields
from vicc_ray.data.flow.store import FlowStore
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Interlaced

Clips = dict[Stream, NDArray[np.uint8]]


def positions(video: VideoRow, clip: ClipConfig) -> int:
    """The places that the plan chooses from: the video's frames, or with `clip.fps` the points of its grid in time."""
    return video.frames if clip.fps is None else grid_points(video.duration_seconds, clip.fps)


def read_clips(
    video: VideoRow,
    starts: Sequence[int],
    streams: Sequence[Stream],
    clip: ClipConfig,
    flow: FlowConfig,
    interlaced: Interlaced = "weave",
) -> Clips:
    """The clips of a video that begin at the positions `starts`, of the streams named; decodes every needed frame once.

    `interlaced` is the experiment's `data.interlaced`.
    Raises `VideoError` with the reason where the file cannot deliver them.
    """
    places = positions(video, clip)
    points = np.stack([frame_indices(start, clip.frames, clip.stride, places) for start in starts])  # [c, T]
    clips: Clips = {}
    stored = flow.source == "store" and clip.fps is None
    if stored and list(streams) == ["flow"]:
        # The video itself need not be opened.
        clips["flow"] = _at(_stored(video, flow, points), points, video)
        return clips
    with fetched(video.video) as path:
        wanted = _frames_at(points, video, path, clip)
        measured = "flow" in streams and flow.source == "stream" and flow.algorithm != MOTION_VECTORS
        needed = np.unique(wanted)
        if measured:
            needed = np.union1d(needed, np.minimum(_origins(wanted, video) + 1, video.frames - 1))
        if "rgb" in streams or measured:
            frames = read_frames(path, needed, clip.decode_size, video.decoder, interlaced)
        if "flow" in streams and flow.source == "stream" and not measured:
            vectors = motion_vector_fields(path, _origins(wanted, video), clip.decode_size, video.decoder)
            clips["flow"] = _at(quantise(vectors, flow.bound), wanted, video)
    if "rgb" in streams:
        clips["rgb"] = frames[np.searchsorted(needed, wanted)]
    if measured:
        clips["flow"] = _at(_measured(frames, needed, _origins(wanted, video), flow), wanted, video)
    elif "flow" not in clips and "flow" in streams:
        clips["flow"] = _at(_stored(video, flow, wanted), wanted, video)
    return clips


def _origins(wanted: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    """The frames that the fields of `wanted` lead from, ascending, each once."""
    return np.unique(_origin(wanted, video))


def _origin(wanted: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    # Flow leads from a frame to the next one; the last frame has no next one and repeats the field before it.
    return np.minimum(wanted, max(video.frames - 2, 0))


def _at(fields: NDArray[np.uint8], wanted: NDArray[np.int64], video: VideoRow) -> NDArray[np.uint8]:
    """The fields of all wanted frames from those of `_origins`."""
    return fields[np.searchsorted(_origins(wanted, video), _origin(wanted, video))]


def _stored(video: VideoRow, flow: FlowConfig, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
    assert flow.store is not None  # the configuration has checked it
    return _open_store(flow.store).read(video, _origins(wanted, video))


@lru_cache(maxsize=4)
def _open_store(folder: str) -> FlowStore:
    return FlowStore.open(folder)


def _frames_at(points: NDArray[np.int64], video: VideoRow, path: str, clip: ClipConfig) -> NDArray[np.int64]:
    """The video's frames at these positions, same shape; `path` is the file itself."""
    if clip.fps is None:
        return points
    if video.constant_rate:
        return frames_at_rate(points, clip.fps, video.fps, video.frames)
    return np.minimum(frames_at_stamps(points, clip.fps, timeline_of(path).seconds), video.frames - 1)


def empty_clips(clips: int, streams: Sequence[Stream], clip: ClipConfig) -> Clips:
    """Zeros of the shapes that `read_clips` gives, for a row that only fills a block."""
    shape = (clips, clip.frames, *clip.decode_size)
    channels: dict[Stream, int] = {"rgb": 3, "flow": 2}
    return {stream: np.zeros((*shape, channels[stream]), np.uint8) for stream in streams}


def _measured(
    frames: NDArray[np.uint8], numbers: NDArray[np.int64], origins: NDArray[np.int64], flow: FlowConfig
) -> NDArray[np.uint8]:
    """Quantised flow from each of the frames `origins` to the next: uint8 [n, H, W, 2]; zero motion in a one-frame video."""
    fields: list[NDArray[Any]] = []
    for run in np.split(origins, np.flatnonzero(np.diff(origins) > 1) + 1):
        first = int(np.searchsorted(numbers, run[0]))
        pictures = frames[first : first + len(run) + 1]
        if len(pictures) == 1:
            pictures = np.repeat(pictures, 2, axis=0)
        fields.append(quantise(flow_between(pictures, flow.algorithm, flow.weights), flow.bound))
    return np.concatenate(fields)
