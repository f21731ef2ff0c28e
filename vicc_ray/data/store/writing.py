"""How entries get into a packed store: each whole as a file of its own at once, and from there into a shard.

    STORE/loose/ab/abcdef...-0-250.rgb    content hash, first frame, frames: whole, and not yet in a shard

Whatever stops a writer, what is under `loose/` is whole, and the next writer goes on from it. A shard is written under a name of
its own, then its index, then its entries' files are removed: at any moment each entry is there once or twice, never in half.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from vicc_ray import storage
from vicc_ray.config import Decoded
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store.entry import Codes, Damaged, EntryWriter, Facts, Head, Seconds, read_head
from vicc_ray.data.store.index import Part, check_hash, list_shards, part_table, remove_shard, shard_name, write_part
from vicc_ray.data.store.reading import EntryReader, shard_head
from vicc_ray.data.store.store import PackedStore

SHARD_BYTES = 256 << 20
ORPHANED_SECONDS = 3600.0
_LOOSE = re.compile(r"([0-9a-f]{32})-(\d+)-(\d+)\.(rgb|flow)")
CHUNK = 1 << 20


class NotWritten(Exception):
    """The store takes no more: its disk is full, it may not be written to, it does not answer. The message says why."""


@dataclass(frozen=True, order=True)
class Key:
    """What an entry is of."""

    content_hash: str
    first_frame: int
    frames: int
    stream: Decoded

    @classmethod
    def of(cls, row: VideoRow, stream: Decoded) -> Key:
        """A row's."""
        check_hash(row)
        return cls(row.content_hash, row.first_frame, row.frames, stream)

    @property
    def name(self) -> str:
        """Of its loose file, below `loose/`."""
        return f"{self.content_hash[:2]}/{self.content_hash}-{self.first_frame}-{self.frames}.{self.stream}"


def list_loose(store: PackedStore) -> dict[Key, int]:
    """The entries that wait for a shard, with their bytes."""
    folder = storage.join(store.folder, "loose")
    found = {}
    for entry in storage.list_files(folder) if storage.exists(folder) else ():
        match = _LOOSE.fullmatch(posixpath.basename(entry.name))
        if match is not None:
            stream: Decoded = "rgb" if match[4] == "rgb" else "flow"
            found[Key(match[1], int(match[2]), int(match[3]), stream)] = entry.bytes
    return found


class LooseWriter:
    """Writes the entry of one row and stream from pictures or fields that come in chunks."""

    def __init__(self, store: PackedStore, row: VideoRow, stream: Decoded, seconds: Seconds | None) -> None:
        self.store, self.key = store, Key.of(row, stream)
        height, width = store.header.size
        facts = Facts(stream, row.content_hash, row.first_frame, row.frames, height, width, row.id, row.fps)
        self._writer = EntryWriter(facts, seconds)

    def add(self, pictures: Codes) -> None:
        """The next ones, uint8 [m, H, W, 3] or [m, H, W, 2]; `NotWritten` where there is no room to keep them."""
        with _as_not_written():
            self._writer.add(pictures)

    def finish(self) -> int:
        """Store the whole entry; its bytes. `VideoError` where another number of pictures came, `NotWritten` for no room."""
        name = storage.join(self.store.folder, "loose", self.key.name)
        local = storage.local_path(name)
        with _as_not_written():
            if local is not None:
                with storage.whole_file(Path(local)) as partial:
                    return self._writer.finish(partial)
            with tempfile.TemporaryDirectory(prefix="vicc-pack-") as folder:
                path = Path(folder, "entry")
                size = self._writer.finish(path)
                storage.upload(path, name)
                return size

    def close(self) -> None:
        """Drop what is not stored."""
        self._writer.close()


@contextmanager
def _as_not_written() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotWritten(" ".join(str(error.strerror or error).split())[:200]) from error


