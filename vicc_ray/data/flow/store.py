"""Flow on disk: a folder or URI with one compressed file a video, that random access reads about as fast as RGB.

    STORE/store.json        format, the algorithm's fingerprint, the bound in pixels, the size of the fields
          ab/abcdef....mkv  the fields of the video with this content hash

An entry is an ordinary H.264 video in Matroska: picture i is the quantised field from frame i to i + 1, gray, u above v.
It is nearly lossless: on real videos 99.9 % of the values come back within one of the 255 steps. Its tag CHECKSUMS has a
CRC-32 a picture, each of which goes on from that of the picture before it in the file, so that reading a stretch notices a
byte that is not what was written, and a picture that is missing.

Legend: n fields, H x W the decode size; codes are uint8 [n, H, W, 2] as `vicc_ray.data.flow.algorithms.quantise` makes them.
"""

from __future__ import annotations

import base64
import json
import posixpath
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.config import DataConfig, FlowConfig
from vicc_ray.data.decode import Indices, VideoError
from vicc_ray.data.manifest import VideoRow, is_content_hash
from vicc_ray.errors import UserError

Codes = NDArray[np.uint8]

FORMAT = 2
UNCHECKED = 1  # the format before it: entries without checksums, which are still read (TV-L1 of a data set takes days)
# Chosen on DIS and TV-L1 fields of real videos: finer steps (qp 8) cost half as many bytes again and spare no value an
# error of two steps, lossless costs three times as many. B-frames save a third. One thread, as more of them change the
# bytes. tune psnr: visual quality is no aim here.
ENCODER = {"preset": "fast", "tune": "psnr", "qp": "12", "bf": "2", "sc_threshold": "0", "threads": "1"}
# Reading starts at a key picture, every 16th.
GOP = 16
# Any constant rate will do; Matroska counts milliseconds, so that a picture lasts a whole number of them.
RATE = 25
MILLISECONDS = 1000 // RATE
# What one request to an object store fetches at least.
REMOTE_READ = 1 << 20


@dataclass(frozen=True)
class _Header:
    """What store.json says; two stores with the same one hold the same kind of fields."""

    format: int
    fingerprint: str
    bound: float
    height: int
    width: int


