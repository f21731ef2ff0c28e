"""`vicc duplicates`: groups of near-duplicates in an archive, as a table, a file and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vicc_ray.archive.duplicates import (
    RULE,
    duplicates_json,
    duplicates_page,
    duplicates_table,
    find_duplicates,
    write_duplicates,
)
from vicc_ray.archive.library import Library
from vicc_ray.archive.page import write_page
from vicc_ray.console import console


def show_duplicates(
    folders: Sequence[str], above: float, out: Path | None, table_file: Path | None, check: bool | None, as_json: bool
) -> dict[str, Any]:
    """Print the groups of near-duplicates and write their page and table; gives them as JSON takes them."""
    library = Library(folders)
    found = find_duplicates(library, above, check, console.print)
    groups = found.groups
    for row, reason in found.unread.items():
        console.print(f"cannot be compared by its pictures: {library.record(row)['id']}: {reason}")
    if not found.checked and found.candidates:
        console.print(
            f"note: {found.candidates} pairs are alike by their vectors alone; --check compares their pictures too, which are "
            "decoded for it"
        )
    if table_file is not None:
        write_duplicates(duplicates_table(library, groups), table_file)
    others = sum(len(group.rows) - 1 for group in groups)
    if not as_json:
        table = Table(title=f"near-duplicates above {above:g}: {RULE}", title_justify="left")
        for name in ("group", "similarity", "kept", "id"):
            table.add_column(name, overflow="fold")
        for number, group in enumerate(groups, 1):
            for row, value in zip(group.rows, group.similarities, strict=True):
                kept = "kept" if row == group.kept else ""
                table.add_row(str(number), f"{value:.4f}", kept, escape(library.record(row)["id"]))
        console.print(table)
        console.print(f"{len(groups)} groups; {others} of {len(library)} rows are near-duplicates of one that is kept")
    if out is not None:
        write_page(duplicates_page(library, found, above), out)
        console.print(f"page: {out}")
    return duplicates_json(library, found, above)
