"""Where each entry of a packed store lies: shards of some 256 MB, and beside each a Parquet file with one row an entry.

    STORE/shards/rgb-3f2a....shard       entries one after another, behind a line that names the store and the shard
          index/rgb-3f2a....parquet      content_hash binary [16], first_frame, frames, offset, head, bytes, video

The index file of a shard is written last: a shard without one is what an interrupted writer left, and nobody reads it. All of
an index is held as columns of numbers, some 50 bytes an entry and stream.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.config import Decoded
from vicc_ray.data.manifest import VideoRow, is_content_hash
from vicc_ray.data.rows import Rows
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

METADATA = b"vicc_shard"
COLUMNS = ("content_hash", "first_frame", "frames", "offset", "head", "bytes")
AT_ONCE = 16  # index files that are read at once
AT_A_TIME = 1 << 18  # rows that are looked up


@dataclass(frozen=True)
class Location:
    """Where an entry is: its shard, its bytes there (`head` of them before the packets), and the frames of its file in it."""

    shard: str
    offset: int
    head: int
    bytes: int
    first_frame: int
    frames: int


@dataclass(frozen=True)
class Part:
    """The index of one shard: the shard's name, its bytes, its entries as a table of `COLUMNS`, with `video` or without."""

    shard: str
    shard_bytes: int
    table: Any


class Index:
    """The entries of one stream of a store, sorted by content; columns of n numbers."""

    def __init__(self, parts: Sequence[Part]) -> None:
        import pyarrow as pa

        self.shards = [part.shard for part in parts]
        self.shard_bytes = [part.shard_bytes for part in parts]
        tables = [part.table.select(COLUMNS) for part in parts]
        table = pa.concat_tables(tables) if tables else _schema().empty_table().select(COLUMNS)
        digests = np.frombuffer(b"".join(_buffers(table)), ">u8").reshape(-1, 2)
        first = table["first_frame"].to_numpy().astype(np.int32)
        high, low = digests[:, 0].astype(np.uint64), digests[:, 1].astype(np.uint64)
        order = np.argsort(high)
        if (high[order[1:]] == high[order[:-1]]).any():  # files with several entries
            order = np.lexsort((first, low, high))
        self.high, self.low = high[order], low[order]
        self.first = first[order]
        self.frames = table["frames"].to_numpy().astype(np.int32)[order]
        self.offset = table["offset"].to_numpy()[order]
        self.head = table["head"].to_numpy().astype(np.int32)[order]
        self.bytes = table["bytes"].to_numpy()[order]
        counts = [len(one) for one in tables]
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]

    def __len__(self) -> int:
        return len(self.high)

    def find(self, row: VideoRow) -> Location | None:
        """The entry that covers all frames of a row; None where there is none."""
        check_hash(row)
        digests = np.frombuffer(bytes.fromhex(row.content_hash), ">u8").reshape(1, 2).astype(np.uint64)
        first = np.array([row.first_frame], np.int64)
        place = int(self._places(digests, first, first + row.frames)[0])
        return None if place < 0 else self.location(place)

    def location(self, place: int) -> Location:
        """Of the entry with this number."""
        return Location(
            self.shards[self.shard[place]],
            int(self.offset[place]),
            int(self.head[place]),
            int(self.bytes[place]),
            int(self.first[place]),
            int(self.frames[place]),
        )

    def covers(self, rows: Rows) -> NDArray[np.bool_]:
        """Of which rows all frames are here: bool [rows]."""
        covered = np.zeros(len(rows), bool)
        for start in range(0, len(rows), AT_A_TIME):
            part = rows[start : start + AT_A_TIME]
            first = part.numbers("first_frame")
            places = self._places(digests_of(part), first, first + part.numbers("frames"))
            covered[start : start + len(part)] = places >= 0
        return covered

    def _places(
        self, digests: NDArray[np.uint64], first: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The number of an entry that covers the frames from `first` to before `stop` of each content, -1: none. int64 [rows]."""
        left = np.searchsorted(self.high, digests[:, 0], "left")
        right = np.searchsorted(self.high, digests[:, 0], "right")
        place = self._last_before(left, right, digests[:, 1], first) - 1
        places = np.full(len(first), -1, np.int64)
        todo = np.flatnonzero(place >= left)
        # Nearly always it is that one; where entries overlap, one that begins earlier may reach further.
        while len(todo):
            at = place[todo]
            same = self.low[at] == digests[todo, 1]
            fits = same & (self.first[at].astype(np.int64) + self.frames[at] >= stop[todo])
            places[todo[fits]] = at[fits]
            place[todo] -= 1
            todo = todo[same & ~fits & (place[todo] >= left[todo])]
        return places

    def _last_before(
        self,
        left: NDArray[np.int64],
        right: NDArray[np.int64],
        digest: NDArray[np.uint64],
        first: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Behind the last entry from `left` to before `right` of a lower half `digest` of the content hash, or of that one and
        beginning at `first` or earlier: bisection, int64 [rows]."""
        low, high = left.copy(), right.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            at = np.minimum(middle, len(self) - 1)
            early = open_ & ((self.low[at] < digest) | ((self.low[at] == digest) & (self.first[at] <= first)))
            low = np.where(early, middle + 1, low)
            high = np.where(open_ & ~early, middle, high)
        return low


def digests_of(rows: Rows) -> NDArray[np.uint64]:
    """The rows' content hashes as two numbers each, uint64 [rows, 2]; `UserError` where a row has none."""
    import pyarrow.compute as pc

    hashes = rows.texts("content_hash")
    right = np.asarray(pc.match_substring_regex(hashes, r"\A[0-9a-f]{32}\z"), bool)
    if not right.all():
        check_hash(rows[int(np.argmin(right))])
    return np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), ">u8").reshape(-1, 2).astype(np.uint64)


