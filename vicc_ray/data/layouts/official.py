"""What UCF101, HMDB51 and Kinetics have in common: lists that say which video is in which split, kept apart from it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vicc_ray.data.layouts.candidates import UNUSED, Candidate, examples, shown
from vicc_ray.data.layouts.tree import File, Tree, files_beside
from vicc_ray.errors import UserError

# Folders of this name hold class folders and are no class.
VIDEO_FOLDERS = {"videos", "video", "ucf-101", "ucf101", "hmdb51", "hmdb-51", "hmdb51_org"}


@dataclass
class SplitFiles:
    """Split files of one folder: plain name -> file; `notes` says where several folders have some."""

    folder: str
    files: dict[str, File]
    notes: list[str] = field(default_factory=list)

    @property
    def beside(self) -> bool:
        """Whether they lie next to the source and not in it."""
        return self.folder.startswith("..")


def find_split_files(
    tree: Tree, pattern: re.Pattern[str], folders: Sequence[str], companion: str | None = None
) -> SplitFiles | None:
    """The split files below the root, else next to it; of several folders the first of the usual names is taken.

    A `companion` is one of them where it lies in their folder.
    """
    for files in (tree.files, files_beside(tree.root, ["", *folders])):
        places: dict[str, dict[str, File]] = {}
        for file in files:
            if pattern.fullmatch(file.parts[-1]):
                places.setdefault(file.folder, {})[file.parts[-1]] = file
        if places:
            order = sorted(places, key=lambda place: (_rank(place, folders), place))
            others = [f"{place}/" for place in order[1:]]
            note = f"split files are in {len(order)} folders: {order[0]}/ is used, not {examples(others)}"
            chosen = places[order[0]]
            for file in files:
                if file.folder == order[0] and file.parts[-1] == companion:
                    chosen[companion] = file
            return SplitFiles(order[0], chosen, [note] if others else [])
    return None


def _rank(place: str, folders: Sequence[str]) -> int:
    return next((rank for rank, name in enumerate(folders) if f"/{place}".endswith(f"/{name}")), len(folders))


@dataclass(frozen=True, slots=True)
class Line:
    """What a split file says of one video; `name` as the file names it."""

    name: str
    split: str
    label: str | None = None


@dataclass
class Lists:
    """Every line of the split files by the video's key, which a layout makes from a file's name too."""

    lines: dict[str, Line] = field(default_factory=dict)
    clashes: dict[str, Line] = field(default_factory=dict)

    def add(self, key: str, line: Line) -> None:
        """Note a line; a second line that puts the video in another split is a clash, one that says no split is none."""
        known = self.lines.get(key)
        if known is None or not known.split:
            self.lines[key] = line
        elif line.split and line.split != known.split:
            self.clashes[key] = line

    def refuse_clashes(self, source: str) -> None:
        """`UserError` with the names where videos are in two splits: neither choice would be the official one."""
        if self.clashes:
            named = [f"{line.name} ({self.lines[key].split} and {line.split})" for key, line in self.clashes.items()]
            raise in_two_splits(source, named)


def in_two_splits(source: str, named: Sequence[str]) -> UserError:
    """The error where videos are in two splits; `told` names each with its splits."""
    return UserError(
        f"{shown(source)}: {len(named)} videos are in two splits: {examples(named)}; correct the split files, or give a "
        "split rule of your own"
    )


def class_of(file: File) -> str | None:
    """The class folder that holds a video; None for one that lies in no class folder."""
    parts = file.parts
    return parts[-2] if len(parts) > 1 and parts[-2].lower() not in VIDEO_FOLDERS else None


def class_bases(tree: Tree) -> set[str]:
    """The folders that hold class folders with videos."""
    return {posixpath.dirname(file.folder) for file in tree.videos if class_of(file) is not None}


def by_key(tree: Tree, key: Callable[[File], str]) -> dict[str, File]:
    """The videos by the key that split files know them by; `UserError` where two files have the same."""
    keyed: dict[str, File] = {}
    twice = []
    for file in tree.videos:
        known = keyed.setdefault(key(file), file)
        if known is not file:
            twice.append(f"{known.inner} and {file.inner}")
    if twice:
        raise UserError(
            f"{tree.root}: {len(twice)} videos are there twice under one name: {examples(twice)}; index one of the "
            "folders, or a glob that takes one of each"
        )
    return keyed


def place_videos(
    tree: Tree, lists: Lists | None, key: Callable[[File], str], group: Callable[[File], str | None]
) -> tuple[list[Candidate], list[str]]:
    """Candidates with the splits of the lists (no lists: all `train`), and notes of what does not fit together.

    A video in no list is `unused`.
    """
    if lists is None:
        return [file.candidate(class_of(file), "train", group(file)) for file in tree.videos], []
    lists.refuse_clashes(tree.root)
    # What no list names is known by its place: two files of one name in two folders may be anything.
    keyed = by_key(tree, lambda file: name if (name := key(file)) in lists.lines else file.inner)
    missing = [line.name for name, line in lists.lines.items() if name not in keyed]
    unlisted = [file.inner for name, file in keyed.items() if name not in lists.lines]
    notes = []
    if missing:
        notes.append(
            f"the split files name {len(missing)} videos (of {len(lists.lines)}) that are not there: {examples(missing)}"
        )
    if unlisted:
        notes.append(f"{len(unlisted)} videos are in no split file (split '{UNUSED}'): {examples(unlisted)}")
    candidates = []
    for name, file in keyed.items():
        line = lists.lines.get(name, Line(file.inner, UNUSED))
        candidates.append(file.candidate(class_of(file) or line.label, line.split, group(file)))
    return candidates, notes


def no_such_fold(source: str, fold: int, missing: Sequence[str], there: Sequence[str]) -> UserError:
    """The error where a fold's split files are not there."""
    return UserError(
        f"{shown(source)}: fold {fold} needs {examples(missing)}; there is: {examples(there, 6) or 'none'}"
    )
