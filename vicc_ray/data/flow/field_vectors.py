"""What a motion vector of interlaced H.264 means: FFmpeg does not say which blocks lie in fields, so the pictures do.

In a picture with macroblock-adaptive fields a vector counts in lines of the frame, or in lines of one field and from a
field of the same or of the other parity, half a picture's time nearer or farther. Each of the three readings predicts the
block from the picture that it refers to; the one that predicts it best is taken. Where nothing separates them (a plain
surface) a block goes with the majority.

Legend: n vectors; r x c sampled points of a block; fields are [2, H / 2, W], top first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Luma = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCK = 16
POINTS = 8  # along each side of a block
# Grey levels by which the best reading must predict better than the second to be believed.
DECISIVE = 0.5
FRAME, SAME, OTHER = range(3)


@dataclass(frozen=True)
class Reference:
    """A picture that vectors refer to: its luma [H, W], and by how many pictures it is away."""

    luma: Luma
    distance: int


def luma_of(frame: VideoFrame) -> Luma:
    """uint8 [H, W], H even: the picture's first plane, the last line repeated where there is an odd number of them."""
    plane, bits = frame.planes[0], frame.format.components[0].bits
    samples: NDArray[Any] = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16)
    luma: Luma = (samples.reshape(frame.height, -1)[:, : frame.width] >> (bits - 8)).astype(np.uint8)
    return np.pad(luma, ((0, luma.shape[0] % 2), (0, 0)), "edge")


def field_velocities(
    vectors: NDArray[Any], luma: Luma, past: Reference | None, future: Reference | None, top_first: bool
) -> Floats:
    """The velocity that each of FFmpeg's vectors means, in lines of the frame: float32 [n, 2], pixels a picture.

    A vector whose reference is not there is read as one of the majority.
    """
    errors = np.zeros((3, len(vectors)), np.float32)
    velocities = np.zeros((3, len(vectors), 2), np.float32)
    backwards = vectors["source"] < 0
    for which, reference, sign in ((backwards, past, -1), (~backwards, future, 1)):
        distance = reference.distance if reference else 1
        velocities[:, which] = _readings(vectors[which], distance, sign, 1 if top_first else -1)
        if reference is not None and which.any():
            errors[:, which] = _errors(vectors[which], luma, reference.luma)
    best, second = np.partition(errors, 1, axis=0)[:2]
    decided = second - best > DECISIVE
    reading = errors.argmin(0)
    counts = np.bincount(reading[decided], minlength=3)
    # Frame and same-parity readings are separated from the other parity more easily than the reverse.
    majority = int(counts.argmax()) if decided.any() else SAME
    chosen: Floats = velocities[np.where(decided, reading, majority), np.arange(len(vectors))]
    return chosen


def _readings(vectors: NDArray[Any], distance: int, sign: int, order: int) -> Floats:
    """The velocities of the three readings, float32 [3, n, 2]; `order` is 1 where the top field is the earlier one."""
    x, y = _motion(vectors)
    lines = _field_lines(vectors, y)
    parity = _parity(vectors)
    step = 1 - 2 * parity  # frame lines from a field's own line to the other field's
    # Half a picture nearer or farther: the later field to an earlier one of a picture before is farther.
    other = np.maximum(distance + sign * order * step / 2, 0.5)
    return np.stack(
        [
            np.stack([x, y], -1) * (sign / distance),
            np.stack([x, 2 * lines], -1) * (sign / distance),
            np.stack([x, 2 * lines + step], -1) * (sign / other[:, None]),
        ]
    ).astype(np.float32)


def _motion(vectors: NDArray[Any]) -> tuple[Floats, Floats]:
    scale = vectors["motion_scale"].astype(np.float32)
    x: Floats = vectors["motion_x"].astype(np.float32) / scale
    y: Floats = vectors["motion_y"].astype(np.float32) / scale
    return x, y


def _field_lines(vectors: NDArray[Any], y: Floats) -> Floats:
    """FFmpeg doubles the vectors of field blocks that are cut in two, and only these."""
    halves = vectors["w"] != vectors["h"]
    return np.where(halves, y / 2, y)


def _parity(vectors: NDArray[Any]) -> NDArray[np.int64]:
    """Of a pair of field macroblocks the upper one is the top field's (0), the lower one the bottom field's (1)."""
    rows: NDArray[np.int64] = vectors["dst_y"].astype(np.int64) // BLOCK % 2
    return rows


def _errors(vectors: NDArray[Any], luma: Luma, reference: Luma) -> Floats:
    """Mean grey levels between each block and what each reading predicts: float32 [3, n]."""
    x, y = _motion(vectors)
    lines, parity = _field_lines(vectors, y), _parity(vectors)
    columns = _points(vectors["dst_x"], vectors["w"])  # [n, c]
    rows = _points(vectors["dst_y"], vectors["h"])  # [n, r]
    # Inside of its macroblock a field's block begins at the same line as a frame's; a pair's fields have 16 lines each.
    macroblock = (vectors["dst_y"].astype(np.int64) // BLOCK)[:, None]
    in_field = rows - macroblock * BLOCK + macroblock // 2 * BLOCK
    frames, fields = (luma[None], reference[None]), (_fields(luma), _fields(reference))
    none = np.zeros_like(parity)
    across = columns + x[:, None]
    here = _sample(fields[0], parity, in_field, columns)
    moved = in_field + lines[:, None]
    return np.stack(
        [
            _mean_difference(
                _sample(frames[0], none, rows, columns), _sample(frames[1], none, rows + y[:, None], across)
            ),
            _mean_difference(here, _sample(fields[1], parity, moved, across)),
            _mean_difference(here, _sample(fields[1], 1 - parity, moved, across)),
        ]
    )


def _points(centres: NDArray[Any], sides: NDArray[Any]) -> Floats:
    """Evenly spread whole places along a block's side: [n, POINTS]."""
    steps = np.arange(POINTS)[None] * sides[:, None] // POINTS
    return np.asarray(centres[:, None] - sides[:, None] // 2 + steps, np.float32)


def _fields(luma: Luma) -> Luma:
    return np.stack([luma[0::2], luma[1::2]])


def _sample(planes: Luma, which: NDArray[np.int64], rows: Floats, columns: Floats) -> Floats:
    """planes [k, H, W] at (which [n], rows [n, r], columns [n, c]), linear between pixels, the edge beyond it: [n, r, c]."""
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    down, right = (rows - top)[:, :, None], (columns - left)[:, None, :]
    plane = which[:, None, None]
    height, width = planes.shape[1:]

    def at(row: int, column: int) -> Floats:
        y, x = np.clip(top + row, 0, height - 1), np.clip(left + column, 0, width - 1)
        values: Floats = planes[plane, y[:, :, None], x[:, None, :]].astype(np.float32)
        return values

    upper = at(0, 0) * (1 - right) + at(0, 1) * right
    lower = at(1, 0) * (1 - right) + at(1, 1) * right
    sampled: Floats = (upper * (1 - down) + lower * down).astype(np.float32)
    return sampled


def _mean_difference(one: Floats, other: Floats) -> Floats:
    return np.asarray(np.abs(one - other).mean((1, 2)), np.float32)
