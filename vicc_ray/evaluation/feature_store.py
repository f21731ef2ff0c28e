"""Features of videos as Parquet files: id, label, group, split, windows, vector, and what they were made from.

A file appears whole or not at all, by path or URI, and says in its metadata which encoder, data and settings made it;
while these are the same it is used again (`matches`). Every page has a checksum and so has the metadata: what is read is
what was written, or an error. Vectors can be read in blocks, so that a gallery need not fit into memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from vicc_ray import storage
from vicc_ray.errors import UserError
from vicc_ray.metrics.search import Features, Rows

METADATA = b"vicc_features"
REFUSED = b"vicc_refused"  # known only when the last row is written, so it stands in the footer
CHECK = b"vicc_check"  # hash of both and the number of rows, as the checksums of pages do not cover the footer
GROUP_BYTES = 32 << 20  # vectors of one row group, which is what reading holds
COLUMNS = ("id", "label", "group", "split", "windows")
LISTS = ("ids", "labels", "groups", "splits", "windows")  # the same, as `VideoFeatures` calls them
PART_ROWS = 4096  # rows held at once where a file is read to be checked or written anew


@dataclass(frozen=True)
class Source:
    """What features were made from.

    Args:
        encoder: its name, such as RGB-2.
        encoder_hash: of its file's bytes (`file_hash`).
        manifest: the manifest's fingerprint.
        protocol: settings that change a feature: clip frames, stride, size, windows, style.
    """

    encoder: str
    encoder_hash: str
    manifest: str
    protocol: Mapping[str, str | int | float | bool | None]

    @property
    def key(self) -> str:
        """blake2b-128 (hex) of all of it; independent of the order of the settings."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class VideoFeatures:
    """One row a video: id (its path), label, group (None: unknown), split, windows averaged, vectors float32 [n, d]."""

    ids: Sequence[str]
    labels: Sequence[str | None]
    groups: Sequence[str | None]
    splits: Sequence[str]
    windows: Sequence[int]
    vectors: Features

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise ValueError(f"vectors: {self.vectors.dtype} {self.vectors.shape}; expected float32 [n, d]")
        sizes = [len(column) for column in (self.ids, self.labels, self.groups, self.splits, self.windows)]
        if set(sizes) != {len(self.vectors)}:
            raise ValueError(f"columns of {sizes} rows beside {len(self.vectors)} vectors")

    def __len__(self) -> int:
        return len(self.vectors)

    def select(self, split: str) -> VideoFeatures:
        """The rows of a split, in order; UserError where there are none."""
        rows = [number for number, name in enumerate(self.splits) if name == split]
        _check_split(len(rows), split, self.splits, "features")
        return self.take(rows)

    def take(self, rows: Sequence[int]) -> VideoFeatures:
        """The rows at these places, in this order."""
        columns = {name: [getattr(self, name)[row] for row in rows] for name in LISTS}
        return VideoFeatures(**columns, vectors=self.vectors[np.asarray(rows, np.int64)])


def write_features(path: str, source: Source, table: VideoFeatures | Iterable[VideoFeatures]) -> int:
    """Write a table, or parts of one as they come; the number of rows. As `writing_features`."""
    with writing_features(path, source) as writer:
        for part in [table] if isinstance(table, VideoFeatures) else table:
            writer.add(part)
    return writer.rows


@contextmanager
def writing_features(path: str, source: Source) -> Iterator[FeatureWriter]:
    """A file that is filled part by part while the block runs.

    The file is whole or not there, and an earlier one stays until the block ends. Raises UserError for no rows, values
    that are not finite and a video that comes twice.
    """
    local = storage.local_path(path)
    with storage.whole_file(Path(local)) if local is not None else _uploaded(path) as partial:
        writer = FeatureWriter(partial, path, source)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


@contextmanager
def completing_features(path: str, source: Source, order: Sequence[str]) -> Iterator[FeaturePatch]:
    """Adds rows that a stored file lacks, where `order` (ids of all videos of the side) has them; as `writing_features`.

    The file is written anew with the videos that still have no row in its list of refused ones. Where no row comes, it
    stays as it is.
    """
    patch = FeaturePatch()
    yield patch
    if not patch.rows:
        return
    place = {video: number for number, video in enumerate(order)}
    with writing_features(path, source) as writer:
        for part in _merged(_stored_parts(path), patch.parts, place):
            writer.add(part)
        for video, reason in patch.refused:
            writer.refuse(video, reason)


class FeaturePatch:
    """Rows that are to be added to a stored file, and videos that still cannot be read; made by `completing_features`."""

    def __init__(self) -> None:
        self.parts: list[VideoFeatures] = []
        self.refused: list[tuple[str, str]] = []

    @property
    def rows(self) -> int:
        """Rows so far."""
        return sum(map(len, self.parts))

    def add(self, part: VideoFeatures) -> None:
        """Add rows."""
        self.parts.append(part)

    def refuse(self, video: str, reason: str) -> None:
        """Remember a video that has no row, and why."""
        self.refused.append((video, reason))


