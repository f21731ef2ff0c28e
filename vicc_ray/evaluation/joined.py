"""Stored features of the same videos by several encoders, joined by the videos' ids: row i is the same video in each.

Encoders may have lost different videos to errors of reading, so that files of one side need not have the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import LISTS, VideoFeatures, feature_rows, read_columns, read_refused
from vicc_ray.metrics.search import Features, Rows, Table

STREAM_ABOVE = 1 << 30  # bytes of features above which a table is read in blocks whenever it is gone through


class Joined:
    """One side of an evaluation: the videos that every encoder has features of, in the order of the first one's file.

    Attributes:
        ids, labels, groups: of n videos.
        refused: (video, reason) of the videos that an encoder's file lacks.

    UserError where the files have no video in common.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files
        columns = {row: read_columns(path) for row, path in files.items()}
        first = next(iter(columns.values()))
        common = set.intersection(*(set(found["ids"]) for found in columns.values()))
        if not common:
            raise UserError(f"features of {' and '.join(files)} are of no video in common: {', '.join(files.values())}")
        kept = [place for place, video in enumerate(first["ids"]) if video in common]
        self.columns = {name: [first[name][place] for place in kept] for name in LISTS}
        self.ids: list[str] = self.columns["ids"]
        self.labels: list[str | None] = self.columns["labels"]
        self.groups: list[str | None] = self.columns["groups"]
        self.places = {row: self._places(found["ids"]) for row, found in columns.items()}
        self.refused = [pair for path in files.values() for pair in read_refused(path)]

    def _places(self, ids: list[str]) -> NDArray[np.int64]:
        place = {video: number for number, video in enumerate(ids)}
        return np.array([place[video] for video in self.ids], np.int64)

    def table(self, row: str) -> Table:
        """An encoder's features float32 [n, d], in memory, or in blocks from the file where that is large."""
        stored, places = feature_rows(self.files[row]), self.places[row]
        if 4 * len(places) * stored.width <= STREAM_ABOVE or (np.diff(places) < 0).any():
            return stored.whole()[places]
        return Rows(len(places), stored.width, lambda size: _kept(stored, places, size))

    def features(self, row: str) -> VideoFeatures:
        """An encoder's features with what is known of the videos, in memory."""
        vectors = feature_rows(self.files[row]).whole()[self.places[row]]
        return VideoFeatures(**self.columns, vectors=vectors)


def _kept(stored: Rows, places: NDArray[np.int64], size: int) -> Iterator[Features]:
    """The rows at some places (ascending)."""
    start = 0
    for block in stored.blocks(size):
        mine = places[(places >= start) & (places < start + len(block))]
        yield block[mine - start].astype(np.float32, copy=False)
        start += len(block)
