"""`vicc unpack`: entries of a packed store as ordinary video files."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from vicc_ray import storage
from vicc_ray.config import CHANNELS, Decoded
from vicc_ray.console import console
from vicc_ray.data.store.entry import Damaged, Head
from vicc_ray.data.store.index import Location, read_parts
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import PackedStore
from vicc_ray.errors import UserError

TICKS = 90_000  # of a second, which MP4 counts in here: fine enough for any stamp
SUFFIX: dict[Decoded, str] = {"rgb": ".mp4", "flow": ".flow.mp4"}


@dataclass(frozen=True)
class Entry:
    """An entry of a store: the manifest's id of the video that it was made for, its stream, where it lies."""

    video: str
    stream: Decoded
    where: Location


def entries_of(store: PackedStore) -> Iterator[Entry]:
    """All entries, shard after shard."""
    for stream in CHANNELS:
        for part in read_parts(store.folder, stream, store.header.id, names=True) if store.header.id else ():
            for row in part.table.to_pylist():
                places = [row[name] for name in ("offset", "head", "bytes", "first_frame", "frames")]
                yield Entry(row["video"], stream, Location(part.shard, *places))


def list_entries(folder: str) -> list[dict[str, Any]]:
    """Print what a store holds, a line an entry; the same for a program."""
    entries = list(entries_of(PackedStore.open(folder)))
    for entry in entries:
        console.print(f"{entry.video}  {entry.stream}  {entry.where.frames} frames  {entry.where.bytes:,} bytes")
    return [
        {"video": one.video, "stream": one.stream, "frames": one.where.frames, "bytes": one.where.bytes}
        for one in entries
    ]


def unpack_videos(folder: str, names: Sequence[str], out: str | None) -> list[str]:
    """Write the entries of some videos as MP4 files into a folder; the files' names.

    A name is a video's id, path or file name. UserError for a name that the store does not hold, or more than one video has.
    """
    store = PackedStore.open(folder)
    entries = list(entries_of(store))
    reader, written = EntryReader(store), []
    target = storage.absolute(out or ".")
    for name in names:
        for entry in _named(entries, name, folder):
            file = storage.join(target, _file_name(entry))
            if file in written:
                raise UserError(
                    f"{name}: {file} is another video's already; take one of them to another folder (--out)"
                )
            try:
                storage.write_bytes(file, as_mp4(*_read(reader, entry)))
            except Damaged as error:
                raise UserError(
                    f"{folder}: the entry of {entry.video} in shard {entry.where.shard} is damaged ({error}); run 'vicc pack "
                    "--check'"
                ) from error
            console.print(file)
            written.append(file)
    reader.close()
    return written


def _named(entries: Sequence[Entry], name: str, folder: str) -> list[Entry]:
    found = [entry for entry in entries if entry.video == name]
    found = found or [entry for entry in entries if posixpath.basename(entry.video) == posixpath.basename(name)]
    if not found:
        raise UserError(f"{name}: {folder} does not hold it; 'vicc unpack {folder}' lists what it holds")
    videos = sorted({entry.video for entry in found})
    if len(videos) > 1:
        raise UserError(
            f"{name}: {len(videos)} videos have this name ({', '.join(videos[:3])}, ...); write the whole one"
        )
    return found


def _file_name(entry: Entry) -> str:
    base = posixpath.basename(entry.video)
    stem, _, part = base.partition("@")
    stem = posixpath.splitext(stem)[0]
    return (f"{stem}@{part}" if part else stem) + SUFFIX[entry.stream]


def _read(reader: EntryReader, entry: Entry) -> tuple[Head, bytes]:
    reader.verify(entry.where)
    where = entry.where
    head = reader.head(where)
    return head, reader.files.read(where.shard, where.offset + where.head, where.offset + where.bytes)


def as_mp4(head: Head, packets: bytes) -> bytes:
    """An MP4 file of an entry's H.264 packets as they are, each shown at its picture's time."""
    out = io.BytesIO()
    times = _ticks(head)
    with (
        av.open(io.BytesIO(packets), format="h264") as source,
        av.open(out, "w", format="mp4") as target,
    ):
        template: Any = source.streams.video[0]
        stream = target.add_stream_from_template(template)
        stream.time_base = Fraction(1, TICKS)
        begin = head.length
        for number in range(len(head.sizes)):
            packet = av.Packet(packets[head.offsets[number] - begin : head.offsets[number + 1] - begin])
            packet.stream = stream
            packet.time_base = Fraction(1, TICKS)
            packet.pts = packet.dts = times[number]
            packet.is_keyframe = number in range(0, len(head.sizes), 16)
            target.mux(packet)
    return out.getvalue()


def _ticks(head: Head) -> list[int]:
    """When each picture or field is shown."""
    count = len(head.sizes)
    if head.seconds is not None and len(head.seconds) >= count:
        seconds = head.seconds[:count] - head.seconds[0]
    else:
        seconds = np.arange(count) / (head.facts.fps or 25.0)
    ticks: list[int] = np.rint(seconds * TICKS).astype(np.int64).tolist()
    return ticks
