"""Videos named by a table (CSV, Parquet) or by a text file with one path a line."""

from __future__ import annotations

import csv
import io
import os
import posixpath
from typing import Any
from urllib.parse import quote

from vicc_ray import storage
from vicc_ray.data.layouts.candidates import Candidate, Found, crossing_groups, examples, extension, group_in_name
from vicc_ray.data.layouts.tree import read_text
from vicc_ray.errors import UserError

# Field of a candidate -> the headers that are taken for it, in this order, whatever their case.
COLUMNS = {
    "video": ("video", "path", "filename", "file", "filepath", "video_path"),
    "label": ("label", "class"),
    "split": ("split",),
    "group": ("group",),
}


def read_list(name: str) -> Found:
    """A text file with one path or URI a line; relative ones start from the file's folder."""
    lines = [line.strip() for line in read_text(name).splitlines() if line.strip()]
    return Found([Candidate(_beside(name, line), group=group_in_name(line)) for line in lines], "list")


def read_table(name: str) -> Found:
    """Rows of a CSV or Parquet file with a column of videos and maybe label, split, group (headers: `COLUMNS`).

    Empty cells are as good as absent ones. Raises `UserError` where it is no table or a row names no video.
    """
    header, rows = read_parquet(name) if extension(name) == ".parquet" else read_csv(name)
    places, notes = _columns(name, header)
    candidates = []
    for number, row in enumerate(rows, 1):
        cells = {field: row[place] for field, place in places.items()}
        video = cells.get("video")
        if not video:
            raise UserError(f"{name}: row {number} names no video")
        group = cells.get("group") or group_in_name(video)
        candidates.append(
            Candidate(_beside(name, video), cells.get("label") or None, cells.get("split") or "train", group)
        )
    # A group's number in a name counts within its class; a column of groups says what it means by itself.
    notes += crossing_groups(candidates, lambda c: c.group if "group" in places else (c.label, c.group))
    return Found(candidates, "csv", notes=notes)


def read_csv(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, every cell as stripped text, so that a label `007` stays what it is."""
    reader = csv.reader(io.StringIO(read_text(name), newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                raise UserError(
                    f"{name}: cannot be read as a table: line {reader.line_num} has {len(row)} cells, the header "
                    f"{len(rows[0])}"
                )
            rows += [[cell.strip() for cell in row]] if row else []
    except csv.Error as error:
        raise UserError(f"{name}: cannot be read as a table: line {reader.line_num}: {error}") from error
    if not rows:
        raise UserError(f"{name}: cannot be read as a table: it is empty")
    return rows[0], rows[1:]


def read_parquet(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a Parquet file's known columns, every cell as stripped text; null is an empty cell."""
    import pyarrow as pa

    try:
        table = storage.parquet_table(storage.read_bytes(name))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: cannot be read as a table: {' '.join(str(error).split())}") from error
    columns = [[_text(cell) for cell in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _columns(name: str, header: list[str]) -> tuple[dict[str, int], list[str]]:
    """Where each field stands, and a note of the columns that say nothing here."""
    lower = [title.lower() for title in header]
    places = {}
    for field, titles in COLUMNS.items():
        title = next((title for title in titles if title in lower), None)
        if title is not None:
            places[field] = lower.index(title)
    if "video" not in places:
        known = ", ".join("|".join(titles) for titles in COLUMNS.values())
        hint = " (for Kinetics' own table index the folder of its videos)" if "youtube_id" in lower else ""
        raise UserError(f"{name}: no column 'video'; it has: {', '.join(header)}. Known: {known}{hint}")
    rest = [title for place, title in enumerate(header) if place not in places.values()]
    return places, [f"{len(rest)} columns are not used: {examples(rest)}"] if rest else []


def _beside(file: str, video: str) -> str:
    """A path named in `file`: absolute paths and URIs stay, others start from the file's folder."""
    if storage.is_uri(video) or os.path.isabs(video):
        return storage.absolute(video)
    folder = posixpath.dirname(file)
    if storage.is_uri(file):
        return storage.join(folder, quote(posixpath.normpath(video)))
    return os.path.abspath(os.path.join(folder, video))
