"""A whole video -> its quantised flow, in order and in bounded memory: what is put into a flow store.

The frames are those that `read_frames` gives for clips of the video, so that stored and streamed flow agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import VideoError, decode_from, fetched, open_decord, timeline_of
from vicc_ray.data.flow.algorithms import BOUND, NO_OPTIONS, flow_algorithm, flow_of_frames, quantise
from vicc_ray.data.flow.contract import Field, FileFlowAlgorithm, FlowAlgorithm
from vicc_ray.data.flow.store import field_count
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Images, Interlaced, to_image

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
    """All quantised fields of a video at the decode size (H, W): uint8 [up to `chunk`, H, W, 2] at a time.

    `chunk` is `CHUNK`'s where it is not given. Decodes the file once, from its start; a remote one is fetched first. There
    are `frames` - 1 fields in all; a one-frame video has one, of no motion. `interlaced`: how pictures marked so are read
    (`vicc_ray.data.pictures`). Raises `VideoError` where the file does not
    deliver, `UserError` as `flow_between` does.
    """
    chunk = chunk or CHUNK[device.partition(":")[0]]
    made = flow_algorithm(algorithm, weights, device, options)
    with fetched(row.video) as path:
        if isinstance(made, FileFlowAlgorithm):
            fields = _of_file(row, path, size, chunk, made)
        else:
            fields = _of_pictures(row, _frames(row, path, size, chunk, interlaced), made)
        for field in fields:
            yield quantise(field, bound)


def _of_pictures(row: VideoRow, pictures: Iterator[Images], algorithm: FlowAlgorithm) -> Iterator[Field]:
    last: Images | None = None
    for frames in pictures:
        if row.frames == 1:
            frames = np.repeat(frames, 2, axis=0)
        joined = frames if last is None else np.concatenate([last, frames])
        last = joined[-1:].copy()
        if len(joined) > 1:
            yield flow_of_frames(algorithm, joined)


def _of_file(
    row: VideoRow, path: str, size: tuple[int, int], chunk: int, algorithm: FileFlowAlgorithm
) -> Iterator[Field]:
    if row.frames == 1:
        yield np.zeros((1, *size, 2), np.float32)
        return
    fields = islice(algorithm.iterate_file(path, size, row.decoder), field_count(row))
    while block := list(islice(fields, chunk)):
        yield np.stack(block)


def _frames(row: VideoRow, path: str, size: tuple[int, int], chunk: int, interlaced: Interlaced) -> Iterator[Images]:
    """The video's frames in order, uint8 RGB [up to `chunk`, H, W, 3] at a time, `row.frames` in all."""
    done = 0
    if row.decoder == "decord":
        for images in _decord(path, row.frames, size, chunk):
            done += len(images)
            yield images
    if done == row.frames:
        return
    # decord stopped, or PyAV is this video's reader.
    pictures = islice(decode_from(path, timeline_of(path), 0), done, row.frames)
    while block := [to_image(frame, size, interlaced) for frame in islice(pictures, chunk)]:
        done += len(block)
        yield np.stack(block)
    if done < row.frames:
        raise VideoError(f"decoding ended after {done} of {row.frames} frames: the file is cut short or damaged")


def _decord(path: str, frames: int, size: tuple[int, int], chunk: int) -> Iterator[Images]:
    """Chunks for as long as decord delivers the frames."""
    import decord

    reader = open_decord(path, size)
    if reader is None:
        return
    try:
        for start in range(0, frames, chunk):
            numbers = list(range(start, min(start + chunk, frames)))
            images: Images = reader.get_batch(numbers).asnumpy()
            if images.shape != (len(numbers), *size, 3) or images.dtype != np.uint8:
                return
            yield images
    except (decord.DECORDError, RuntimeError, IndexError):
        return
