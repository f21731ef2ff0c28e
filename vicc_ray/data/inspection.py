"""What is really in a video file, and which reader returns its frames right, from its packets and from decoding it.

A header's claims are noted, never believed. decord reads only what it was seen to read right in every window of made files
(`DECORD`, `_plain`, `_fresh_starts`), and of that only files whose pictures prove it: decord's and PyAV's are equal bit for
bit where this is so, hence no tolerance in which a wrong frame of a quiet scene could hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vicc_ray.data import nal
from vicc_ray.data.clips import STAMP_TOLERANCE
from vicc_ray.data.decode import (
    Decoder,
    Timeline,
    VideoError,
    decode_from,
    decord_errors,
    decord_here,
    open_decord,
    open_video,
    read_timeline,
)
from vicc_ray.data.frame_table import encode_table
from vicc_ray.data.pictures import Images, Orientation, orientation_of, to_image

# Counts changes of what is found in one and the same file; what was found by other rules is not taken over.
RULES = 2
# One packet of these is one picture. Others (MPEG-4 part 2 has empty pictures, VP8 hidden ones) are decoded whole,
# once, to count.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1", "png"}
# These have a header with a length. Of others (MPEG-PS, -TS) FFmpeg measures it itself.
INDEXED_CONTAINERS = {"mov", "matroska", "avi"}
# Where decord lands right after a seek, whatever the distance of key pictures and with B-frames. In AVI, which numbers
# packets and not pictures, it answers requests for later frames of H.264 and MPEG-2 with those of the first second; MPEG-TS
# and -PS have no index at all; H.264 in Matroska has marks of key pictures that are none.
DECORD = {"mov": {"h264", "hevc", "vp9"}, "matroska": {"vp8", "vp9"}}
# Its conversion of other formats (10 bit, 4:2:2) to RGB differs from PyAV's by several grey levels.
DECORD_FORMATS = {"yuv420p", "yuvj420p"}
# (H, W) at which the first picture of both readers is compared; all others are at the file's size.
SCALED = (128, 171)
# Frames: a video or a stretch longer than this (a quarter of an hour) is tried at its ends, not decoded whole.
LONG = 25_000
# Frames tried at the head of such a video.
HEAD = 500
# Frames in a row that are compared after a seek, and the places where this is done when every frame is decoded.
RUN = 8
LANDINGS = 6


@dataclass(frozen=True)
class Findings:
    """What a file holds; the fields mean what they mean in a `vicc_ray.data.manifest.VideoRow`."""

    frames: int
    declared_frames: int
    fps: float
    constant_rate: bool
    width: int
    height: int
    rotation: int
    duration_seconds: float
    codec: str
    decoder: Decoder
    frame_table: str


def inspect(path: str, every: bool) -> Findings:
    """Open, count and try one local file; raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself); all
    pictures where packets do not give their number, or with `every`. Of a very long video only the ends are decoded,
    unless `every` is set. decord is chosen where it can be (`_plain`) and its pictures are PyAV's there.
    """
    with open_video(path) as (container, stream):
        timeline = read_timeline(container, stream)
        codec = stream.codec_context.codec.canonical_name
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        indexed = bool(INDEXED_CONTAINERS.intersection(container.format.name.split(",")))
        declared = stream.frames
        if container.format.name == "avi" and _has_empty_slots(timeline):
            # Its header counts slots of equal length, also those in which the picture before is shown on.
            promised, declared = declared * timeline.time_base, 0
        else:
            promised = _promised_seconds(container, stream) if indexed and not declared else 0.0
        plain = _plain(container, stream, codec)
    if not len(timeline):
        raise VideoError("the video stream holds no whole picture")
    # A longer one is read by its frame table, with PyAV (`segments.by_table`), and decord's readers hold hundreds of bytes a frame.
    short = len(timeline) <= LONG
    tried = decord_here() is not None and plain and timeline.exact and not timeline.open_gops and short
    twin = _Decord(path) if tried else None
    if twin is not None and codec in nal.CODECS and not twin.lands_on(_fresh_starts(path, timeline)):
        twin = None
    whole = every or not timeline.exact or (codec not in ONE_PICTURE_A_PACKET and short)
    decoded = _decode_samples(path, timeline, whole, twin if every else None)
    # decord skips by time stamps: where they do not hold it returns a neighbour of the requested frame.
    right = twin is not None and decoded.plain and decoded.stamps_hold and twin.agrees(decoded)
    fps, constant_rate = _rate(timeline, rate, decoded.stamps_hold)
    return Findings(
        frames=decoded.frames,
        declared_frames=declared or _declared(timeline, promised, decoded.frames, rate or fps),
        fps=fps,
        constant_rate=constant_rate,
        width=decoded.width,
        height=decoded.height,
        rotation=decoded.orientation.degrees,
        duration_seconds=decoded.frames / fps if fps else 0.0,
        codec=codec,
        decoder="decord" if right else "pyav" if decoded.stamps_hold else "pyav-sequential",
        # Only where decoding bears it out; elsewhere frames are counted from the file's start.
        frame_table=encode_table(timeline) if decoded.stamps_hold and decoded.frames == len(timeline) else "",
    )


def _plain(container: InputContainer, stream: VideoStream, codec: str) -> bool:
    """Whether decord reads such files right: one stream of pictures of a kind that it was tried on.

    Of several streams it takes the one with the highest bit rate.
    """
    return (
        any(codec in DECORD.get(name, ()) for name in container.format.name.split(","))
        and len(container.streams.video) == 1
        and stream.codec_context.pix_fmt in DECORD_FORMATS
    )


def _fresh_starts(path: str, timeline: Timeline) -> set[int]:
    """The frames with which a decoder of H.264 or HEVC can begin and lacks nothing: no leading pictures, no gradual refresh."""
    with open_video(path) as (container, stream):
        codec = stream.codec_context.codec.canonical_name
        length = nal.length_bytes(codec, stream.codec_context.extradata or b"")
        return {
            int(np.searchsorted(timeline.stamps, packet.pts))
            for packet in container.demux(stream)
            if packet.pts is not None and packet.is_keyframe and nal.starts_afresh(codec, bytes(packet), length)
        }


def _has_empty_slots(timeline: Timeline) -> bool:
    """Whether pictures lie further apart than the unit of time."""
    return timeline.exact and len(timeline) > 1 and int(np.diff(timeline.stamps).max()) > 1


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float:
    """When the header of a file that counts no frames says that the pictures end; 0.0: it does not say it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:  # of several streams it may be another's
        return float(container.duration / 1e6)
    return 0.0


