"""Name the videos of a source without opening them: a folder, a glob, a table, a list or one video, local or remote."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from pathlib import Path
from typing import ClassVar, Literal

from vicc_ray import storage
from vicc_ray.data.layouts import hmdb51, kinetics, split_folders, ucf101
from vicc_ray.data.layouts.candidates import (
    Candidate,
    Found,
    deduplicate,
    examples,
    extension,
    group_in_name,
    shown,
    stem,
    twins,
    unquoted,
)
from vicc_ray.data.layouts.contract import DataLayout, Source
from vicc_ray.data.layouts.lists import read_list
from vicc_ray.data.layouts.splits import assign_splits
from vicc_ray.data.layouts.tables import names_columns, read_table
from vicc_ray.data.layouts.tree import File, Tree, head, plant
from vicc_ray.errors import UserError
from vicc_ray.extensions import LAYOUTS

AUTO = "auto"
FOLDS = (1, 2, 3)  # of any data set
OTHER_NAMES = {"table": "csv"}
TABLE_EXTENSIONS = frozenset({".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson"})
LIST_EXTENSIONS = frozenset({".txt", ".lst", ".list"})
# Tables in a folder of videos that are opened to see whether they name these: how deep, how large and how many.
TABLE_DEPTH, TABLE_BYTES, MOST_TABLES = 3, 64 << 20, 8


def scan(source: str | Path, layout: str = AUTO, split_rule: str | None = None, fold: int = 1) -> Found:
    """Name the videos of `source` without opening them.

    `source`: a folder, a glob (`videos/**/*.mp4`), a list file, a table or one video, as a path or a URI.

    `layout`: `ucf101`, `hmdb51`, `kinetics` (with their official splits: train -> `train`, test and val -> `query`,
    others -> `unused`), `folders` (class folders: label = folder; split folders such as train/ and test/ above, in or
    beside them), `classes` (every first folder is a class, whatever its name), `splits` (folders named like splits are
    splits, also where that is one of two readings), `flat` (a folder of videos: no labels),
    `csv` (CSV, TSV, JSON, JSON lines or Parquet with columns video[,label,split,group]), `list` (a text file, one path a
    line and maybe a label after it), `video` (one file), or `auto`. Relative paths in a table or list are relative to
    that file. `split_rule` (see `assign_splits`) replaces every split. `fold` (1-3) chooses among the official splits of
    UCF101 and HMDB51.

    Raises `UserError` where the source does not exist, is of another layout, names no video, or its split files put a
    video in two splits. Other contradictions are in `notes`.
    """
    name = str(source)
    if not name:
        raise UserError("the source is an empty name; give a folder, a glob, a list, a table or a video")
    chosen = OTHER_NAMES.get(layout, layout)
    if chosen != AUTO:
        LAYOUTS.check(chosen, "--layout")
    if fold not in FOLDS:
        raise UserError(f"fold {fold} is not known; {_folded()} have folds {FOLDS[0]} to {FOLDS[-1]}")
    if fold != 1 and split_rule:
        raise UserError(f"fold {fold} and the split rule '{split_rule}' both give the splits; give one of them")
    found = _read(name, chosen, None if split_rule else fold)
    if chosen != AUTO and chosen not in LAYOUTS.built_in:
        found.layout = chosen  # by which it can be found again
    if not found:
        others = ", ".join(f"{count} {kind}" for kind, count in found.ignored.most_common(5))
        raise UserError(f"{name}: no video in it" + (f" (only {others})" if others else ""))
    if fold != 1 and fold not in layout_of(found.layout).folds:
        raise UserError(f"{name}: layout '{found.layout}' has no fold {fold}; {_folded()} have folds")
    unique = deduplicate(found)
    placed = assign_splits(unique, split_rule) if split_rule else unique
    notes = found.notes + _repeated(found, unique) + twins(unique) + _foreign_labels(placed)
    if not split_rule and found.layout in ("folders", "flat", "list", "csv"):
        notes += split_folders.notes_on_name(name, unique, layout_of(found.layout).takes == "folder")
    return Found(placed, found.layout, found.ignored, notes)


def layout_of(name: str) -> DataLayout:
    """A layout by name; UserError where it is unknown or cannot be loaded."""
    layout: DataLayout = LAYOUTS.load(name, "--layout")()
    return layout


def _folded() -> str:
    return " and ".join(name for name in LAYOUTS.built_in if layout_of(name).folds)


def _foreign_labels(candidates: list[Candidate]) -> list[str]:
    """A note where no class of the queries is among those of training, so that no query could find its like."""
    labels: dict[str, set[str]] = {"train": set(), "query": set()}
    for candidate in candidates:
        if candidate.label is not None and candidate.split in labels:
            labels[candidate.split].add(candidate.label)
    if not all(labels.values()) or labels["train"] & labels["query"]:
        return []
    train, query = (examples(sorted(labels[split])) for split in ("train", "query"))
    return [
        f"no class of split 'query' ({query}) is one of split 'train' ({train}), so no query finds its class there; are these "
        "folders or columns the classes?"
    ]


def _repeated(found: Found, unique: list[Candidate]) -> list[str]:
    """A note where several rows are of one file."""
    rows = len(found) - len(unique)
    if not rows:
        return []
    paths = Counter((candidate.path, candidate.span) for candidate in found)
    return [
        f"{rows} rows name a video, or a part of one, that an earlier row names, and add nothing: "
        f"{examples([path for (path, _), count in paths.items() if count > 1])}"
    ]


def _read(name: str, layout: str, fold: int | None) -> Found:
    """The videos of a source that may not exist, in a layout that may not fit it."""
    import pyarrow as pa

    root, pattern = _part_glob(name)
    try:
        is_folder = pattern is not None or _is_folder(root)
        if not is_folder and not _exists(root):
            raise UserError(f"{name}: no such file or folder")
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: cannot be opened: {' '.join(str(error).split())}") from error
    if layout != AUTO and is_folder != (layout_of(layout).takes == "folder"):
        raise UserError(f"{name}: layout '{layout}' does not fit {'a folder' if is_folder else 'a single file'}")
    if not is_folder:
        return _read_file(root, layout)
    if not _is_folder(root):
        raise UserError(f"{name}: no such folder as {shown(root)}")
    tree = plant(root, pattern)
    if pattern is not None and not tree.chosen:
        raise UserError(f"{name}: no file fits this pattern; `*` stays within a folder, `**/` is any number of them")
    return _read_tree(tree, layout, fold)


def _part_glob(name: str) -> tuple[str, str | None]:
    """The folder to list and the pattern below it; a local file that is there is no glob whatever its name, nor is a URL."""
    parts = name.split("/")
    magic = next((place for place, part in enumerate(parts) if set("*?[") & set(part)), None)
    if magic is None or storage.is_web(name) or (not storage.is_uri(name) and os.path.lexists(name)):
        return storage.absolute(name), None
    folder = "/".join(parts[:magic])
    return storage.absolute(folder or ("/" if name.startswith("/") else ".")), "/".join(parts[magic:])


def _is_folder(name: str) -> bool:
    return storage.is_folder(name) if storage.is_uri(name) else os.path.isdir(name)


def _exists(name: str) -> bool:
    return storage.exists(name) if storage.is_uri(name) else os.path.exists(name)


def _read_file(name: str, layout: str) -> Found:
    kind = extension(name)
    if layout == AUTO:
        layout = "csv" if kind in TABLE_EXTENSIONS else "list" if kind in LIST_EXTENSIONS else "video"
    return layout_of(layout).read(Source(name, None, None))


def _read_tree(tree: Tree, layout: str, fold: int | None) -> Found:
    if not tree.videos:
        return Found([], "flat", tree.ignored())
    notes = tree.notes()
    if layout == AUTO:
        layout, more = _recognise(tree)
        notes += more
    found = layout_of(layout).read(Source(tree.root, tree, fold))
    own = layout in LAYOUTS.built_in and not layout_of(layout).dataset
    unread = _unread_tables(tree) if own else []
    return Found(found, found.layout, found.ignored, [*notes, *found.notes, *unread])


class _FolderLayout:
    """A folder layout that is no data set's own."""

    takes: ClassVar[Literal["folder", "file"]] = "folder"
    folds: ClassVar[tuple[int, ...]] = ()
    dataset: ClassVar[bool] = False
    name: ClassVar[str]

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return _read_plain(source.files, self.name)


