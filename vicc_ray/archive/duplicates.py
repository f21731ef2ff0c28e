"""Near-duplicates in an archive: rows that show the same pictures, in groups, with the one of each to keep.

Vectors find the candidates (by the plain cosine, without a mean taken off), the pictures themselves decide: see
`vicc_ray.archive.pictures`. A group is held together by pairs: where a is like b and b is like c, all three are one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.library import Library
from vicc_ray.archive.page import Card, Page, Strip, clock
from vicc_ray.archive.pictures import check_pairs
from vicc_ray.errors import UserError
from vicc_ray.machine import usable_cpus
from vicc_ray.metrics.duplicates import duplicate_groups, duplicate_pairs
from vicc_ray.metrics.nearest import unit_rows
from vicc_ray.metrics.search import Rows

MOST_CHECKED = 5000  # rows: half an hour of decoding on two cores, and a gigabyte of small pictures
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


@dataclass(frozen=True)
class Found:
    """groups: in order. checked: whether the pictures decided. candidates: pairs by their vectors. unread: row -> reason."""

    groups: list[Duplicates]
    checked: bool
    candidates: int
    unread: dict[int, str]


def find_duplicates(
    library: Library, above: float, check: bool | None = None, say: Callable[[str], None] = lambda _: None
) -> Found:
    """Groups of rows with a cosine of at least `above` that show the same pictures; vectors are compared in bounded memory.

    `check`: whether the pictures decide; None: where no more than `MOST_CHECKED` rows have to be decoded for it. `say` takes a line
    for the reader. Rows that cannot be read are in no group then.
    """
    zero = np.zeros(library.info.width, np.float32)
    # Threads wait for each other after each small product, which costs more than they bring where other jobs run too.
    torch.set_num_threads(max(usable_cpus() // 2, 1))

    def read(size: int) -> Iterator[NDArray[np.float32]]:
        for block in library.blocks():
            yield unit_rows(block, zero, library.info.spans).astype(np.float32)

    pairs, values = duplicate_pairs(Rows(len(library), library.info.width, read), above)
    candidates, unread = len(pairs), dict[int, str]()
    checked = len(np.unique(pairs)) <= MOST_CHECKED if check is None else check
    if checked and candidates:
        ids = library.table["id"]
        say(
            f"comparing the pictures of {len(np.unique(pairs))} rows, {candidates} pairs that are alike by their vectors"
        )
        kept, unread = check_pairs(pairs, lambda row: str(ids[row]), usable_cpus())
        pairs, values = pairs[kept], values[kept]
    best: dict[int, float] = {}
    for (first, second), value in zip(pairs.tolist(), values.tolist(), strict=True):
        for row in (first, second):
            best[row] = max(best.get(row, -1.0), value)
    starts, ends = (library.table[name].to_numpy() for name in ("start", "end"))
    seconds = np.round(ends - starts, 3)
    groups = [_group(rows, seconds, best) for rows in duplicate_groups(pairs, len(library))]
    return Found(groups, checked, candidates, unread)


def _group(rows: NDArray[np.int64], seconds: NDArray[np.float64], best: dict[int, float]) -> Duplicates:
    kept = int(rows[np.argmax(seconds[rows])])
    ordered = [kept, *(row for row in rows.tolist() if row != kept)]
    return Duplicates(tuple(ordered), tuple(best[row] for row in ordered))


def duplicates_json(library: Library, found: Found, above: float) -> dict[str, Any]:
    """The groups as JSON takes them."""
    return {
        "above": above,
        "rows": len(library),
        "rule": RULE,
        "candidates": found.candidates,
        "checked_by_pictures": found.checked,
        "unread": {library.record(row)["id"]: reason for row, reason in found.unread.items()},
        "groups": [
            {
                "kept": library.record(group.kept)["id"],
                "others": [
                    {"id": library.record(row)["id"], "similarity": round(value, 6)}
                    for row, value in zip(group.rows[1:], group.similarities[1:], strict=True)
                ],
            }
            for group in found.groups
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


def duplicates_page(library: Library, found: Found, above: float) -> Page:
    """Each group, the kept row first."""
    groups = found.groups
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
    how = " and whose pictures are the same" if found.checked else ""
    text = f"Rows whose vectors have a cosine of {above:g} or more{how}, in groups; {RULE}. Nothing is deleted."
    return Page("duplicates", "Near-duplicates", text, facts, strips)


def _card(row: dict[str, Any], value: float, kept: bool) -> Card:
    note = "kept" if kept else f"similarity {value:.3f}"
    place = clock(row["start"], row["end"])
    return Card(row["id"], row["video"], place, row["label"] or "", note, "kept" if kept else "plain")
