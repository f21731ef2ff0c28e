"""A video, or a part of one, in order and in bounded memory: its pictures, and its quantised flow.

The frames are those that `read_frames` gives for clips of the video, so that what is packed and what is streamed agree.

Legend: n frames of a row, H x W the decode size; pictures are uint8 RGB [m, H, W, 3], codes uint8 [m, H, W, 2], some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import Timeline, VideoError, decord_errors, fetched, iterate_frames, open_decord, timeline_of
from vicc_ray.data.flow.algorithms import BOUND, NO_OPTIONS, flow_algorithm, flow_of_frames, quantise
from vicc_ray.data.flow.contract import Field, FileFlowAlgorithm, FlowAlgorithm
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Images, Interlaced, to_image
from vicc_ray.data.segments import by_table

# Frames at a time: bounded memory, and on a GPU so many that it is not idle between the launches of few.
CHUNK = {"cpu": 64, "cuda": 256}


def compute_codes(
    row: VideoRow,
    algorithm: str,
    size: tuple[int, int],
    bound: float = BOUND,
    weights: str | None = None,
    device: str = "cpu",
    chunk: int | None = None,
    interlaced: Interlaced = "weave",
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Iterator[NDArray[np.uint8]]:
    """All quantised fields of a row at the decode size (H, W): uint8 [up to `chunk`, H, W, 2] at a time.

    `chunk` is `CHUNK`'s where it is not given. Decodes the row once; a remote file is fetched first. There are n - 1 fields in
    all; one frame has one, of no motion. `interlaced`: how pictures marked so are read (`vicc_ray.data.pictures`). Raises
    `VideoError` where the file does not deliver, `UserError` as `flow_between` does.
    """
    chunk = chunk or CHUNK[device.partition(":")[0]]
    made = flow_algorithm(algorithm, weights, device, options)
    with fetched(row.video) as path:
        if isinstance(made, FileFlowAlgorithm):
            fields = fields_of_file(row, path, size, chunk, made)
        else:
            running = RunningFlow(made, row.frames)
            fields = (running.add(pictures) for pictures in row_pictures(row, path, size, chunk, interlaced))
        for field in fields:
            if len(field):
                yield quantise(field, bound)


class RunningFlow:
    """Flow between the `frames` pictures of a row, which come some at a time."""

    def __init__(self, algorithm: FlowAlgorithm, frames: int) -> None:
        self.algorithm, self.frames = algorithm, frames
        self._last: Images | None = None

    def add(self, pictures: Images) -> Field:
        """The fields float32 [k, H, W, 2] that end with the next pictures uint8 [m, H, W, 3]; of one frame one of no motion."""
        joined = pictures if self._last is None else np.concatenate([self._last, pictures])
        self._last = joined[-1:].copy()
        return flow_of_frames(self.algorithm, np.repeat(joined, 2, axis=0) if self.frames == 1 else joined)


def fields_of_file(
    row: VideoRow, path: str, size: tuple[int, int], chunk: int, algorithm: FileFlowAlgorithm
) -> Iterator[Field]:
    """The fields float32 [m, H, W, 2] of a row's motion that the file holds."""
    if row.frames == 1:
        yield np.zeros((1, *size, 2), np.float32)
        return
    if row.is_part:
        for first in range(row.first_frame, row.last_frame, chunk):
            origins = np.arange(first, min(first + chunk, row.last_frame))
            yield algorithm.fields_of_file(path, origins, size, row.decoder)
        return
    fields = islice(algorithm.iterate_file(path, size, row.decoder), row.frames - 1)
    while block := list(islice(fields, chunk)):
        yield np.stack(block)


def row_timeline(row: VideoRow, path: str) -> Timeline:
    """When the pictures of a row's local file are shown: from its frame table, else by walking the file."""
    table = decode_table(row.frame_table) if by_table(row) else None
    return table or timeline_of(path)


def row_pictures(
    row: VideoRow, path: str, size: tuple[int, int], chunk: int, interlaced: Interlaced
) -> Iterator[Images]:
    """A row's frames in order, uint8 RGB [up to `chunk`, H, W, 3] at a time, all of them; `VideoError` where there are fewer."""
    done = 0
    if row.decoder == "decord" and not by_table(row):
        for images in _decord(path, row.first_frame, row.frames, size, chunk):
            done += len(images)
            yield images
    if done == row.frames:
        return
    # decord stopped, or PyAV is this video's reader.
    sequential = row.decoder == "pyav-sequential"
    pictures = iterate_frames(path, row.first_frame + done, row.frames - done, row_timeline(row, path), sequential)
    while block := [to_image(frame, size, interlaced) for frame in islice(pictures, chunk)]:
        done += len(block)
        yield np.stack(block)
    if done < row.frames:
        raise VideoError(f"decoding ended after {done} of {row.frames} frames: the file is cut short or damaged")


def _decord(path: str, first: int, frames: int, size: tuple[int, int], chunk: int) -> Iterator[Images]:
    """Chunks for as long as decord delivers the frames."""
    reader = open_decord(path, size)
    if reader is None:
        return
    try:
        for start in range(first, first + frames, chunk):
            numbers = list(range(start, min(start + chunk, first + frames)))
            images: Images = reader.get_batch(numbers).asnumpy()
            if images.shape != (len(numbers), *size, 3) or images.dtype != np.uint8:
                return
            yield images
    except decord_errors():
        return