@dataclass(frozen=True)
class FlowStore:
    """A store that exists. `fingerprint`: `vicc_ray.data.flow.algorithms.fingerprint`; `bound` in pixels; `size`: (H, W).

    checked: False for a store that began in the format before checksums; its entries may lack them.
    """

    folder: str
    fingerprint: str
    bound: float
    size: tuple[int, int]
    checked: bool = True

    @classmethod
    def create(cls, folder: str, fingerprint: str, bound: float, size: tuple[int, int]) -> FlowStore:
        """Make the store or open the one that is there; `UserError` where that holds fields of another kind."""
        wanted = _Header(FORMAT, json.dumps(json.loads(fingerprint), sort_keys=True), float(bound), *size)
        found = _read_header(folder)
        if found is None:
            text = json.dumps(asdict(wanted) | {"fingerprint": json.loads(fingerprint)}, indent=2) + "\n"
            try:
                storage.write_bytes(_header_name(folder), text.encode())
            except OSError as error:
                raise UserError(
                    f"flow store {folder}: cannot be written: {' '.join(str(error).split())[:200]}"
                ) from error
        elif replace(found, format=FORMAT) != wanted:
            raise UserError(
                f"flow store {folder}: holds other fields than these settings give: {'; '.join(_differences(found, wanted))}; "
                "name another folder, or set what the store has"
            )
        checked = found is None or found.format == FORMAT
        return cls(storage.absolute(folder), wanted.fingerprint, wanted.bound, (wanted.height, wanted.width), checked)

    @classmethod
    def open(cls, folder: str) -> FlowStore:
        """The store at a path or URI; `UserError` where there is none."""
        header = _read_header(folder)
        if header is None:
            raise UserError(f"flow store {folder}: there is none (no store.json); make it with 'vicc flow MANIFEST'")
        size = (header.height, header.width)
        return cls(storage.absolute(folder), header.fingerprint, header.bound, size, header.format == FORMAT)

    def has(self, row: VideoRow) -> bool:
        """Whether the video's fields are there."""
        return storage.exists(self._entry(row))

    def missing(self, rows: Sequence[VideoRow]) -> list[VideoRow]:
        """The rows of whole files whose fields are not there, each content once, in order; lists the store once."""
        done = {posixpath.basename(entry.name) for entry in storage.list_files(self.folder)}
        wanted: dict[str, VideoRow] = {}
        for row in rows:
            wanted.setdefault(posixpath.basename(self._entry(row)), row.file_row())
        return [row for entry, row in wanted.items() if entry not in done]

    def write(self, row: VideoRow, codes: Iterable[Codes]) -> None:
        """Store a video's fields, given in order in chunks uint8 [n, H, W, 2]: `row.frames` - 1 of them, or the one field
        of a one-frame video. Holds a few pictures at a time. The entry appears, or replaces the old one, when it is whole.

        Raises `VideoError` where another number of fields comes, `ValueError` for chunks of another shape or type.
        """
        count = field_count(row)
        with _appearing(self._entry(row)) as path, tempfile.TemporaryDirectory(prefix="vicc-flow-") as scratch:
            draft = str(Path(scratch) / "entry")
            written = _encode(draft, self._checked(codes), count, self.size)
            if written != count:
                raise VideoError(f"{written} flow fields came of it; {row.frames} frames have {count}")
            _seal(draft, path, count)

    def read(self, row: VideoRow, origins: Indices) -> Codes:
        """The fields from the frames `origins` to the next: int64 [m] -> uint8 [m, H, W, 2].

        Origins may repeat and stand in any order; only the ranges around them are read. Raises `VideoError` where the
        entry is absent, damaged, or made from a video with another number of frames.
        """
        wanted, places = np.unique(np.asarray(origins, np.int64), return_inverse=True)
        count = field_count(row)
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= count:
            raise ValueError(f"origins must be frame indices from 0 to {count - 1}; they are {origins}")
        try:
            with _opened(self._entry(row)) as container:
                codes = _decode(container, wanted, count, self.size, self.checked)
        except FileNotFoundError as error:
            raise VideoError(
                f"the flow store has no entry for it (content {row.content_hash}); run 'vicc flow' again"
            ) from error
        except (av.error.FFmpegError, OSError, EOFError, UnicodeDecodeError) as error:
            raise VideoError(f"{_damaged(row)}: {' '.join(str(error).split())[:200]}") from error
        except _Damaged as error:
            raise VideoError(f"{_damaged(row)}: {error}") from error
        return codes if np.array_equal(places, np.arange(len(wanted))) else codes[places]

    def _entry(self, row: VideoRow) -> str:
        # It comes from a file and becomes a path: anything else could lead out of the store.
        if not is_content_hash(row.content_hash):
            raise UserError(
                f"{row.video}: its row has no content hash of 32 hex digits; make the manifest with 'vicc index'"
            )
        return storage.join(self.folder, row.content_hash[:2], f"{row.content_hash}.mkv")

    def _checked(self, codes: Iterable[Codes]) -> Iterator[Codes]:
        for chunk in codes:
            if chunk.dtype != np.uint8 or chunk.ndim != 4 or chunk.shape[1:] != (*self.size, 2):
                want = f"uint8 [n, {self.size[0]}, {self.size[1]}, 2]"
                raise ValueError(f"flow chunks must be {want}; one is {chunk.dtype} {list(chunk.shape)}")
            yield chunk


_DEFAULT = DataConfig()


