"""Kinetics: `{train,val}_split/{class}/` or `{train,val}/{class}/`, and maybe its own tables of clips.

Facts: https://github.com/cvdfoundation/kinetics-dataset. The tables have columns label, youtube_id, time_start, time_end
(seconds), split; a clip's file is `{youtube_id}_{start:06d}_{end:06d}.mp4` or `{youtube_id}.mp4`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from vicc_ray.data.layouts.candidates import (
    UNUSED,
    Candidate,
    Found,
    crossing_groups,
    examples,
    extension,
    group_in_name,
    stem,
)
from vicc_ray.data.layouts.official import Line, Lists, by_key, class_of, in_two_splits
from vicc_ray.data.layouts.tables import read_csv
from vicc_ray.data.layouts.tree import File, Tree, files_beside, first_line
from vicc_ray.errors import UserError

FOLDERS = ("annotations", "csv", "splits")
_SPLITS = {"train": "train", "val": "query", "validate": "query", "validation": "query", "test": "query"}
_SPLIT_FOLDER = re.compile(r"(train|val|validate|validation|test)(?:_split|_\d+)?")
_CLIP_NAME = re.compile(r"([\w-]{11})(?:_\d{6}_\d{6})?")


def recognised(tree: Tree) -> str | None:
    """The split folders that make a tree Kinetics', as told to the reader; None where there is a video elsewhere."""
    places = [_split_folder(file) for file in tree.videos]
    if not places or any(place is None or place > 1 for place in places):
        return None
    if any(_class(file) is None for file in tree.videos) and not _tables(tree):
        return None
    return ", ".join(sorted({f"{name}/" for name in _folder_names(tree)}))


def read(tree: Tree, fold: int | None) -> Found:
    """The data set with its splits of folders and tables; a fold of None: all `train`, for a split rule to part."""
    tables = _read_tables(tree)
    if fold is None:
        candidates = [file.candidate(_label(file, tables), "train", _group(file)) for file in tree.videos]
        notes: list[str] = []
    else:
        by_key(tree, lambda file: _key(file, tables))
        candidates = _placed(tree, tables)
        notes = [*tables.notes, *_notes(tree, tables), *crossing_groups(candidates, lambda c: c.group)]
    bases = {"/".join(f.parts[: place + 1]) for f in tree.videos if (place := _split_folder(f)) is not None}
    notes += tree.folders_without_videos(bases, tables.used)
    return Found(candidates, "kinetics", tree.ignored(tables.used), notes)


@dataclass
class _Tables:
    """Lines of all tables, by `{id}_{start}_{end}` and by `{id}`; `used` names the files."""

    clips: Lists = field(default_factory=Lists)
    ids: Lists = field(default_factory=Lists)
    used: list[str] = field(default_factory=list)
    splits: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def line(self, file: File) -> Line | None:
        """What the tables say of a video."""
        return self._lists(file).lines.get(stem(file.inner))

    def clash(self, file: File) -> Line | None:
        """A line that puts a video in another split than its first line."""
        return self._lists(file).clashes.get(stem(file.inner))

    def _lists(self, file: File) -> Lists:
        return self.clips if stem(file.inner) in self.clips.lines else self.ids


def _tables(tree: Tree) -> list[File]:
    """Each CSV below the root, or else next to it, that has a column `youtube_id`."""
    for files in (tree.files, files_beside(tree.root, ["", *FOLDERS])):
        named = [file for file in files if extension(file.inner) == ".csv" and _has_ids(file)]
        if named:
            return named
    return []


def _has_ids(file: File) -> bool:
    return "youtube_id" in [title.strip(' "').lower() for title in first_line(file.name).split(",")]


def _read_tables(tree: Tree) -> _Tables:
    tables = _Tables()
    for file in _tables(tree):
        tables.used.append(file.name)
        for clip, line in _rows(file, tables):
            tables.clips.add(clip, line)
            tables.ids.add(line.name, line)
    if "test" in tables.splits and len(tables.splits - {"train", ""}) > 1:
        tables.notes.append("val and test of the tables are both split 'query'")
    return tables


def _rows(file: File, tables: _Tables) -> Iterator[tuple[str, Line]]:
    """(clip's name with its times, line named by its id) of each row; a split that is no column is in the file's name."""
    header, rows = read_csv(file.name)
    places = {title.lower(): place for place, title in enumerate(header)}
    in_name = re.search(r"train|val|test", file.parts[-1].lower())
    for number, row in enumerate(rows, 1):
        cells = {title: row[place] for title, place in places.items()}
        split = cells.get("split", "").lower() or (in_name[0] if in_name else "")
        if split and split not in _SPLITS:
            raise UserError(f"{file.name}: row {number}: split '{split}'; known: {', '.join(_SPLITS)}")
        tables.splits.add(split)
        line = Line(cells["youtube_id"], _SPLITS.get(split, ""), cells.get("label") or None)
        try:
            times = [int(float(cells[name])) for name in ("time_start", "time_end") if cells.get(name)]
        except ValueError as error:
            raise UserError(f"{file.name}: row {number}: a time is no number: {error}") from error
        yield "_".join([line.name, *(f"{seconds:06d}" for seconds in times)]), line


