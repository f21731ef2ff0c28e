"""Pictures and flow of a packed store, read at random: of each clip only the stretches that it lies in.

A local shard is read with `pread`, one in an object store by ranges; an entry of up to `WHOLE` bytes comes in one request. What
is needed of several entries is fetched at once, so that a store far away costs one round trip, not one a clip.

Legend: m frames; pictures are uint8 RGB [H, W, 3], fields uint8 [H, W, 2].
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np

from vicc_ray import storage
from vicc_ray.config import CHANNELS, Decoded
from vicc_ray.data.decode import VideoError
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store import earlier
from vicc_ray.data.store.entry import GOP, Damaged, EntryDecoder, Head, Numbers, Put, Seconds, read_head
from vicc_ray.data.store.index import Location, shard_name
from vicc_ray.data.store.store import NAMES, PackedStore

SHARD_MAGIC = b"VICCSHD1"
SHARD_HEAD = 96  # bytes before the first entry
WHOLE = 1 << 20  # bytes of an entry that is fetched whole
APART = 256 << 10  # bytes between two stretches up to which they come in one request
OPEN_SHARDS = 64
HEADS = 256  # of long entries that are kept
AT_ONCE = 16


def shard_head(store: str, shard: str) -> bytes:
    """What a shard begins with: which store's it is, and which one."""
    return (SHARD_MAGIC + f"{store} {shard}\n".encode()).ljust(SHARD_HEAD, b"\0")


