"""Parts of videos: which frames lie between two times, and a video cut evenly or at given frames. Nothing is re-encoded.

Times are seconds from the file's first picture. A part has the pictures that are shown from its start to before its end, by
their time stamps, so that parts which follow one another share no picture and leave none out.

Legend: n frames of a file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.clips import STAMP_TOLERANCE
from vicc_ray.data.decode import VideoError
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.manifest import VideoRow, seconds_text

# A table's last part may end this much after its file: tables are made of other copies of a video, or of rounded lengths.
MOST_BEYOND = 1.0
LEAST_FRAMES = 2  # one picture has no motion
# Frames of a file that is read by its frame table, where it is longer: a minute and more.
WALKED = 1500


def by_table(video: VideoRow) -> bool:
    """Whether a row's frames are found by its frame table, with PyAV: where opening the file would mean to walk it.

    decord walks it each time, and for short files of which it was seen to be right it takes as long as PyAV with a table.
    """
    return bool(video.frame_table) and video.decoder != "pyav-sequential" and (video.is_part or video.frames > WALKED)


def frame_times(row: VideoRow) -> NDArray[np.float64]:
    """When each picture of a row's file is shown, float64 [n], seconds from the first."""
    timeline = decode_table(row.frame_table) if row.frame_table else None
    frames = row.file_frames if row.is_part else row.frames
    if timeline is not None and len(timeline) == frames:
        return timeline.seconds
    return np.arange(frames, dtype=np.float64) / (row.fps or 1.0)


def part_between(row: VideoRow, start: float, end: float) -> VideoRow:
    """The part of a whole file's row from `start` to before `end` (seconds).

    Its group is the row's, else its file. Raises `VideoError` for times that are none, lie past the file's end (by more than
    `MOST_BEYOND`), or hold fewer than `LEAST_FRAMES` pictures.
    """
    span = f"its part from {seconds_text(start)} to {seconds_text(end)} s"
    if not (math.isfinite(start) and math.isfinite(end)) or start < 0:
        raise VideoError(f"{span}: times are seconds from 0 on")
    if end <= start:
        raise VideoError(f"{span} has no length")
    seconds = row.duration_seconds
    if start >= seconds or end > seconds + MOST_BEYOND:
        hint = "; frame numbers go into columns named start_frame and end_frame" if end <= row.frames else ""
        raise VideoError(f"{span} lies past its end at {seconds_text(seconds)} s{hint}")
    times = frame_times(row)
    first, stop = np.searchsorted(times, np.array([start, end]) - STAMP_TOLERANCE).tolist()
    if stop - first < LEAST_FRAMES:
        raise VideoError(f"{span} holds {stop - first} pictures, a part needs {LEAST_FRAMES} or more")
    return _part(row, first, stop, start, min(end, seconds))


def part_of_frames(row: VideoRow, first: int, stop: int) -> VideoRow:
    """The part of a whole file's row from frame `first` to before frame `stop`; `VideoError` as `part_between`."""
    if first < 0 or stop > row.frames or stop - first < LEAST_FRAMES:
        raise VideoError(
            f"its part from frame {first} to {stop}: frames go from 0 to {row.frames}, and a part has {LEAST_FRAMES} or more"
        )
    return _between_frames(row, frame_times(row), first, stop)


def cut_evenly(row: VideoRow, seconds: float) -> list[VideoRow]:
    """A row in parts of `seconds`, in order; the row itself where that is one part.

    The rest at the end stays a part of its own where it is at least half as long, else it belongs to the part before it.
    """
    times, begin, end = frame_times(row), *row.span
    count = max(int((end - begin) / seconds + 0.5), 1)
    edges = begin + seconds * np.arange(1, count)
    return _cut(row, times, np.searchsorted(times, edges - STAMP_TOLERANCE).tolist())


def cut_at(row: VideoRow, cuts: Sequence[int], least: float, most: float) -> list[VideoRow]:
    """A row cut before the file's frames `cuts`, in parts from `least` to about `most` seconds; the row itself where that is one.

    A part shorter than `least` belongs to the part before it (the first to the one after it). A longer one than `most` is cut
    evenly into as few as do.
    """
    times = frame_times(row)
    inner = [frame for frame in cuts if row.first_frame < frame <= row.last_frame]
    begin, end = row.span
    edges = [row.first_frame]
    for frame in sorted(inner):
        if times[frame] - (begin if len(edges) == 1 else times[edges[-1]]) >= least:
            edges.append(frame)
    if len(edges) > 1 and end - times[edges[-1]] < least:
        edges.pop()
    stops = [*edges[1:], row.last_frame + 1]
    found: list[int] = []
    for first, stop in zip(edges, stops, strict=True):
        seconds = (float(times[stop]) if stop < len(times) else end) - float(times[first])
        pieces = max(math.ceil(seconds / most - 1e-6), 1)
        found += [first] * (first > row.first_frame)
        inside = times[first] + seconds / pieces * np.arange(1, pieces)
        found += np.searchsorted(times, inside - STAMP_TOLERANCE).tolist()
    return _cut(row, times, found)


def _cut(row: VideoRow, times: NDArray[np.float64], cuts: Sequence[int]) -> list[VideoRow]:
    """The parts between the frames `cuts`, which lie within the row; too short ones belong to the part before them."""
    edges = [row.first_frame]
    for frame in cuts:
        if frame - edges[-1] >= LEAST_FRAMES and row.last_frame + 1 - frame >= LEAST_FRAMES:
            edges.append(frame)
    if len(edges) == 1:
        return [row]
    stops = [*edges[1:], row.last_frame + 1]
    return [_between_frames(row, times, first, stop) for first, stop in zip(edges, stops, strict=True)]


def _between_frames(row: VideoRow, times: NDArray[np.float64], first: int, stop: int) -> VideoRow:
    begin, end = row.span
    start = begin if first == row.first_frame else float(times[first])
    return _part(row, first, stop, start, end if stop == row.last_frame + 1 else float(times[stop]))


def _part(row: VideoRow, first: int, stop: int, start: float, end: float) -> VideoRow:
    return replace(
        row,
        group=row.group or row.video,
        start=round(start, 3),
        end=round(end, 3),
        first_frame=first,
        frames=stop - first,
        file_frames=row.file_frames if row.is_part else row.frames,
        duration_seconds=end - start,
    )
