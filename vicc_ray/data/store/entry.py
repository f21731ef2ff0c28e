"""One video's pictures or flow fields as bytes: a head, then an H.264 stream that can be entered at every `GOP`th picture.

    b"VICCENT1" | length of the facts uint32 | facts (JSON) | sizes uint32 [n] | checks uint32 [n / GOP, rounded up]
    | seconds float64 [n], where pictures come at uneven times | CRC-32 of all before it uint32 | packets, one a picture

`sizes` are the bytes of the packets and `checks` the CRC-32 of each stretch, so that a reader fetches a stretch, knows that it
is what was written, and hands its packets to a decoder without a container around them. Everything is little-endian.

H.264 without B-frames, arithmetic coding and deblocking decodes twice as fast as with them and is hardly larger at this
quality (docs/benchmarks.md has what else was measured). Pictures are 4:2:0, fields gray, u above v; odd sides are padded.

Legend: n pictures, H x W the store's size. Pictures are uint8 RGB [n, H, W, 3], fields uint8 [n, H, W, 2] (quantised, u and v).
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import cv2
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from vicc_ray.config import CHANNELS, Decoded
from vicc_ray.data.decode import VideoError

Codes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Seconds = NDArray[np.float64]
# Where a picture or field goes: its number in the entry and uint8 [H, W, 3] or [H, W, 2], valid until the next one.
Put = Callable[[int, Codes], None]

MAGIC = b"VICCENT1"
# Reading starts at a key picture, every 16th.
GOP = 16
FAST = f"keyint={GOP}:min-keyint={GOP}:cabac=0:no-deblock=1:weightp=0:rc-lookahead=0:sync-lookahead=0"
# One thread, as more of them change the bytes. tune psnr: visual quality is no aim here.
ENCODERS: Mapping[Decoded, Mapping[str, str]] = {
    "rgb": {"preset": "veryfast", "tune": "psnr", "qp": "14", "bf": "0", "sc_threshold": "0", "x264-params": FAST},
    # Finer steps (qp 8) cost half as many bytes again and spare no value an error of two steps.
    "flow": {"preset": "fast", "tune": "psnr", "qp": "12", "bf": "0", "sc_threshold": "0", "x264-params": FAST},
}
FORMATS: Mapping[Decoded, str] = {"rgb": "yuv420p", "flow": "gray"}
HELD = 16 << 20  # bytes of an entry that are held in memory while it is written


class Damaged(Exception):
    """An entry is not what was written; the message says in what."""


@dataclass(frozen=True)
class Facts:
    """What an entry is of: `frames` frames of a file from `first_frame` on, by its `content_hash`.

    `video` is the manifest's id of the row that it was made for and `fps` its rate, both for who takes the entry out.
    """

    stream: Decoded
    content_hash: str
    first_frame: int
    frames: int
    height: int
    width: int
    video: str = ""
    fps: float = 0.0

    @property
    def count(self) -> int:
        """n: pictures, or fields: one from each frame to the next; one frame has one too, of no motion."""
        return self.frames if self.stream == "rgb" else max(self.frames - 1, 1)


@dataclass(frozen=True)
class Head:
    """What stands before an entry's packets: sizes uint32 [n], checks uint32 [n / GOP], seconds float64 [frames] or None."""

    facts: Facts
    sizes: NDArray[np.uint32]
    checks: NDArray[np.uint32]
    seconds: Seconds | None
    length: int  # bytes of the head itself

    @cached_property
    def offsets(self) -> Numbers:
        """Where each packet begins, counted from the entry's first byte, and where the last one ends: int64 [n + 1]."""
        return np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)]) + self.length

    def stretches(self, numbers: Numbers) -> list[range]:
        """The pictures to decode for these `numbers` [m] (ascending): of each stretch from its key to the last that counts."""
        gops = numbers // GOP
        ends = np.append(np.flatnonzero(np.diff(gops)), len(numbers) - 1)
        return [range(int(gops[end]) * GOP, int(numbers[end]) + 1) for end in ends]

    def bytes_of(self, stretch: range) -> tuple[int, int]:
        """From which byte of the entry to which the whole stretch goes that begins like this one."""
        stop = min(stretch.start + GOP, len(self.sizes))
        return int(self.offsets[stretch.start]), int(self.offsets[stop])

    def pack(self) -> bytes:
        """As it is stored."""
        facts = json.dumps(asdict(self.facts), ensure_ascii=False).encode()
        seconds = b"" if self.seconds is None else self.seconds.astype("<f8").tobytes()
        parts = (self.sizes.astype("<u4").tobytes(), self.checks.astype("<u4").tobytes(), seconds)
        whole = MAGIC + struct.pack("<II", len(facts), len(seconds) // 8) + facts + b"".join(parts)
        return whole + struct.pack("<I", crc32(whole))


def read_head(data: bytes | memoryview) -> Head:
    """The head at the beginning of an entry's bytes; `Damaged` where it is none or lacks bytes."""
    start = len(MAGIC) + 8
    if len(data) < start or bytes(data[: len(MAGIC)]) != MAGIC:
        raise Damaged("it does not begin like an entry")
    size, times = struct.unpack_from("<II", data, len(MAGIC))
    try:
        tree = json.loads(bytes(data[start : start + size]))
        facts = Facts(**{field.name: tree[field.name] for field in fields(Facts)})
        count = facts.count
        stretches = -(-count // GOP)
        end = start + size + 4 * (count + stretches) + 8 * times
        if struct.unpack_from("<I", data, end)[0] != crc32(data[:end]):
            raise Damaged("its head is not what was written")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise Damaged("its head is cut short or not what was written") from error
    numbers = np.frombuffer(data, "<u4", count + stretches, start + size)
    seconds = np.frombuffer(data, "<f8", times, end - 8 * times) if times else None
    return Head(facts, numbers[:count], numbers[count:], seconds, end + 4)


class EntryWriter:
    """Encodes pictures or fields as they come, holding little of them in memory."""

    def __init__(self, facts: Facts, seconds: Seconds | None = None) -> None:
        self.facts, self.seconds = facts, seconds
        self._sizes: list[int] = []
        self._checks: list[int] = []
        self._body = tempfile.SpooledTemporaryFile(HELD, prefix="vicc-entry-")  # noqa: SIM115
        self._context = _encoder(facts)
        self._reformatter = VideoReformatter()
        self._came = 0

    def add(self, pictures: Codes) -> None:
        """The next ones, uint8 [m, H, W, 3] or [m, H, W, 2]; ValueError for another shape or type."""
        facts = self.facts
        want = (facts.height, facts.width, CHANNELS[facts.stream])
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[1:] != want:
            raise ValueError(f"pictures must be uint8 [m, {want}]; they are {pictures.dtype} {list(pictures.shape)}")
        for picture in pictures:
            frame = self._rgb(picture) if facts.stream == "rgb" else self._gray(picture)
            frame.pts = self._came
            self._came += 1
            self._keep(self._context.encode(frame))

    def finish(self, path: Path) -> int:
        """Write the entry to a local file; its bytes. `VideoError` where another number of pictures came than it says."""
        if self._came != self.facts.count:
            what = "frames" if self.facts.stream == "rgb" else "flow fields"
            raise VideoError(f"{self._came} {what} came of it, {self.facts.count} were due")
        self._keep(self._context.encode(None))
        sizes, checks = np.array(self._sizes, np.uint32), np.array(self._checks, np.uint32)
        head = Head(self.facts, sizes, checks, self.seconds, 0).pack()
        self._body.seek(0)
        with path.open("wb") as file:
            file.write(head)
            while chunk := self._body.read(1 << 20):
                file.write(chunk)
            return file.tell()

    def close(self) -> None:
        """Drop what has been encoded."""
        self._body.close()

    def _keep(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            key = not len(self._sizes) % GOP
            if packet.is_keyframe != key or packet.pts != len(self._sizes):
                raise RuntimeError("the encoder did not place its key pictures as it was set to")
            data = bytes(packet)
            self._sizes.append(len(data))
            if key:
                self._checks.append(crc32(data))
            else:
                self._checks[-1] = crc32(data, self._checks[-1])
            self._body.write(data)

    def _rgb(self, picture: Codes) -> VideoFrame:
        frame = VideoFrame.from_ndarray(_padded(picture, even_height=True), format="rgb24")
        # Averaging the colour is what halves its error when it is read again.
        return self._reformatter.reformat(
            frame,
            format=FORMATS["rgb"],
            interpolation=Interpolation.AREA,
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
        )

    def _gray(self, field: Codes) -> VideoFrame:
        picture = np.concatenate([field[..., 0], field[..., 1]])
        return VideoFrame.from_ndarray(_padded(picture, even_height=False), format=FORMATS["flow"])


def _padded(picture: Codes, even_height: bool) -> Codes:
    """With even sides: the edge repeats, which costs next to nothing."""
    height, width = picture.shape[:2]
    pad = [(0, height % 2 * even_height), (0, width % 2), *[(0, 0)] * (picture.ndim - 2)]
    return np.ascontiguousarray(np.pad(picture, pad, mode="edge") if height % 2 or width % 2 else picture)


def coded_size(facts: Facts) -> tuple[int, int]:
    """(height, width) of the H.264 pictures."""
    height, width = facts.height, facts.width + facts.width % 2
    return (height + height % 2, width) if facts.stream == "rgb" else (2 * height, width)


def _encoder(facts: Facts) -> VideoCodecContext:
    context: Any = av.CodecContext.create("libx264", "w")
    context.height, context.width = coded_size(facts)
    context.pix_fmt = FORMATS[facts.stream]
    # For players of an unpacked file: they stretch what says nothing.
    context.color_range = ColorRange.MPEG if facts.stream == "rgb" else ColorRange.JPEG
    context.colorspace = Colorspace.ITU601
    # The real times are the manifest's; the encoder works by quality, not by rate.
    context.time_base = Fraction(1, 25)
    context.gop_size = GOP
    context.thread_count = 1
    context.options = dict(ENCODERS[facts.stream])
    return context  # type: ignore[no-any-return]


class EntryDecoder:
    """Decodes stretches of entries of one stream and one size, on this thread; kept from entry to entry."""

    def __init__(self, stream: Decoded, size: tuple[int, int]) -> None:
        self.stream, self.size = stream, size
        self._context = self._made()
        self._field = np.empty((*size, 2), np.uint8)

    def _made(self) -> Any:
        context: Any = av.CodecContext.create("h264", "r")
        context.thread_count = 1
        return context

    def read(self, head: Head, data: Callable[[int, int], memoryview], numbers: Numbers, put: Put) -> None:
        """Hand each of the pictures `numbers` [m] (ascending, each once) of an entry to `put`.

        `data` gives the entry's bytes from one place to another. `Damaged` where they are not those that were written.
        """
        wanted = set(numbers.tolist())
        for stretch in head.stretches(numbers):
            start, stop = head.bytes_of(stretch)
            packets = data(start, stop)
            if len(packets) != stop - start or crc32(packets) != head.checks[stretch.start // GOP]:
                raise Damaged(f"its bytes at picture {stretch.start} are not those that were written")
            for number, frame in self._frames(head, packets, stretch):
                if number in wanted:
                    put(number, self._image(frame))

    def _frames(self, head: Head, packets: memoryview, stretch: range) -> Iterator[tuple[int, VideoFrame]]:
        begin = int(head.offsets[stretch.start])
        for number in stretch:
            packet = av.Packet(bytes(packets[head.offsets[number] - begin : head.offsets[number + 1] - begin]))
            packet.pts = packet.dts = number
            try:
                frames = self._context.decode(packet)
            except av.error.FFmpegError as error:
                self._context = self._made()
                raise Damaged(f"picture {number} cannot be decoded ({error.strerror})") from error
            # Without B-frames every packet gives its own picture at once.
            if len(frames) != 1 or frames[0].pts != number or frames[0].is_corrupt:
                self._context = self._made()
                raise Damaged(f"picture {number} did not come of its bytes")
            yield number, frames[0]

    def _image(self, frame: VideoFrame) -> Codes:
        height, width = self.size
        if (frame.height, frame.width) != coded_size(Facts(self.stream, "", 0, 1, height, width)):
            raise Damaged(f"its pictures are {frame.width} x {frame.height}")
        if self.stream == "rgb":
            image: Codes = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)[:height, :width]
            return image
        plane: Any = frame.planes[0]
        picture = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        self._field[..., 0], self._field[..., 1] = picture[:height, :width], picture[height : 2 * height, :width]
        return self._field
