"""A video and the places in it -> uint8 clips of RGB and quantised flow. No Ray, no torch: decode actors stay small.

Legend: T frames a clip, H x W decode size, c clips. RGB is uint8 [c, T, H, W, 3]; flow is uint8 [c, T, H, W, 2], the
displacement (u right, v down) in decoded pixels from a frame to the video's next one, clipped and quantised.

Frames are numbered as in the file. Those of a part of a video begin at its `first_frame`, and nothing of a clip, flow included,
comes from outside the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import CHANNELS, ClipConfig, Decoded, FlowConfig
from vicc_ray.data.clips import frame_indices, frames_at_rate, frames_at_stamps, grid_points
from vicc_ray.data.decode import VideoError, fetched, read_frames, timeline_of
from vicc_ray.data.flow.sources import FlowSource, flow_source
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.rows import Rows
from vicc_ray.data.segments import by_table

Clips = dict[Decoded, NDArray[np.uint8]]
Answer: TypeAlias = Clips | VideoError
# A row, the positions at which its clips begin, and what is wanted of them.
Request = tuple[VideoRow, Sequence[int], Sequence[Decoded]]
NOTHING, NO_NUMBERS = np.empty(0, np.uint8), np.empty(0, np.int64)


class ReadAll(Protocol):
    """Reads the clips of several requests."""

    def __call__(self, requests: Sequence[Request], into: Sequence[Clips] | None = None) -> Sequence[Answer]:
        """The clips of each, or why there are none; `into`: arrays that they are written to, which are the answers then."""
        ...


def positions(video: VideoRow, clip: ClipConfig) -> int:
    """The places that the plan chooses from: the video's frames, or with `clip.fps` the points of its grid in time."""
    return video.frames if clip.fps is None else grid_points(video.duration_seconds, clip.fps)


def all_positions(rows: Rows, clip: ClipConfig) -> NDArray[np.int64]:
    """`positions` of every row: int64 [n]."""
    if clip.fps is None:
        return rows.numbers("frames")
    return np.maximum((rows.numbers("duration_seconds") * clip.fps + 1e-6).astype(np.int64), 1)


def read_clips(
    video: VideoRow,
    starts: Sequence[int],
    streams: Sequence[Decoded],
    clip: ClipConfig,
    flow: FlowConfig,
    interlaced: Interlaced = "weave",
    source: FlowSource | None = None,
) -> Clips:
    """The clips of a video that begin at the positions `starts`, of RGB, flow or both; decodes every needed frame once.

    `interlaced` is the experiment's `data.interlaced`, `source` its source of flow, which is made here where it is not given.
    Raises `VideoError` with the reason where the file cannot deliver them.
    """
    points = clip_points(video, starts, clip)
    if "flow" in streams:
        source = source or flow_source(flow, clip)
        if not source.needs_file and list(streams) == ["flow"] and clip.fps is None:
            return {"flow": _flow(source, video, "", points + video.first_frame, NOTHING, NO_NUMBERS)}
    timeline = decode_table(video.frame_table) if by_table(video) else None
    with fetched(video.video) as path:
        seconds = None
        if clip.fps is not None and not video.constant_rate:
            seconds = (timeline or timeline_of(path)).seconds[video.first_frame :]
        frames = clip_frames(points, video, seconds, clip)
        numbers = np.unique(frames) if "rgb" in streams else NO_NUMBERS
        if "flow" in streams and source is not None:
            numbers = np.union1d(numbers, source.frames(flow_origins(frames, video), video))
        images = (
            read_frames(path, numbers, clip.decode_size, video.decoder, interlaced, timeline)
            if len(numbers)
            else NOTHING
        )
        clips: Clips = {}
        if "rgb" in streams:
            clips["rgb"] = images[np.searchsorted(numbers, frames)]
        if "flow" in streams and source is not None:
            clips["flow"] = _flow(source, video, path, frames, images, numbers)
    return clips


def clip_points(video: VideoRow, starts: Sequence[int], clip: ClipConfig) -> NDArray[np.int64]:
    """The positions of a row that each clip's pictures are taken from: int64 [c, T]."""
    places = positions(video, clip)
    return np.stack([frame_indices(start, clip.frames, clip.stride, places) for start in starts])


def by_file(requests: Sequence[Request]) -> list[list[int]]:
    """The places of the requests of each file, in the order in which their clips lie in it."""
    files: dict[str, list[int]] = {}
    for place, (row, _, _) in enumerate(requests):
        files.setdefault(row.video, []).append(place)
    return [sorted(places, key=lambda place: _begin(requests[place])) for places in files.values()]


def _begin(request: Request) -> float:
    row, starts, _ = request
    return row.span[0] if not row.frames else row.first_frame + min(starts)


def read_together(
    requests: Sequence[Request],
    clip: ClipConfig,
    flow: FlowConfig,
    interlaced: Interlaced = "weave",
    source: FlowSource | None = None,
) -> list[Clips | VideoError]:
    """What `read_clips` gives for each request, or why it cannot; a file that lies elsewhere is fetched once for all of its."""
    found: list[Clips | VideoError] = [VideoError("was not read")] * len(requests)
    for places in by_file(requests):
        video = requests[places[0]][0].video
        try:
            with fetched(video) if len(places) > 1 else nullcontext(video) as path:
                for place in places:
                    row, starts, streams = requests[place]
                    try:
                        found[place] = read_clips(
                            replace(row, video=path), starts, streams, clip, flow, interlaced, source
                        )
                    except VideoError as error:
                        found[place] = error
        except VideoError as error:
            for place in places:
                found[place] = error
    return found


def _flow(
    source: FlowSource,
    video: VideoRow,
    path: str,
    frames: NDArray[np.int64],
    images: NDArray[np.uint8],
    numbers: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Quantised flow of the clips whose frames are [c, T]: uint8 [c, T, H, W, 2]; see `FlowSource.fields`."""
    origins = flow_origins(frames, video)
    fields = source.fields(video, path, origins, images, numbers)
    return fields[np.searchsorted(origins, flow_origin(frames, video))]


def flow_origins(frames: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    """The frames that the fields of `frames` lead from, int64 [n]: ascending, each once."""
    return np.unique(flow_origin(frames, video))


def flow_origin(frames: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    """The frames that the fields of some frames lead from, same shape: each itself, but the last one has no next one and repeats
    the field before it."""
    return np.minimum(frames, max(video.last_frame - 1, video.first_frame))


def clip_frames(
    points: NDArray[np.int64], video: VideoRow, seconds: NDArray[np.float64] | None, clip: ClipConfig
) -> NDArray[np.int64]:
    """The file's frames at these positions of a row, same shape.

    `seconds` [n]: when the row's frames are shown, counted from any moment; only for `clip.fps` in a row at uneven times.
    """
    first = video.first_frame
    if clip.fps is None:
        return points + first
    if seconds is None:
        return first + frames_at_rate(points, clip.fps, video.fps, video.frames)
    return np.minimum(first + frames_at_stamps(points, clip.fps, seconds - seconds[0]), video.last_frame)


def empty_clips(clips: int | tuple[int, ...], streams: Sequence[Decoded], clip: ClipConfig) -> Clips:
    """Zeros for this many clips, of the shapes that `read_clips` gives; with several numbers uint8 [*clips, T, H, W, 3 or 2]."""
    shape = (*((clips,) if isinstance(clips, int) else clips), clip.frames, *clip.decode_size)
    return {stream: np.zeros((*shape, CHANNELS[stream]), np.uint8) for stream in streams}