def check_hash(row: VideoRow) -> None:
    """`UserError` for a content hash that is none: it comes from a file and becomes a path, which could lead out of the store."""
    if not is_content_hash(row.content_hash):
        raise UserError(
            f"{row.video}: its row has no content hash of 32 hex digits; make the manifest with 'vicc index'"
        )


def _buffers(table: Any) -> Iterable[bytes]:
    for chunk in table["content_hash"].chunks:
        size = chunk.type.byte_width
        yield chunk.buffers()[1].to_pybytes()[chunk.offset * size : (chunk.offset + len(chunk)) * size]


def shard_name(folder: str, shard: str) -> str:
    """The path or URI of a shard."""
    return storage.join(folder, "shards", f"{shard}.shard")


def _index_name(folder: str, shard: str) -> str:
    return storage.join(folder, "index", f"{shard}.parquet")


def list_shards(folder: str) -> dict[str, storage.FileEntry]:
    """The shards that are there."""
    return {_stem(entry.name): entry for entry in _listed(storage.join(folder, "shards"))}


def read_parts(folder: str, stream: Decoded, store: str, names: bool = False) -> list[Part]:
    """The index files of one stream, with the videos' `names` or without; `UserError` where one is damaged or another store's."""
    files = [entry.name for entry in _listed(storage.join(folder, "index")) if _stem(entry.name).startswith(stream)]
    columns = (*COLUMNS, "video") if names else COLUMNS
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="index") as pool:
        return list(pool.map(lambda file: _read_part(file, store, columns), files))


def _listed(folder: str) -> list[storage.FileEntry]:
    return list(storage.list_files(folder, recursive=False)) if storage.exists(folder) else []


def _stem(name: str) -> str:
    return posixpath.basename(name).rpartition(".")[0]


def _read_part(name: str, store: str, columns: Sequence[str]) -> Part:
    import pyarrow as pa

    try:
        table = storage.parquet_table(storage.read_bytes(name), columns)
        facts = json.loads(table.schema.metadata[METADATA])
        due = pa.schema([_schema().field(column) for column in columns])
        if not table.schema.equals(due):
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")
        part = Part(_stem(name), int(facts["bytes"]), table)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{name}: cannot be read as the index of a shard ({' '.join(str(error).split())[:150]}); remove this file and run "
            "'vicc pack' again, which packs what it held"
        ) from error
    if facts.get("store") != store:
        raise UserError(f"{name}: is the index of another store's shard; remove it and run 'vicc pack' again")
    return part


def write_part(folder: str, part: Part, store: str) -> None:
    """Write the index of a shard that is there: from now on its entries are found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = json.dumps({"store": store, "bytes": part.shard_bytes})
    written = pa.BufferOutputStream()
    table = part.table.replace_schema_metadata({METADATA: facts})
    pq.write_table(table, written, write_page_checksum=True)
    storage.write_bytes(_index_name(folder, part.shard), written.getvalue())


def remove_shard(folder: str, shard: str) -> None:
    """Remove a shard and its index, in the order that leaves no index without its shard."""
    storage.remove(_index_name(folder, shard))
    storage.remove(shard_name(folder, shard))


def part_table(columns: dict[str, list[Any]]) -> Any:
    """A table of `COLUMNS` and `video` from lists."""
    import pyarrow as pa

    return pa.table(columns, schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {
        "content_hash": pa.binary(16),
        "first_frame": pa.int64(),
        "frames": pa.int64(),
        "offset": pa.int64(),
        "head": pa.int64(),
        "bytes": pa.int64(),
        "video": pa.string(),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
