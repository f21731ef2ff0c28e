"""From candidates to a manifest: probe what is new or changed, each file in a process that may crash, and resume.

`find_known` and `FreshRows` are the parts for whatever runs the probing in between. What is known of files is compared and held
as columns, so that a million of them cost little more than their listing.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.config import MAX_PIXELS
from vicc_ray.data.decode import bound_pixels, fetched
from vicc_ray.data.guarded import Failure, run_guarded
from vicc_ray.data.inspection import RULES
from vicc_ray.data.layouts import Candidate, deduplicate
from vicc_ray.data.manifest import Manifest, VideoRow, check, probe
from vicc_ray.data.rows import WALK, Rows, first_of_each
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

# Asking a store about one file is a round trip: many wait at once.
AT_ONCE = 32


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
    timeout_seconds: float = 60.0,
    known: Rows | None = None,
    journal: Journal | None = None,
) -> Manifest:
    """Probe the candidates in `workers` processes; rows keep the candidates' order.

    A video that cannot be read, crashes its decoder, or gives no answer in time becomes a refused row and costs nothing
    else. Rows of `known` whose files are unchanged are taken as they are (see `find_known`); freshly probed ones go into
    the `journal`.
    """
    unique, known = deduplicate(candidates), known or Rows.of(())
    places = find_known(unique, known)
    fresh = FreshRows(unique, np.flatnonzero(places < 0), Rows.of(()), journal)
    for number, outcome in run_guarded(probe_named, fresh.paths, workers, timeout_seconds):
        fresh.add(number, outcome)
    return Manifest(labelled(fresh.beside(known, places), unique))


def whole_files(rows: Rows) -> Rows:
    """A row a file, of all of it: that of the first of these that is of the file, or of a part of it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    videos = rows.texts("video")
    if pc.count_distinct(videos).as_py() != len(rows):
        rows = rows.take(first_of_each({"video": videos}))
    part = pc.is_valid(rows.column("start"))
    if not pc.any(part).as_py():
        return rows
    fps, frames, group = rows.numbers("fps"), rows.numbers("file_frames"), rows.texts("group")
    seconds = np.divide(frames, fps, out=np.zeros(len(rows)), where=fps != 0)
    own = pc.and_(part, pc.fill_null(pc.equal(group, rows.texts("video")), False))
    return rows.having(
        {
            "frames": pc.if_else(part, frames, rows.column("frames")),
            "file_frames": pc.if_else(part, 0, rows.column("file_frames")),
            "first_frame": pc.if_else(part, 0, rows.column("first_frame")),
            "duration_seconds": pc.if_else(part, seconds, rows.column("duration_seconds")),
            "group": pc.if_else(own, pa.scalar(None, pa.string()), group),
            "refused": pc.if_else(part, pa.scalar(None, pa.string()), rows.texts("refused")),
            "start": None,
            "end": None,
        }
    )


def find_known(
    candidates: Sequence[Candidate], known: Rows, describe: Callable[[str], Sized | None] = storage.describe
) -> NDArray[np.int64]:
    """The place in `known` (a row a file) of each candidate's row, where its file is unchanged; -1: to be probed. int64 [n].

    It is unchanged where its bytes and time are still the row's. Earlier refused rows are probed again. Files that the listing
    did not size are described with `describe`. A run that wants more of a row than it has (every frame decoded) leaves that row
    out of `known`.
    """
    import pyarrow.compute as pc

    places = places_of(_names(candidates), known)
    # Without a time nothing shows whether the file is the same.
    usable = pc.and_(pc.is_null(known.column("refused")), pc.greater(known.column("modified"), 0))
    at = np.flatnonzero(places >= 0)
    places[at[~np.asarray(usable, bool)[places[at]]]] = -1
    at = np.flatnonzero(places >= 0)
    count, modified = _sizes(candidates, at, describe)
    before = known.take(places[at])
    # Object stores list fractions of a second that they do not give for a single object.
    whole = np.asarray(pc.match_substring(before.texts("video"), "://"), bool)
    stamps = before.numbers("modified")
    same_time = np.where(whole, np.floor(stamps) == np.floor(modified), stamps == modified)
    places[at[~(same_time & (before.numbers("bytes") == count))]] = -1
    return places


