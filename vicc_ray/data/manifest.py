"""The manifest: one row a video, in one Parquet file. What is there, how to read it, and what was refused and why.

`probe` asks the file itself, not its header. `Manifest` holds the rows, the refused ones apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from vicc_ray import storage
from vicc_ray.data.decode import DECODERS, Decoder, VideoError, fetched
from vicc_ray.data.inspection import inspect
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "VideoError", "VideoRow", "check", "content_hash", "probe"]

# Names every split together, wherever one is asked for.
ALL = "all"
_NAME = b"vicc_ray"  # of the entry of the Parquet file's metadata


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video. Sizes are pixels of the upright picture; `rotation` is clockwise degrees already counted in them.

    `frames` counts pictures really there, `declared_frames` is what the header says (0: nothing). `fps` is their mean
    rate and `duration_seconds` the time they cover; without `constant_rate` pictures come at uneven times. `checked`:
    every picture was decoded once. `modified` (seconds) and `bytes` tell whether the file is the one that was probed.
    `refused` is the reason why the video cannot be used, or None; a refused row may know nothing but its name.
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


def content_hash(path: str, edge: int = 1 << 20) -> str:
    """blake2b-128 (hex) of the file's size with its first and last MiB; of all of it up to 2 MiB."""
    digest = blake2b(digest_size=16)
    size = os.path.getsize(path)
    digest.update(f"{size}:".encode())
    with open(path, "rb") as file:
        digest.update(file.read(edge))
        if size > edge:
            file.seek(max(edge, size - edge))
            digest.update(file.read())
    return digest.hexdigest()


def probe(video: str) -> VideoRow:
    """Open, count and try one video (path or URI); raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself), or
    all pictures where packets do not tell their number; compares decord with PyAV there to choose the reader. Of a very
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
            content_hash=content_hash(path),
            checked=every,
        )


class Manifest:
    """The rows of one data set: `videos` can be used, `refused` cannot. Of a path that comes twice the first stays.

    `dataset` names it where its layout told (ucf101, hmdb51, kinetics), `fold` is the official split in use; None: nobody
    knows. Both are for the reader of results and no part of the fingerprint.
    """

    def __init__(self, rows: Iterable[VideoRow], dataset: str | None = None, fold: int | None = None) -> None:
        self.dataset, self.fold = dataset, fold
        unique: dict[str, VideoRow] = {}
        for row in rows:
            unique.setdefault(row.video, row)
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

    def fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents, labels, splits, groups and order, wherever the files lie."""
        digest = blake2b(digest_size=16)
        for row in self.videos:
            digest.update(repr((row.content_hash, row.frames, row.label, row.split, row.group, row.decoder)).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write one Parquet file, to a path or URI; it appears under its name only when whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = [asdict(row) for row in [*self.videos, *self.refused]]
        schema = _schema().with_metadata({_NAME: json.dumps({"dataset": self.dataset, "fold": self.fold})})
        written = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), written, write_page_checksum=True)
        storage.write_bytes(str(path), written.getvalue())

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote; `UserError` for a missing file, another format, missing columns, unknown values."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            data = storage.read_bytes(str(path))
        except FileNotFoundError:
            raise UserError(f"manifest {path}: no such file; make one with 'vicc index DIR --out {path}'") from None
        except OSError as error:
            raise UserError(f"manifest {path}: cannot be read ({error.strerror or error})") from error
        try:
            table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"manifest {path}: not a Parquet file, or damaged; make one with 'vicc index DIR --out M.parquet'"
            ) from error
        missing = [f.name for f in fields(VideoRow) if f.name not in table.column_names]
        if missing:
            raise UserError(f"manifest {path}: missing columns {', '.join(missing)}; make it with 'vicc index'")
        try:
            rows = table.select([f.name for f in fields(VideoRow)]).cast(_schema()).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"manifest {path}: a column has another type than 'vicc index' writes: {error}") from error
        for row in rows:
            if row["decoder"] not in DECODERS:
                raise UserError(
                    f"manifest {path}: decoder '{row['decoder']}' of {row['video']}; allowed: {', '.join(DECODERS)}"
                )
        return cls((VideoRow(**row) for row in rows), *_origin(table.schema))


def _origin(schema: pa.Schema) -> tuple[str | None, int | None]:
    """Data set and fold of a file's metadata; None of files that tell nothing, such as those written before."""
    try:
        told = json.loads((schema.metadata or {}).get(_NAME, b"{}"))
        dataset, fold = told.get("dataset"), told.get("fold")
    except (ValueError, AttributeError):
        return None, None
    return dataset if isinstance(dataset, str) else None, fold if isinstance(fold, int) else None


def _schema() -> pa.Schema:
    """Column names and types; only label, group and refused may be empty."""
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "str | None": pa.string(),
        "int": pa.int64(),
        "bool": pa.bool_(),
        "float": pa.float64(),
        "Decoder": pa.string(),
    }
    return pa.schema([pa.field(f.name, kinds[str(f.type)], nullable="None" in str(f.type)) for f in fields(VideoRow)])
