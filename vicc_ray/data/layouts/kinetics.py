"""Kinetics: `{train,val}_split/{class}/` or `{train,val}/{class}/`, and maybe its own tables of clips.

Facts: https://github.com/cvdfoundation/kinetics-dataset. The tables have columns label, youtube_id, time_start, time_end
(seconds), split; a clip's file is `{youtube_id}_{start:06d}_{end:06d}.mp4` or `{youtube_id}.mp4`. A folder `replacement/`
beside those of the splits has sound files of clips that are broken there, under the same names.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from vicc_ray.data.layouts.candidates import (
    UNUSED,
    Candidate,
    Found,
    crossing_groups,
    examples,
    extension,
    group_in_name,
    plain,
    stem,
)
from vicc_ray.data.layouts.contract import Source
from vicc_ray.data.layouts.official import Line, Lists, by_key, class_of, in_two_splits
from vicc_ray.data.layouts.split_folders import WORDS, SplitFolders, split_folders, split_word
from vicc_ray.data.layouts.tables import header_of, read_csv
from vicc_ray.data.layouts.tree import File, Tree, files_beside
from vicc_ray.errors import UserError

FOLDERS = ("annotations", "csv", "splits")
ID_LETTERS = 11
_BARE_NAME = re.compile(rf"[\w-]{{{ID_LETTERS}}}")
_TIMED_NAME = re.compile(rf"[\w-]{{{ID_LETTERS}}}_\d{{6}}_\d{{6}}")
_COUNTED_NAME = re.compile(r"[A-Za-z]+[_-]*\d{3,}")
_REPLACEMENT = re.compile(r"replace(?:ment|ments|d)?(?:[_ -].*)?", re.IGNORECASE)


def recognised(tree: Tree) -> str | None:
    """What makes a tree Kinetics', for the reader; None where nothing does.

    That is a table with a column `youtube_id` that names some of the videos, or else class folders in split folders that
    hold mostly names of clips with their times. A name of eleven letters alone is no proof.
    """
    folders = split_folders(tree)
    names = folders.names()
    tables = _tables(tree)
    lists = _read_tables(tables)
    if tables and any(lists.line(file) for file in tree.videos):
        named = f"the table {examples([file.inner for file in tables])}"
        return f"the folders {names} and {named}" if folders.splits else named
    timed = [file for file in tree.videos if _TIMED_NAME.fullmatch(stem(file.inner))]
    placed = sum(folders.of(f) is not None and _class(f, folders) is not None for f in timed)
    return f"the folders {names}" if placed and 2 * placed >= len(tree.videos) else None


def id_of(name: str) -> str | None:
    """The YouTube id that a clip's name (without extension) begins with; None for a name without the clip's times."""
    return name[:ID_LETTERS] if _TIMED_NAME.fullmatch(name) else None


def unused_tables(tree: Tree) -> list[str]:
    """A note of tables in the tree that name none of its videos."""
    files = [file.inner for file in _tables(tree) if not file.inner.startswith("..")]
    return [f"the tables of kinetics ({examples(files)}) name none of the videos; not used"] if files else []


def read(tree: Tree, fold: int | None) -> Found:
    """The data set with its splits of folders and tables; a fold of None: all `train`, for a split rule to part."""
    named = _tables(tree)
    tables = _read_tables(named)
    folders = split_folders(tree)
    tree, replaced = _with_replacements(tree, folders, tables)
    if fold is None:
        candidates = [f.candidate(_label(f, folders, tables), "train", _group(f, tables)) for f in tree.videos]
        notes = replaced
    else:
        by_key(tree, lambda file: _key(file, tables))
        candidates = _placed(tree, folders, tables)
        notes = [
            *tables.notes,
            *replaced,
            *_notes(tree, folders, tables),
            *crossing_groups(candidates, lambda c: c.group),
        ]
    notes += tree.folders_without_videos(set(folders.splits), tables.used)
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
        named = [file for file in files if extension(file.inner) in (".csv", ".tsv") and _has_ids(file)]
        if named:
            return named
    return []


def _has_ids(file: File) -> bool:
    return "youtube_id" in [title.lower() for title in header_of(file.name)]


def _read_tables(files: list[File]) -> _Tables:
    tables = _Tables()
    for file in files:
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
    named = split_word(posixpath.splitext(file.parts[-1])[0])
    for number, row in enumerate(rows, 1):
        cells = {title: row[place] for title, place in places.items()}
        split = cells.get("split", "").lower() or named
        if split and split not in WORDS:
            raise UserError(f"{file.name}: row {number}: split '{split}'; known: {', '.join(WORDS)}")
        tables.splits.add(split)
        line = Line(cells["youtube_id"], WORDS.get(split, ""), cells.get("label") or None)
        try:
            times = [int(float(cells[name])) for name in ("time_start", "time_end") if cells.get(name)]
        except (ValueError, OverflowError) as error:
            raise UserError(f"{file.name}: row {number}: a time is no number: {error}") from error
        yield "_".join([line.name, *(f"{seconds:06d}" for seconds in times)]), line


def _with_replacements(tree: Tree, folders: SplitFolders, tables: _Tables) -> tuple[Tree, list[str]]:
    """The tree with the files of `replacement/` in the places of those that they replace, and a note of that."""
    named = [file for file in tree.videos if _key(file, tables) != file.inner]  # by Kinetics' names, not by chance
    sound = {stem(file.inner): file for file in named if _replaces(file, folders)}
    broken = [f for f in tree.videos if stem(f.inner) in sound and folders.of(f)]
    if not broken:
        return tree, []
    swapped = {file.inner: replace(sound[stem(file.inner)], inner=file.inner) for file in broken}
    spent = {file.name for file in swapped.values()}
    made = copy(tree)
    made.videos = [swapped.get(file.inner, file) for file in tree.videos if file.name not in spent]
    tables.used += [file.name for file in broken]
    replaced = [sound[stem(file.inner)].inner for file in broken]
    return made, [
        f"{len(broken)} videos are taken from replacement folders instead of the split folders: {examples(replaced)}"
    ]


def _replaces(file: File, folders: SplitFolders) -> bool:
    return folders.of(file) is None and any(_REPLACEMENT.fullmatch(name) for name in file.parts[:-1])


def _class(file: File, folders: SplitFolders) -> str | None:
    """The class folder: the one below the split's."""
    if folders.of(file) is None:
        return None if _replaces(file, folders) else class_of(file)
    return folders.class_of(file)


