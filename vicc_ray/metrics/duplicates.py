"""Near copies in a table of any size: all pairs of rows with a cosine similarity of at least a bound, and their groups.

N rows, d values a row, k sketched values, H rows held, B rows of a block. Nothing is approximated. Every pair is first
looked at in a sketch: k - 1 coordinates of the unit row on orthonormal directions, and the length of what they leave
out. By Cauchy and Schwarz the product of two sketches is not below that of the rows, so that only the few pairs whose
sketches reach the bound, less all that rounding can take, are computed in full, in float64. The similarity of a pair
therefore depends on its two rows alone, not on blocks, directions or the processor.

The table is gone through once for the directions and once for every `HELD_VALUES` of it, whatever N is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import linear

from vicc_ray.errors import UserError
from vicc_ray.metrics.search import Features, Floats, Indices, Rows

LIMIT = 50_000_000  # pairs; they take 12 bytes each, and three times that while they are sorted
HELD_VALUES = 1 << 29  # values of the rows held in one pass over the table: 2 GiB
BLOCK = 2048  # rows of the table at a time
BLOCK_VALUES = 1 << 22  # values of such a block, where rows are long: 32 MiB in float64
TILE = 2048  # held rows whose products with a block are there at once: 8 MiB; smaller ones only wait for threads more often
CHUNK_VALUES = 1 << 18  # values of the pairs that are computed in full at once
SAMPLE = 2048  # rows that the directions are taken from
SKETCHES = 32, 64, 128, 256  # the k that are tried on the sample
PAIR = 256  # a pair in full costs about as much as so many pairs in a matrix product of the same width
ROUNDING = 2.0**-24  # float32's


@dataclass(frozen=True)
class _Units:
    """Rows scaled to length 1 (those of length 0 stay 0) and their sketches.

    Args:
        rows: float32 [n,d].
        squares: float64 [n]; squared lengths of the float32 rows, which are not quite 1.
        sketches: bfloat16 or float32 [n,k].
        error: the largest length of what rounding took from a sketch.
    """

    rows: Tensor
    squares: Tensor
    sketches: Tensor
    error: float

    def put(self, place: int, units: _Units) -> _Units:
        """Copies n rows to places [place, place + n), where room was made for them, and gives them from there."""
        mine = slice(place, place + len(units.rows))
        rows, squares = self.rows[mine].copy_(units.rows), self.squares[mine].copy_(units.squares)
        return _Units(rows, squares, self.sketches[mine].copy_(units.sketches), units.error)


@dataclass(frozen=True)
class _Found:
    """The pairs so far: held and other row (int64), similarity (float32)."""

    first: list[Indices]
    second: list[Indices]
    similarity: list[Features]

    def add(self, first: Tensor, second: Tensor, similarity: Tensor) -> None:
        """Row numbers (int64 [n] each) and similarities (float32 [n]) of n more pairs."""
        self.first.append(first.numpy())
        self.second.append(second.numpy())
        self.similarity.append(similarity.numpy())

    def sort(self) -> tuple[Indices, Features]:
        """int64 [p,2] in the order of first and second row, float32 [p]."""
        pairs = np.empty((sum(map(len, self.first)), 2), dtype=np.int64)
        if not len(pairs):
            return pairs, np.empty(0, dtype=np.float32)
        np.concatenate(self.first, out=pairs[:, 0])
        np.concatenate(self.second, out=pairs[:, 1])
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        return pairs[order], np.concatenate(self.similarity)[order]


def duplicate_pairs(table: Rows, above: float, mean: Features | None = None) -> tuple[Indices, Features]:
    """All pairs of rows with a cosine similarity of at least `above`, and these similarities.

    Gives (int64 [p,2], float32 [p]); in each pair the first row is the earlier one, and pairs are sorted. Rows can have
    any length; those of length 0 are similar to nothing. `mean` (float32 [d]) is subtracted first. A similarity is that of
    the float32 unit rows, computed in float64 and rounded to float32, in which it is also compared with `above`; equal
    rows have exactly 1. Held at once: 4 bytes for each of `HELD_VALUES`, their sketches, and what was found.

    Raises UserError for an `above` out of (0, 1], values that are not finite, and more than `LIMIT` pairs.
    """
    if not 0 < above <= 1:
        raise UserError(f"duplicates: the similarity must be more than 0 and at most 1, not {above}")
    if mean is not None and (mean.shape != (table.width,) or not np.isfinite(mean).all()):
        raise ValueError(f"the mean must be {table.width} finite values, got shape {mean.shape}")
    found = _Found([], [], [])
    if not table.count:
        return found.sort()
    size = min(BLOCK, max(1, BLOCK_VALUES // table.width))
    basis = _directions(_sample(table, size, mean), above)
    held = min(max(1, HELD_VALUES // table.width // size) * size, table.count)
    room = _room(held, table.width, basis)
    total = 0
    for start in range(0, table.count, held):
        for first, second, similarity in _pass(table, size, mean, basis, start, room, np.float32(above)):
            found.add(first, second, similarity)
            total += len(first)
            if total > LIMIT:
                raise UserError(
                    f"duplicates: more than {LIMIT} pairs are at least {above} similar; raise --above (it can be up to 1)"
                )
    del room
    return found.sort()


def duplicate_groups(pairs: Indices, rows: int) -> list[Indices]:
    """The groups that pairs (int64 [p,2]) put rows 0..rows-1 into, where a pair of a pair belongs to the group too.

    Groups have two rows or more (int64, ascending) and are in the order of their first rows; rows without a pair are in
    none. Raises ValueError for a pair of other rows.
    """
    if not len(pairs):
        return []
    if pairs.min() < 0 or pairs.max() >= rows:
        raise ValueError(f"pairs of rows {pairs.min()} to {pairs.max()}; there are {rows} rows")
    members, places = np.unique(pairs, return_inverse=True)  # few of all: the graph is small whatever the table is
    places = places.reshape(pairs.shape).astype(np.int32)
    graph = coo_array((np.ones(len(pairs), dtype=bool), (places[:, 0], places[:, 1])), shape=(len(members),) * 2)
    labels = connected_components(graph, directed=False)[1]
    order = np.argsort(labels, kind="stable")
    groups = np.split(members[order], np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))


def _unit(block: Floats, mean: Features | None) -> tuple[Tensor, Tensor]:
    """Rows of length 1 (float32 [n,d]), and where they hold NaN or infinite values (bool [n])."""
    rows = torch.from_numpy(np.array(block, dtype=np.float64))
    if mean is not None:
        rows -= torch.from_numpy(mean.astype(np.float64))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    rows /= lengths.where(lengths > 0, 1)[:, None]
    return rows.float(), ~torch.isfinite(lengths)


def _sample(table: Rows, size: int, mean: Features | None) -> Tensor:
    """Some `SAMPLE` unit rows from all over the table, float32; UserError where any of the table is not finite."""
    step = -(-table.count // SAMPLE)
    kept, start, broken = [], 0, 0
    for block in table.blocks(size):
        rows, wrong = _unit(block, mean)
        broken += int(wrong.sum())
        kept.append(rows[-start % step :: step].clone())
        start += len(block)
    if broken:
        raise UserError(
            f"duplicates: {broken} of {table.count} rows hold NaN or infinite values; "
            "the checkpoint's weights or the videos are broken"
        )
    return torch.cat(kept)


def _directions(sample: Tensor, above: float) -> Tensor | None:
    """Orthonormal directions (float64 [d,k-1]) for sketches of the cheapest k; None where whole rows are cheaper.

    The sample's strongest ones leave out least. What k costs is counted in values a pair: k in the sketch, and the
    width of those pairs of the sample whose sketches reach the bound. More than a few of those go through a matrix
    product, see `_sifted`, so that they cost no more than twice that.
    """
    count, width = sample.shape
    strongest = torch.linalg.svd(sample.double(), full_matrices=False).Vh
    best, cheapest = None, float(width)
    for k in SKETCHES:
        if 2 * k > width or k > len(strongest):
            break
        basis = strongest[: k - 1].T.contiguous()
        sketches = _sketch(sample, basis).float()
        reached = int((sketches @ sketches.T > above - 0.004).sum()) - count  # about what bfloat16 takes
        cost = k + min(max(reached, 0) / (count * (count - 1)) * PAIR, 2) * width
        if cost < cheapest:
            best, cheapest = basis, cost
    return best


def _sketch(rows: Tensor, basis: Tensor | None) -> Tensor:
    """Sketches of unit rows, float64 [n,k]: no product of two rows exceeds that of their sketches."""
    whole = rows.double()
    if basis is None:
        return whole
    inside = whole @ basis
    left = whole.square().sum(dim=1) - inside.square().sum(dim=1)
    return torch.cat([inside, left.clamp_min(0).sqrt()[:, None]], dim=1)


def _sketched(rows: Tensor, basis: Tensor | None) -> _Units:
    exact = _sketch(rows, basis)
    sketches = exact.to(_precision())
    error = torch.linalg.vector_norm(sketches.double() - exact, dim=1).max()
    return _Units(rows, rows.double().square().sum(dim=1), sketches, float(error))


def _room(count: int, width: int, basis: Tensor | None) -> _Units:
    """Room for the rows of a pass, made at once: small blocks kept between large short-lived ones scatter the heap."""
    k = width if basis is None else basis.shape[1] + 1
    squares = torch.empty(count, dtype=torch.float64)
    return _Units(torch.empty(count, width), squares, torch.empty(count, k, dtype=_precision()), 0.0)


def _precision() -> torch.dtype:
    """What sketches are multiplied in: bfloat16, at twice the speed, where the processor can."""
    capabilities: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    known = capabilities()
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


def _pass(
    table: Rows,
    size: int,
    mean: Features | None,
    basis: Tensor | None,
    start: int,
    room: _Units,
    above: np.float32,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs whose first row is one of the H from `start` on, which are put into `room` as they come by."""
    held: list[_Units] = []  # of `size` rows each
    place = 0
    for block in table.blocks(size):
        if place >= start:
            units = _sketched(_unit(block, mean)[0], basis)
            offset = place - start
            if offset < len(room.rows):
                held.append(room.put(offset, units))
            for number, others in enumerate(held):
                yield from _between(others, start + number * size, units, place, above)
        place += len(block)


