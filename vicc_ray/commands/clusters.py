"""`vicc clusters`: what an archive is made of, as a table and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from vicc_ray.archive.clusters import By, clusters_json, clusters_page, find_clusters
from vicc_ray.archive.library import Library
from vicc_ray.archive.page import write_page
from vicc_ray.console import console


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
