"""What every layout gives: candidates (videos before they are opened), and what was found besides them."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from vicc_ray.errors import UserError

VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("3gp", "asf", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "vob", "webm", "wmv"),
    )
)
# UCF101's names, e.g. v_BenchPress_g01_c04.avi: clips of one group are cut from one source video.
GROUPED_NAME = re.compile(r"v_.+_(g\d+)_c\d+")
UNUSED = "unused"  # the split of videos that the official lists leave out


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video: from `start` to before `end`, seconds or (with `frames`) frame numbers; `row` says who named it."""

    start: float
    end: float
    frames: bool = False
    row: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{'frames ' if self.frames else ''}{self.start:g}-{self.end:g}{'' if self.frames else ' s'}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A video to be indexed, or a part of one: absolute path or URI, and what is known of it before it is opened.

    `bytes` and `modified` (seconds) are there where the listing has them; they are no part of what it is.
    """

    path: str
    label: str | None = None
    split: str = "train"
    group: str | None = None
    bytes: int | None = field(default=None, compare=False)
    modified: float | None = field(default=None, compare=False)
    span: Span | None = None


class Found(list[Candidate]):
    """The candidates in path order (a table's or list's own order).

    `layout` is the one that was used, `ignored` counts other files by extension, and `notes` are lines for the reader:
    what was recognised, and what does not fit together, with counts.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        layout: str,
        ignored: Counter[str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(candidates)
        self.layout: str = layout
        self.ignored: Counter[str] = ignored or Counter()
        self.notes: list[str] = list(notes)


def extension(name: str) -> str:
    """The lower-case extension of a path or URI, with its dot; empty where there is none."""
    return posixpath.splitext(name)[1].lower()


def stem(name: str) -> str:
    """The file's name without folders and without the extension of a video: `A/v_x.y.avi` -> `v_x.y`."""
    base = posixpath.basename(name)
    return base[: -len(extension(base))] if extension(base) in VIDEO_EXTENSIONS else base


def group_in_name(name: str) -> str | None:
    """The group of a name as UCF101 has them (`g01`), or None."""
    named = GROUPED_NAME.fullmatch(stem(name))
    return named.group(1) if named else None


def plain(name: str) -> str:
    """A name without what people write in several ways: `Air_Drumming` -> `air drumming`; Unicode's forms are one."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


def shown(name: str) -> str:
    """A name that every terminal and file takes: bytes that are no UTF-8 are written out."""
    return name.encode(errors="backslashreplace").decode()


def unquoted(cell: str) -> str:
    """A cell without the blanks and the one pair of quotes around it: ` "jump" ` -> `jump`; `it's` stays."""
    text = cell.strip()
    quote = text[:1]
    enclosed = len(text) > 1 and quote in ("'", '"') and text[-1] == quote and quote not in text[1:-1]
    return text[1:-1].strip() if enclosed else text


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first few names for a message, and a sign that there are more."""
    return ", ".join(shown(name) for name in names[:most]) + (", ..." if len(names) > most else "")


def deduplicate(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate a path and part; `UserError` where the same one is given another label, split or group."""
    unique: dict[tuple[str, Span | None], Candidate] = {}
    clashes: list[str] = []
    for candidate in candidates:
        known = unique.setdefault((candidate.path, candidate.span), candidate)
        if known != candidate:
            what = [name for name in ("label", "split", "group") if getattr(known, name) != getattr(candidate, name)]
            pairs = ", ".join(f"{name} '{getattr(known, name)}' and '{getattr(candidate, name)}'" for name in what)
            part = f" {candidate.span}" if candidate.span else ""
            clashes.append(f"{shown(candidate.path)}{part}: named twice, with {pairs}")
    if clashes:
        more = f" ({len(clashes)} such lines)" if len(clashes) > 1 else ""
        raise UserError(f"{clashes[0]}; a video has one of each{more}")
    return list(unique.values())


def twins(candidates: Iterable[Candidate]) -> list[str]:
    """Notes on classes, and on files, whose names differ in nothing that a reader sees as another name."""
    labels: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for candidate in candidates:
        if candidate.label and plain(candidate.label):
            labels.setdefault(plain(candidate.label), set()).add(candidate.label)
        if not candidate.path.isascii():
            files.setdefault(unicodedata.normalize("NFC", candidate.path), set()).add(candidate.path)
    classes = [" and ".join(repr(shown(name)) for name in sorted(named)) for named in labels.values() if len(named) > 1]
    names = [name for name, named in files.items() if len(named) > 1]
    notes = []
    if classes:
        notes.append(
            f"{len(classes)} classes are written in several ways, each of which counts as a class: {examples(classes)}; if one "
            "is meant, write them alike"
        )
    if names:
        notes.append(f"{len(names)} names of files are there in two forms of Unicode (NFC and NFD): {examples(names)}")
    return notes


def crossing_groups(candidates: Iterable[Candidate], key: Callable[[Candidate], Hashable]) -> list[str]:
    """A note where clips of one group lie in several splits (unused ones aside); `key` distinguishes groups."""
    splits: dict[Hashable, Counter[str]] = {}
    names: dict[Hashable, str] = {}
    for candidate in candidates:
        if candidate.group is not None and candidate.split != UNUSED:
            splits.setdefault(key(candidate), Counter())[candidate.split] += 1
            names[key(candidate)] = candidate.group
    crossing = [group for group, counts in splits.items() if len(counts) > 1]
    if not crossing:
        return []
    videos = sum(sum(splits[group].values()) for group in crossing)
    named = [
        f"{names[group]} ({', '.join(f'{split} {count}' for split, count in sorted(splits[group].items()))})"
        for group in crossing
    ]
    return [
        f"{len(crossing)} of {len(splits)} groups cross splits ({videos} videos): {examples(named)}; clips of one source "
        "in training and query make retrieval look better than it is"
    ]
