"""From candidates to a manifest: probe what is new or changed, each file in a process that may crash, and resume.

`to_probe` and `row_of` are the pure parts, for whatever runs the probing in between.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from io import FileIO
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import unquote

from vicc_ray import storage
from vicc_ray.config import MAX_PIXELS
from vicc_ray.data.decode import bound_pixels, fetched
from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.inspection import RULES
from vicc_ray.data.layouts import Candidate, deduplicate
from vicc_ray.data.manifest import Manifest, VideoRow, check, probe
from vicc_ray.errors import UserError

OnProgress = Callable[[int, int, VideoRow], None]
# Asking a store about one file is a round trip: many wait at once.
AT_ONCE = 32
NOTHING: Mapping[str, VideoRow] = MappingProxyType({})


class Sized(Protocol):
    """What shows whether a file is the one that was probed."""

    @property
    def bytes(self) -> int:
        """Its size."""
        ...

    @property
    def modified(self) -> float:
        """When it was changed, in seconds since 1970."""
        ...


def index(
    candidates: Sequence[Candidate],
    workers: int = 2,
    on_progress: OnProgress | None = None,
    timeout_seconds: float = 60.0,
    known: Mapping[str, VideoRow] = NOTHING,
    journal: Journal | None = None,
) -> Manifest:
    """Probe the candidates in `workers` processes; rows keep the candidates' order.

    A video that cannot be read, crashes its decoder, or gives no answer in time becomes a refused row and costs nothing
    else. Rows of `known` whose files are unchanged are taken as they are (see `to_probe`); freshly probed ones go into
    the `journal`. `on_progress(done, total, row)` is called in this process, once a video: first for the known rows,
    then in the order of finishing.
    """
    unique = deduplicate(candidates)
    reused, places = to_probe(unique, known)
    rows: list[VideoRow | None] = [reused.get(place) for place in range(len(unique))]
    paths = [unique[place].path for place in places]
    fresh = run_guarded(probe_named, paths, workers, timeout_seconds)
    finished = chain(reused.items(), ((places[nth], row_of(unique[places[nth]], outcome)) for nth, outcome in fresh))
    for done, (place, row) in enumerate(finished, 1):
        rows[place] = row
        if journal is not None and place not in reused:
            journal.add(row)
        if on_progress:
            on_progress(done, len(unique), row)
    return Manifest(row for row in rows if row is not None)


def to_probe(
    candidates: Sequence[Candidate],
    known: Mapping[str, VideoRow],
    describe: Callable[[str], Sized | None] = storage.describe,
) -> tuple[dict[int, VideoRow], list[int]]:
    """(rows to reuse by place, places to probe) in `candidates`; `known` has earlier rows by path.

    A row is reused where the file's bytes and time are still the row's, and takes the candidate's label, split and
    group. Earlier refused rows are probed again. Files that the listing did not size are described with `describe`.
    A run that wants more of a row than it has (every frame decoded) leaves that row out of `known`.
    """
    places = [place for place, candidate in enumerate(candidates) if _usable(known.get(candidate.path))]
    sizes = _sizes([candidates[place] for place in places], describe)
    reused = {}
    for place, size in zip(places, sizes, strict=True):
        candidate = candidates[place]
        row = known[candidate.path]
        if size is not None and _same(row, size):
            reused[place] = replace(row, label=candidate.label, split=candidate.split, group=candidate.group)
    return reused, [place for place in range(len(candidates)) if place not in reused]


def keep_hash(row: VideoRow, before: VideoRow | None) -> VideoRow:
    """A freshly probed row under the content hash that it had, where the file's bytes and time are still what they were.

    Flow stores and runs know a video by its content hash, so a new rule for it must not rename what has not changed.
    """
    if before is None or not before.hash_is_partial or row.refused is not None:
        return row
    if not _same(before, (row.bytes, row.modified)):
        return row
    return replace(row, content_hash=before.content_hash, hash_rule=before.hash_rule)


def probe_named(path: str, max_pixels: int = MAX_PIXELS, with_changes: bool = False) -> VideoRow:
    """`probe` of a name from anywhere; raises with the reason in one line.

    `with_changes`: every picture is decoded and the row says where scenes begin and what moves.
    """
    bound_pixels(max_pixels)
    return _with_changes(probe, path, with_changes)


def check_named(path: str, max_pixels: int = MAX_PIXELS, with_changes: bool = False) -> VideoRow:
    """`check` (every frame is decoded) of a name from anywhere, as `probe_named`."""
    bound_pixels(max_pixels)
    return _with_changes(check, path, with_changes)


def _with_changes(find: Callable[[str], VideoRow], path: str, wanted: bool) -> VideoRow:
    name = _printable(path)
    if not wanted:
        return find(name)
    from vicc_ray.data.scenes import find_changes  # OpenCV, which probing does not need

    with fetched(name) as local:
        return replace(find(name), changes=find_changes(local).encode())


def _printable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError("its name is not valid UTF-8; rename it") from error
    return path


def row_of(candidate: Candidate, outcome: VideoRow | Failure) -> VideoRow:
    """The manifest's row of a candidate that was probed, or could not be."""
    name = candidate.path.encode(errors="backslashreplace").decode()
    if isinstance(outcome, Failure):
        outcome = VideoRow(video=name, refused=outcome.reason)
    # The listing was before the probing: a file that changed in between has a time of its own at the next run.
    modified = outcome.modified if candidate.modified is None else candidate.modified
    return replace(
        outcome, video=name, label=candidate.label, split=candidate.split, group=candidate.group, modified=modified
    )