def check_stored(
    flow: FlowConfig, size: tuple[int, int], rows: Sequence[VideoRow], data: DataConfig = _DEFAULT
) -> list[VideoRow]:
    """The videos whose flow the experiment's store lacks: none where flow is not read from a store.

    UserError where the store is absent, holds other flow, or lacks more than the share `max_refused` of the videos. Up to
    there `vicc flow` was content too: such a video is one that cannot be read, wherever its flow is wanted.
    The library that measured it may be another version than the one here: what is stored is what counts.
    """
    if flow.source != "store" or flow.store is None:
        return []
    store = FlowStore.open(flow.store)
    made_from = json.loads(store.fingerprint)
    made_by = made_from["algorithm"]
    for name, there, here in (
        ("flow.algorithm", made_by, flow.algorithm),
        ("flow.options", made_from.get("options", {}), flow.options),
        ("flow.bound", store.bound, flow.bound),
        ("clip.decode_size", list(store.size), list(size)),
        ("data.interlaced", made_from.get("interlaced", data.interlaced), data.interlaced),
    ):
        if there != here:
            raise UserError(
                f"{name}: is {here}, the flow store {flow.store} holds {there}; set what it has, or fill another"
            )
    missing = store.missing(rows)
    lost = {row.content_hash for row in missing}
    if sum(row.content_hash in lost for row in rows) > data.max_refused * len(rows):
        if not store.checked:
            raise UserError(
                f"flow.store: {flow.store} lacks {len(missing)} of {len(rows)} videos (the first: {missing[0].video}), and an "
                "earlier version made it, whose pictures differ, so it cannot be filled further; fill another one with 'vicc flow'"
            )
        how = "" if data.interlaced == "weave" else f" --set data.interlaced={data.interlaced}"
        raise UserError(
            f"flow.store: {flow.store} lacks {len(missing)} of {len(rows)} videos (the first: {missing[0].video}); fill it "
            f"with 'vicc flow MANIFEST --store {flow.store} --algorithm {made_by} --size {size[0]}x{size[1]}{how}', index "
            f"again without what that refuses, or raise data.max_refused (now {data.max_refused:g})"
        )
    return missing


def field_count(row: VideoRow) -> int:
    """How many fields a row's file has: one from each frame to the next; a one-frame video has one too, of no motion."""
    return max((row.file_frames if row.is_part else row.frames) - 1, 1)


class _Damaged(Exception):
    """An entry is not what was written; the message says in what."""


def _damaged(row: VideoRow) -> str:
    return f"its flow entry is damaged (content {row.content_hash}; delete it and run 'vicc flow' again)"


def _header_name(folder: str) -> str:
    return storage.join(folder, "store.json")


