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
from vicc_ray.data.layouts.split_folders import by_words, split_in_name
from vicc_ray.data.layouts.tree import read_text
from vicc_ray.errors import UserError

_KINDS = "|".join(sorted(extension[1:] for extension in VIDEO_EXTENSIONS))
_LABELLED = re.compile(rf"(?P<video>.*\.(?:{_KINDS}))(?P<gap>[\s,;|]+)(?P<rest>.+)", re.IGNORECASE)
_QUOTED = re.compile(r"(?P<quote>[\"'])(?P<video>.+?)(?P=quote)(?:(?P<gap>[\s,;|]+)(?P<rest>.+))?")
_NAMED = re.compile(rf".*\.(?:{_KINDS})", re.IGNORECASE)
_SEVERAL_NUMBERS = re.compile(r"-?\d+(?:\.\d*)?\s+-?\d+(?:\.\d*)?(?:\s|$)")
_NUMBERED = re.compile(r".+?(?:[\s,;|]+-?\d+)+")


@dataclass(frozen=True)
class Entry:
    """A line of a list."""

    video: str
    label: str | None = None
    split: str = ""


def with_splits(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """`path label split`: where the last word of every line is a split's, it is no part of the label; notes of that."""
    ends = [(entry.label or "").rpartition(" ") for entry in entries]
    named = [parsed is not None and not parsed[1] for parsed in (split_in_name(end[2]) for end in ends)]
    words = sorted({end[2] for end, is_split in zip(ends, named, strict=True) if is_split})
    other = "if they are parts of labels, write a table with the columns video,label"
    in_own_folder = all(posixpath.basename(posixpath.dirname(entry.video)) == entry.label for entry in entries)
    if entries and all(named) and not in_own_folder:
        made = [Entry(e.video, end[0].strip() or None, end[2]) for e, end in zip(entries, ends, strict=True)]
        return made, [f"the last word of every line is taken for its split ({examples(words)}); {other}"]
    glued = [
        entry.label or "" for entry, end, is_split in zip(entries, ends, named, strict=True) if is_split and end[0]
    ]
    if not glued:
        return entries, []
    return entries, [
        f"{len(glued)} of {len(entries)} labels end with a split's word, which stays in the label ({examples(glued)}); if these "
        "are splits, write a table with the columns video,label,split"
    ]


def read_list(name: str) -> Found:
    """A text file with one path or URI a line, and maybe a label after a blank, a tab, a comma, `;` or `|`.

    Relative paths start from the file's folder. A file that is there under the whole line's name is that file.
    `UserError` for lines that are neither.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(name).splitlines(), 1) if line.strip()]
    comments = [line for _, line in lines if _is_comment(name, line)]
    entries = [parse_line(name, number, line) for number, line in lines if not _is_comment(name, line)]
    entries, notes = with_splits(entries)
    labels = {entry.label for entry in entries if entry.label is not None}
    if labels and all(label.isdigit() for label in labels):
        notes.append(f"classes are the numbers that the list gives ({len(labels)} of them)")
    if comments:
        notes.append(f"{len(comments)} lines begin with '#', name no video and are passed over: {examples(comments)}")
    bare = sum(entry.label is None for entry in entries)
    if labels and bare:
        notes.append(f"{bare} of {len(entries)} lines have no label")
    found = [Candidate(beside(name, e.video), e.label, e.split, group_in_name(e.video)) for e in entries]
    found, more = by_words(found)
    return Found(found, "list", notes=notes + more)


def parse_line(name: str, number: int, line: str) -> Entry:
    """Path and label of a line; `UserError` with the line that would be readable."""
    if is_there(name, line):
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
    if not rest or unquoted(rest) != rest:
        return Entry(parsed["video"], unquoted(rest) or None)
    parts = re.split(r"\s*[\t,;|]\s*", rest) if re.search(r"[\t,;|]", parsed["gap"] + rest) else [rest]
    if len(parts) == 1 and _SEVERAL_NUMBERS.match(rest):
        parts = rest.split()
    if len(parts) > 1:
        raise _several(name, number, line, parsed, parts)
    return Entry(parsed["video"], rest)


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


def _is_comment(name: str, line: str) -> bool:
    return line.startswith("#") and not _NAMED.match(line) and not is_there(name, line)


def is_there(name: str, line: str) -> bool:
    """Whether the whole line is a local file's name; nothing in a store is requested."""
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