class ShardFiles:
    """The shards of a store as bytes; the last ones stay open."""

    def __init__(self, store: PackedStore) -> None:
        self.folder, self.id = store.folder, store.header.id
        self.local = storage.local_path(store.folder) is not None
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()  # of remote shards several are read at once

    def read(self, shard: str, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; `Damaged` where the shard is missing, another's, or shorter."""
        try:
            file = self._opened(shard)
            data = os.pread(file, stop - start, start) if self.local else file.read_at(stop - start, start)
        except FileNotFoundError as error:
            raise Damaged("it is missing") from error
        except OSError as error:
            raise Damaged(f"it cannot be read: {' '.join(str(error).split())[:150]}") from error
        if len(data) != stop - start:
            raise Damaged("it is cut short")
        return bytes(data)

    def close(self) -> None:
        """Close all of them."""
        while self._open:
            self._close(self._open.popitem()[1])

    def _close(self, file: Any) -> None:
        if self.local:
            os.close(file)
        else:
            file.close()

    def _opened(self, shard: str) -> Any:
        with self._lock:
            found = self._open.get(shard)
            if found is not None:
                self._open.move_to_end(shard)
                return found
        name = shard_name(self.folder, shard)
        if self.local:
            file: Any = os.open(storage.local_path(name) or name, os.O_RDONLY)
            head = os.pread(file, SHARD_HEAD, 0)
        else:
            system, path = storage.open_filesystem(name)
            file = system.open_input_file(path)
            head = file.read_at(SHARD_HEAD, 0)
        if bytes(head) != shard_head(self.id, shard):
            self._close(file)
            raise Damaged("it is another store's")
        with self._lock:
            self._open[shard] = file
            last = self._open.popitem(last=False)[1] if len(self._open) > OPEN_SHARDS else None
        if last is not None and self.local:  # another thread may read a remote one, which closes with its last user
            self._close(last)
        return file


@dataclass(frozen=True)
class Wanted:
    """The frames `numbers` [m] (of the file, ascending, each once) of a row's stream; of flow the fields that lead from them."""

    row: VideoRow
    stream: Decoded
    numbers: Numbers


@dataclass(frozen=True)
class Fetched:
    """An entry's head and those of its bytes that are wanted, as (place of the first one, bytes)."""

    where: Location
    head: Head
    pieces: tuple[tuple[int, bytes], ...]

    def data(self, start: int, stop: int) -> memoryview:
        """The entry's bytes from `start` to `stop`."""
        for begin, piece in self.pieces:
            if begin <= start and stop <= begin + len(piece):
                return memoryview(piece)[start - begin : stop - begin]
        return memoryview(b"")


class EntryReader:
    """Reads the entries of a store; for one thread. Made once a process, as it keeps shards open and decoders ready."""

    def __init__(self, store: PackedStore) -> None:
        self.store, self.files = store, ShardFiles(store)
        self._heads: OrderedDict[tuple[str, int], Head] = OrderedDict()
        self._decoders: dict[Decoded, EntryDecoder] = {}
        self._pool: ThreadPoolExecutor | None = None

    def fetch(self, wanted: Sequence[Wanted]) -> list[Fetched | VideoError | None]:
        """The bytes of each of them, or why there are none; None: in a file of an earlier version."""
        if self.files.local or len(wanted) < 2:
            return [self._fetch(one) for one in wanted]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="shards")
        return list(self._pool.map(self._fetch, wanted))

    def decode(self, wanted: Wanted, fetched: Fetched | VideoError | None, put: Put) -> None:
        """Hand each frame to `put` under its number in the file; `VideoError` with the reason where that is not possible."""
        if isinstance(fetched, VideoError):
            raise fetched
        if fetched is None:
            self._decode_earlier(wanted, put)
            return
        decoder = self._decoders.get(wanted.stream)
        if decoder is None:
            decoder = self._decoders[wanted.stream] = EntryDecoder(wanted.stream, self.store.header.size)
        first = fetched.where.first_frame
        try:
            decoder.read(
                fetched.head, fetched.data, wanted.numbers - first, lambda number, image: put(number + first, image)
            )
        except Damaged as error:
            raise self._damaged(wanted, fetched.where, error) from error

    def read(self, row: VideoRow, stream: Decoded, numbers: Numbers) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The frames `numbers` [m] (of the file, any order) of a row: uint8 [m, H, W, 3], or [m, H, W, 2] of flow.

        Raises `VideoError` where the store does not have them or they are damaged.
        """
        ascending, places = np.unique(np.asarray(numbers, np.int64), return_inverse=True)
        images = np.empty((len(ascending), *self.store.header.size, CHANNELS[stream]), np.uint8)
        wanted = Wanted(row, stream, ascending)

        def put(number: int, image: Any) -> None:
            images[np.searchsorted(ascending, number)] = image

        self.decode(wanted, self.fetch([wanted])[0], put)
        return images if np.array_equal(places, np.arange(len(ascending))) else images[places]

    def seconds(self, row: VideoRow) -> Seconds | None:
        """When each frame of a row is shown, float64 [frames] from its first; None: at even times, or nobody knows."""
        for stream in ("rgb", "flow"):
            where = self.store.find(row, stream) if self.store.header.of(stream) else None
            if where is not None:
                try:
                    found = self.head(where).seconds
                except Damaged as error:
                    raise self._damaged(Wanted(row, stream, np.empty(0, np.int64)), where, error) from error
                if found is None:
                    return None
                own = found[row.first_frame - where.first_frame :][: row.frames]
                return own - own[:1]
        return None

    def verify(self, where: Location) -> None:
        """`Damaged` where a byte of an entry is not what was written."""
        head = self.head(where)
        if int(head.offsets[-1]) != where.bytes:
            raise Damaged("its index speaks of another entry")
        for number, check in enumerate(head.checks):
            start, stop = head.bytes_of(range(number * GOP, number * GOP + 1))
            if crc32(self.files.read(where.shard, where.offset + start, where.offset + stop)) != check:
                raise Damaged(f"picture {number * GOP} is not what was written")

    def close(self) -> None:
        """Close the shards; a later read opens them again."""
        self.files.close()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _fetch(self, wanted: Wanted) -> Fetched | VideoError | None:
        row, stream = wanted.row, wanted.stream
        where = self.store.find(row, stream)
        if where is None:
            if stream == "flow" and self.store.header.earlier is not None:
                return None
            return _absent(row, stream)
        try:
            if where.bytes <= WHOLE:
                data = self.files.read(where.shard, where.offset, where.offset + where.bytes)
                return Fetched(where, self._right(read_head(data), where, wanted), ((0, data),))
            head = self._right(self.head(where), where, wanted)
            return Fetched(where, head, tuple(self._pieces(where, head, wanted.numbers - where.first_frame)))
        except Damaged as error:
            return self._damaged(wanted, where, error)

    def _pieces(self, where: Location, head: Head, numbers: Numbers) -> list[tuple[int, bytes]]:
        spans: list[list[int]] = []
        for start, stop in map(head.bytes_of, head.stretches(numbers)):
            if spans and start - spans[-1][1] <= APART:
                spans[-1][1] = stop
            else:
                spans.append([start, stop])
        read = partial(self.files.read, where.shard)
        return [(start, read(where.offset + start, where.offset + stop)) for start, stop in spans]

    def head(self, where: Location) -> Head:
        """The head of an entry; those of the last entries are kept."""
        key = (where.shard, where.offset)
        found = self._heads.get(key)
        if found is None:
            found = read_head(self.files.read(where.shard, where.offset, where.offset + where.head))
            self._heads[key] = found
            if len(self._heads) > HEADS:
                self._heads.popitem(last=False)
        return found

    def _right(self, head: Head, where: Location, wanted: Wanted) -> Head:
        """The head, where it is that of the entry that the index speaks of."""
        facts = head.facts
        said = (facts.stream, facts.content_hash, facts.first_frame, facts.frames, (facts.height, facts.width))
        due = (wanted.stream, wanted.row.content_hash, where.first_frame, where.frames, self.store.header.size)
        if said != due:
            raise Damaged("its index speaks of another entry")
        return head

    def _decode_earlier(self, wanted: Wanted, put: Put) -> None:
        header = self.store.header
        checked = header.earlier == earlier.CHECKED
        try:
            fields = earlier.read_fields(self.store.folder, wanted.row, wanted.numbers, header.size, checked)
        except FileNotFoundError:
            raise _absent(wanted.row, wanted.stream) from None
        for number, field in zip(wanted.numbers.tolist(), fields, strict=True):
            put(number, field)

    def _damaged(self, wanted: Wanted, where: Location, error: Damaged) -> VideoError:
        return VideoError(
            f"its {NAMES[wanted.stream]} in shard {where.shard} are damaged (content {wanted.row.content_hash}): {error}; run "
            "'vicc pack --check' to pack that shard again"
        )


def _absent(row: VideoRow, stream: Decoded) -> VideoError:
    return VideoError(f"the store has no {NAMES[stream]} for it (content {row.content_hash}); run 'vicc pack' again")