def _split_folder(file: File) -> int | None:
    """Which of the folders above a video is a split's."""
    return next((place for place, name in enumerate(file.parts[:-1]) if _SPLIT_FOLDER.fullmatch(name)), None)


def _folder_names(tree: Tree) -> set[str]:
    return {file.parts[place] for file in tree.videos if (place := _split_folder(file)) is not None}


def _split_of(folder: str) -> str:
    parsed = _SPLIT_FOLDER.fullmatch(folder)
    return _SPLITS[parsed[1]] if parsed else UNUSED


def _class(file: File) -> str | None:
    """The class folder: the one below the split's."""
    place = _split_folder(file)
    if place is None:
        return class_of(file)
    return file.parts[place + 1] if len(file.parts) > place + 2 else None


def _label(file: File, tables: _Tables) -> str | None:
    line = tables.line(file)
    return _class(file) or (line.label if line else None)


def _group(file: File) -> str | None:
    """The uploaded video that a clip was cut from."""
    parsed = _CLIP_NAME.fullmatch(stem(file.inner))
    return group_in_name(file.inner) or (parsed[1] if parsed else None)


def _key(file: File, tables: _Tables) -> str:
    """What names a clip in every folder: Kinetics' name, with its size where it may be one by chance, else its path."""
    name = stem(file.inner)
    parsed = _CLIP_NAME.fullmatch(name)
    if tables.line(file) or (parsed and parsed[1] != name):
        return name
    return f"{name}:{file.bytes}" if parsed else file.inner


def _placed(tree: Tree, tables: _Tables) -> list[Candidate]:
    """Candidates with the split of their folder and of the tables; `UserError` where these say two things, or nothing."""
    candidates, clashes = [], []
    for file in tree.videos:
        place = _split_folder(file)
        lines = [line for line in (tables.line(file), tables.clash(file)) if line and line.split]
        told = {line.split for line in lines} | ({_split_of(file.parts[place])} if place is not None else set())
        if len(told) > 1:
            clashes.append(f"{file.inner} ({' and '.join(sorted(told))})")
        candidates.append(file.candidate(_label(file, tables), min(told, default=UNUSED), _group(file)))
    if clashes:
        raise in_two_splits(tree.root, clashes)
    if all(candidate.split == UNUSED for candidate in candidates):
        raise UserError(
            f"{tree.root}: neither folders train_split/ and val_split/ (or train/ and val/) nor a table with a column "
            "youtube_id tell the splits of Kinetics; give a split rule"
        )
    return candidates


def _notes(tree: Tree, tables: _Tables) -> list[str]:
    """What tables and videos do not agree on."""
    notes = []
    folders = {name.partition("_")[0] for name in _folder_names(tree)}
    if "test" in folders and len(folders - {"train"}) > 1:
        notes.append("folders of val and of test are both split 'query'")
    names = {stem(file.inner) for file in tree.videos}
    missing = [clip for clip, line in tables.clips.lines.items() if clip not in names and line.name not in names]
    if missing:
        notes.append(
            f"the tables name {len(missing)} videos (of {len(tables.clips.lines)}) that are not there: {examples(missing)}"
        )
    unlisted = [file for file in tree.videos if tables.line(file) is None]
    lost = [file.inner for file in unlisted if _split_folder(file) is None]
    kept = [file.inner for file in unlisted if _split_folder(file) is not None]
    if lost:
        notes.append(f"{len(lost)} videos are in no split folder or table (split '{UNUSED}'): {examples(lost)}")
    if kept and tables.used:
        notes.append(f"{len(kept)} videos are in no table; their folder tells the split: {examples(kept)}")
    other = [file.inner for file in tree.videos if _in_other_class(file, tables.line(file))]
    if other:
        notes.append(
            f"{len(other)} videos lie in a folder of another class than the tables say; the folder's is taken: {examples(other)}"
        )
    return notes


def _in_other_class(file: File, line: Line | None) -> bool:
    """Folders have `_` for the blanks of a class, and upper case at times."""
    folder = _class(file)
    plain = [re.sub(r"[\W_]+", " ", name).lower() for name in (folder, line and line.label) if name]
    return len(set(plain)) > 1
