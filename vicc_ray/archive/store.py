"""An archive on disk: a folder or URI with one Parquet data set in parts, which any reader of Parquet opens as it is.

    ARCHIVE/part-000001.parquet    rows: id, video, start, end, label, group, vector (fixed-size list of float32 or float16)
            _archive.json          which encoders made the vectors, under which settings, and how many rows are planned
            _refused.json          {id: reason} of the rows that have no vector
            _encoders/NAME.safetensors   the encoders, so that an archive can be searched wherever it goes
            _videos.parquet        the manifest, where the source was no manifest

Names with `_` are passed over by readers of Parquet data sets. A part appears whole or not at all, so that whatever stops the
writer, an id is there once or not at all. Each part says in its metadata what made it, and the sum of its vectors.

Legend: n rows, d values of a vector.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    from vicc_ray.metrics.search import Rows

Features = NDArray[np.float32]

FORMAT = 1
COLUMNS = ("id", "video", "start", "end", "label", "group")
METADATA = b"vicc_archive"
AT_ONCE = 16  # footers that are read at once
GROUP_ROWS = 4096  # of a row group, which is what reading holds
_PART_NAME = re.compile(r"part-(\d{6})\.parquet")

Setting = str | int | float | bool | None


@dataclass(frozen=True)
class Maker:
    """An encoder of an archive: its name, the hash of its file, its stream, and how many values it gives."""

    name: str
    hash: str
    stream: str
    width: int


@dataclass(frozen=True)
class ArchiveInfo:
    """What made an archive's vectors: its encoders, whose vectors stand one after another, and the settings that count.

    `experiment`: settings that a query needs too, as `vicc_ray.config` dumps them. `settings`: what the vectors depend on.
    """

    encoders: tuple[Maker, ...]
    settings: Mapping[str, Setting]
    experiment: Mapping[str, Any]
    half: bool = False
    planned: int = 0
    source: str = ""
    format: int = FORMAT

    @property
    def width(self) -> int:
        """d."""
        return sum(maker.width for maker in self.encoders)

    @property
    def spans(self) -> list[slice]:
        """Where the values of each encoder stand in a vector."""
        ends = np.cumsum([maker.width for maker in self.encoders]).tolist()
        return [slice(end - maker.width, end) for end, maker in zip(ends, self.encoders, strict=True)]

    @property
    def key(self) -> str:
        """32 hex digits of all that a vector depends on."""
        facts = {"encoders": [asdict(maker) for maker in self.encoders], "settings": dict(self.settings)}
        text = json.dumps(facts | {"half": self.half}, sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def describe(self) -> str:
        """One line for the reader."""
        names = "+".join(maker.name for maker in self.encoders)
        return f"{names}, {self.width} values{', half precision' if self.half else ''}"


@dataclass(frozen=True)
class Part:
    """A part's file, and what its footer says: rows, and the sum of its vectors float64 [d]."""

    name: str
    number: int
    rows: int
    sums: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True)
class Segments:
    """Rows as they are written: columns of n values, `contents` (hashes of the files) and vectors float32 [n, d]."""

    ids: Sequence[str]
    videos: Sequence[str]
    starts: Sequence[float]
    ends: Sequence[float]
    labels: Sequence[str | None]
    groups: Sequence[str | None]
    contents: Sequence[str]
    vectors: Features

    def __len__(self) -> int:
        return len(self.ids)