def _label(file: File, folders: SplitFolders, tables: _Tables) -> str | None:
    line = tables.line(file)
    return _class(file, folders) or (line.label if line else None)


def _group(file: File, tables: _Tables) -> str | None:
    """The uploaded video that a clip was cut from: by a table, else by Kinetics' names.

    Of a name of eleven letters only where no table knows better and it does not look counted (`video_00001`).
    """
    name, line = stem(file.inner), tables.line(file)
    if line is not None:
        return line.name
    if (named := id_of(name)) is not None:
        return named
    bare = not tables.clips.lines and _BARE_NAME.fullmatch(name)
    return name if bare and not _COUNTED_NAME.fullmatch(name) else group_in_name(file.inner)


def _key(file: File, tables: _Tables) -> str:
    """What names a clip in every folder: its name where a table knows it or it has times, else its path."""
    name = stem(file.inner)
    return name if tables.line(file) or _TIMED_NAME.fullmatch(name) else file.inner


def _placed(tree: Tree, folders: SplitFolders, tables: _Tables) -> list[Candidate]:
    """Candidates with the split of their folder and of the tables; `UserError` where these say two things, or nothing."""
    candidates, clashes = [], []
    for file in tree.videos:
        folder = folders.of(file)
        lines = [line for line in (tables.line(file), tables.clash(file)) if line and line.split]
        named = {line.split for line in lines} | ({folders.splits[folder]} if folder is not None else set())
        if len(named) > 1:
            clashes.append(f"{file.inner} ({' and '.join(sorted(named))})")
        candidates.append(
            file.candidate(_label(file, folders, tables), min(named, default=UNUSED), _group(file, tables))
        )
    if clashes:
        raise in_two_splits(tree.root, clashes)
    if all(candidate.split == UNUSED for candidate in candidates):
        raise UserError(
            f"{tree.root}: neither folders train_split/ and val_split/ (or train/ and val/) nor a table with a column "
            "youtube_id give the splits of Kinetics; give a split rule"
        )
    return candidates


def _notes(tree: Tree, folders: SplitFolders, tables: _Tables) -> list[str]:
    """What tables and videos do not agree on."""
    notes = folders.notes()
    if len(folders.words("query")) > 1:
        notes.append("folders of val and of test are both split 'query'")
    names = {stem(file.inner) for file in tree.videos}
    missing = [clip for clip, line in tables.clips.lines.items() if clip not in names and line.name not in names]
    if missing:
        notes.append(
            f"the tables name {len(missing)} videos (of {len(tables.clips.lines)}) that are not there: {examples(missing)}"
        )
    unlisted = [file for file in tree.videos if tables.line(file) is None]
    lost = [file.inner for file in unlisted if folders.of(file) is None]
    kept = [file.inner for file in unlisted if folders.of(file) is not None]
    if lost:
        notes.append(f"{len(lost)} videos are in no split folder or table (split '{UNUSED}'): {examples(lost)}")
    if kept and tables.used:
        notes.append(f"{len(kept)} videos are in no table; their folder gives the split: {examples(kept)}")
    other = [file.inner for file in tree.videos if _in_other_class(_class(file, folders), tables.line(file))]
    if other:
        notes.append(
            f"{len(other)} videos lie in a folder of another class than the tables say; the folder's is taken: {examples(other)}"
        )
    return notes


def _in_other_class(folder: str | None, line: Line | None) -> bool:
    """Folders have `_` for the blanks of a class, and upper case at times."""
    return len({plain(name) for name in (folder, line and line.label) if name}) > 1


class Kinetics:
    """Kinetics, with the splits of its folders and tables."""

    takes: ClassVar[Literal["folder", "file"]] = "folder"
    folds: ClassVar[tuple[int, ...]] = ()
    dataset: ClassVar[bool] = True

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return read(source.files, source.fold)