def places_of(names: pa.Array | pa.ChunkedArray, rows: Rows) -> NDArray[np.int64]:
    """The place of the row of each of these files, -1 where there is none: int64 [n]."""
    import pyarrow.compute as pc

    places = pc.fill_null(pc.index_in(names, value_set=rows.texts("video").combine_chunks()), -1)
    found: NDArray[np.int64] = places.to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _names(candidates: Sequence[Candidate]) -> pa.Array:
    """Their paths; null where one is no valid UTF-8, as no manifest has it."""
    import pyarrow as pa

    try:
        return pa.array([candidate.path for candidate in candidates], pa.string())
    except UnicodeEncodeError:
        return pa.array([c.path if _is_text(c.path) else None for c in candidates], pa.string())


class FreshRows:
    """The rows of files that are opened, held as columns as they come.

    places: int64 [m], which of the candidates they are; they are numbered in this order. before: rows under whose content hash
    unchanged files stay (see `keep_hash`), a row a file.
    """

    def __init__(
        self, candidates: Sequence[Candidate], places: NDArray[np.int64], before: Rows, journal: Journal | None
    ) -> None:
        self.candidates, self.places, self.journal = candidates, places, journal
        self.paths = [candidates[place].path for place in places.tolist()]
        self._partial = before.where(before.hash_is_partial())
        self._before = places_of(_names([candidates[place] for place in places.tolist()]), self._partial)
        self._held: list[VideoRow] = []
        self._parts: list[Rows] = []
        self._numbers: list[int] = []

    def add(self, number: int, outcome: VideoRow | Failure) -> None:
        """Take what came of a file."""
        before = self._partial[int(self._before[number])] if self._before[number] >= 0 else None
        row = keep_hash(row_of(self.candidates[int(self.places[number])], outcome), before)
        if self.journal is not None:
            self.journal.add(row)
        self._numbers.append(number)
        self._held.append(row)
        if len(self._held) == WALK:
            self._parts.append(Rows.of(self._held))
            self._held = []

    def beside(self, known: Rows, places: NDArray[np.int64]) -> Rows:
        """A row a candidate, in their order: the known one at its place, a fresh one where that is -1."""
        if not self._numbers:
            return known.take(places)
        order = places.copy()
        order[self.places[self._numbers]] = len(known) + np.arange(len(self._numbers))
        return Rows.chain([known, *self._parts, Rows.of(self._held)]).take(order)


def labelled(rows: Rows, candidates: Sequence[Candidate]) -> Rows:
    """The rows under the labels, splits and groups of the candidates, one each."""
    return rows.having({name: [getattr(one, name) for one in candidates] for name in ("label", "split", "group")})


def keep_hash(row: VideoRow, before: VideoRow | None) -> VideoRow:
    """A freshly probed row under the content hash that it had, where the file's bytes and time are still what they were.

    Flow stores and runs know a video by its content hash, so a new rule for it must not rename what has not changed.
    """
    if before is None or not before.hash_is_partial or row.refused is not None:
        return row
    same_time = (
        int(before.modified) == int(row.modified) if storage.is_uri(row.video) else before.modified == row.modified
    )
    if not same_time or before.bytes != row.bytes:
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
    if not _is_text(path):
        raise ValueError("its name is not valid UTF-8; rename it")
    return path


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def _sizes(
    candidates: Sequence[Candidate], places: NDArray[np.int64], describe: Callable[[str], Sized | None]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bytes (-1: gone, or cannot be described) and time of the files of the candidates at these places now."""

    def described(place: int) -> tuple[int, float]:
        try:
            entry = describe(candidates[place].path)
        except (OSError, ValueError, UserError):
            return -1, np.nan
        return (entry.bytes, entry.modified) if entry else (-1, np.nan)

    listed = [(one.bytes, one.modified) for one in map(candidates.__getitem__, places.tolist())]
    sizes = np.array([-1 if size is None else size for size, _ in listed], np.int64)
    times = np.array([np.nan if time is None else time for _, time in listed], np.float64)
    unknown = np.flatnonzero((sizes < 0) | np.isnan(times))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for part in np.array_split(unknown, -(-len(unknown) // WALK) or 1):
            for number, size in zip(part.tolist(), pool.map(described, places[part].tolist()), strict=True):
                sizes[number], times[number] = size
    return sizes, times


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

    def rows(self) -> Rows:
        """The last row of each video; lines that were cut or that another version wrote are passed over."""
        try:
            with self.path.open("rb") as lines:
                rows = Rows.of(row for row in map(_parse, lines) if row is not None)
        except FileNotFoundError:
            return Rows.of(())
        newest_first = rows.take(np.arange(len(rows))[::-1])
        return newest_first.take(first_of_each({"video": newest_first.texts("video")}))

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
