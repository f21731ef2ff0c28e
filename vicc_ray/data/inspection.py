"""What is really in a video file, and which reader returns its frames right: asked of the packets and of the decoder.

A header's claims are noted, never believed. Pictures are compared at SAMPLE_SIZE, uint8 RGB [32, 32, 3].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vicc_ray.data.clips import STAMP_TOLERANCE
from vicc_ray.data.decode import (
    Decoder,
    Images,
    Timeline,
    VideoError,
    decode_from,
    open_video,
    read_timeline,
    rotation_of,
    to_image,
)

# One packet of these is one picture. Others (MPEG-4 part 2 has empty pictures, VP8 hidden ones) are decoded whole,
# once, to count.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1", "png"}
# decord seeks by an index; in containers without one (MPEG-PS, -TS) it was seen to be 12 frames off from the start.
# Those have no header with a length either: what FFmpeg tells of them it measured itself.
INDEXED_CONTAINERS = {"mov", "matroska", "avi"}
SAMPLE_SIZE = (32, 32)
# Mean grey levels between decord's and PyAV's picture at that size: rounding gives up to 3, 10-bit sources included.
SAME_PICTURE = 5.0
# By so many grey levels a picture may be nearer to its neighbour in time than to itself before it is taken for it.
NEIGHBOUR = 0.2
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


def inspect(path: str, every: bool) -> Findings:
    """Open, count and try one local file; raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself); all
    pictures where packets do not tell their number, or with `every`. Of a very long video only the ends are decoded,
    unless `every` asks for all. decord is chosen where its pictures are PyAV's there.
    """
    with open_video(path) as (container, stream):
        timeline = read_timeline(container, stream)
        codec = stream.codec_context.codec.canonical_name
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        indexed = bool(INDEXED_CONTAINERS.intersection(container.format.name.split(",")))
        claim = _claim(container, stream) if indexed else _Claim(stream.frames, 0)
    if not len(timeline):
        raise VideoError("the video stream holds no whole picture")
    # After a seek into an open GOP decord is a frame off, which a quiet video would not show.
    twin = _Decord(path) if indexed and not timeline.open_gops else None
    whole = every or not timeline.exact or (codec not in ONE_PICTURE_A_PACKET and len(timeline) <= LONG)
    look = _look(path, timeline, whole, twin if every else None)
    # decord skips by time stamps: where they do not hold it returns a neighbour of the asked frame.
    right = twin is not None and look.stamps_hold and twin.agrees(look)
    fps, constant_rate = _rate(timeline, rate, look.stamps_hold)
    return Findings(
        frames=look.frames,
        declared_frames=look.frames if abs(look.frames - claim.frames) <= claim.within else claim.frames,
        fps=fps,
        constant_rate=constant_rate,
        width=look.width,
        height=look.height,
        rotation=look.rotation,
        duration_seconds=look.frames / fps if fps else 0.0,
        codec=codec,
        decoder="decord" if right else "pyav" if look.stamps_hold else "pyav-sequential",
    )


@dataclass(frozen=True)
class _Claim:
    """A header's number of frames (0: none is given) and by how many frames it can be off without lying."""

    frames: int
    within: int


def _claim(container: InputContainer, stream: VideoStream) -> _Claim:
    if stream.frames:
        return _Claim(stream.frames, 0)
    seconds = 0.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:  # of several streams it may be another's
        seconds = container.duration / 1e6
    # A duration tells the number of frames to within one.
    return _Claim(round(seconds * float(stream.average_rate or 0)), 1)


@dataclass(frozen=True)
class _Look:
    """What decoding showed: pictures, whether their time stamps are the packets', some of them at `SAMPLE_SIZE`."""

    frames: int
    width: int
    height: int
    rotation: int
    stamps_hold: bool
    samples: dict[int, Images]


def _look(path: str, timeline: Timeline, whole: bool, twin: _Decord | None) -> _Look:
    """Decode the first picture and some stretches; or all (`whole`, or where a stretch is not as promised).

    `twin` is shown every picture that is decoded.
    """
    first = next(decode_from(path, timeline, 0), None)
    if first is None:
        raise VideoError("no picture can be decoded")
    frames, hold, samples = len(timeline), False, {0: to_image(first, SAMPLE_SIZE)}
    if not whole:
        tried = [_decode(path, timeline, *ends, samples, twin)[1] for ends in _stretches(timeline)]
        # Where seeking to a long video's end misses it, its head tells about the time stamps.
        hold = tried[0] if frames > LONG else all(tried)
    if not hold:
        samples = {0: samples[0]}
        frames, hold = _decode(path, timeline, 0, frames, samples, twin)
    height, width = to_image(first, None).shape[:2]
    return _Look(frames, width, height, rotation_of(first), hold, samples)


