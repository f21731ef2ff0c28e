"""Near-duplicates in an archive: rows whose vectors point the same way, in groups, with the one of each to keep.

Similarity is the plain cosine, without a mean taken off: what counts is that two videos are the same, not that they differ from
the others alike. A group is held together by pairs: where a is like b and b is like c, all three are one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.library import Library
from vicc_ray.archive.page import Card, Page, Strip, clock
from vicc_ray.errors import UserError
from vicc_ray.metrics.duplicates import duplicate_groups, duplicate_pairs
from vicc_ray.metrics.nearest import unit_rows
from vicc_ray.metrics.search import Rows

RULE = "the longest is kept, of equally long ones the first"


@dataclass(frozen=True)
class Duplicates:
    """A group: rows by number, the kept one first; `similarities` float32, of each to the one of the group that is most like it."""

    rows: tuple[int, ...]
    similarities: tuple[float, ...]

    @property
    def kept(self) -> int:
        """The row to keep."""
        return self.rows[0]


def find_duplicates(library: Library, above: float) -> list[Duplicates]:
    """Groups of rows with a cosine of at least `above`, in order; within bounded memory, whatever the archive's size."""
    zero = np.zeros(library.info.width, np.float32)

    def read(size: int) -> Iterator[NDArray[np.float32]]:
        for block in library.blocks():
            yield unit_rows(block, zero, library.info.spans).astype(np.float32)

    pairs, values = duplicate_pairs(Rows(len(library), library.info.width, read), above)
    best: dict[int, float] = {}
    for (first, second), value in zip(pairs.tolist(), values.tolist(), strict=True):
        for row in (first, second):
            best[row] = max(best.get(row, -1.0), value)
    starts, ends = (library.table[name].to_numpy() for name in ("start", "end"))
    seconds = np.round(ends - starts, 3)
    return [_group(rows, seconds, best) for rows in duplicate_groups(pairs, len(library))]


def _group(rows: NDArray[np.int64], seconds: NDArray[np.float64], best: dict[int, float]) -> Duplicates:
    kept = int(rows[np.argmax(seconds[rows])])
    ordered = [kept, *(row for row in rows.tolist() if row != kept)]
    return Duplicates(tuple(ordered), tuple(best[row] for row in ordered))


def duplicates_json(library: Library, groups: Sequence[Duplicates], above: float) -> dict[str, Any]:
    """The groups as JSON takes them."""
    return {
        "above": above,
        "rows": len(library),
        "rule": RULE,
        "groups": [
            {
                "kept": library.record(group.kept)["id"],
                "others": [
                    {"id": library.record(row)["id"], "similarity": round(value, 6)}
                    for row, value in zip(group.rows[1:], group.similarities[1:], strict=True)
                ],
            }
            for group in groups
        ],
    }


def duplicates_table(library: Library, groups: Sequence[Duplicates]) -> pa.Table:
    """A row a row of a group: group (a number), id, kept, similarity."""
    rows = [
        {"group": number, "id": library.record(row)["id"], "kept": row == group.kept, "similarity": round(value, 6)}
        for number, group in enumerate(groups, 1)
        for row, value in zip(group.rows, group.similarities, strict=True)
    ]
    kinds = {"group": pa.int64(), "id": pa.string(), "kept": pa.bool_(), "similarity": pa.float64()}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


def write_duplicates(table: pa.Table, out: Path) -> None:
    """Write the table as CSV or Parquet, by the file's name; UserError for another kind."""
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    writers = {".csv": csv.write_csv, ".parquet": pq.write_table}
    if out.suffix not in writers:
        raise UserError(f"--table {out}: is neither a .csv nor a .parquet file")
    sink = pa.BufferOutputStream()
    writers[out.suffix](table, sink)
    try:
        storage.write_bytes(str(out), sink.getvalue().to_pybytes())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def duplicates_page(library: Library, groups: Sequence[Duplicates], above: float) -> Page:
    """Each group, the kept row first."""
    strips = [
        Strip(
            f"Group {number}",
            f"{len(group.rows)} rows",
            [
                _card(library.record(row), value, row == group.kept)
                for row, value in zip(group.rows, group.similarities, strict=True)
            ],
        )
        for number, group in enumerate(groups, 1)
    ]
    others = sum(len(group.rows) - 1 for group in groups)
    facts = [
        ("archive", ", ".join(archive.folder for archive in library.archives)),
        ("vectors", library.info.describe()),
        ("rows", str(len(library))),
        ("groups", str(len(groups))),
        ("rows beside the kept ones", str(others)),
        ("above", f"{above:g}"),
    ]
    text = f"Rows whose vectors have a cosine of {above:g} or more, in groups; {RULE}. Nothing is deleted."
    return Page("duplicates", "Near-duplicates", text, facts, strips)


def _card(row: dict[str, Any], value: float, kept: bool) -> Card:
    note = "kept" if kept else f"similarity {value:.3f}"
    place = clock(row["start"], row["end"])
    return Card(row["id"], row["video"], place, row["label"] or "", note, "kept" if kept else "plain")
