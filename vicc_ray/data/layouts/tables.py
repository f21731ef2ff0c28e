"""Videos, or parts of videos, named by a table: CSV with or without header, TSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vicc_ray import storage
from vicc_ray.data.layouts import spans
from vicc_ray.data.layouts.candidates import (
    VIDEO_EXTENSIONS,
    Candidate,
    Found,
    crossing_groups,
    examples,
    extension,
    group_in_name,
    stem,
    unquoted,
)
from vicc_ray.data.layouts.json_tables import read_json
from vicc_ray.data.layouts.lists import beside, is_there, parse_line, with_splits
from vicc_ray.data.layouts.split_folders import WORDS, by_words
from vicc_ray.data.layouts.tree import head, plant, read_text
from vicc_ray.errors import UserError

# Field of a candidate -> the headers that are taken for it, in this order, whatever their case.
COLUMNS = {
    "video": ("video", "path", "filename", "file", "filepath", "video_path", "file_name"),
    "label": ("label", "class"),
    "split": ("split",),
    "group": ("group",),
}
# Others that data sets have. A template is Something-Something's class, whose `label` is a sentence of its own.
_MORE = {
    "video": ("video_file_name", "video_name", "file_path", "clip_path"),
    "label": ("class_name", "category", "action", "labels", "label_name", "target", "tag", "class_id", "action_id"),
    "split": ("subset",),
}
_TEMPLATE = "template"
# Names of videos without folder and extension, where no column has their paths.
_IDS = ("id", "video_id", "vid_name", "youtube_id")
_TITLES = {field: (*titles, *_MORE.get(field, ())) for field, titles in COLUMNS.items()}
_FIELDS = frozenset({_TEMPLATE, *_IDS, *(title for titles in _TITLES.values() for title in titles)}) | spans.COLUMNS
_DELIMITERS = ",\t;|"
# A line of a list: a video, quoted or not, and maybe a label after a blank.
_KINDS = "|".join(kind[1:] for kind in sorted(VIDEO_EXTENSIONS))
_SPACED = re.compile(rf"(?:([\"']).+?\1|[^\"'].*?\.(?:{_KINDS}))(?:[ \t]+[^,;|].*)?", re.IGNORECASE)


def read_table(name: str) -> Found:
    """Rows of a CSV, TSV, JSON or Parquet file with a column of videos and maybe label, split, group (`COLUMNS`).

    Columns of times make a row a part of its video (`vicc_ray.data.layouts.spans`). Empty cells are as good as absent ones. A
    CSV without a header is read where it has one column of videos and at most one other, the label. A column `id` names files
    below the table's folder without folder and extension. Raises `UserError` where it is no table or a row names no video.
    """
    header, rows, notes = _read(name)
    places, unused = _columns(name, header)
    notes += unused
    cells = [
        {field: row[place] for field, place in places.items()} | {"number": str(number)}
        for number, row in enumerate(rows, 1)
    ]
    if "video" not in places or _bare(name, cells):
        cells, missing = _by_id(name, [row | {"id": row.get("video") or row.get("id", "")} for row in cells])
        notes += missing
    candidates = []
    for row in cells:
        video = row.get("video")
        if not video:
            raise UserError(f"{name}: row {row['number']} names no video")
        group = row.get("group") or group_in_name(video)
        span = None if row.get("is_cut") else spans.span_of(name, row)
        label = _class(row, header, places)
        candidates.append(Candidate(beside(name, video), label, row.get("split", ""), group, span=span))
    candidates, several = spans.merge_labels(candidates)
    notes += several
    candidates, more = by_words(candidates)
    # A group's number in a name counts within its class; a column of groups says what it means by itself.
    notes += crossing_groups(candidates, lambda c: c.group if "group" in places else (c.label, c.group))
    return Found(candidates, "csv", notes=notes + more)


def _class(row: dict[str, str], header: list[str], places: dict[str, int]) -> str | None:
    """A row's label; a template's `[something]` is `something`, as Something-Something's list of classes has it."""
    label = row.get("label") or None
    is_template = label is not None and header[places["label"]].lower() == _TEMPLATE
    return re.sub(r"[\[\]]", "", label) if label is not None and is_template else label


# Header, rows, and notes of how they were read.
_Table = tuple[list[str], list[list[str]], list[str]]


def _read(name: str) -> _Table:
    """Header and rows, whatever the format."""
    kind = extension(name)
    if kind == ".parquet":
        return *read_parquet(name), []
    if kind in (".json", ".jsonl", ".ndjson"):
        return *read_json(name, _FIELDS), []
    comments, _ = _without_comments(read_text(name))
    notes = [f"{comments} lines above the table begin with '#' and are passed over"] if comments else []
    header, rows, more = _read_text_table(name)
    return header, rows, notes + more


def _read_text_table(name: str) -> _Table:
    """A CSV with a header; or without one, parted by what fits all lines: a delimiter, or else blanks."""
    if names_columns(name):
        return *read_csv(name), []
    try:
        header, rows = read_csv(name)
    except UserError as error:
        spaced = _spaced(name)
        if spaced is None:
            raise UserError(f"{error}; {_READABLE}") from error
        return spaced
    fits = any(extension(cell) in VIDEO_EXTENSIONS for cell in header) and not _is_spaced_name(name)
    if not fits and (spaced := _spaced(name)) is not None:
        return spaced
    return _without_header(name, [header, *rows]) if fits else (header, rows, [])


