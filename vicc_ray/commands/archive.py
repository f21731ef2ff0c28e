"""`vicc search`, `vicc duplicates`, `vicc clusters` and `vicc status` of an archive: tables for the terminal, and pages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from vicc_ray import storage
from vicc_ray.archive.clusters import By, clusters_json, clusters_page, find_clusters
from vicc_ray.archive.duplicates import (
    RULE,
    duplicates_json,
    duplicates_page,
    duplicates_table,
    find_duplicates,
    write_duplicates,
)
from vicc_ray.archive.faiss_index import build_index, has_index
from vicc_ray.archive.library import Library
from vicc_ray.archive.page import clock, search_page, write_page
from vicc_ray.archive.search import Answer, search
from vicc_ray.archive.store import open_archive
from vicc_ray.console import console

IndexKind = Literal["none", "ivf", "hnsw"]


def search_archives(
    folders: Sequence[str], queries: Sequence[str], k: int, exclude_group: bool, index: IndexKind, centre: bool | None
) -> list[Answer]:
    """The answers to the queries; with `index` by a faiss index, which is built where there is none or no query."""
    library = Library(folders, centre)
    if index != "none" and (not queries or not has_index(library)):
        began = time.monotonic()
        recall = build_index(library, index)
        console.print(
            f"{index} index of {len(library)} rows built in {time.monotonic() - began:.0f} s; it finds {recall:.1%} of the 10 "
            "nearest that the exact search finds"
        )
    return search(library, queries, k, exclude_group=exclude_group, index=index != "none") if queries else []


def print_answers(answers: Sequence[Answer]) -> None:
    """A table for each query."""
    for answer in answers:
        table = Table(title=escape(answer.query), title_justify="left")
        for name in ("", "similarity", "video", "from - to", "label", "group"):
            table.add_column(name, overflow="fold")
        for match in answer.matches:
            cells = (
                match.video,
                clock(match.start, match.end),
                match.label or "",
                _short_group(match.group, match.video),
            )
            table.add_row(str(match.rank), f"{match.similarity:.3f}", *(escape(cell) for cell in cells))
        console.print(table)


def _short_group(group: str | None, video: str) -> str:
    """A group that is the file itself says nothing new."""
    return "" if group in (None, video) else str(group)


def write_search_page(folders: Sequence[str], answers: Sequence[Answer], out: Path) -> None:
    """The answers with moving thumbnails."""
    archive = open_archive(folders[0])
    facts = [("archive", ", ".join(folders)), ("vectors", archive.info.describe())]
    write_page(search_page(answers, facts), out)
    console.print(f"page: {out}")


def show_clusters(folders: Sequence[str], by: By, count: int | None, out: Path | None, as_json: bool) -> dict[str, Any]:
    """Print the clusters and write their page; gives them as JSON takes them."""
    library = Library(folders)
    clusters = find_clusters(library, by, count)
    found = clusters_json(library, clusters)
    if not as_json:
        table = Table(
            title=f"{len(clusters.found)} of {clusters.count} clusters by {by} have rows", title_justify="left"
        )
        for name in ("cluster", "rows", "share", "labels", "most central"):
            table.add_column(name, overflow="fold")
        for one in clusters.found:
            labels = ", ".join(f"{label} {number}" for label, number in one.labels)
            central = library.record(one.central[0])["id"]
            share = f"{one.size / len(library):.1%}"
            table.add_row(str(one.number), str(one.size), share, escape(labels), escape(central))
        console.print(table)
    if out is not None:
        write_page(clusters_page(library, clusters), out)
        console.print(f"page: {out}")
    return found


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