def _declared(timeline: Timeline, promised: float, frames: int, rate: float) -> int:
    """The number of frames that a header means that has an end (seconds), a rate and no number; 0: unknown.

    The last picture may be shown as long as any other: a header that is off by no more than that is honest.
    """
    if not promised or not timeline.exact or len(timeline) < 2:
        return 0
    first, last = (float(timeline.stamps[place]) * timeline.time_base for place in (0, -1))
    longest = float(np.diff(timeline.seconds).max())
    honest = abs(promised - (last + 1 / rate)) <= longest
    return frames if honest else max(round((promised - first) * rate), 1)


@dataclass(frozen=True)
class _Decoded:
    """What decoding showed: pictures, whether their time stamps are the packets', digests of some of them.

    `plain`: none is interlaced, turned or mirrored. `first`: the first picture at `SCALED`.
    """

    frames: int
    width: int
    height: int
    orientation: Orientation
    stamps_hold: bool
    plain: bool
    first: Images
    samples: dict[int, bytes]


def _decode_samples(path: str, timeline: Timeline, whole: bool, twin: _Decord | None) -> _Decoded:
    """Decode the first picture and some stretches; or all (`whole`, or where a stretch is not as promised).

    `twin` is shown every picture that is decoded.
    """
    first = next(decode_from(path, timeline, 0), None)
    if first is None:
        raise VideoError("no picture can be decoded")
    orientation = orientation_of(first)
    samples = _Samples(twin, orientation == Orientation())
    samples.take(0, first)
    frames, hold = len(timeline), False
    if not whole:
        tried = [_decode(path, timeline, *ends, samples)[1] for ends in _stretches(timeline)]
        # Where seeking to a long video's end misses it, its head shows the time stamps.
        hold = tried[0] if frames > LONG else all(tried)
    if not hold:
        samples.digests.clear()
        frames, hold = _decode(path, timeline, 0, frames, samples)
    height, width = orientation.stored((first.height, first.width))
    scaled = to_image(first, SCALED)
    return _Decoded(frames, width, height, orientation, hold, samples.plain, scaled, samples.digests)


class _Samples:
    """Digests of pictures at the file's size, to be compared with decord's; `twin` is shown all that are decoded.

    `plain` turns false at the first interlaced picture.
    """

    def __init__(self, twin: _Decord | None, plain: bool) -> None:
        self.twin, self.plain = twin, plain
        self.digests: dict[int, bytes] = {}

    def see(self, index: int, frame: VideoFrame, wanted: bool) -> None:
        """The next picture in order; its digest is kept where `wanted`."""
        self.plain = self.plain and not frame.interlaced_frame
        if wanted or (self.twin is not None and self.plain):
            digest = self.take(index, frame) if wanted else _digest(to_image(frame, None))
            if self.twin is not None:
                self.twin.see(index, digest)

    def take(self, index: int, frame: VideoFrame) -> bytes:
        self.digests[index] = _digest(to_image(frame, None))
        return self.digests[index]


