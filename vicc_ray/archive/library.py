"""One or more archives of the same encoders, read as one table of rows.

Legend: n rows of all archives together, in their order; q queries; k neighbours; d values of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vicc_ray import storage
from vicc_ray.archive.store import Archive, open_archive
from vicc_ray.data.manifest import part_id, part_in
from vicc_ray.errors import UserError
from vicc_ray.machine import usable_cpus
from vicc_ray.metrics.nearest import Nearest, nearest_in

# Below this many rows their mean is too much of each of them.
FEW = 100
BLOCK = 4096

Vectors = NDArray[np.float32]
Numbers = NDArray[np.int64]
PassedOver = Callable[[Numbers], NDArray[np.bool_]]


class Library:
    """Archives of the same encoders and settings that are searched as one.

    Args:
        folders: paths or URIs. UserError where one is empty, or was made by another encoder than the first.
        centre: whether the mean of all vectors is taken off; None: where there are `FEW` rows or more.
    """

    def __init__(self, folders: Sequence[str], centre: bool | None = None) -> None:
        self.archives = [open_archive(folder) for folder in folders]
        first = self.archives[0].info
        for archive in self.archives[1:]:
            if archive.info.key != first.key:
                raise UserError(
                    f"{archive.folder}: holds vectors of {archive.info.describe()} under other settings or weights than "
                    f"{self.archives[0].folder} ({first.describe()}); vectors of different encoders cannot be compared"
                )
        self.info = first
        self.table: pa.Table = pa.concat_tables([archive.table() for archive in self.archives])
        self.centred = len(self.table) >= FEW if centre is None else centre
        self.mean = self._mean()

    def __len__(self) -> int:
        return len(self.table)

    def _mean(self) -> Vectors:
        total = sum((archive.mean().astype(np.float64) * len(archive) for archive in self.archives), np.zeros(1))
        mean: Vectors = (total / len(self)).astype(np.float32)
        return mean if self.centred else np.zeros_like(mean)

    def row_of(self, name: str) -> int | None:
        """The number of the row with an id, or of a whole video by its path; None where no archive has it."""
        for wanted in dict.fromkeys((name, absolute_id(name))):
            place = pc.index(self.table["id"], wanted).as_py()
            if place >= 0:
                return int(place)
        return None

    def archive_of(self, row: int) -> Archive:
        """The archive that holds a row."""
        for archive in self.archives:
            if row < len(archive):
                return archive
            row -= len(archive)
        raise IndexError(row)

    def vector(self, row: int) -> Vectors:
        """The vector of a row, float32 [d]."""
        for first, count, read in self.parts():
            if row >= first + count:
                continue
            for block in read():
                if row < first + len(block):
                    return np.array(block[row - first], np.float32)
                first += len(block)
        raise IndexError(row)

    def parts(self) -> Iterator[tuple[int, int, Callable[[], Iterator[Vectors]]]]:
        """Each part: the number of its first row, its rows, and what reads its vectors in blocks."""
        first = 0
        for archive in self.archives:
            for part in archive.parts:
                yield first, part.rows, partial(archive.part_blocks, part, BLOCK)
                first += part.rows

    def blocks(self) -> Iterator[Vectors]:
        """All vectors in order."""
        for _, _, read in self.parts():
            yield from read()

    def record(self, row: int) -> dict[str, Any]:
        """The columns of a row."""
        return {name: self.table[name][row].as_py() for name in self.table.column_names}


def absolute_id(name: str) -> str:
    """An id as an archive has it, of a path from the working folder."""
    part = part_in(name)
    return storage.absolute(name) if part is None else part_id(storage.absolute(part[0]), part[1], part[2])


def nearest_exact(
    library: Library,
    vectors: Vectors,
    k: int,
    over: Sequence[Callable[[NDArray[np.int64]], NDArray[np.bool_]]],
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The k nearest rows of each query vector [q, d] by going through all vectors, a part a thread."""

    def collector() -> Nearest:
        return Nearest(vectors, k, library.mean, library.info.spans, over)

    whole = collector()
    # A thread a part: more of BLAS's own would only wait for each other.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cpus()) as pool:
        for found in pool.map(lambda part: nearest_in(part[2](), collector(), part[0]), library.parts()):
            whole.merge(found)
    return whole.found()
