"""`vicc status` of an archive, from its folder alone."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape
from rich.table import Table

from vicc_ray import storage
from vicc_ray.archive.store import open_archive
from vicc_ray.console import console


def archive_status(folder: str) -> dict[str, Any]:
    """How an archive stands: rows there, planned and refused, and when the last part was written."""
    archive = open_archive(folder, rows_needed=False)
    entries = [entry for entry in storage.list_files(folder, recursive=False) if "/part-" in entry.name]
    refused = archive.refused()
    last = max((entry.modified for entry in entries), default=None)
    left = max(archive.info.planned - len(archive) - len(refused), 0)
    return {
        "archive": archive.folder,
        "vectors": archive.info.describe(),
        "state": "finished" if not left else "unfinished: the same 'vicc embed' goes on",
        "rows": len(archive),
        "planned": archive.info.planned,
        "left": left,
        "refused": len(refused),
        "parts": len(archive.parts),
        "bytes": sum(entry.bytes for entry in entries),
        "seconds_since_last_part": None if last is None else round(time.time() - last, 1),
        "source": archive.info.source,
    }


def print_archive_status(found: dict[str, Any]) -> None:
    """The status as lines."""
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), escape("-" if value is None else str(value)))
    console.print(table)
