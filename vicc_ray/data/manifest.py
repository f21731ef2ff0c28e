"""The manifest: one row a video or a part of one, in one Parquet file. What is there, how to read it, what was refused and why.

`probe` reads the file itself, not its header alone. `Manifest` holds the rows, the refused ones apart.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vicc_ray import storage
from vicc_ray.data.decode import DECODERS, Decoder, VideoError, fetched
from vicc_ray.data.inspection import RULES, inspect
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "VideoError", "VideoRow", "check", "content_hash", "part_id", "probe", "seconds_text"]

# Names every split together, wherever a split is named.
ALL = "all"
_NAME = b"vicc_ray"  # of the entry of the Parquet file's metadata
# How much of a file its content hash reads: see `content_hash`.
BLOCK, BLOCKS = 1 << 20, 64
# The rule of content hashes. Rule 1 was size, first and last MiB, which is all of a file of at most EARLIER_WHOLE bytes:
# of these both rules give the same.
HASH_RULE, EARLIER_WHOLE = 2, 2 << 20
# Columns that manifests of earlier versions lack -> what is true of their rows.
_ADDED: dict[str, Any] = {
    "hash_rule": 1,
    "start": None,
    "end": None,
    "first_frame": 0,
    "file_frames": 0,
    "frame_table": "",
    "changes": "",
}


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video, or a part of one. Sizes are pixels of the upright picture; `rotation` is clockwise degrees counted in them.

    `frames` counts pictures really there, `declared_frames` is what the header says (0: nothing). `fps` is their mean
    rate and `duration_seconds` the time they cover; without `constant_rate` pictures come at uneven times. `checked`:
    every picture was decoded once. `modified` (seconds) and `bytes` show whether the file is the one that was probed.
    `refused` is the reason why the video cannot be used, or None; a refused row may know nothing but its name.
    `content_hash` (see there) is what flow stores, samples and fingerprints know the video by, `hash_rule` the rule that it
    was made by. A row keeps both while its file is the same, so that what was made with it stays valid.

    `start` and `end` are None for a whole file; else the row is the part of it that is shown from `start` to before `end`,
    seconds from the file's first picture: `frames` pictures from `first_frame` on, of `file_frames` in the file. `frames` and
    `duration_seconds` are the part's, all else is the file's. `frame_table` says when the file's pictures are shown
    (`vicc_ray.data.frame_table`) and `changes` where its scenes begin and what moves (`vicc_ray.data.changes`); empty: unknown.
    """

    video: str
    label: str | None = None
    split: str = "train"
    group: str | None = None
    frames: int = 0
    declared_frames: int = 0
    fps: float = 0.0
    constant_rate: bool = True
    width: int = 0
    height: int = 0
    rotation: int = 0
    duration_seconds: float = 0.0
    codec: str = ""
    bytes: int = 0
    modified: float = 0.0
    content_hash: str = ""
    checked: bool = False
    decoder: Decoder = "decord"
    refused: str | None = None
    hash_rule: int = HASH_RULE
    start: float | None = None
    end: float | None = None
    first_frame: int = 0
    file_frames: int = 0
    frame_table: str = ""
    changes: str = ""

    @property
    def id(self) -> str:
        """What names the row among all: its file, and of a part its times too, `FILE@START-END` in seconds."""
        return self.video if self.start is None or self.end is None else part_id(self.video, self.start, self.end)

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a file, not a whole one."""
        return self.start is not None

    @property
    def last_frame(self) -> int:
        """The number of its last picture in the file."""
        return self.first_frame + self.frames - 1

    @property
    def span(self) -> tuple[float, float]:
        """When it begins and ends in its file, in seconds."""
        return (0.0, self.duration_seconds) if self.start is None or self.end is None else (self.start, self.end)

    def file_row(self) -> VideoRow:
        """The row of the whole file that it is a part of."""
        if not self.is_part:
            return self
        seconds = self.file_frames / self.fps if self.fps else 0.0
        return replace(
            self,
            start=None,
            end=None,
            first_frame=0,
            frames=self.file_frames,
            file_frames=0,
            duration_seconds=seconds,
            group=None if self.group == self.video else self.group,
        )

    @property
    def hash_is_partial(self) -> bool:
        """Whether its content hash is of the earlier rule and left out what the rule of today reads."""
        return self.refused is None and self.hash_rule < HASH_RULE and self.bytes > EARLIER_WHOLE


def content_hash(path: str, every: bool = False, edge: int = BLOCK) -> str:
    """blake2b-128 (hex) of the file's size and its bytes: all of them up to `BLOCKS` blocks, or with `every`.

    Of a longer file `BLOCKS` blocks of `edge` bytes are read, evenly spread from its first to its last byte, so a change
    between two blocks is not seen; `--check` reads it all.
    """
    size = os.path.getsize(path)
    whole = every or size <= BLOCKS * edge
    digest = blake2b(f"{size}:".encode(), digest_size=16, person=b"" if whole else b"sampled")
    with open(path, "rb") as file:
        if whole:
            while chunk := file.read(BLOCK):
                digest.update(chunk)
        else:
            for number in range(BLOCKS):
                file.seek(number * (size - edge) // (BLOCKS - 1))
                digest.update(file.read(edge))
    return digest.hexdigest()


def part_id(video: str, start: float, end: float) -> str:
    """The name of a part of a file, by its times in seconds: `a.mp4@12.5-15`."""
    return f"{video}@{seconds_text(start)}-{seconds_text(end)}"


def part_in(name: str) -> tuple[str, float, float] | None:
    """File, start and end (seconds) of a name such as `part_id` gives; None for one that is none."""
    named = re.fullmatch(r"(.+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", name, re.DOTALL)
    return (named[1], float(named[2]), float(named[3])) if named else None


def seconds_text(seconds: float) -> str:
    """Seconds to the millisecond, without needless zeros: 12.5, 15."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def is_content_hash(text: str) -> bool:
    """Whether a text is what `content_hash` gives: 32 hex digits, and so safe as a file's name."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def probe(video: str) -> VideoRow:
    """Open, count and try one video (path or URI); raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself), or
    all pictures where packets do not give their number; compares decord with PyAV there to choose the reader. Of a very
    long video only the ends are decoded.
    """
    return _row(video, every=False)


def check(video: str) -> VideoRow:
    """`probe`, with every picture decoded: `checked` is set, `frames` is what came out, one after another.

    A header lies about its length where `declared_frames` is neither 0 nor `frames`. decord is chosen only where each
    of its pictures is PyAV's, read in order and by seeking. Raises `VideoError` as `probe` does, damage included.
    """
    return _row(video, every=True)


def _row(video: str, every: bool) -> VideoRow:
    with fetched(video) as path:
        entry = storage.describe(video)
        return VideoRow(
            video=video,
            **asdict(inspect(path, every)),
            bytes=os.path.getsize(path),
            modified=entry.modified if entry else 0.0,
            content_hash=content_hash(path, every),
            checked=every,
        )


class Manifest:
    """The rows of one data set: `videos` can be used, `refused` cannot. Of an id that comes twice the first stays.

    `dataset` names it where its layout is one of a data set (ucf101, hmdb51, kinetics), `fold` is the official split in use;
    None: nobody knows. Both are for the reader of results and no part of the fingerprint. `outdated`: read from a file that an
    earlier version wrote, whose choice of the reader (decord or PyAV) was wrong for some videos: its rows name PyAV, but it
    keeps its fingerprint, so that runs that began with it go on.
    """

    def __init__(self, rows: Iterable[VideoRow], dataset: str | None = None, fold: int | None = None) -> None:
        self.dataset, self.fold = dataset, fold
        self.outdated = False
        self._recorded: dict[str, Decoder] = {}
        unique: dict[str, VideoRow] = {}
        for row in rows:
            unique.setdefault(row.id, row)
        self.videos = [row for row in unique.values() if row.refused is None]
        self.refused = [row for row in unique.values() if row.refused is not None]

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def labels(self) -> list[str]:
        """The classes of the usable videos, sorted; unlabelled videos add none."""
        return sorted({row.label for row in self.videos if row.label is not None})

    @property
    def splits(self) -> dict[str, int]:
        """Usable videos in each split, by name."""
        return {
            name: sum(row.split == name for row in self.videos) for name in sorted({row.split for row in self.videos})
        }

    def select(self, split: str) -> list[VideoRow]:
        """The usable videos of one split ('all': of every split), in the manifest's order; `UserError` where there is none."""
        rows = [row for row in self.videos if split in (ALL, row.split)]
        if not rows:
            have = ", ".join(f"{name} ({count})" for name, count in self.splits.items()) or "no usable video at all"
            raise UserError(f"the manifest has no video in split '{split}'; it has: {have}")
        return rows

    def copies(self) -> list[list[VideoRow]]:
        """The usable videos that have the same content as others, together, in the manifest's order."""
        same: dict[tuple[str, int, int], list[VideoRow]] = {}
        for row in self.videos:
            if row.content_hash:
                same.setdefault((row.content_hash, row.first_frame, row.frames), []).append(row)
        return [rows for rows in same.values() if len(rows) > 1]

    def fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents, labels, splits, groups and order, wherever the files lie."""
        digest = blake2b(digest_size=16)
        for row in self.videos:
            # The group of a part is its file, wherever that lies.
            group = None if row.is_part and row.group == row.video else row.group
            known = (row.content_hash, row.frames, row.label, row.split, group, self._decoder(row))
            digest.update(repr((*known, row.first_frame) if row.is_part else known).encode())
        return digest.hexdigest()

    def times_fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents and times, which `clip.fps` counts by."""
        digest = blake2b(digest_size=16)
        for row in self.videos:
            digest.update(repr((row.content_hash, row.duration_seconds, row.fps)).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write one Parquet file, to a path or URI; it appears under its name only when whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [cells_of(row) | {"decoder": self._decoder(row)} for row in [*self.videos, *self.refused]]
        origin = {"dataset": self.dataset, "fold": self.fold} | ({} if self.outdated else {"rules": RULES})
        schema = _schema().with_metadata({_NAME: json.dumps(origin)})
        written = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), written, write_page_checksum=True)
        storage.write_bytes(str(path), written.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote; `UserError` for a missing file, another format, missing columns, unknown values."""
        import pyarrow as pa

        try:
            data = storage.read_bytes(str(path))
        except FileNotFoundError:
            raise UserError(f"manifest {path}: no such file; make one with 'vicc index DIR --out {path}'") from None
        except OSError as error:
            raise UserError(f"manifest {path}: cannot be read ({error.strerror or error})") from error
        try:
            table = storage.parquet_table(data)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"manifest {path}: not a Parquet file, or damaged; make one with 'vicc index DIR --out M.parquet'"
            ) from error
        for name, value in _ADDED.items():
            if name not in table.column_names:
                kind = _schema().field(name)
                table = table.append_column(kind, pa.array([value] * len(table), kind.type))
        missing = [f.name for f in fields(VideoRow) if f.name not in table.column_names]
        if missing:
            raise UserError(f"manifest {path}: missing columns {', '.join(missing)}; make it with 'vicc index'")
        try:
            rows = table.select([f.name for f in fields(VideoRow)]).cast(_schema()).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"manifest {path}: a column has another type than 'vicc index' writes: {error}") from error
        texts: dict[str, str] = {}  # of each file one, which all its parts share
        for row in rows:
            if re.fullmatch("[0-9a-f]*", row["content_hash"] or "") is None:
                raise UserError(
                    f"manifest {path}: content_hash {row['content_hash']!r} of {row['video']} is none (32 hex digits); make the "
                    "manifest with 'vicc index'"
                )
            if row["decoder"] not in DECODERS:
                raise UserError(
                    f"manifest {path}: decoder '{row['decoder']}' of {row['video']}; allowed: {', '.join(DECODERS)}"
                )
            for name in ("frame_table", "changes"):
                row[name] = texts.setdefault(row[name], row[name])
        dataset, fold, rules = _origin(table.schema)
        manifest = cls((VideoRow(**row) for row in rows), dataset, fold)
        if rules != RULES:
            manifest._distrust_decord()
        return manifest

    def _distrust_decord(self) -> None:
        self.outdated = True
        self._recorded = {row.video: row.decoder for row in self.videos if row.decoder == "decord"}
        self.videos = [replace(row, decoder="pyav") if row.video in self._recorded else row for row in self.videos]

    def _decoder(self, row: VideoRow) -> Decoder:
        """The reader as the file of an outdated manifest names it."""
        return self._recorded.get(row.video, row.decoder)


def cells_of(row: VideoRow) -> dict[str, Any]:
    """A row as {column: value}; `dataclasses.asdict` would copy a long frame table for each part of a file."""
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _origin(schema: pa.Schema) -> tuple[str | None, int | None, int | None]:
    """Data set, fold and rules of a file's metadata; None of files without them, such as those written before."""
    try:
        facts = json.loads((schema.metadata or {}).get(_NAME, b"{}"))
        dataset, fold, rules = facts.get("dataset"), facts.get("fold"), facts.get("rules")
    except (ValueError, AttributeError):
        return None, None, None
    return (
        dataset if isinstance(dataset, str) else None,
        fold if isinstance(fold, int) else None,
        rules if isinstance(rules, int) else None,
    )


def _schema() -> pa.Schema:
    """Column names and types; only label, group, refused, start and end may be empty."""
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "str | None": pa.string(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "float": pa.float64(),
        "float | None": pa.float64(),
        "Decoder": pa.string(),
    }
    return pa.schema([pa.field(f.name, kinds[str(f.type)], nullable="None" in str(f.type)) for f in fields(VideoRow)])


def count_videos(path: str | Path, split: str) -> int:
    """How many videos `Manifest.read(path).select(split)` has, from two columns; UserError as both of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        table = storage.parquet_table(storage.read_bytes(str(path))).select(["split", "refused"])
        used = pc.is_null(table["refused"])
        if split != ALL:
            used = pc.and_(used, pc.equal(table["split"], split))
        count = int(pc.sum(used).as_py() or 0)
    except (pa.ArrowException, OSError, KeyError):
        count = 0
    return count or len(Manifest.read(path).select(split))  # what is wrong with it is said there