class Archive:
    """An archive that exists; opened with `open_archive` or made with `create_archive`."""

    def __init__(self, folder: str, info: ArchiveInfo, parts: Sequence[Part]) -> None:
        self.folder, self.info, self.parts = folder, info, list(parts)

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    def table(self) -> pa.Table:
        """All columns but the vectors, in the order of the parts."""
        tables = [_read(self.folder, part.name, COLUMNS) for part in self.parts]
        return pa.concat_tables(tables) if tables else _schema(self.info).empty_table().select(COLUMNS)

    def rows(self) -> Rows:
        """The vectors [n, d] as a table that is read in blocks whenever it is gone through."""
        from vicc_ray.metrics.search import Rows  # torch, which a search for an id does not need

        return Rows(len(self), self.info.width, self._blocks)

    def mean(self) -> NDArray[np.float32]:
        """The mean of all vectors, float32 [d], from the parts' footers."""
        total = sum((part.sums for part in self.parts), np.zeros(self.info.width))
        return (total / max(len(self), 1)).astype(np.float32)

    def refused(self) -> dict[str, str]:
        """Id -> reason of the rows that have no vector."""
        try:
            found = json.loads(storage.read_bytes(storage.join(self.folder, "_refused.json")))
        except (FileNotFoundError, ValueError):
            return {}
        return {str(name): str(reason) for name, reason in found.items()}

    def encoder_file(self, name: str) -> str:
        """Path or URI of an encoder's file."""
        return storage.join(self.folder, "_encoders", f"{name}.safetensors")

    def write_part(self, rows: Segments, refused: Mapping[str, str]) -> None:
        """Add a part, and note the refused rows; none where there are no rows."""
        if len(rows):
            number = max((part.number for part in self.parts), default=0) + 1
            self.parts.append(_write(self.folder, number, self.info, rows))
        if refused or storage.exists(storage.join(self.folder, "_refused.json")):
            text = json.dumps(dict(refused), indent=1) + "\n"
            storage.write_bytes(storage.join(self.folder, "_refused.json"), text.encode())

    def ids_and_contents(self, part: Part) -> tuple[pa.ChunkedArray, pa.Array]:
        """The ids of a part's rows and the content hashes of their files, in order."""
        with _opened(self.folder, part.name) as file:
            ids = file.read(columns=["id"], use_threads=False)["id"]
            return ids, pa.array(_spread(_footer(self.folder, part.name, self.info, file)["contents"]), pa.string())

    def drop(self, place: int, outdated: NDArray[np.bool_]) -> None:
        """Take rows out of a part (by its place among the parts), bool [rows]."""
        part = self.parts[place]
        _, contents = self.ids_and_contents(part)
        keep = pa.array(~outdated)
        table = _read(self.folder, part.name, (*COLUMNS, "vector")).filter(keep)
        self.parts[place] = _put(self.folder, part.number, self.info, table, contents.filter(keep).to_pylist())

    def part_blocks(self, part: Part, size: int) -> Iterator[Features]:
        """The vectors of a part in order, float32 [up to `size`, d] at a time."""
        with _opened(self.folder, part.name) as file:
            for batch in file.iter_batches(batch_size=size, columns=["vector"], use_threads=False):
                yield vectors_of(batch.column("vector"))

    def _blocks(self, size: int) -> Iterator[Features]:
        for part in self.parts:
            yield from self.part_blocks(part, size)


def vectors_of(column: Any) -> Features:
    """float32 [n, d] of a column of vectors."""
    flat = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    vectors: Features = flat.astype(np.float32, copy=False)
    return vectors


