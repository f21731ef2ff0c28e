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

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import CHANNELS, ClipConfig, Decoded, FlowConfig
from vicc_ray.data.clips import frame_indices, frames_at_rate, frames_at_stamps, grid_points
from vicc_ray.data.decode import Timeline, VideoError, fetched, read_frames, timeline_of
from vicc_ray.data.flow.sources import FlowSource, flow_source
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Interlaced

Clips = dict[Decoded, NDArray[np.uint8]]
# A row, the positions at which its clips begin, and what is wanted of them.
Request = tuple[VideoRow, Sequence[int], Sequence[Decoded]]
# Frames of a file that is read by its frame table, where it is longer: a minute and more.
WALKED = 1500
NOTHING, NO_NUMBERS = np.empty(0, np.uint8), np.empty(0, np.int64)


def positions(video: VideoRow, clip: ClipConfig) -> int:
    """The places that the plan chooses from: the video's frames, or with `clip.fps` the points of its grid in time."""
    return video.frames if clip.fps is None else grid_points(video.duration_seconds, clip.fps)


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
    places = positions(video, clip)
    points = np.stack([frame_indices(start, clip.frames, clip.stride, places) for start in starts])  # [c, T]
    if "flow" in streams:
        source = source or flow_source(flow, clip)
        if not source.needs_file and list(streams) == ["flow"] and clip.fps is None:
            return {"flow": _flow(source, video, "", points + video.first_frame, NOTHING, NO_NUMBERS)}
    timeline = decode_table(video.frame_table) if by_table(video) else None
    with fetched(video.video) as path:
        frames = _frames_at(points, video, timeline or path, clip)
        numbers = np.unique(frames) if "rgb" in streams else NO_NUMBERS
        if "flow" in streams and source is not None:
            numbers = np.union1d(numbers, source.frames(_origins(frames, video), video))
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
    origins = _origins(frames, video)
    fields = source.fields(video, path, origins, images, numbers)
    return fields[np.searchsorted(origins, _origin(frames, video))]


def _origins(frames: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    """The frames that the fields of `frames` lead from, ascending, each once."""
    return np.unique(_origin(frames, video))


def _origin(frames: NDArray[np.int64], video: VideoRow) -> NDArray[np.int64]:
    # Flow leads from a frame to the next one; the last frame has no next one and repeats the field before it.
    return np.minimum(frames, max(video.last_frame - 1, video.first_frame))


def by_table(video: VideoRow) -> bool:
    """Whether a row's frames are found by its frame table, with PyAV: where opening the file would mean to walk it.

    decord walks it each time, and for short files of which it was seen to be right it takes as long as PyAV with a table.
    """
    return bool(video.frame_table) and video.decoder != "pyav-sequential" and (video.is_part or video.frames > WALKED)


def _frames_at(
    points: NDArray[np.int64], video: VideoRow, times: Timeline | str, clip: ClipConfig
) -> NDArray[np.int64]:
    """The file's frames at these positions of a row, same shape; `times` is the file's timeline, or the file itself."""
    first, last = video.first_frame, video.last_frame
    if clip.fps is None:
        return points + first
    if video.constant_rate:
        return first + frames_at_rate(points, clip.fps, video.fps, video.frames)
    seconds = (timeline_of(times) if isinstance(times, str) else times).seconds[first:]
    return np.minimum(first + frames_at_stamps(points, clip.fps, seconds - seconds[0]), last)


def empty_clips(clips: int, streams: Sequence[Decoded], clip: ClipConfig) -> Clips:
    """Zeros of the shapes that `read_clips` gives, for a row that only fills a block."""
    shape = (clips, clip.frames, *clip.decode_size)
    return {stream: np.zeros((*shape, CHANNELS[stream]), np.uint8) for stream in streams}