def _usable(row: VideoRow | None) -> bool:
    """Without a time nothing shows whether the file is the same."""
    return row is not None and row.refused is None and row.modified > 0


def _sizes(candidates: Sequence[Candidate], describe: Callable[[str], Sized | None]) -> list[tuple[int, float] | None]:
    """(bytes, modified) of each file now; None for one that is gone or cannot be described."""

    def describe_one(candidate: Candidate) -> tuple[int, float] | None:
        try:
            entry = describe(candidate.path)
        except (OSError, ValueError, UserError):
            return None
        return (entry.bytes, entry.modified) if entry else None

    sizes = [(c.bytes, c.modified) if c.bytes is not None and c.modified is not None else None for c in candidates]
    unknown = [place for place, size in enumerate(sizes) if size is None]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for place, size in zip(unknown, pool.map(describe_one, [candidates[place] for place in unknown]), strict=True):
            sizes[place] = size
    return sizes


def _same(row: VideoRow, size: tuple[int, float]) -> bool:
    """Object stores list fractions of a second that they do not give for a single object."""
    count, modified = size
    same_time = int(row.modified) == int(modified) if storage.is_uri(row.video) else row.modified == modified
    return same_time and row.bytes == count


class Journal:
    """Finished rows of an indexing that may be interrupted, a JSON line each, in `.NAME.partial.jsonl` beside the target.

    Of a manifest that goes to an object store, where nothing can be appended, it lies in the working folder.
    """

    def __init__(self, target: str | Path) -> None:
        local = storage.local_path(str(target))
        folder, name = os.path.split(local) if local else (os.getcwd(), unquote(posixpath.basename(str(target))))
        self.path = Path(folder, f".{name}.partial.jsonl")
        self._file: FileIO | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rows(self) -> dict[str, VideoRow]:
        """The rows by video; lines that were cut or that another version wrote are passed over."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        rows = (_parse(line) for line in lines)
        return {row.video: row for row in rows if row is not None}

    def add(self, row: VideoRow) -> None:
        """Append one row; the operating system has it before this returns."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        # The line begins with a break: what an interruption cut before it stays a line of its own.
        self._file.write(f"\n{json.dumps(asdict(row) | {'rules': RULES})}\n".encode())

    def close(self) -> None:
        """Let go of the file, which stays for the next run."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the file: the manifest is written."""
        self.close()
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> VideoRow | None:
    try:
        cells = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(cells, dict) or cells.pop("rules", None) != RULES:
        return None
    if set(cells) != {field.name for field in fields(VideoRow)}:
        return None
    # A damaged line is as if it were not there, also where it is JSON of other types.
    kinds = {field.name: type(field.default) for field in fields(VideoRow)}
    numbers = [cells[name] for name, kind in kinds.items() if kind in (int, float, bool)]
    texts = [cells["video"], cells["frame_table"], cells["changes"]]
    if not all(isinstance(number, (int, float)) for number in numbers) or not all(isinstance(t, str) for t in texts):
        return None
    return VideoRow(**cells)