def create_archive(folder: str, info: ArchiveInfo) -> Archive:
    """Make an archive, or open the one that is there to go on with it; `UserError` where its vectors are of another kind."""
    there = is_archive(folder)
    check_kind(folder, info)
    try:
        storage.write_bytes(_info_name(folder), (json.dumps(asdict(info), indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({_one_line(error)})") from error
    return Archive(folder, info, _parts(folder, info) if there else [])


def check_kind(folder: str, info: ArchiveInfo) -> None:
    """`UserError` where the folder holds an archive of vectors of another kind."""
    if not is_archive(folder):
        return
    found = _read_info(folder)
    if found.key != info.key:
        raise UserError(
            f"{folder}: holds other vectors than these settings give ({'; '.join(_differences(found, info))}); name another "
            "folder with --out"
        )


def open_archive(folder: str, rows_needed: bool = True) -> Archive:
    """The archive at a path or URI; `UserError` where there is none, a part is damaged, or (with `rows_needed`) it is empty."""
    info = _read_info(folder)
    archive = Archive(storage.absolute(folder), info, _parts(folder, info))
    if rows_needed and not len(archive):
        raise UserError(f"{folder}: the archive is empty; fill it with 'vicc embed'")
    return archive


def is_archive(folder: str) -> bool:
    """Whether a folder holds an archive."""
    return storage.exists(_info_name(folder))


def _parts(folder: str, info: ArchiveInfo) -> list[Part]:
    names = sorted(
        base
        for entry in storage.list_files(folder, recursive=False)
        if _PART_NAME.fullmatch(base := posixpath.basename(entry.name))
    )
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: _part(folder, name, info), names))


def _part(folder: str, name: str, info: ArchiveInfo) -> Part:
    with _opened(folder, name) as file:
        footer = _footer(folder, name, info, file)
        return Part(name, int(name[5:11]), int(file.metadata.num_rows), np.array(footer["sums"]))


def _footer(folder: str, name: str, info: ArchiveInfo, file: Any) -> dict[str, Any]:
    """What a part says of itself; UserError where it is of another archive."""
    footer: dict[str, Any] = json.loads((file.metadata.metadata or {}).get(METADATA, b"{}"))
    if footer.get("key") != info.key:
        raise UserError(
            f"{storage.join(folder, name)}: is of another archive (of other encoders or settings than {folder}); take it out"
        )
    return footer


class _Opened:
    """A part that is read in a block; UserError where it is damaged."""

    def __init__(self, folder: str, name: str) -> None:
        self.name = storage.join(folder, name)

    def __enter__(self) -> Any:
        try:
            system, path = storage.open_filesystem(self.name)
            self.file = pq.ParquetFile(path, filesystem=system, pre_buffer=False, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise UserError(self._damaged(error)) from error
        return self.file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.file.close()
        if isinstance(error, pa.ArrowException | OSError | KeyError | ValueError):
            raise UserError(self._damaged(error)) from error

    def _damaged(self, error: BaseException) -> str:
        return (
            f"{self.name}: is no whole part of an archive ({_one_line(error)}); delete it and run 'vicc embed' again, which makes "
            "what is missing"
        )


def _opened(folder: str, name: str) -> _Opened:
    return _Opened(folder, name)


def _read(folder: str, name: str, columns: Sequence[str]) -> pa.Table:
    with _opened(folder, name) as file:
        return file.read(columns=list(columns), use_threads=False).replace_schema_metadata(None)


def _write(folder: str, number: int, info: ArchiveInfo, rows: Segments) -> Part:
    if rows.vectors.shape != (len(rows), info.width):
        raise ValueError(f"vectors {rows.vectors.shape}: expected {(len(rows), info.width)}")
    kind = np.float16 if info.half else np.float32
    flat = pa.array(np.ascontiguousarray(rows.vectors, kind).reshape(-1))
    columns = [rows.ids, rows.videos, rows.starts, rows.ends, rows.labels, rows.groups]
    schema = _schema(info)
    arrays = [pa.array(list(column), kind.type) for column, kind in zip(columns, schema, strict=False)]
    table = pa.table([*arrays, pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)], schema)
    return _put(folder, number, info, table, rows.contents)


def _put(folder: str, number: int, info: ArchiveInfo, table: pa.Table, contents: Sequence[str]) -> Part:
    """Write a part whole, under its number."""
    column = table["vector"].combine_chunks()
    sums = vectors_of(column).sum(axis=0, dtype=np.float64)
    about = {"key": info.key, "encoders": [asdict(maker) for maker in info.encoders], "settings": dict(info.settings)}
    text = json.dumps(about | {"sums": sums.tolist(), "contents": _runs(contents)})
    sink = pa.BufferOutputStream()
    # Vectors neither repeat nor shrink: no dictionary, no compression.
    pq.write_table(
        table.replace_schema_metadata({METADATA: text}),
        sink,
        row_group_size=GROUP_ROWS,
        use_dictionary=["video", "label", "group"],
        compression=dict.fromkeys(COLUMNS, "zstd") | {"vector.list.element": "none"},
        write_page_checksum=True,
    )
    name = f"part-{number:06d}.parquet"
    storage.write_bytes(storage.join(folder, name), sink.getvalue())
    return Part(name, number, len(table), sums)


def _runs(values: Sequence[str]) -> list[tuple[str, int]]:
    """Values that repeat, as the parts of one file have its content, as (value, times)."""
    return [(value, len(list(same))) for value, same in groupby(values)]


def _spread(runs: Sequence[Sequence[Any]]) -> Iterator[str]:
    return (str(value) for value, times in runs for _ in range(times))


def _schema(info: ArchiveInfo) -> pa.Schema:
    text, number = pa.string(), pa.float64()
    kinds = {"id": text, "video": text, "start": number, "end": number, "label": text, "group": text}
    # Values that cannot be null are read a quarter faster.
    value = pa.field("element", pa.float16() if info.half else pa.float32(), nullable=False)
    return pa.schema([*kinds.items(), ("vector", pa.list_(value, info.width))])


def _info_name(folder: str) -> str:
    return storage.join(folder, "_archive.json")


def _read_info(folder: str) -> ArchiveInfo:
    try:
        facts = json.loads(storage.read_bytes(_info_name(folder)))
        if facts.get("format") != FORMAT:
            raise UserError(f"{folder}: is an archive of format {facts.get('format')}; this version reads {FORMAT}")
        return ArchiveInfo(**facts | {"encoders": tuple(Maker(**maker) for maker in facts["encoders"])})
    except FileNotFoundError:
        raise UserError(
            f"{folder}: is no archive (no _archive.json); make one with 'vicc embed RUN VIDEOS --out {folder}'"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({_one_line(error)})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its _archive.json is damaged ({_one_line(error)})") from error


def _differences(found: ArchiveInfo, wanted: ArchiveInfo) -> list[str]:
    """What two archives differ in, for the reader."""
    pairs: list[tuple[str, Any, Any]] = [
        ("encoders", [maker.name for maker in found.encoders], [maker.name for maker in wanted.encoders]),
        ("half precision", found.half, wanted.half),
        *((name, found.settings.get(name), value) for name, value in wanted.settings.items()),
    ]
    named = [f"{name}: {there} there, {here} here" for name, there, here in pairs if there != here]
    return named or ["the encoder's weights are others"]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
