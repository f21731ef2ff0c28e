"""Exact search in blocks: the k largest inner products, and average precision, of tables of any size.

G gallery rows, Q query rows, d feature size, k neighbours, R rows of one class. What is held at once is a block of
similarities and what has been found so far, whatever G and Q are; a gallery may be in memory, a memory map or read from
a file (`Rows`). Nothing is approximated. Equal similarities rank in gallery order, and equal rows have equal
similarities wherever they stand: blocks are filled up to whole `TILE`s, because a matrix product rounds differently in
the odd rows and columns at its edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from vicc_ray.errors import UserError

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating]

GALLERY_BLOCK = 2048  # gallery rows at a time
PRECISION_BLOCK = 8192  # the same for average precision, which sorts each block: fewer, longer ones are faster
BLOCK_VALUES = 1 << 22  # similarities held at once: 16 MiB, which stay in a processor's cache
CHUNK_VALUES = 1 << 26  # values of queries, and of what is found for them, in one pass over the gallery: 256 MiB
TILE = 64
CROWD = 4  # k candidates a query for which all are merged as they are; with more, the block's own k best come first
LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Rows:
    """A table of features that is read from its first row to its last, as often as it takes.

    Args:
        count: rows.
        width: values a row.
        open: starts reading; called with a number of rows, gives blocks [n, width] of any floats, about so many rows each.
    """

    count: int
    width: int
    open: Callable[[int], Iterator[Floats]]

    def blocks(self, size: int) -> Iterator[Floats]:
        """The table in blocks of exactly `size` rows, the last one shorter; ValueError where it is not as promised."""
        held: list[Floats] = []
        rows = total = 0
        for block in self.open(size):
            if block.ndim != 2 or block.shape[1] != self.width:
                raise ValueError(f"a block of shape {block.shape} in a table of {self.width} values a row")
            total += len(block)
            while len(block):
                held.append(block[: size - rows])
                rows, block = rows + len(held[-1]), block[size - rows :]
                if rows == size:
                    yield _joined(held)
                    held, rows = [], 0
        if held:
            yield _joined(held)
        if total != self.count:
            raise ValueError(f"a table of {self.count} rows gave {total}")

    def whole(self) -> Features:
        """All of it in memory: float32 [count, width]."""
        table = np.empty((self.count, self.width), dtype=np.float32)
        start = 0
        for block in self.blocks(GALLERY_BLOCK):
            table[start : start + len(block)] = block
            start += len(block)
        return table


Table = npt.ArrayLike | Rows
Centre = Literal["gallery", "own"]  # whose mean is taken from each side, see `units`


def as_rows(table: Table, side: str) -> Rows:
    """A table in memory as `Rows`, without a copy where it is an array; `side` names it in errors.

    Raises UserError for an empty one, ValueError for one that is not [n, d].
    """
    if isinstance(table, Rows):
        rows = table
    else:
        array = np.asarray(table)
        if array.ndim != 2:
            raise ValueError(f"{side}: expected features [N,d], got shape {array.shape}")
        rows = Rows(
            array.shape[0],
            array.shape[1],
            lambda size: (array[start : start + size] for start in range(0, len(array), size)),
        )
    if not rows.count:
        raise UserError(f"retrieval: the {side} is empty; give it at least one video")
    return rows


def units(gallery: Table, query: Table, centre: Centre = "gallery") -> tuple[Rows, Rows]:
    """Both sides as rows that are centred and of length 1, so that their inner products are what ranks them.

    centre: `gallery` takes the gallery's mean from both sides, so that a query's neighbours do not depend on the other queries
    (a single query would be its own mean). `own` takes each side's own mean, as published (docs/method.md, section 6).
    float64, given as float32; a row that is the mean is all 0. Goes through each table once for its mean; centring and
    scaling are done again whenever the result is read, so that no second table is held. Raises UserError for an empty side
    and for values that are not finite.
    """
    rows, queries = as_rows(gallery, "gallery"), as_rows(query, "query")
    if rows.width != queries.width:
        raise ValueError(f"gallery features have {rows.width} values, query features {queries.width}")
    means = _mean(rows, "gallery"), _mean(queries, "query")
    return _centred(rows, means[0]), _centred(queries, means[0 if centre == "gallery" else 1])


def _mean(rows: Rows, side: str) -> npt.NDArray[np.float64]:
    total, broken = np.zeros(rows.width), 0
    for block in rows.blocks(GALLERY_BLOCK):
        finite = np.isfinite(block).all(axis=1)
        broken += int((~finite).sum())
        total += block.sum(axis=0, dtype=np.float64)
    if broken:
        raise UserError(
            f"retrieval: {broken} of {rows.count} {side} features hold NaN or infinite values; "
            "the checkpoint's weights or the videos are broken"
        )
    return total / rows.count


def _centred(rows: Rows, mean: npt.NDArray[np.float64]) -> Rows:
    def read(size: int) -> Iterator[Features]:
        for block in rows.open(size):
            table = np.subtract(block, mean, dtype=np.float64)
            table /= np.maximum(np.sqrt(np.einsum("nd,nd->n", table, table))[:, None], 1e-12)
            yield table.astype(np.float32)

    return Rows(rows.count, rows.width, read)


def beside(tables: Sequence[Rows], factors: Sequence[float], side: str) -> Rows:
    """Tables of the same videos side by side, each times its factor: [n, sum of widths]."""
    counts = [table.count for table in tables]
    if len(set(counts)) != 1:
        raise ValueError(f"{side}: the streams have {counts} rows; they must be the same videos")

    def read(size: int) -> Iterator[Features]:
        for parts in zip(*(table.blocks(size) for table in tables), strict=True):
            scaled = [np.multiply(part, factor, dtype=np.float32) for part, factor in zip(parts, factors, strict=True)]
            yield np.concatenate(scaled, axis=1)

    return Rows(counts[0], sum(table.width for table in tables), read)


def top_k(
    gallery: Table,
    query: Table,
    k: int,
    gallery_groups: Indices | None = None,
    query_groups: Indices | None = None,
) -> tuple[Indices, Features]:
    """The k gallery rows with the largest inner products with each query row, the largest first.

    Gives (int64 [Q,k], float32 [Q,k]); equal products in gallery order. With groups (whole numbers, one a row, both sides
    or neither) gallery rows of the query's own group are passed over; where fewer than k are left, the rest is
    (-1, -inf). Raises UserError for an empty side and values that are not finite, ValueError for a k out of 1..G.
    """
    gallery, query = _pair(gallery, query)
    _check_codes(gallery, query, gallery_groups, query_groups)
    if not 1 <= k <= gallery.count:
        raise ValueError(f"k is {k}; with {gallery.count} gallery rows it must be 1 to that")
    indices = np.full((query.count, k), -1, dtype=np.int64)
    values = np.full((query.count, k), -np.inf, dtype=np.float32)
    height = BLOCK_VALUES // max(GALLERY_BLOCK, 2 * k)
    start = 0
    for chunk in query.blocks(_tiles(CHUNK_VALUES // (query.width + 3 * k))):
        mine = slice(start, start + len(chunk))
        best, places = torch.from_numpy(values[mine]), torch.from_numpy(indices[mine])
        groups = None if query_groups is None else query_groups[mine]
        for columns, rows, similarity in _similarities(gallery, chunk, (height, GALLERY_BLOCK), gallery_groups, groups):
            _merge(best[rows], places[rows], similarity, columns.start)
        start += len(chunk)
    return indices, values


def average_precision(
    gallery: Table,
    query: Table,
    gallery_labels: Indices,
    query_labels: Indices,
    gallery_groups: Indices | None = None,
    query_groups: Indices | None = None,
) -> npt.NDArray[np.float64]:
    """Average precision of each query's ranking of the whole gallery: float64 [Q], NaN where nothing could be right.

    The mean, over the n gallery rows of the query's class, of (rows of the class so far) / (rank): the area under the
    precision-recall curve without interpolation. Labels and groups are whole numbers, one a row; arguments and ties
    otherwise as in `top_k`. The gallery is gone through twice: for the similarities of the class's rows, and to count
    what ranks before each of them; so memory grows with the largest class, not with the gallery.
    """
    gallery, query = _pair(gallery, query)
    _check_codes(gallery, query, gallery_labels, query_labels)
    _check_codes(gallery, query, gallery_groups, query_groups)
    classes, sizes = np.unique(gallery_labels, return_counts=True)
    most = int(sizes[np.isin(classes, query_labels)].max(initial=1))  # R
    shape = BLOCK_VALUES // (PRECISION_BLOCK + most), PRECISION_BLOCK
    result = np.empty(query.count)
    start = 0
    for chunk in query.blocks(_tiles(CHUNK_VALUES // (query.width + 4 * most))):
        mine = slice(start, start + len(chunk))
        groups = None if query_groups is None else query_groups[mine]
        relevant = torch.full((len(chunk), most), LAST)  # [q, R], keys of the class's rows, ascending
        found = torch.zeros(len(chunk), dtype=torch.int64)
        codes = torch.tensor(query_labels[mine])
        for columns, rows, similarity in _similarities(gallery, chunk, shape, gallery_groups, groups):
            same = codes[rows, None] == torch.tensor(gallery_labels[columns])
            same &= similarity > -torch.inf
            row, ordinal, column = _ragged(same)
            relevant[rows][row, found[rows][row] + ordinal] = _keys(similarity[row, column], columns.start + column)
            found[rows] += same.sum(dim=1)
        relevant = relevant.sort(dim=1).values
        ranks = torch.zeros_like(relevant)
        for columns, rows, similarity in _similarities(gallery, chunk, shape, gallery_groups, groups):
            keys = _keys(similarity, torch.arange(columns.start, columns.stop))
            keys.numpy().sort(axis=1)  # numpy's: ten times as fast as torch's
            ranks[rows] += keys.shape[1] - torch.searchsorted(keys, relevant[rows])
        result[mine] = _mean_precision(ranks, found).numpy()
        start += len(chunk)
    return result


def _pair(gallery: Table, query: Table) -> tuple[Rows, Rows]:
    rows, queries = as_rows(gallery, "gallery"), as_rows(query, "query")
    if rows.width != queries.width:
        raise ValueError(f"gallery features have {rows.width} values, query features {queries.width}")
    return rows, queries


def _check_codes(gallery: Rows, query: Rows, rows: Indices | None, queries: Indices | None) -> None:
    if rows is None and queries is None:
        return
    if rows is None or queries is None or (len(rows), len(queries)) != (gallery.count, query.count):
        raise ValueError("labels and groups: give one for each gallery row and each query row")


def _joined(held: list[Floats]) -> Floats:
    return held[0] if len(held) == 1 else np.concatenate(held)


def _tiles(rows: int) -> int:
    return max(TILE, rows // TILE * TILE)


def _tensor(block: Floats, side: str) -> Tensor:
    """float32, filled up with rows of 0 to whole tiles."""
    rows = torch.from_numpy(np.require(block, np.float32, ["C", "W"]))  # a copy of what is read-only, such as a file's
    if not torch.isfinite(rows).all():
        raise UserError(f"retrieval: {side} features hold NaN or infinite values")
    return pad(rows, (0, 0, 0, -len(rows) % TILE)) if len(rows) % TILE else rows


def _packed(rows: Tensor) -> Tensor:
    """Rows as oneDNN keeps them, where torch has it.

    Its float32 product was measured at 2.4 times torch.mm's speed and 1.9 times OpenBLAS's on an AMD Zen 5 core.
    """
    available: Callable[[], bool] = torch.backends.mkldnn.is_available
    return rows.to_mkldnn() if available() else rows


def _similarities(
    gallery: Rows,
    chunk: Floats,
    shape: tuple[int, int],
    gallery_groups: Indices | None,
    groups: Indices | None,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every inner product of a chunk of queries once: (gallery rows, rows of the chunk, float32 [rows, gallery rows]).

    `shape` says how many queries (about) and gallery rows a block has. Those of the same group are -inf.
    """
    height, width = _tiles(shape[0]), shape[1]
    query = _tensor(chunk, "query")
    parts = [_packed(query[first : first + height]) for first in range(0, len(query), height)]
    start = 0
    for block in gallery.blocks(width):
        columns = slice(start, start + len(block))
        tiles = _packed(_tensor(block, "gallery"))
        for number, part in enumerate(parts):
            rows = slice(number * height, min((number + 1) * height, len(chunk)))
            product = linear(part, tiles)
            similarity = (product.to_dense() if product.is_mkldnn else product)[: rows.stop - rows.start, : len(block)]
            if gallery_groups is not None and groups is not None:
                same = torch.tensor(groups[rows, None]) == torch.tensor(gallery_groups[columns])
                similarity.masked_fill_(same, -torch.inf)
            yield columns, rows, similarity
        start += len(block)


