"""All files below a folder, local or in an object store, in one listing: every folder layout reads this."""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import unquote

from vicc_ray import storage
from vicc_ray.data.layouts.candidates import VIDEO_EXTENSIONS, Candidate, examples, extension, shown
from vicc_ray.errors import UserError


@dataclass(frozen=True, slots=True)
class File:
    """A file: its path or URI, its name below the tree's root (parted by `/`), and its size and time where the listing has them."""

    name: str
    inner: str
    bytes: int | None = None
    modified: float | None = None

    @property
    def parts(self) -> list[str]:
        """Folders below the root, and the file's own name last."""
        return self.inner.split("/")

    @property
    def folder(self) -> str:
        """The folder that holds it, below the root; empty for the root."""
        return posixpath.dirname(self.inner)

    def candidate(self, label: str | None, split: str, group: str | None) -> Candidate:
        """The video to be indexed that this file is; its class and group can be written to any file."""
        return Candidate(self.name, label and shown(label), split, group and shown(group), self.bytes, self.modified)


@dataclass
class Tree:
    """Files that are not hidden, in the order of their names; `folders` are named below the root.

    With a `pattern` (a glob below the root) only the files that fit are videos or count as passed over; split files are
    found all the same.
    """

    root: str
    files: list[File]
    folders: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    pattern: str | None = None
    circular: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files.sort(key=lambda file: file.name)
        for file in self.files:
            parts = file.parts[:-1]
            self.folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
        wanted = self.pattern.split("/") if self.pattern else None
        self.chosen = [file for file in self.files if wanted is None or matches(file.parts, wanted)]
        self.videos = [file for file in self.chosen if extension(file.name) in VIDEO_EXTENSIONS]

    def ignored(self, used: Iterable[str] = ()) -> Counter[str]:
        """Other files by extension, without those (by name) that gave splits."""
        spent = {file.name for file in self.videos} | set(used)
        return Counter(extension(file.inner) or "no extension" for file in self.chosen if file.name not in spent)

    def notes(self) -> list[str]:
        """What could not be listed, and what is not listed twice."""
        notes = []
        if self.unreadable:
            notes.append(f"{len(self.unreadable)} folders cannot be read and are left out: {examples(self.unreadable)}")
        if self.circular:
            notes.append(
                f"{len(self.circular)} links to folders above or listed are not followed: {examples(self.circular)}"
            )
        return notes

    def folders_without_videos(self, bases: set[str], used: Iterable[str] = ()) -> list[str]:
        """A note of the class folders (folders right below `bases`) that hold no video; `used`: names of split files.

        None with a pattern, which leaves folders out on purpose.
        """
        if self.pattern is not None:
            return []
        spent = set(used)
        holding = [*self.videos, *(file for file in self.files if file.name in spent)]
        full = {"/".join(parts[:depth]) for parts in (file.parts for file in holding) for depth in range(len(parts))}
        empty = sorted(f for f in self.folders if posixpath.dirname(f) in bases and f not in full)
        return [f"{len(empty)} class folders without videos: {examples(empty)}"] if empty else []


def matches(parts: list[str], pattern: list[str]) -> bool:
    """Whether a name fits a glob, both in parts: `*`, `?`, `[..]` stay within a part, `**` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(matches(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and matches(parts[1:], pattern[1:])


def plant(root: str, pattern: str | None = None) -> Tree:
    """List all that lies below `root` (an absolute path or a URI); `UserError` where the store refuses."""
    if storage.is_uri(root):
        entries = storage.list_files(root)
        files = [File(e.name, unquote(e.name[len(root) :].lstrip("/")), e.bytes, e.modified) for e in entries]
        return Tree(root, files, pattern=pattern)
    return _plant_local(root, pattern)


# A folder may be there under several names, by links; so many that nobody means it, or a maze of links, end there.
MOST_NAMES = 16


def _plant_local(root: str, pattern: str | None) -> Tree:
    """A local walk: links are followed, but not back to a folder above; names that are no UTF-8 are kept."""
    tree: tuple[list[File], set[str], list[str]] = ([], set(), [])
    files, folders, unreadable = tree
    above: dict[str, frozenset[str]] = {}  # of a folder to come: the real folders that it lies in
    seen: Counter[str] = Counter()
    left_out: list[str] = []
    for folder, names, inside in os.walk(root, followlinks=True, onerror=lambda e: unreadable.append(str(e.filename))):
        real, around = os.path.realpath(folder), above.pop(folder, frozenset())
        below = os.path.relpath(folder, root)
        below = "" if below == "." else below
        if real in around or seen[real] == MOST_NAMES:
            left_out.append(below)
            names.clear()
            continue
        seen[real] += 1
        names[:] = sorted(name for name in names if not name.startswith("."))
        above.update((os.path.join(folder, name), around | {real}) for name in names)
        folders.update(os.path.join(below, name) for name in names)
        files += [_local_file(folder, below, name) for name in inside if not name.startswith(".")]
    if root in unreadable:
        raise UserError(f"{root}: cannot be listed; may this user read it?")
    return Tree(root, files, folders, unreadable, pattern, left_out)


def _local_file(folder: str, below: str, name: str) -> File:
    """Size and time as `storage.describe` gives them; a link into nowhere has none."""
    path = os.path.join(folder, name)
    try:
        status = os.stat(path)
    except OSError:
        return File(path, os.path.join(below, name))
    if not stat.S_ISREG(status.st_mode):
        return File(path, os.path.join(below, name))
    return File(path, os.path.join(below, name), status.st_size, status.st_mtime_ns / 1e9)


def files_beside(root: str, folders: Iterable[str]) -> list[File]:
    """Files in these folders next to `root` (empty: right next to it), for split files kept apart from the videos."""
    if storage.is_uri(root) and not storage.parts_of(root)[2]:
        return []
    parent = posixpath.dirname(root)
    found = []
    for folder in folders:
        place = storage.join(parent, folder) if folder else parent
        found += [File(name, f"../{folder}/{base}".replace("//", "/")) for name, base in _flat_listing(place)]
    return found


def _flat_listing(folder: str) -> list[tuple[str, str]]:
    """(path or URI, plain name) of the files in one folder; nothing where there is none or it is closed to us."""
    try:
        if storage.is_uri(folder):
            return [(e.name, unquote(posixpath.basename(e.name))) for e in storage.list_files(folder, recursive=False)]
        return [(os.path.join(folder, name), name) for name in sorted(os.listdir(folder))]
    except (OSError, UserError):
        return []


def read_text(name: str) -> str:
    """A UTF-8 text file by path or URI; `UserError` where it is none."""
    try:
        path = storage.local_path(name)
        if path is None:
            data = storage.read_bytes(name)
        else:
            with open(path, "rb") as file:
                data = file.read()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read as UTF-8 text: {' '.join(str(error).split())}") from error


def head(name: str, most: int = 1 << 16) -> str:
    """The start of a file, which may be long or no text; empty for one that cannot be read."""
    try:
        system, path = storage.open_filesystem(name)
        with system.open_input_stream(path) as stream:
            start: bytes = stream.read(most)
    except (OSError, ValueError, UserError):
        return ""
    return start.decode("utf-8-sig", errors="replace")