class Folders(_FolderLayout):
    """Class folders; split folders such as train/ and test/ above, in or next to them."""

    name: ClassVar[str] = "folders"


class Classes(_FolderLayout):
    """Every first folder is a class, whatever its name."""

    name: ClassVar[str] = "classes"


class Splits(_FolderLayout):
    """Folders named like splits are splits, also where that is one of two readings."""

    name: ClassVar[str] = "splits"


class Flat(_FolderLayout):
    """Videos without labels."""

    name: ClassVar[str] = "flat"


class _FileLayout:
    """A single file that names videos, or is one."""

    takes: ClassVar[Literal["folder", "file"]] = "file"
    folds: ClassVar[tuple[int, ...]] = ()
    dataset: ClassVar[bool] = False


class Table(_FileLayout):
    """A table: CSV, TSV, JSON, JSON lines or Parquet with columns video[,label,split,group]."""

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return read_table(source.name)


class List(_FileLayout):
    """A text file, one path a line and maybe a label after it; a table where its first line names columns."""

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return read_table(source.name) if names_columns(source.name) else read_list(source.name)


class Video(_FileLayout):
    """One video."""

    def read(self, source: Source) -> Found:
        """As `DataLayout`."""
        return Found([Candidate(source.name, group=group_in_name(source.name))], "video")