def _stored_parts(path: str) -> Iterator[VideoFeatures]:
    """A file's rows, some at a time."""
    columns, start = read_columns(path), 0
    for vectors in stream_blocks(path, PART_ROWS):
        rows = slice(start, start + len(vectors))
        yield VideoFeatures(**{name: column[rows] for name, column in columns.items()}, vectors=vectors)
        start += len(vectors)


def _merged(
    stored: Iterable[VideoFeatures], added: Sequence[VideoFeatures], place: Mapping[str, int]
) -> Iterator[VideoFeatures]:
    """Rows of both in the order of their places, in which each of the two is already."""
    new = _joined(added)
    done = 0
    for part in stored:
        last = place[part.ids[-1]]
        ready = sum(place[video] < last for video in new.ids)
        both = _joined([part, new.take(range(done, ready))])
        done = ready
        yield both.take(sorted(range(len(both)), key=lambda row: place[both.ids[row]]))
    yield new.take(range(done, len(new)))


def _joined(parts: Sequence[VideoFeatures]) -> VideoFeatures:
    """One after another."""
    columns = {name: [value for part in parts for value in getattr(part, name)] for name in LISTS}
    return VideoFeatures(**columns, vectors=np.concatenate([part.vectors for part in parts]))


@contextmanager
def _uploaded(path: str) -> Iterator[Path]:
    """A local file that goes into another store when the block ends well."""
    with tempfile.TemporaryDirectory(prefix="vicc-features-") as folder:
        copy = Path(folder) / "features.parquet"
        yield copy
        storage.upload(copy, path)


class FeatureWriter:
    """Writes the rows of one file in row groups of at most `GROUP_BYTES`; made by `writing_features`."""

    def __init__(self, file: Path, name: str, source: Source) -> None:
        self.file, self.name, self.source = file, name, source
        self.refused: list[tuple[str, str]] = []
        self._seen: set[str] = set()
        self._width = 0
        self._schema: Any = None
        self._writer: Any = None

    @property
    def rows(self) -> int:
        """Rows so far."""
        return len(self._seen)

    def add(self, part: VideoFeatures) -> None:
        """Add rows; all parts of a file have one width."""
        if not len(part):
            return
        if self._writer is None:
            self._open(part.vectors.shape[1])
        _check(part, self.name, self._width, self._seen)
        size = max(1, GROUP_BYTES // (4 * self._width))
        self._writer.write_table(_arrow(part, self._schema), row_group_size=size)

    def refuse(self, video: str, reason: str) -> None:
        """Remember a video that has no row, and why."""
        self.refused.append((video, reason))

    def finish(self) -> None:
        """Called when all rows are there."""
        if self._writer is None:
            detail = (
                f" (the first of {len(self.refused)} refused: {': '.join(self.refused[0])})" if self.refused else ""
            )
            raise UserError(f"{self.name}: there are no features to write; is the split empty?{detail}")
        refused = json.dumps(self.refused).encode()
        about = self._schema.metadata[METADATA]
        self._writer.add_key_value_metadata({REFUSED: refused, CHECK: _footer_hash(about, refused, self.rows)})
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, width: int) -> None:
        self._width = width
        text = json.dumps({"key": self.source.key, "source": asdict(self.source)})
        self._schema = _schema(width).with_metadata({METADATA: text.encode()})
        # Vectors neither repeat nor shrink: no dictionary, no compression.
        compression = dict.fromkeys(COLUMNS, "zstd") | {"vector.list.element": "none"}
        self._writer = pq.ParquetWriter(
            self.file,
            self._schema,
            use_dictionary=["label", "group", "split"],
            compression=compression,
            write_page_checksum=True,
        )


def _check(part: VideoFeatures, name: str, width: int, seen: set[str]) -> None:
    if part.vectors.shape[1] != width:
        raise ValueError(f"{name}: vectors of {part.vectors.shape[1]} values after some of {width}")
    broken = np.flatnonzero(~np.isfinite(part.vectors).all(axis=1))
    if len(broken):
        raise UserError(
            f"{name}: features of {len(broken)} videos hold NaN or infinite values (first: {part.ids[broken[0]]}); "
            "the checkpoint's weights or the videos are broken"
        )
    for video in part.ids:
        if video in seen:
            raise UserError(f"{name}: video {video} comes twice; a video has one row")
        seen.add(video)


def _schema(width: int) -> Any:
    text, vector = pa.string(), pa.list_(pa.float32(), width)
    columns = [
        ("id", text),
        ("label", text),
        ("group", text),
        ("split", text),
        ("windows", pa.int32()),
        ("vector", vector),
    ]
    return pa.schema(columns)


