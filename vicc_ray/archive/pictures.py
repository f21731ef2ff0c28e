"""Whether two rows of an archive show the same pictures, decided by the pictures themselves.

Vectors say what moves how, so that two takes of one scene are as near as two copies of one take. Here small grey pictures of both,
`RATE` a second, are laid upon one another at every offset in time: of a copy (re-encoded, scaled, trimmed, cropped at the edges)
what changes from picture to picture is the same, of another take it is not.

Legend: n pictures, H x W their size, v variants (the whole picture, and what is left when its edges are cropped).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.clips import STAMP_TOLERANCE
from vicc_ray.data.cutting import named_row
from vicc_ray.data.decode import MOST_OF_FFMPEG, bound_pixels, read_frames
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.segments import by_table, frame_times

RATE = 8.0  # pictures a second
MOST_PICTURES = 960  # two minutes; of a longer row its beginning is compared
SIZE = (36, 64)  # H, W of the pictures that are kept
COMPARED = (18, 32)  # H, W at which they are compared
CROPS = (0.0, 0.03, 0.06)  # share of the picture that is taken off each edge
# Which variants of both are compared: a copy may have lost its edges, on either side.
VARIANTS = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2))
OVERLAP = 0.6  # of the shorter row that has to lie upon the other
# Of copies of real clips the changes correlate by 0.89 or more, of other takes of the same scene by 0.71 or less.
SAME_CHANGES, SAME_PICTURE = 0.8, 0.97
STILL = 1.5  # of 255: changes below are noise, and the mean picture alone decides
SAME_STILL = 0.99
SECONDS = 300.0  # for the pictures of one row

Pictures = NDArray[np.uint8]


def small_pictures(name: str) -> Pictures:
    """Grey pictures uint8 [n, *SIZE] of a video or a part of one (`file.mp4@12.5-15`), `RATE` a second, at most `MOST_PICTURES`."""
    bound_pixels(MOST_OF_FFMPEG)  # whoever embedded it has decided
    row = named_row(name)
    times = frame_times(row)[row.first_frame : row.last_frame + 1]
    wanted = np.arange(0.0, float(times[-1] - times[0]) + 1e-9, 1 / RATE)[:MOST_PICTURES] + times[0]
    frames = row.first_frame + np.searchsorted(times, wanted + STAMP_TOLERANCE, side="right") - 1
    timeline = decode_table(row.frame_table) if by_table(row) else None
    images = read_frames(row.video, np.maximum(frames, row.first_frame), SIZE, row.decoder, timeline=timeline)
    return np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images])


@dataclass(frozen=True)
class Signature:
    """A row's pictures, ready to be compared: of each variant the mean picture, and each picture without it.

    means: float32 [v, H * W], each less its own mean. changes: float32 [v, n, H * W].
    """

    means: NDArray[np.float32]
    changes: NDArray[np.float32]

    @classmethod
    def of(cls, pictures: Pictures) -> Signature:
        """Of pictures uint8 [n, H, W]."""
        variants = np.stack([[_seen(picture, crop) for picture in pictures] for crop in CROPS])
        means = variants.mean(axis=1)
        return cls(means - means.mean(axis=1, keepdims=True), variants - means[:, None])


def _seen(picture: Pictures, crop: float) -> NDArray[np.float32]:
    height, width = picture.shape
    y, x = crop * height, crop * width
    corners = np.array([[1 - 2 * crop, 0, x], [0, 1 - 2 * crop, y]], np.float32)
    inner = cv2.warpAffine(picture, corners, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    small = cv2.resize(inner, COMPARED[::-1], interpolation=cv2.INTER_AREA)
    flat: NDArray[np.float32] = small.astype(np.float32).reshape(-1)
    return flat


def show_the_same(first: Signature, second: Signature) -> bool:
    """Whether two rows show the same pictures, one of them perhaps trimmed or cropped."""
    return any(_same(first, second, one, other) for one, other in VARIANTS)


def _same(first: Signature, second: Signature, one: int, other: int) -> bool:
    alike = _cosine(first.means[one], second.means[other])
    if alike < SAME_PICTURE:
        return False
    a, b = first.changes[one], second.changes[other]
    if max(float(np.sqrt(np.mean(a * a))), float(np.sqrt(np.mean(b * b)))) < STILL:
        return alike >= SAME_STILL
    return _best_correlation(a, b) >= SAME_CHANGES


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-9))


def _best_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The correlation of the changes [n, H * W] of two rows at the offset in time where it is greatest."""
    products = a @ b.T
    energies = (a * a).sum(axis=1), (b * b).sum(axis=1)
    least = max(int(OVERLAP * min(len(a), len(b)) + 0.999), 1)
    best = 0.0
    for offset in range(least - len(b), len(a) - least + 1):
        start, stop = max(offset, 0), min(len(a), len(b) + offset)
        found = float(np.trace(products, offset=-offset))
        norm = float(energies[0][start:stop].sum() * energies[1][start - offset : stop - offset].sum()) ** 0.5
        best = max(best, found / max(norm, 1e-9))
    return best


def check_pairs(
    pairs: NDArray[np.int64], names: Callable[[int], str], workers: int
) -> tuple[NDArray[np.bool_], dict[int, str]]:
    """Which of the pairs of rows int64 [p, 2] show the same: bool [p]; and the rows that cannot be read, with the reason.

    `names` gives a row's id; `workers` processes decode.
    """
    rows = np.unique(pairs).tolist()
    signatures: dict[int, Signature] = {}
    failed: dict[int, str] = {}
    for place, outcome in run_guarded(small_pictures, [names(row) for row in rows], workers, SECONDS):
        if isinstance(outcome, Failure):
            failed[rows[place]] = outcome.reason
        else:
            signatures[rows[place]] = Signature.of(outcome)
    return _confirmed(pairs.tolist(), signatures), failed


def _confirmed(pairs: Iterable[Sequence[int]], signatures: dict[int, Signature]) -> NDArray[np.bool_]:
    return np.array(
        [
            first in signatures and second in signatures and show_the_same(signatures[first], signatures[second])
            for first, second in pairs
        ],
        bool,
    )