def _unread_tables(tree: Tree) -> list[str]:
    """Notes on tables and lists in a folder that name its videos, and are not read with it."""
    if tree.pattern is not None:
        return []
    kinds = (TABLE_EXTENSIONS | LIST_EXTENSIONS) - {".parquet"}  # most of which are manifests
    near = [f for f in tree.files if len(f.parts) <= TABLE_DEPTH and extension(f.inner) in kinds]
    small = [file for file in near if (file.bytes or 0) <= TABLE_BYTES][:MOST_TABLES]
    videos = {file.name for file in tree.videos}
    names = {posixpath.basename(name) for name in videos}
    notes = []
    for file in small:
        try:
            named = {candidate.path for candidate in _read_file(file.name, AUTO)}
        except UserError as error:
            notes += _misread_table(file, tree, error)
            continue
        count = len(named & videos) or len({posixpath.basename(path) for path in named} & names)
        if count:
            notes.append(
                f"{file.inner} names {count} of the {len(videos)} videos; it is not read with the folder: for its labels and "
                f"splits index it by itself (vicc index {shown(file.name)})"
            )
    return notes


def _misread_table(file: File, tree: Tree, error: UserError) -> list[str]:
    """A note on a table that cannot be read and holds names of the videos, or the ids that Kinetics' names begin with."""
    words = {unquoted(word) for line in head(file.name).splitlines() for word in re.split(r"[,\t;|]", line)}
    stems = [stem(video.inner) for video in tree.videos]
    whole = sum(
        name in words or posixpath.basename(video.inner) in words
        for name, video in zip(stems, tree.videos, strict=True)
    )
    by_id = sum(kinetics.id_of(name) in words for name in stems)
    if not whole and not by_id:
        return []
    advice = (
        "call its columns label,youtube_id,time_start,time_end,split, as Kinetics does, and index the folder"
        if by_id
        else f"it cannot be read as it is ({error})"
    )
    return [
        f"{file.inner} names {max(whole, by_id)} of the {len(tree.videos)} videos; it is not read with the folder: for its labels "
        f"and splits {advice}"
    ]


def _recognise(tree: Tree) -> tuple[str, list[str]]:
    """The layout of a folder by its split files or folders, and the line that says so."""
    stems, notes = {stem(file.inner) for file in tree.videos}, list[str]()
    for layout, module in (("ucf101", ucf101), ("hmdb51", hmdb51)):
        splits = module.find(tree)
        if splits is None:
            continue
        if stems & module.names(splits):
            return layout, [f"recognised as layout '{layout}' by the split files in {splits.folder or '.'}/"]
        if not splits.beside:  # those next to the folder may well be another data set's
            notes.append(f"the split files of {layout} in {splits.folder or '.'}/ name none of the videos; not used")
    reason = kinetics.recognised(tree)
    if reason:
        return "kinetics", [*notes, f"recognised as layout 'kinetics' by {reason}"]
    notes += kinetics.unused_tables(tree)
    return ("folders" if any(file.folder for file in tree.videos) else "flat"), notes


def _read_plain(tree: Tree, layout: str) -> Found:
    """Class folders with the splits that folders say, or videos without labels."""
    if layout == "flat":
        return Found([f.candidate(None, "train", group_in_name(f.inner)) for f in tree.videos], "flat", tree.ignored())
    arranged = None if layout == "classes" else split_folders.arrange(tree, layout == "splits")
    if arranged is None and layout == "splits":
        raise UserError(f"{tree.root}: no folder in it is named like a split (train, val, test, ...)")
    more = split_folders.possible_splits(tree) if arranged is None and layout != "classes" else []
    candidates, notes = _read_classes(tree) if arranged is None else arranged
    notes += more
    return Found(candidates, "folders", tree.ignored(), notes)


def _read_classes(tree: Tree) -> tuple[list[Candidate], list[str]]:
    """The first folder below the root is the class."""
    candidates = []
    for file in tree.videos:
        label = file.parts[0] if file.folder else None
        candidates.append(file.candidate(label, "train", group_in_name(file.inner)))
    notes = tree.folders_without_videos({""})
    labels = {candidate.label for candidate in candidates}
    deeper = {posixpath.dirname(file.inner) for file in tree.videos if len(file.parts) > 2}
    if len(labels) == 1 and None not in labels and len(deeper) > 1:
        only = shown(min(label for label in labels if label))
        notes.append(
            f"all videos lie below '{only}', so that is the one class; for its folders as classes index that folder"
        )
    loose = sum(candidate.label is None for candidate in candidates)
    if loose and len(labels) > 1:
        notes.append(f"{loose} videos lie in no class folder and have no label")
    return candidates, notes