_READABLE = "a line without a header is 'folder/a.mp4,LABEL' or 'folder/a.mp4 LABEL', with quotes around names that have a comma"


def _is_spaced_name(name: str) -> bool:
    """Whether the first line is the name of a file that is there, whatever the commas in it."""
    line = next((line for line in head(name).splitlines() if line.strip()), "")
    return is_there(name, line.strip())


def _spaced(name: str) -> _Table | None:
    """A list of `path label` under a table's name (SlowFast, VideoMAE); None where a line is no such one."""
    comments, text = _without_comments(read_text(name))
    lines = [(comments + number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or not all(_SPACED.fullmatch(line) or is_there(name, line) for _, line in lines):
        return None
    entries, notes = with_splits([parse_line(name, number, line) for number, line in lines])
    return ["video", "label", "split"], [[entry.video, entry.label or "", entry.split] for entry in entries], notes


def _without_header(name: str, rows: list[list[str]]) -> _Table:
    """A header by what stands in the columns: one of videos and at most one other; `UserError` with a line for others."""
    columns = list(zip(*rows, strict=True))
    videos = [k for k, cells in enumerate(columns) if all(extension(c) in VIDEO_EXTENSIONS for c in cells if c)]
    header, labelled = [], False
    for place, cells in enumerate(columns):
        if place == videos[0] if videos else False:
            header.append("video")
        elif all(cell.lower() in WORDS for cell in cells):
            header.append("split")
        else:
            header.append(f"column{place + 1}" if labelled else "label")
            labelled = True
    if len(videos) != 1 or len(columns) > 2:
        raise UserError(
            f"{name}: has no line that names its {len(columns)} columns; put one above all, such as: {','.join(header)} "
            f"(known: {_known()})"
        )
    more = "the column of splits' words is taken for splits; if these are classes, put a line video,label above all"
    return header, rows, [more] if "split" in header else []


def _bare(name: str, rows: list[dict[str, str]]) -> bool:
    """Whether the column of videos has names without extension, some of which are those of videos below the table."""
    named = {row["video"] for row in rows}
    if any(extension(video) for video in named) or storage.is_uri(name):
        return False
    return any(stem(file.inner) in named for file in plant(posixpath.dirname(name)).videos)


def _by_id(name: str, rows: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows with the files that their ids name, searched below the table's folder; a note of ids without a file."""
    folder = posixpath.dirname(name)
    there: dict[str, list[str]] = {}
    for file in plant(folder).videos:
        there.setdefault(stem(file.inner), []).append(file.name)
    names = [_file_names(row) for row in rows]
    known = [next((one for one in some if one in there), None) for some in names]
    # A file under the name of its times is the part already.
    found = [
        row | {"video": there[one][0]} | ({} if one in some[:2] else {"is_cut": "yes"})
        for row, one, some in zip(rows, known, names, strict=True)
        if one is not None
    ]
    several = [there[one] for one in known if one is not None and len(there[one]) > 1]
    absent = [row["id"] for row, one in zip(rows, known, strict=True) if one is None]
    if not found:
        raise UserError(
            f"{name}: its column of ids names files without their folder and extension, and none of its {len(rows)} is below "
            f"{folder} (such as {absent[0] if absent else 'ID'}.webm); put it beside the folder of its videos"
        )
    if several:
        raise UserError(f"{name}: {len(several)} ids have several files: {examples(several[0])}; keep one of each")
    note = f"it names {len(absent)} videos (of {len(rows)}) that are not below {folder}: {examples(absent)}"
    return found, [note] if absent else []


def _file_names(row: dict[str, str]) -> list[str]:
    """Names of the file of an id, without extension: itself, ActivityNet's `v_ID`, Kinetics' `ID_000010_000020`."""
    names = [row["id"], f"v_{row['id']}"]
    with suppress(KeyError, ValueError, OverflowError):
        names.append(f"{row['id']}_{int(float(row['start'])):06d}_{int(float(row['end'])):06d}")
    return names


def names_columns(name: str) -> bool:
    """Whether the first line of a text file names columns, one of which is the videos'."""
    return _is_header(header_of(name))


def header_of(name: str) -> list[str]:
    """The cells of a text file's first line, parted and unquoted as `read_csv` does; none where it cannot be read."""
    _, text = _without_comments(head(name))
    lines = text.splitlines()[:1]
    try:
        return next(_Rows(lines[0], _delimiter(name, text)), []) if lines else []
    except csv.Error:
        return []


def _is_header(cells: list[str]) -> bool:
    titles = [unquoted(cell).lower() for cell in cells]
    return any(t in (*_TITLES["video"], *_IDS) for t in titles) and all(
        extension(title) not in VIDEO_EXTENSIONS for title in titles
    )


def _delimiter(name: str, text: str) -> str:
    """What parts the cells: what makes the first line name columns, else what parts a video from the rest."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if extension(name) == ".tsv":
        return "\t"
    for delimiter in _DELIMITERS:
        if delimiter in first and _is_header(first.split(delimiter)):
            return delimiter
    if _is_header(first.split()) and len(first.split()) > 1:
        return " "
    for delimiter in _DELIMITERS:
        cells = [unquoted(cell) for cell in first.split(delimiter)]
        if len(cells) > 1 and any(extension(cell) in VIDEO_EXTENSIONS for cell in cells):
            return delimiter
    return ","


def read_csv(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, every cell as unquoted text, so that a label `007` stays what it is.

    Cells are parted by what the first line shows (`,`, tab, `;`, `|`, or blanks where they part known names of columns).
    """
    comments, text = _without_comments(read_text(name))
    rows: list[list[str]] = []
    reader = _Rows(text, _delimiter(name, text))
    try:
        for row in reader:
            if rows and row and len(row) != len(rows[0]):
                first = "the header" if _is_header(rows[0]) else "the first line"
                raise UserError(
                    f"{name}: cannot be read as a table: line {comments + reader.line} has {len(row)} cells, {first} "
                    f"{len(rows[0])}"
                )
            rows += [row] if row else []
    except csv.Error as error:
        raise UserError(f"{name}: cannot be read as a table: line {comments + reader.line}: {error}") from error
    if not rows:
        raise UserError(f"{name}: cannot be read as a table: it is empty")
    return rows[0], rows[1:]


class _Rows(Iterator[list[str]]):
    """Rows of unquoted cells of a text; blanks around a cell and around its quotes are no part of it."""

    def __init__(self, text: str, delimiter: str) -> None:
        # The reader takes no blank between a closing quote and what parts cells; one within a cell is no such place.
        closed = re.sub(rf'(?<=[^"{re.escape(delimiter)}\s]")[ \t]+(?=[{re.escape(delimiter)}\r\n]|$)', "", text)
        loose = text if delimiter in " \t" else closed
        self._reader = csv.reader(
            io.StringIO(loose, newline=""), strict=True, delimiter=delimiter, skipinitialspace=True
        )

    def __next__(self) -> list[str]:
        return [unquoted(cell) for cell in next(self._reader)]

    @property
    def line(self) -> int:
        """The number of the line that was read last."""
        return self._reader.line_num


def _without_comments(text: str) -> tuple[int, str]:
    """How many lines above the table are comments (`# made by hand`), and the text below them.

    A line `# video,label` is the header, and one that names a video a row.
    """
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        bare = line.strip().lstrip("#").strip()
        if line.strip() and not line.lstrip().startswith("#"):
            return number, "".join(lines[number:])
        if bare and any(_is_header(bare.split(delimiter)) for delimiter in _DELIMITERS):
            return number, "".join([bare + "\n", *lines[number + 1 :]])
        if any(extension(unquoted(cell)) in VIDEO_EXTENSIONS for cell in re.split(r"[,;|\t]", bare)):
            return number, "".join(lines[number:])
    return len(lines), ""


def read_parquet(name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a Parquet file's known columns, every cell as stripped text; null is an empty cell."""
    import pyarrow as pa

    try:
        table = storage.parquet_table(storage.read_bytes(name))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: cannot be read as a table: {' '.join(str(error).split())}") from error
    nested = [f.name for f in table.schema if pa.types.is_nested(f.type) and f.name.lower() in _FIELDS]
    if nested:
        raise UserError(f"{name}: column '{nested[0]}' holds {table.schema.field(nested[0]).type}, not a name a row")
    columns = [[_text(cell) for cell in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _text(cell: Any) -> str:
    return (
        "" if cell is None or cell != cell else str(cell).strip()
    )  # a missing number is NaN, which differs from itself


def _columns(name: str, header: list[str]) -> tuple[dict[str, int], list[str]]:
    """Where each field stands, and a note of the columns that say nothing here."""
    lower = [title.lower() for title in header]
    places = {}
    for field, titles in _TITLES.items():
        title = next((title for title in titles if title in lower), None)
        if title is not None:
            places[field] = lower.index(title)
    if _TEMPLATE in lower:
        places["label"] = lower.index(_TEMPLATE)
    named = next((title for title in _IDS if title in lower), None)
    if "video" not in places and named is not None:
        places["id"] = lower.index(named)
    elif "video" not in places:
        advice = "" if _FIELDS & set(lower) else ". A line above all names the columns, such as: video,label"
        raise UserError(f"{name}: no column 'video'; it has: {', '.join(header)}. Known: {_known()}{advice}")
    places |= spans.span_columns(header)
    rest = [title for place, title in enumerate(header) if place not in places.values()]
    notes = [f"{len(rest)} columns are not used: {examples(rest)}"] if rest else []
    if "label" not in places and any(title.lower() not in _FIELDS for title in rest):
        notes.append(f"no column is known as the labels': {examples(_TITLES['label'])}")
    return places, notes


def _known() -> str:
    return ", ".join("|".join(titles) for titles in COLUMNS.values())