def _stretches(timeline: Timeline) -> list[tuple[int, int]]:
    """What of a video is tried, as (first frame, end): from about the last key on; of a very long one its head first."""
    frames = len(timeline)
    last = _key_before(timeline, frames - RUN)
    head = [(0, HEAD)] if frames > LONG else []
    return [*head, *([(last, frames)] if frames - last <= LONG else [])]


def _key_before(timeline: Timeline, frame: int) -> int:
    return int(timeline.keys[max(int(np.searchsorted(timeline.keys, frame, side="right")) - 1, 0)])


def _decode(path: str, timeline: Timeline, start: int, stop: int, samples: _Samples) -> tuple[int, bool]:
    """Decode frames `start` to `stop`, or to the file's end where that is promised to be `stop`: how many; as promised?

    Adds to `samples` the last picture and the runs that show where decord's seeking lands: from about the last key on,
    and from other places where all are decoded for a twin.
    """
    frames = len(timeline)
    landings = [_key_before(timeline, frames - RUN)]
    if samples.twin is not None:
        landings += np.random.default_rng(frames).integers(0, frames, LANDINGS).tolist()
    wanted = {landing + step for landing in landings for step in range(RUN)}
    shown, hold, last = 0, timeline.exact, None
    for index, last in enumerate(decode_from(path, timeline, start), start):
        hold = hold and index < frames and last.pts == timeline.stamps[index]
        samples.see(index, last, index in wanted)
        shown += 1
        if index + 1 == stop < frames:
            break
    if last is not None:
        samples.take(start + shown - 1, last)
    return shown, hold and shown == stop - start


def _rate(timeline: Timeline, declared: float, trusted: bool) -> tuple[float, bool]:
    """Frames a second, and whether frame k may be taken as shown at k / rate.

    The header's rate where the pictures' times bear it out; else the rate of those times, which are the same in every
    container, where how long the last picture is shown is not. Times that decoding does not bear out (not `trusted`) are
    no reason to leave the even grid of the header's rate.
    """
    times = timeline.seconds if timeline.exact else np.zeros(1)
    measured = (len(times) - 1) / float(times[-1]) if times[-1] > 0 else declared
    for rate in (declared, measured):
        if rate > 0 and np.abs(times - np.arange(len(times)) / rate).max() <= STAMP_TOLERANCE:
            return rate, True
    near = abs(declared - measured) <= 0.05 * measured
    return declared if near and not trusted else measured, not trusted


class _Decord:
    """decord's reading of a file, to be compared with PyAV's: the same pictures, or it is not used."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._inorder: Any = None
        self._unused: Any = None  # a reader that has not been anywhere: opening one walks the file
        self._right = True

    def lands_on(self, frames: set[int]) -> bool:
        """Whether all frames that it seeks to are among these."""
        reader = self._unused = self._open()
        return self._right and frames.issuperset(int(key) for key in reader.get_key_indices())

    def see(self, index: int, ours: bytes) -> None:
        """Compare the next picture in order."""
        if self._inorder is None:
            self._inorder = self._open()
        self._right = self._right and self._same(self._inorder, index, ours)

    def agrees(self, decoded: _Decoded) -> bool:
        """Whether all pictures seen were the same, and so is each run of samples to a reader that begins with it.

        A single picture (the last one) follows the run before it. The first one is compared at `SCALED`.
        """
        scaled = self._open(SCALED)
        if not self._right or len(scaled) != decoded.frames:
            return False
        picture = self._picture(scaled, 0)
        self._right = picture is not None and np.array_equal(picture, decoded.first)
        places, reader = np.array(sorted(decoded.samples)), None
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            if not self._right or run.tolist() == [0] != places.tolist():
                continue
            if reader is None or len(run) > 1:
                reader, self._unused = self._unused or self._open(), None
            self._right = all(self._same(reader, index, decoded.samples[index]) for index in run.tolist())
        return self._right

    def _open(self, size: tuple[int, int] | None = None) -> Any:
        """A new reader, or () where decord cannot read the file."""
        reader = open_decord(self._path, size)
        self._right = self._right and reader is not None
        return () if reader is None else reader

    def _same(self, reader: Any, index: int, ours: bytes) -> bool:
        picture = self._picture(reader, index)
        return picture is not None and _digest(picture) == ours

    def _picture(self, reader: Any, index: int) -> Images | None:
        """None where decord has none."""
        try:
            image: Images = reader[index].asnumpy()
        except decord_errors():
            return None
        return image


def _digest(image: Images) -> bytes:
    """Equal where the pictures are, in size and in every pixel."""
    return blake2b(image.tobytes(), digest_size=16, key=repr(image.shape).encode()).digest()