def _between(
    held: _Units, start: int, block: _Units, place: int, above: np.float32
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pairs of a held row and a later one of the block: two row numbers and the similarity."""
    least = float(above) - held.error * (1 + block.error) - block.error - _slack(held.sketches.shape[1])
    for top in range(0, len(held.rows), TILE):
        first, second = _reaching(held.sketches[top : top + TILE], block.sketches, least)
        first += top
        if start == place:
            later = first < second
            first, second = first[later], second[later]
        if len(first) > TILE * len(block.rows) // PAIR:
            first, second = _sifted(held.rows, block.rows, top, first, second, float(above))
        if len(first):
            similarity = _similarity(held, block, first, second)
            keep = similarity >= float(above)
            if keep.any():
                yield start + first[keep], place + second[keep], similarity[keep]


def _slack(width: int) -> float:
    """More than rounding can take from a float32 product of rows about 1 long, however it is summed up."""
    return (width + 16) * ROUNDING


def _reaching(left: Tensor, right: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Where the product of two sketches is at least `least`: rows and columns of [n,m].

    Rounding to bfloat16 keeps the order, so that the bound is rounded too. Whole numbers made of the same bits have that
    order above 0, and their largest is found at ten times the speed; nearly all rows end there.
    """
    products = linear(left, right)
    bound = torch.tensor(least, dtype=products.dtype)
    if products.dtype == torch.bfloat16:
        products = products.view(torch.int16)
        bound = bound.view(torch.int16) if least > 0 else torch.tensor(torch.iinfo(torch.int16).min)
    rows = (products.amax(dim=1) >= bound).nonzero()[:, 0]
    if not len(rows):
        return rows, rows
    row, column = (products[rows] >= bound).nonzero(as_tuple=True)
    return rows[row], column


def _sifted(
    held: Tensor, block: Tensor, top: int, first: Tensor, second: Tensor, above: float
) -> tuple[Tensor, Tensor]:
    """Those of many pairs that a float32 product of whole rows leaves: cheaper than each on its own."""
    products = linear(held[top : top + TILE], block)
    keep = products[first - top, second] >= above - _slack(held.shape[1])
    return first[keep], second[keep]


def _similarity(held: _Units, block: _Units, first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarities of pairs, float32 [n]; NaN for rows of length 0. Small chunks: their copies stay in cache."""
    size = max(1, CHUNK_VALUES // held.rows.shape[1])
    chunks = zip(torch.split(first, size), torch.split(second, size), strict=True)
    products = [torch.linalg.vecdot(held.rows[left].double(), block.rows[right].double()) for left, right in chunks]
    return (torch.cat(products) / (held.squares[first] * block.squares[second]).sqrt()).float()
