"""`vicc search`: what in archives is most like a video; a table for the terminal, and a page. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

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
    if queries and k > len(library):
        console.print(f"note: -k {k} is more than the {len(library)} rows there are; all are shown")
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