def _arrow(part: VideoFeatures, schema: Any) -> Any:
    flat = pa.array(np.ascontiguousarray(part.vectors).reshape(-1))
    vectors = pa.FixedSizeListArray.from_arrays(flat, part.vectors.shape[1])
    columns = [part.ids, part.labels, part.groups, part.splits, part.windows]
    return pa.table(
        [*(pa.array(list(column), kind.type) for column, kind in zip(columns, schema, strict=False)), vectors], schema
    )


def matches(path: str, key: str) -> bool:
    """Whether there is a whole, undamaged file of features made from just this (`Source.key`); reads all of it."""
    try:
        return read_source(path, whole=True).key == key
    except UserError:
        return False


def read_source(path: str, whole: bool = False) -> Source:
    """What the features of a file were made from; UserError where it is none or, with `whole`, damaged anywhere."""
    with _opened(path) as file:
        source = Source(**_about(file, path)["source"])
        if whole:
            # Reading compares each page with its checksum, and (other than `iter_batches`) columns with one another.
            rows = sum(len(file.read_row_group(number, use_threads=False)) for number in range(file.num_row_groups))
            if rows != file.metadata.num_rows:
                raise ValueError(f"{rows} of {file.metadata.num_rows} rows")
        return source


def read_refused(path: str) -> tuple[tuple[str, str], ...]:
    """The videos (with reasons) that could not be read when a file of features was made."""
    with _opened(path) as file:
        _about(file, path)
        return tuple((str(video), str(reason)) for video, reason in json.loads(file.metadata.metadata[REFUSED]))


def read_features(path: str, split: str | None = None) -> VideoFeatures:
    """A whole table, or the rows of a split, in memory; UserError for a missing or foreign file and an empty split."""
    columns = read_columns(path, split)
    return VideoFeatures(**columns, vectors=feature_rows(path, split).whole())


def read_columns(path: str, split: str | None = None) -> dict[str, list[Any]]:
    """All but the vectors: {"ids", "labels", "groups", "splits", "windows"}, for a search that streams the vectors."""
    with _opened(path) as file:
        _about(file, path)
        table = file.read(columns=list(COLUMNS), use_threads=False)
    splits = table["split"].to_pylist()
    if split is not None:
        table = table.filter(pa.array([name == split for name in splits], pa.bool_()))
        _check_split(len(table), split, splits, path)
    return {plural: table[name].to_pylist() for plural, name in zip(LISTS, COLUMNS, strict=True)}


def feature_rows(path: str, split: str | None = None) -> Rows:
    """The vectors of a file (of a split) as a table that is read in blocks whenever it is gone through."""
    with _opened(path) as file:
        _about(file, path)
        width = int(file.schema_arrow.field("vector").type.list_size)
        count = int(file.metadata.num_rows)
        if split is not None:
            splits = file.read(columns=["split"], use_threads=False)["split"].to_pylist()
            count = splits.count(split)
            _check_split(count, split, splits, path)
    return Rows(count, width, lambda size: stream_blocks(path, size, split))


def stream_blocks(path: str, rows: int, split: str | None = None) -> Iterator[Features]:
    """The vectors in order, float32 [up to `rows`, d] at a time; a row group is held at once, not the table."""
    with _opened(path) as file:
        _about(file, path)
        columns = ["vector"] if split is None else ["split", "vector"]
        for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
            vectors = _vectors(batch.column("vector"))
            yield vectors if split is None else vectors[[name == split for name in batch.column("split").to_pylist()]]


def _vectors(column: Any) -> Features:
    flat: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(-1, column.type.list_size)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A Parquet file; UserError where there is none, it is none or what is read of it in the block is damaged.

    No read-ahead: that would hold it all.
    """
    system, name = storage.open_filesystem(path)
    try:
        with pq.ParquetFile(
            name, filesystem=system, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of features; extract them first") from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is no whole file of features ({' '.join(str(error).split())[:200]})") from error


def _about(file: Any, path: str) -> dict[str, Any]:
    footer = file.metadata.metadata or {}
    if METADATA not in footer:
        raise UserError(f"{path}: is a Parquet file, but not one of features written by this system")
    if CHECK not in footer:
        raise UserError(f"{path}: was written by an earlier version, without checksums")
    vector = file.schema_arrow.field(file.schema_arrow.get_field_index("vector")).type
    right = _footer_hash(footer[METADATA], footer.get(REFUSED, b""), file.metadata.num_rows)
    known = pa.types.is_fixed_size_list(vector) and file.schema_arrow.equals(_schema(vector.list_size))
    if footer[CHECK] != right or not known:
        raise UserError(f"{path}: is no whole file of features (its metadata is damaged)")
    about: dict[str, Any] = json.loads(footer[METADATA])
    return about


def _footer_hash(about: bytes, refused: bytes, rows: int) -> bytes:
    return blake2b(b"%d\0%b\0%b" % (rows, about, refused), digest_size=16).hexdigest().encode()


def _check_split(rows: int, split: str, there: Sequence[str], name: str) -> None:
    if not rows:
        known = ", ".join(sorted(set(there))) or "none"
        raise UserError(f"{name}: split '{split}' has no videos; splits there: {known}")
