"""Rows a window -> one row a video: the mean over its windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.manifest import VideoRow
from vicc_ray.errors import UserError
from vicc_ray.metrics.accuracy import check_probabilities

Block = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class VideoMeans:
    """A video's features: the mean over its `windows`, float32 [d] an encoder; `refused` is the reason where it has none."""

    number: int
    windows: int
    refused: str
    vectors: Mapping[str, NDArray[np.float32]]


def video_means(blocks: Iterable[Block], names: Sequence[str]) -> Iterator[VideoMeans]:
    """One row a video from rows a window in order; a video with an unreadable window is refused.

    Of a video's windows, of which a long one has many, the sums are held.
    """
    rows = ((int(number), block, place) for block in blocks for place, number in enumerate(block["video"]))
    before = -1
    for number, group in groupby(rows, key=lambda row: row[0]):
        if number <= before:
            raise RuntimeError(f"windows of video {number} came after those of video {before}")
        before = number
        windows, refused, sums = 0, "", dict.fromkeys(names, np.zeros(()))
        for _, block, place in group:
            windows += 1
            refused = refused or str(block["refused"][place] or "")
            sums = {name: sums[name] + block[name][place].astype(np.float64) for name in names}
        means = {name: (total / windows).astype(np.float32) for name, total in sums.items()}
        yield VideoMeans(number, windows, refused, means)


@dataclass(frozen=True)
class Probabilities:
    """Class probabilities of the videos that could be read, the mean over their windows, in the order of the videos.

    Args:
        videos: n of them.
        classes: C names, the columns.
        probabilities: classifier -> float32 [n,C].
        refused: (path, reason) of the videos left out.
    """

    videos: tuple[VideoRow, ...]
    classes: tuple[str, ...]
    probabilities: dict[str, NDArray[np.float32]]
    refused: tuple[tuple[str, str], ...]


def mean_over_windows(
    blocks: Iterable[Block], videos: Sequence[VideoRow], names: Sequence[str], classes: tuple[str, ...]
) -> Probabilities:
    """One row a video from rows a window, in order; UserError where no video could be read or a classifier gives NaN."""
    means = list(video_means(blocks, names))
    if [mean.number for mean in means] != list(range(len(videos))):
        raise RuntimeError(f"{len(means)} of {len(videos)} videos gave windows")
    refused = tuple((videos[mean.number].id, mean.refused) for mean in means if mean.refused)
    good = [mean for mean in means if not mean.refused]
    if not good:
        raise UserError(
            f"classification: none of {len(videos)} videos could be read (first: {refused[0][0]}: {refused[0][1]})"
        )
    kept = tuple(videos[mean.number] for mean in good)
    tables = {name: np.stack([mean.vectors[name] for mean in good]) for name in names}
    for name, table in tables.items():
        check_probabilities(table, [row.id for row in kept], name)
    return Probabilities(kept, classes, tables, refused)
