"""The nearest rows of a table that is read once, for a few queries: exact, in memory that does not grow with the table's width.

Similarity is the cosine, after a mean has been taken from both sides where one is given. Rows are streamed and compared in
float32; what may be among the nearest is compared again in float64, so that the order is that of the vectors.

Legend: n rows, q queries, d values, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vicc_ray.errors import UserError

Vectors = NDArray[np.float32]
# Two cosines in float32 differ from those in float64 by less, also where the mean is ten times as long as what it leaves.
MARGIN = 1e-3
CANDIDATES = 64  # beside the k nearest, that are held at once


def unit_rows(rows: NDArray[np.floating], mean: Vectors, spans: Sequence[slice]) -> NDArray[np.float64]:
    """Rows [n, d] as they are compared, float64: the mean taken off, the values of each span of length 1 / sqrt(spans).

    Their inner products are the mean of the spans' cosines. A span that is the mean is all 0.
    """
    centred = rows.astype(np.float64) - mean
    for span in spans:
        norms = np.sqrt(np.einsum("nd,nd->n", centred[:, span], centred[:, span]))
        centred[:, span] /= np.maximum(norms, 1e-12)[:, None] * np.sqrt(len(spans))
    return centred


def similarities(rows: Vectors, queries: NDArray[np.float64], mean: Vectors, spans: Sequence[slice]) -> Vectors:
    """Rows float32 [n, d] against queries of `unit_rows` [q, d] -> float32 [n, q], up to `MARGIN`.

    By <x - m, y> = <x, y> - <m, y> and |x - m|^2 = |x|^2 - 2 <x, m> + |m|^2, so that no second table is made. UserError for
    values that are not finite.
    """
    total = np.zeros((len(rows), len(queries)), np.float32)
    for span in spans:
        part, centre = rows[:, span], mean[span]
        wanted = queries[:, span].astype(np.float32)
        squares = np.vecdot(part, part) - 2 * (part @ centre) + np.dot(centre, centre)
        lengths = np.sqrt(np.maximum(squares, 1e-12)) * np.float32(np.sqrt(len(spans)))
        total += (_products(part, wanted) - wanted @ centre) / lengths[:, None]
    if not np.isfinite(total).all():
        raise UserError("the archive's vectors hold NaN or infinite values; embed its videos again")
    return total


def _products(rows: Vectors, queries: Vectors) -> Vectors:
    """Inner products float32 [n, q]; a few queries one by one, which is four times as fast as a narrow matrix product."""
    if len(queries) > 4:
        return rows @ queries.T
    return np.stack([rows @ query for query in queries], axis=1)


class Nearest:
    """Collects the k nearest of rows that come in blocks.

    Args:
        queries: vectors [q, d] as they are stored.
        k: neighbours of each.
        mean: float32 [d] that is taken from both sides; zeros: none.
        spans: where the values of each encoder stand.
        passed_over: for each query whether rows are passed over: given the numbers of rows int64 [m], gives bool [m].
    """

    def __init__(
        self,
        queries: NDArray[np.floating],
        k: int,
        mean: Vectors,
        spans: Sequence[slice],
        passed_over: Sequence[Callable[[NDArray[np.int64]], NDArray[np.bool_]]] = (),
    ) -> None:
        self.k, self.mean, self.spans, self.passed_over = k, mean, spans, passed_over
        self.queries = unit_rows(np.atleast_2d(queries), mean, spans)
        if not np.isfinite(self.queries).all():
            raise UserError("the query's vector holds NaN or infinite values")
        self._rows: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in self.queries]
        self._exact: list[NDArray[np.float64]] = [np.empty(0) for _ in self.queries]

    def add(self, first: int, rows: Vectors) -> None:
        """Compare a block, rows `first`, `first` + 1, ... of the table."""
        found = similarities(rows, self.queries, self.mean, self.spans)
        for number in range(len(self.queries)):
            self._take(number, first, rows, found[:, number])

    def merge(self, other: Nearest) -> None:
        """Take what another one has found in other rows."""
        for number in range(len(self.queries)):
            self._keep(number, other._rows[number], other._exact[number])

    def found(self) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Of each query the numbers of its nearest rows and their similarities, the nearest first; equal ones in order."""
        return [(rows[: self.k], exact[: self.k]) for rows, exact in zip(self._rows, self._exact, strict=True)]

    def _take(self, number: int, first: int, rows: Vectors, found: Vectors) -> None:
        held = self._exact[number]
        least = held[self.k - 1] - MARGIN if len(held) >= self.k else -np.inf
        if len(found) > self.k + CANDIDATES:
            # Of a block at most its own k nearest can be among the k nearest of all, but for the margin.
            least = max(least, float(np.partition(found, -self.k)[-self.k]) - 2 * MARGIN)
        places = np.flatnonzero(found >= least)
        if self.passed_over:
            places = places[~self.passed_over[number](first + places)]
            places = self._enough(number, first, found, places)
        if len(places):
            exact = unit_rows(rows[places], self.mean, self.spans) @ self.queries[number]
            self._keep(number, first + places, exact)

    def _enough(self, number: int, first: int, found: Vectors, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows that are passed over have crowded out others of the block, these too."""
        if len(places) >= min(self.k, len(found)):
            return places
        free = np.flatnonzero(~self.passed_over[number](first + np.arange(len(found))))
        if len(free) > self.k:
            least = float(np.partition(found[free], -self.k)[-self.k]) - 2 * MARGIN
            free = free[found[free] >= least]
        return free

    def _keep(self, number: int, rows: NDArray[np.int64], exact: NDArray[np.float64]) -> None:
        rows = np.concatenate([self._rows[number], rows])
        exact = np.concatenate([self._exact[number], exact])
        order = np.lexsort((rows, -exact))[: self.k]
        self._rows[number], self._exact[number] = rows[order], exact[order]


def nearest_in(blocks: Iterable[Vectors], collector: Nearest, first: int = 0) -> Nearest:
    """Go through a table in blocks; gives the collector."""
    for block in blocks:
        collector.add(first, block)
        first += len(block)
    return collector
