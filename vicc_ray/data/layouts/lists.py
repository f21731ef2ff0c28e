"""Videos named by a text file, one a line, with a label after it or not: `path`, `path label`, `path,label`, quoted."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass
from urllib.parse import quote

from vicc_ray import storage
from vicc_ray.data.layouts.candidates import (
    VIDEO_EXTENSIONS,
    Candidate,
    Found,
    examples,
    group_in_name,
    shown,
    unquoted,
)
from vicc_ray.data.layouts.split_folders import by_paths
from vicc_ray.data.layouts.tree import read_text
from vicc_ray.errors import UserError

_KINDS = "|".join(sorted(extension[1:] for extension in VIDEO_EXTENSIONS))
_LABELLED = re.compile(rf"(?P<video>.*\.(?:{_KINDS}))(?P<gap>[\s,;|]+)(?P<rest>.+)", re.IGNORECASE)
_QUOTED = re.compile(r"(?P<quote>[\"'])(?P<video>.+?)(?P=quote)(?:(?P<gap>[\s,;|]+)(?P<rest>.+))?")
_NAMED = re.compile(rf".*\.(?:{_KINDS})", re.IGNORECASE)
_NUMBERED = re.compile(r".+?(?:[\s,;|]+-?\d+)+")


@dataclass(frozen=True)
class Entry:
    """A line of a list."""

    video: str
    label: str | None = None


def read_list(name: str) -> Found:
    """A text file with one path or URI a line, and maybe a label after a blank, a tab, a comma, `;` or `|`.

    Relative paths start from the file's folder. A file that is there under the whole line's name is that file.
    `UserError` for lines that are neither.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(name).splitlines(), 1) if line.strip()]
    remarks = [line for _, line in lines if _is_remark(name, line)]
    entries = [parse_line(name, number, line) for number, line in lines if not _is_remark(name, line)]
    labels = {entry.label for entry in entries if entry.label is not None}
    notes = []
    if labels and all(label.isdigit() for label in labels):
        notes.append(f"classes are the numbers that the list gives ({len(labels)} of them)")
    if remarks:
        notes.append(f"{len(remarks)} lines begin with '#', name no video and are passed over: {examples(remarks)}")
    bare = sum(entry.label is None for entry in entries)
    if labels and bare:
        notes.append(f"{bare} of {len(entries)} lines have no label")
    found = [Candidate(beside(name, e.video), e.label, group=group_in_name(e.video)) for e in entries]
    found, told = by_paths(found)
    return Found(found, "list", notes=notes + told)


def parse_line(name: str, number: int, line: str) -> Entry:
    """Path and label of a line; `UserError` with the line that would be readable."""
    if _is_there(name, line):
        return Entry(line)
    parsed = _QUOTED.fullmatch(line)
    if parsed is None and _NAMED.fullmatch(line):
        return Entry(line)
    parsed = parsed or _LABELLED.fullmatch(line)
    if parsed is None:
        if _NUMBERED.fullmatch(line):
            raise UserError(
                f"{name}: line {number} is '{shown(line[:80])}', which names no video file (.mp4, .avi, ...); lists of folders "
                "of pictures are not read; a line is 'folder/a.mp4' or 'folder/a.mp4 LABEL'"
            )
        return Entry(line)
    rest = (parsed["rest"] or "").strip()
    if not rest:
        return Entry(parsed["video"])
    parts = re.split(r"\s*[\t,;|]\s*", rest) if re.search(r"[\t,;|]", parsed["gap"] + rest) else [rest]
    if len(parts) == 1 and re.fullmatch(r"-?\d+(?:\s+-?\d+)+", rest):
        parts = rest.split()
    if len(parts) > 1:
        raise _several(name, number, line, parsed, parts)
    return Entry(parsed["video"], unquoted(rest))


def _several(name: str, number: int, line: str, parsed: re.Match[str], parts: list[str]) -> UserError:
    """The error for more than one value after a video."""
    mark = next((mark for mark in "\t,;|" if mark in parsed["gap"] + parsed["rest"]), None)
    header = (
        ""
        if mark is None
        else ", or put a line above all that names the columns, such as video"
        + "".join(
            (mark if mark != "\t" else "<TAB>") + column for column in ["label", "split", "group", "more"][: len(parts)]
        )
    )
    return UserError(
        f"{name}: line {number} is '{shown(line[:80])}': {len(parts)} values follow the video, which has one label; write "
        f"'{shown(parsed['video'])} LABEL'{header}"
    )


def _is_remark(name: str, line: str) -> bool:
    return line.startswith("#") and not _NAMED.match(line) and not _is_there(name, line)


def _is_there(name: str, line: str) -> bool:
    """Whether the whole line is a local file's name; nothing in a store is asked for."""
    if storage.is_uri(line) or storage.is_uri(name):
        return False
    try:
        return os.path.lexists(beside(name, line))
    except ValueError:
        return False


def beside(file: str, video: str) -> str:
    """A path named in `file`: absolute paths and URIs stay, others start from the file's folder."""
    if storage.is_uri(video) or os.path.isabs(video):
        return storage.absolute(video)
    folder = posixpath.dirname(file)
    if storage.is_uri(file):
        return storage.join(folder, quote(posixpath.normpath(video)))
    return os.path.abspath(os.path.join(folder, video))