def _read_header(folder: str) -> _Header | None:
    """What store.json says; None where there is none."""
    try:
        data = json.loads(storage.read_bytes(_header_name(folder)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"flow store {folder}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"flow store {folder}: store.json is not JSON; delete the store and make it again") from error
    if not _is_header(data):
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(
            f"flow store {folder}: has format {found}; this version reads {UNCHECKED} and {FORMAT}; make it again"
        )
    return _Header(**data | {"fingerprint": json.dumps(data["fingerprint"], sort_keys=True)})


def _is_header(data: Any) -> bool:
    """Whether JSON from store.json is a header of a known format, whatever else may stand in a damaged file."""
    if (
        not isinstance(data, dict)
        or data.get("format") not in (FORMAT, UNCHECKED)
        or set(data) != {f.name for f in fields(_Header)}
    ):
        return False
    fingerprint, numbers = data["fingerprint"], [data[name] for name in ("bound", "height", "width")]
    return (
        isinstance(fingerprint, dict)
        and isinstance(fingerprint.get("algorithm"), str)
        and all(isinstance(number, (int, float)) for number in numbers)
    )


def _differences(found: _Header, wanted: _Header) -> Iterator[str]:
    """One phrase for each thing in which two headers differ."""
    there, here = (asdict(h) | json.loads(h.fingerprint) for h in (found, wanted))
    for name in (there | here).keys() - {"fingerprint"}:
        if there.get(name) != here.get(name):
            yield f"{name} is {there.get(name)} there, {here.get(name)} here"


@contextmanager
def _appearing(name: str) -> Iterator[str]:
    """A local path to write to; its file is under `name` when the block ends, and nothing is where it fails."""
    local = storage.local_path(name)
    if local is not None:
        with storage.whole_file(Path(local)) as partial:
            yield str(partial)
        return
    with tempfile.TemporaryDirectory(prefix="vicc-flow-") as scratch:
        path = Path(scratch) / "entry"
        yield str(path)
        storage.upload(path, name)


def _encode(path: str, codes: Iterator[Codes], count: int, size: tuple[int, int]) -> int:
    """Write the fields as a video; the number of fields that came, at most `count` + 1."""
    height, width = size
    # H.264's pictures have even sides; the pad repeats the edge, which costs next to nothing.
    picture = np.empty((2 * height, width + width % 2), np.uint8)
    written = 0
    with av.open(path, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options=ENCODER)
        stream.height, stream.width = picture.shape
        stream.pix_fmt = "gray"
        stream.codec_context.gop_size = GOP
        stream.codec_context.thread_count = 1
        for field in (field for chunk in codes for field in chunk):
            if written == count:
                return count + 1
            picture[:height, :width], picture[height:, :width] = field[..., 0], field[..., 1]
            picture[:, width:] = picture[:, width - 1 : width]
            frame = VideoFrame.from_ndarray(picture, format="gray")
            frame.pts = written
            container.mux(stream.encode(frame))
            written += 1
        if written:
            container.mux(stream.encode(None))
    return written


def _seal(draft: str, path: str, count: int) -> None:
    """Write a draft of `count` fields anew with its number of fields and its checksums, which stand before the pictures."""
    checksums = np.zeros(count, np.uint32)
    with (
        av.open(draft, format="matroska") as source,
        av.open(path, "w", format="matroska", options={"fflags": "+bitexact"}) as target,
    ):
        stream = source.streams.video[0]
        chain = _Chain(stream.codec_context.extradata)
        for packet in source.demux(stream):
            if packet.size:
                checksums[packet.pts // MILLISECONDS] = chain.next(packet)
        target.metadata["FIELDS"] = str(count)
        target.metadata["CHECKSUMS"] = base64.b64encode(checksums.tobytes()).decode()
        copy = target.add_stream_from_template(stream)
        source.seek(0)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                target.mux(packet)


class _Chain:
    """CRC-32 of a picture's bytes after those before it, back to the last key picture and the codec's own header."""

    def __init__(self, header: bytes | None) -> None:
        self.start = crc32(header or b"")
        self.now: int | None = None

    def begin(self) -> None:
        """Reading begins somewhere else."""
        self.now = None

    def next(self, packet: Any) -> int:
        """The checksum of the next picture of the file; raises _Damaged where it hangs on one that was not read."""
        before = self.start if packet.is_keyframe else self.now
        if before is None:
            raise _Damaged("reading does not begin at a key picture")
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
        raise _Damaged(f"it holds checksums of {len(found)} of its {count} fields")
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
            raise _Damaged(f"its bytes at field {field} are not those that were written")


def _decode(container: Any, wanted: Indices, count: int, size: tuple[int, int], checked: bool) -> Codes:
    """The fields `wanted` (ascending) of an opened entry that should hold `count`: uint8 [m, H, W, 2].

    checked: whether it must have checksums.
    """
    stored = container.metadata.get("FIELDS")
    if stored != str(count):
        raise _Damaged(f"it holds {stored} fields, the video has {count}")
    height, width = size
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise _Damaged("it holds no pictures")
    stream = container.streams.video[0]
    context = stream.codec_context
    if (context.height, context.width) != (2 * height, width + width % 2):
        raise _Damaged(f"its pictures are {context.width} x {context.height}")
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
                raise _Damaged(f"field {wanted[found]} is not in it")
            # FFmpeg patches spoilt pictures up and passes them off as whole ones but for this mark.
            if frame.is_corrupt:
                raise _Damaged(f"its bytes before field {wanted[found]} are not those that were written")
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
            raise _Damaged(f"it ends before field {wanted[found]}")
    return codes