def _stretches(timeline: Timeline) -> list[tuple[int, int]]:
    """What of a video is tried, as (first frame, end): from about the last key on; of a very long one its head first."""
    frames = len(timeline)
    last = _key_before(timeline, frames - RUN)
    head = [(0, HEAD)] if frames > LONG else []
    return [*head, *([(last, frames)] if frames - last <= LONG else [])]


def _key_before(timeline: Timeline, frame: int) -> int:
    return int(timeline.keys[max(int(np.searchsorted(timeline.keys, frame, side="right")) - 1, 0)])


def _decode(
    path: str, timeline: Timeline, start: int, stop: int, samples: dict[int, Images], twin: _Decord | None
) -> tuple[int, bool]:
    """Decode frames `start` to `stop`, or to the file's end where that is promised to be `stop`: how many; as promised?

    Adds to `samples` the last picture and the runs that show where decord's seeking lands: from about the last key on,
    with a `twin` also from other places.
    """
    frames = len(timeline)
    landings = [_key_before(timeline, frames - RUN)]
    if twin is not None:
        landings += np.random.default_rng(frames).integers(0, frames, LANDINGS).tolist()
    wanted = {landing + step for landing in landings for step in range(RUN)}
    shown, hold, last = 0, timeline.exact, None
    for index, last in enumerate(decode_from(path, timeline, start), start):
        hold = hold and index < frames and last.pts == timeline.stamps[index]
        if index in wanted or twin is not None:
            image = to_image(last, SAMPLE_SIZE)
            if index in wanted:
                samples[index] = image
            if twin is not None:
                twin.see(index, image)
        shown += 1
        if index + 1 == stop < frames:
            break
    if last is not None:
        samples[start + shown - 1] = to_image(last, SAMPLE_SIZE)
    return shown, hold and shown == stop - start


def _rate(timeline: Timeline, declared: float, trusted: bool) -> tuple[float, bool]:
    """Frames a second, and whether frame k may be taken as shown at k / rate.

    The header's rate where the packets' times bear it out, else theirs. Times that decoding does not bear out
    (not `trusted`) are no reason to leave the even grid.
    """
    times = timeline.seconds if timeline.exact else np.zeros(1)
    measured = (len(times) - 1) / float(times[-1]) if times[-1] > 0 else declared
    for rate in (declared, measured):
        if rate > 0 and np.abs(times - np.arange(len(times)) / rate).max() <= STAMP_TOLERANCE:
            return rate, True
    return declared if abs(declared - measured) <= 0.05 * measured else measured, not trusted


class _Decord:
    """decord's reading of a file, to be compared with PyAV's; opened at the first question.

    A picture must be like PyAV's and no nearer to that before or after it: in a quiet video all look alike.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: Any = None
        self._right = True
        self._before: tuple[Images, Images] | None = None  # decord's and PyAV's picture before the one just seen

    def see(self, index: int, ours: Images) -> None:
        """Compare the next picture in order."""
        theirs = self._picture(index)
        if theirs is None:
            return
        before = self._before
        self._right = _same(theirs, ours, [before[1]] if before else []) and (not before or _same(*before, [ours]))
        self._before = theirs, ours

    def agrees(self, look: _Look) -> bool:
        """Whether all pictures seen were the same, and the samples are when asked for in a random order."""
        self._picture(0)
        if self._reader is None or len(self._reader) != look.frames:
            return False
        for index in np.random.default_rng(0).permutation(sorted(look.samples)).tolist():
            theirs = self._picture(index)
            if theirs is None:
                return False
            beside = [look.samples[other] for other in (index - 1, index + 1) if other in look.samples]
            self._right = _same(theirs, look.samples[index], beside)
        return self._right

    def _picture(self, index: int) -> Images | None:
        """Picture `index` at `SAMPLE_SIZE`; None where decord has none, or once it was wrong."""
        import decord

        if not self._right:
            return None
        height, width = SAMPLE_SIZE
        try:
            if self._reader is None:
                decord.logging.set_level(decord.logging.QUIET)
                cpu = decord.cpu(0)
                self._reader = decord.VideoReader(self._path, ctx=cpu, width=width, height=height, num_threads=1)
            image: Images = self._reader[index].asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError):
            self._right = False
            return None
        return image


def _same(theirs: Images, ours: Images, beside: list[Images]) -> bool:
    """Whether two readers' pictures are the same one, and not that `beside` it in time."""
    if theirs.shape != ours.shape:
        return False
    distance = _distance(theirs, ours)
    return distance <= SAME_PICTURE and all(distance <= _distance(theirs, other) + NEIGHBOUR for other in beside)


def _distance(one: Images, other: Images) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(one.astype(np.int16) - other).mean())
