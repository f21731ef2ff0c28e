"""Entries of flow stores of earlier versions, which are read and no longer written: one Matroska file a video.

    STORE/ab/abcdef....mkv  the fields of the video with this content hash

Picture i is the quantised field from frame i to i + 1, gray, u above v. Its tag CHECKSUMS has a CRC-32 a picture, each of which
goes on from that of the picture before it in the file; stores of format 1 have none.

Legend: n fields, H x W the store's size; codes are uint8 [n, H, W, 2] as `vicc_ray.data.flow.algorithms.quantise` makes them.
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from zlib import crc32

import av
import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.data.decode import VideoError
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store.entry import Codes, Damaged, Numbers

UNCHECKED, CHECKED = 1, 2  # the formats; entries of the first may lack checksums
GOP = 16
MILLISECONDS = 40  # a picture lasts
# What one request to an object store fetches at least.
REMOTE_READ = 1 << 20


def entries(folder: str) -> Any:
    """The content hashes whose fields are there, an Arrow array of text; lists the store once."""
    import pyarrow as pa

    names = (posixpath.basename(entry.name) for entry in storage.list_files(folder))
    return pa.array((name.removesuffix(".mkv") for name in names if name.endswith(".mkv")), pa.string())


def read_fields(folder: str, row: VideoRow, origins: Numbers, size: tuple[int, int], checked: bool) -> Codes:
    """The fields from the frames `origins` [m] (ascending, each once) to the next: uint8 [m, H, W, 2].

    checked: whether an entry must have checksums. FileNotFoundError where there is no entry, `VideoError` for a damaged one.
    """
    count = max((row.file_frames if row.is_part else row.frames) - 1, 1)
    name = storage.join(folder, row.content_hash[:2], f"{row.content_hash}.mkv")
    try:
        with _opened(name) as container:
            return _decode(container, origins, count, size, checked)
    except FileNotFoundError:
        raise
    except (av.error.FFmpegError, OSError, EOFError, UnicodeDecodeError) as error:
        raise VideoError(f"{_damaged(row)}: {' '.join(str(error).split())[:200]}") from error
    except Damaged as error:
        raise VideoError(f"{_damaged(row)}: {error}") from error


def _damaged(row: VideoRow) -> str:
    return f"its flow entry is damaged (content {row.content_hash}; delete it and run 'vicc flow' again)"


class _Chain:
    """CRC-32 of a picture's bytes after those before it, back to the last key picture and the codec's own header."""

    def __init__(self, header: bytes | None) -> None:
        self.start = crc32(header or b"")
        self.now: int | None = None

    def begin(self) -> None:
        """Reading begins somewhere else."""
        self.now = None

    def next(self, packet: Any) -> int:
        """The checksum of the next picture of the file; raises Damaged where it hangs on one that was not read."""
        before = self.start if packet.is_keyframe else self.now
        if before is None:
            raise Damaged("reading does not begin at a key picture")
        self.now = crc32(packet, before)
        return self.now


@contextmanager
def _opened(name: str) -> Iterator[Any]:
    """The entry's container: a local file, or byte ranges of a remote one."""
    av.logging.set_level(None)
    with ExitStack() as stack:
        local = storage.local_path(name)
        if local is not None:
            yield stack.enter_context(av.open(local, format="matroska"))
            return
        system, remote = storage.open_filesystem(name)
        file = stack.enter_context(system.open_input_file(remote))
        yield stack.enter_context(av.open(file, format="matroska", buffer_size=REMOTE_READ))


def _checksums(metadata: dict[str, str], count: int) -> NDArray[np.uint32]:
    """Of the pictures, in the order of the fields: uint32 [count]."""
    try:
        found = np.frombuffer(base64.b64decode(metadata.get("CHECKSUMS", ""), validate=True), np.uint32)
    except ValueError:
        found = np.empty(0, np.uint32)
    if len(found) != count:
        raise Damaged(f"it holds checksums of {len(found)} of its {count} fields")
    return found


class _Packets:
    """The pictures of an opened entry, each handed to the decoder only when it is what was written."""

    def __init__(self, container: Any, stream: Any, checksums: NDArray[np.uint32] | None) -> None:
        self.container, self.stream, self.checksums = container, stream, checksums
        self.chain = _Chain(stream.codec_context.extradata)

    def frames_from(self, place: int) -> Iterator[Any]:
        """The frames from the key picture at or before a time in milliseconds on."""
        self.container.seek(place, stream=self.stream)
        self.chain.begin()
        for packet in self.container.demux(self.stream):
            if packet.size and self.checksums is not None:
                self._check(packet, self.checksums)
            yield from packet.decode()

    def _check(self, packet: Any, checksums: NDArray[np.uint32]) -> None:
        field, rest = divmod(-1 if packet.pts is None else packet.pts, MILLISECONDS)
        right = not rest and 0 <= field < len(checksums)
        if not right or self.chain.next(packet) != checksums[field]:
            raise Damaged(f"its bytes at field {field} are not those that were written")


def _decode(container: Any, wanted: Numbers, count: int, size: tuple[int, int], checked: bool) -> Codes:
    """The fields `wanted` (ascending) of an opened entry that should hold `count`: uint8 [m, H, W, 2].

    checked: whether it must have checksums.
    """
    stored = container.metadata.get("FIELDS")
    if stored != str(count):
        raise Damaged(f"it holds {stored} fields, the video has {count}")
    height, width = size
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise Damaged("it holds no pictures")
    stream = container.streams.video[0]
    context = stream.codec_context
    if (context.height, context.width) != (2 * height, width + width % 2):
        raise Damaged(f"its pictures are {context.width} x {context.height}")
    context.thread_count = 1
    known = checked or "CHECKSUMS" in container.metadata
    packets = _Packets(container, stream, _checksums(container.metadata, count) if known else None)
    codes = np.empty((len(wanted), height, width, 2), np.uint8)
    found = 0
    # Nearer than a key picture apart it is cheaper to decode on than to seek.
    for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > GOP) + 1):
        last = found + len(run)
        for frame in packets.frames_from(int(run[0]) * MILLISECONDS):
            place = wanted[found] * MILLISECONDS
            if frame.pts is None or frame.pts > place:
                raise Damaged(f"field {wanted[found]} is not in it")
            # FFmpeg patches spoilt pictures up and passes them off as whole ones but for this mark.
            if frame.is_corrupt:
                raise Damaged(f"its bytes before field {wanted[found]} are not those that were written")
            if frame.pts < place:
                continue
            plane = frame.planes[0]
            picture = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
            codes[found, ..., 0] = picture[:height, :width]
            codes[found, ..., 1] = picture[height : 2 * height, :width]
            found += 1
            if found == last:
                break
        if found < last:
            raise Damaged(f"it ends before field {wanted[found]}")
    return codes