def _merge(best: Tensor, places: Tensor, similarity: Tensor, start: int) -> None:
    """Put what a block [q, g] has to offer into the k best so far (float32 and int64 [q, k], sorted), in place.

    Only what exceeds the k-th best can be among the k best: an equal one comes later in the gallery and ranks after it.
    After the first blocks this leaves next to nothing to sort.
    """
    q, k = best.shape
    keep = similarity > best[:, -1:]
    if int(keep.count_nonzero()) > CROWD * q * k:
        keep &= similarity >= similarity.topk(min(k, similarity.shape[1]), dim=1).values[:, -1:]
    row, ordinal, column = _ragged(keep)
    if not len(row):
        return
    touched, line = torch.unique_consecutive(row, return_inverse=True)
    shape = len(touched), k + int(ordinal.max()) + 1
    values, numbers = torch.full(shape, -torch.inf), torch.full(shape, -1)
    values[:, :k], numbers[:, :k] = best[touched], places[touched]
    values[line, k + ordinal], numbers[line, k + ordinal] = similarity[row, column], start + column
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    best[touched], places[touched] = values.gather(1, order), numbers.gather(1, order)


def _ragged(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where a mask [n, m] is true, row by row: row, number within the row, column."""
    row, column = mask.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(mask))
    return row, torch.arange(len(row)) - (counts.cumsum(0) - counts)[row], column


def _keys(similarity: Tensor, places: Tensor) -> Tensor:
    """Whole numbers that sort as similarities do and, where these are equal, put the earlier gallery row higher.

    The bits of a float, read as a whole number, are in its order; those of negative ones once all but the sign are
    turned. Gallery rows are numbered up to 2^32.
    """
    bits = (similarity + 0.0).view(torch.int32)  # + 0: -0 and 0 are equal
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.to(torch.int64)
    keys <<= 32
    keys += 0xFFFFFFFF - places
    return keys


def _mean_precision(ranks: Tensor, found: Tensor) -> Tensor:
    """Ranks [q, R] of the class's rows, the last first, of which `found` [q] are real -> float64 [q]."""
    places = torch.arange(ranks.shape[1])
    real = places < found[:, None]
    precision = (found[:, None] - places) / ranks.clamp_min(1).to(torch.float64)
    return precision.where(real, 0).sum(dim=1) / found
