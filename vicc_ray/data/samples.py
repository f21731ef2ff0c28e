"""One video and what is wanted of it -> uint8 clips of RGB and quantised flow. No Ray, no torch: decode actors stay small.

Legend: T frames a clip, H x W decode size, c clips. RGB is uint8 [c, T, H, W, 3]; flow is uint8 [c, T, H, W, 2], the
displacement (u right, v down) in decoded pixels from a frame to the video's next one, clipped and quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import ClipConfig, FlowConfig, Stream
from vicc_ray.data.clips import frame_indices
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow import flow_between, quantise
from vicc_ray.data.manifest import VideoRow

Clips = dict[Stream, NDArray[np.uint8]]


def read_clips(
    video: VideoRow, starts: Sequence[int], streams: Sequence[Stream], clip: ClipConfig, flow: FlowConfig
) -> Clips:
    """The clips of a video that begin at `starts`, of the streams named; decodes every needed frame once.

    Raises `VideoError` with the reason where the file cannot deliver them.
    """
    wanted = np.stack([frame_indices(start, clip.frames, clip.stride, video.frames) for start in starts])  # [c, T]
    shown = np.unique(wanted)
    # Flow leads from a frame to the next one; the last frame has no next one and repeats the field before it.
    origins = np.unique(np.minimum(wanted, max(video.frames - 2, 0)))
    needed = np.union1d(shown, np.minimum(origins + 1, video.frames - 1)) if "flow" in streams else shown
    frames = read_frames(video.video, needed, clip.decode_size, video.decoder)
    clips: Clips = {}
    if "rgb" in streams:
        clips["rgb"] = frames[np.searchsorted(needed, wanted)]
    if "flow" in streams:
        fields = _fields(frames, needed, origins, flow)
        clips["flow"] = fields[np.searchsorted(origins, np.minimum(wanted, max(video.frames - 2, 0)))]
    return clips


def empty_clips(clips: int, streams: Sequence[Stream], clip: ClipConfig) -> Clips:
    """Zeros of the shapes that `read_clips` gives, for a row that only fills a block."""
    shape = (clips, clip.frames, *clip.decode_size)
    channels: dict[Stream, int] = {"rgb": 3, "flow": 2}
    return {stream: np.zeros((*shape, channels[stream]), np.uint8) for stream in streams}


def _fields(
    frames: NDArray[np.uint8], numbers: NDArray[np.int64], origins: NDArray[np.int64], flow: FlowConfig
) -> NDArray[np.uint8]:
    """Quantised flow from each of the frames `origins` to the next: uint8 [n, H, W, 2]; zero motion in a one-frame video."""
    fields: list[NDArray[Any]] = []
    for run in np.split(origins, np.flatnonzero(np.diff(origins) > 1) + 1):
        first = int(np.searchsorted(numbers, run[0]))
        pictures = frames[first : first + len(run) + 1]
        if len(pictures) == 1:
            pictures = np.repeat(pictures, 2, axis=0)
        fields.append(quantise(flow_between(pictures, flow.algorithm), flow.bound))
    return np.concatenate(fields)