def seal(store: PackedStore, keys: Sequence[Key]) -> int:
    """Move loose entries of one stream into one shard, in this order; its entries. `NotWritten` where that is not possible.

    One that is no longer there has been moved by another writer and is passed over.
    """
    shard = f"{keys[0].stream}-{uuid4().hex[:16]}"
    columns: dict[str, list[Any]] = {
        name: [] for name in ("content_hash", "first_frame", "frames", "offset", "head", "bytes", "video")
    }
    with _as_not_written(), tempfile.TemporaryDirectory(prefix="vicc-pack-") as scratch:
        with _shard_file(store, shard, Path(scratch)) as path, path.open("wb") as file:
            file.write(shard_head(store.header.id, shard))
            for key in keys:
                offset = file.tell()
                head = _append(store, key, file)
                if head is not None:
                    facts = head.facts
                    values = (bytes.fromhex(facts.content_hash), facts.first_frame, facts.frames, offset, head.length)
                    for name, value in zip(columns, (*values, file.tell() - offset, facts.video), strict=True):
                        columns[name].append(value)
            size = file.tell()
        if columns["bytes"]:
            write_part(store.folder, Part(shard, size, part_table(columns)), store.header.id)
        else:
            storage.remove(shard_name(store.folder, shard))
        for key in keys:
            storage.remove(storage.join(store.folder, "loose", key.name))
        _remove_empty_folders(store, keys)
    return len(columns["bytes"])


def _remove_empty_folders(store: PackedStore, keys: Sequence[Key]) -> None:
    """Object stores have no folders; elsewhere empty ones would stay."""
    local = storage.local_path(storage.join(store.folder, "loose"))
    if local is not None:
        for folder in [*sorted({Path(local, key.name).parent for key in keys}), Path(local)]:
            with suppress(OSError):  # another writer's entry is in it
                folder.rmdir()


@contextmanager
def _shard_file(store: PackedStore, shard: str, scratch: Path) -> Iterator[Path]:
    """A local file to write to, which is the shard when the block ends well."""
    name = shard_name(store.folder, shard)
    local = storage.local_path(name)
    if local is not None:
        with storage.whole_file(Path(local)) as partial:
            yield partial
        return
    path = scratch / "shard"
    yield path
    storage.upload(path, name)


def _append(store: PackedStore, key: Key, file: BinaryIO) -> Head | None:
    """Copy a loose entry to the end of a file; its head, None where it is not there or not whole."""
    name = storage.join(store.folder, "loose", key.name)
    begin = file.tell()
    try:
        with storage.local_copy(name) as path, open(path, "rb") as source:
            shutil.copyfileobj(source, file, CHUNK)
            source.seek(0)
            head = read_head(source.read((64 << 10) + 16 * key.frames))  # more than a head can have
            if file.tell() - begin == int(head.offsets[-1]):
                return head
    except (FileNotFoundError, Damaged):
        pass
    file.seek(begin)
    file.truncate()
    return None


def remove_unfinished(store: PackedStore) -> None:
    """Remove what killed processes had begun to write; for the store's only writer."""
    local = storage.local_path(store.folder)
    if local is None:  # an object is there whole or not at all
        return
    for part in ("loose", "shards", "index"):
        storage.remove_partials(Path(local, part))
    for folder in sorted(Path(local, "loose").rglob("*"), reverse=True):
        with suppress(OSError):  # not empty, or no folder
            folder.rmdir()


def repair(store: PackedStore, streams: Sequence[Decoded], check: bool) -> list[str]:
    """Remove the shards that are missing, cut short or, with `check`, damaged, and what no index speaks of; one line for each."""
    lines, known = [], set[str]()
    remove_unfinished(store)
    for stream in streams:
        index = store.index(stream)
        lost = dict(store.lost_shards(stream))
        if check:
            lost |= _damaged(store, stream, [shard for shard in index.shards if shard not in lost])
        counts = {shard: int((index.shard == number).sum()) for number, shard in enumerate(index.shards)}
        for shard, what in lost.items():
            remove_shard(store.folder, shard)
            lines.append(f"{store.folder}: shard {shard} {what}: its {counts[shard]} entries are packed again")
        known |= set(index.shards) - set(lost)
        if lost:
            store.forget(stream)
    for shard, file in list_shards(store.folder).items():
        # Of a writer that was interrupted before the index was there; in an object store, which has no locks, it may be at work.
        old = storage.local_path(store.folder) is not None or time.time() - file.modified > ORPHANED_SECONDS
        if shard not in known and shard.partition("-")[0] in streams and old:
            storage.remove(file.name)
    return lines


def _damaged(store: PackedStore, stream: Decoded, shards: Sequence[str]) -> dict[str, str]:
    """The shards with an entry that is not what was written."""
    reader, index, lost = EntryReader(store), store.index(stream), dict[str, str]()
    for place in range(len(index)):
        where = index.location(place)
        if where.shard in shards and where.shard not in lost:
            try:
                reader.verify(where)
            except Damaged as error:
                lost[where.shard] = f"is damaged ({error})"
    reader.close()
    return lost
