"""Frames from a video file: decord where it is installed and can be trusted, PyAV everywhere else.

Two facts shape this file. decord can be the faster reader, but of many files (`vicc_ray.data.inspection` says which) it
returns other frames than the requested ones without an error, so `vicc_ray.data.manifest.probe` decides once for each
video which reader is right for it; their images are equal (`vicc_ray.data.pictures`). And a header's frame count is a
claim: here frame i is the i-th picture that the file shows, counted over its packets or over its decoded pictures.

Shapes: n frames, H rows, W columns; images are uint8 RGB [n, H, W, 3], the right way up.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vicc_ray.config import MAX_PIXELS
from vicc_ray.data.pictures import Images, Interlaced, to_image
from vicc_ray.errors import UserError
from vicc_ray.storage import local_copy

Decoder = Literal["decord", "pyav", "pyav-sequential"]
"""`pyav` seeks by time stamps; `pyav-sequential` counts from the start, for files whose stamps cannot be trusted."""
DECODERS: tuple[Decoder, ...] = ("decord", "pyav", "pyav-sequential")

# Titles in a foreign encoding are no reason to lose the pictures: PyAV 19 keeps such bytes and has no argument for it,
# earlier ones raise by default.
_ANY_TITLES: dict[str, str] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}

# Frames between two wanted ones, up to the key before the later one, from which on opening the file anew costs less than decoding.
SKIPPED = 30
DECORD_VERSION = "0.6.0"  # whose pictures were compared with PyAV's
MOST_OF_FFMPEG = (1 << 31) - 1  # of its own bound of pixels
_bound = MAX_PIXELS  # see `bound_pixels`

Indices = NDArray[np.int64]


class VideoError(Exception):
    """A video that cannot deliver the frames; the message is the reason, one line without the file's name."""


class _StampsDisagree(Exception):
    """Decoded pictures carry other time stamps than the packets promised: seeking would return wrong frames."""


@dataclass(frozen=True)
class Timeline:
    """What a file's packets promise.

    `stamps`: int64 [n], presentation times in units of `time_base` seconds, ascending, one a frame; 0..n-1 where the
    file has none, repeats them or goes back in time (`exact` is then false). `keys`: int64 [k], the frames at which
    decoding can start. `open_gops`: after some key come pictures that are shown before it and lean on the stretch before
    (x265's default).
    """

    stamps: Indices
    keys: Indices
    exact: bool
    time_base: float
    open_gops: bool = False

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def seconds(self) -> NDArray[np.float64]:
        """When each frame is shown, float64 [n], counted from the first."""
        return np.asarray((self.stamps - self.stamps[:1]) * self.time_base, np.float64)


@contextmanager
def fetched(video: str) -> Iterator[str]:
    """The absolute path of a local file with the video's bytes, fetched once where it lies elsewhere (s3:// and others).

    Everything here takes a path or a URI; who reads a video several times fetches it first and passes the path on.
    """
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(video))
        except FileNotFoundError as error:
            raise VideoError("no such file") from error
        except PermissionError as error:
            raise VideoError("no permission to read it") from error
        except (UserError, OSError) as error:
            raise VideoError(f"cannot be fetched: {_one_line(error)}") from error
        yield path


def bound_pixels(most: int) -> None:
    """From now on this process opens no video with pictures of more pixels."""
    global _bound
    _bound = most


@contextmanager
def open_video(video: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file and its picture stream for one decoding thread; FFmpeg's objections leave as `VideoError`."""
    av.logging.set_level(None)
    try:
        # FFmpeg decodes some pictures to open a file, so it has to know a bound, for sizes that come later too; it counts
        # pixels with padding.
        options = {"max_pixels": str(min(max(2 * _bound, 1 << 20), MOST_OF_FFMPEG))}
        with fetched(video) as path, av.open(path, options=options, **_ANY_TITLES) as container:
            stream = _picture_stream(container)
            _check_size(stream)
            stream.codec_context.options = options
            stream.codec_context.thread_count = 1
            yield container, stream
    except FileNotFoundError as error:
        raise VideoError("no such file") from error
    except IsADirectoryError as error:
        raise VideoError("a folder, not a video file") from error
    except PermissionError as error:
        raise VideoError("no permission to read it") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"not readable as a video: {error.strerror}") from error
    except (OSError, ValueError, MemoryError) as error:
        raise VideoError(f"not readable as a video: {_one_line(error)}") from error


def _picture_stream(container: InputContainer) -> VideoStream:
    if container.format.name == "webp_pipe" and _is_animated_webp(container.name):
        raise VideoError(
            f"an animated WebP, which PyAV {av.__version__} cannot decode (PyAV 19 can); make an MP4 or a GIF of it"
        )
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"no video stream (only {', '.join(kinds)})" if kinds else "no video stream")
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if stream.codec_context is None:
        raise VideoError("its codec is not known to FFmpeg")
    return stream


def _check_size(stream: VideoStream) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > _bound:
        raise VideoError(
            f"its pictures have {width} x {height} pixels, at most {_bound:,} are decoded (data.max_pixels, index --max-pixels)"
        )


def _is_animated_webp(path: str) -> bool:
    """FFmpeg 8 opens these as still pictures and finds no picture in them."""
    with open(path, "rb") as file:
        head = file.read(21)
    return len(head) > 20 and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def read_timeline(container: InputContainer, stream: VideoStream) -> Timeline:
    """Walk all packets, decoding none. Left out: what is never shown (edit lists) and what comes before the first key.

    Packets flagged corrupt count: the decoder is handed them, and mostly makes a picture of them.
    """
    # A four-hour video has half a million packets: numbers in arrays, not objects in lists.
    stamps, flags = array("q"), bytearray()
    shown, keyed, open_gops, joined = 0, False, False, False
    last_key: int | None = None
    latest: int | None = None
    try:
        for packet in container.demux(stream):
            keyed = keyed or packet.is_keyframe
            if packet.size and keyed and not packet.is_discard:
                shown += 1
                if packet.pts is not None:
                    stamps.append(packet.pts)
                    flags.append(packet.is_keyframe)
                    # A key is shown after all that comes before it in the file; where not, another recording begins.
                    joined = joined or (packet.is_keyframe and latest is not None and packet.pts < latest)
                    latest = packet.pts if latest is None else max(latest, packet.pts)
                    last_key = packet.pts if packet.is_keyframe else last_key
                    open_gops = open_gops or (last_key is not None and packet.pts < last_key)
    except av.error.FFmpegError:
        pass  # a file cut short ends here; what came before it is there
    base = float(stream.time_base) if stream.time_base else 1.0
    unordered = np.array(stamps, np.int64)
    order = np.argsort(unordered, kind="stable")
    ordered = unordered[order]
    if joined or len(ordered) != shown or (np.diff(ordered) == 0).any():
        return Timeline(np.arange(shown), np.zeros(1, np.int64), False, base)
    # Pictures shown before the first key refer to what is not in the file.
    late = ordered >= unordered[:1]
    # The first shown picture can lean on a key that an edit list hides; from the file's start it is decodable.
    keys = np.union1d([0], np.flatnonzero(np.frombuffer(flags, np.uint8)[order][late]))
    return Timeline(ordered[late], keys, True, base, open_gops)


def timeline_of(path: str) -> Timeline:
    """The timeline of a local file; the last few are remembered, as one video's windows are often read in turn."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise VideoError("no such file") from error
    return _timeline(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=8)
def _timeline(path: str, *_state: int) -> Timeline:
    with open_video(path) as (container, stream):
        return read_timeline(container, stream)


def decode_from(video: str, timeline: Timeline, start: int) -> Iterator[VideoFrame]:
    """Decoded pictures in the order of showing, from frame `start` on; cheapest where it is one of `timeline.keys`.

    Opens the file anew: seeking back to the start is off in some containers, not seeking is right in all.
    Containers without an index (MPEG-TS, -PS) may land past `start`: compare time stamps, or begin at 0.
    """
    shown = 0
    with open_video(video) as (container, stream):
        first = int(timeline.stamps[start])
        if start:
            container.seek(first, stream=stream)
        try:
            for frame in container.decode(stream):
                # A seek lands at a key frame, which may lie before `start`.
                if not start or frame.pts is None or frame.pts >= first:
                    yield frame
                    shown += 1
        except av.error.FFmpegError as error:
            where = f"after frame {start + shown - 1} of {len(timeline)}" if start + shown else "at the first frame"
            raise VideoError(f"damaged: decoding stops {where} ({error.strerror})") from error


def iterate_frames(
    path: str, first: int, count: int, timeline: Timeline, sequential: bool = False
) -> Iterator[VideoFrame]:
    """Decoded pictures from frame `first` of a local file on, `count` of them where it has as many, in order.

    By time stamps from the key before, where these can be trusted and `sequential` does not forbid it; else counted from the
    file's start.
    """
    done = 0
    if first and timeline.exact and not sequential and first < len(timeline):
        for start in _keys_before(timeline, first):
            try:
                for index, frame in _located(path, timeline, start, first):
                    if index >= first:
                        yield frame
                        done += 1
                    if done == count:
                        return
            except _StampsDisagree:
                if done:
                    break
    yield from islice(decode_from(path, timeline, 0), first + done, first + count)


def read_frames(
    video: str,
    indices: Indices,
    size: tuple[int, int] | None = None,
    decoder: Decoder = "decord",
    interlaced: Interlaced = "weave",
    timeline: Timeline | None = None,
) -> Images:
    """The frames `indices` of one video: int64 [n] -> uint8 RGB [n, H, W, 3], upright, scaled while decoding.

    Indices count the pictures that the file shows, from 0; they may repeat and stand in any order, and only what is
    around them is decoded, by one thread. `size` is (H, W) of the upright picture; None keeps the file's. `decoder`
    is the manifest's choice for this video; where decord fails, PyAV reads it. `interlaced`: see
    `vicc_ray.data.pictures`; videos for decord have no interlaced pictures. `timeline`: of the file, where it is known; PyAV
    then reads without walking the file first, and where the file turns out to be another one, it is walked. Nothing is kept
    open after the call.

    Raises `VideoError` where the file cannot deliver every one of these frames.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    if not len(wanted):
        raise ValueError("no frame index was given")
    if wanted[0] < 0:
        raise ValueError(f"frame index {wanted[0]} is negative")
    with fetched(video) as path:
        scaling, sequential = _Scaling(size, interlaced), decoder == "pyav-sequential"
        images = None
        if timeline is not None and not sequential:
            images = _by_stamps(path, timeline, wanted, scaling)
        elif decoder == "decord":
            images = _read_decord(path, wanted, size)
        if images is None:
            images = _read_pyav(path, wanted, scaling, sequential)
    return images if np.array_equal(places, np.arange(len(wanted))) else images[places]


@lru_cache(maxsize=1)
def decord_here() -> Any:
    """The module decord, None where it is not installed (there are wheels for x86-64 alone): then PyAV reads everything.

    Another version may scale otherwise: decord2, which has the same name, does.
    """
    try:
        import decord
    except (ImportError, OSError):
        return None
    if decord.__version__ != DECORD_VERSION:
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def decord_errors() -> tuple[type[Exception], ...]:
    """What decord raises where it cannot read."""
    decord = decord_here()
    return (RuntimeError, IndexError) if decord is None else (decord.DECORDError, RuntimeError, IndexError)


def open_decord(path: str, size: tuple[int, int] | None) -> Any:
    """decord's reader of a local file at a size (H, W), None keeps the file's; None where it has none to be used."""
    decord = decord_here()
    if decord is None:
        return None
    if size is not None:
        with open_video(path) as (_, stream):
            # Where it scales the width alone it puts colour half a line beside the picture.
            if stream.height == size[0] and stream.width != size[1]:
                return None
    height, width = size or (-1, -1)
    try:
        return decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
    except decord_errors():
        return None


def _read_decord(path: str, wanted: Indices, size: tuple[int, int] | None) -> Images | None:
    """decord's answer, or None where it has none to be used. The reader is dropped here: kept ones grow without end."""
    if not os.path.isfile(path):
        raise VideoError("no such file")
    reader = open_decord(path, size)
    if reader is None or wanted[-1] >= len(reader):
        return None
    try:
        images: Images = reader.get_batch(wanted.tolist()).asnumpy()
    except decord_errors():
        return None
    # A one-pixel-wide picture comes back with the padding of its row as channels.
    right = images.shape == (len(wanted), *(size or images.shape[1:3]), 3) and images.dtype == np.uint8
    return images if right else None


@dataclass(frozen=True)
class _Scaling:
    """How pictures become images."""

    size: tuple[int, int] | None
    interlaced: Interlaced

    def image(self, frame: VideoFrame) -> Images:
        return to_image(frame, self.size, self.interlaced)


def _read_pyav(path: str, wanted: Indices, scaling: _Scaling, sequential: bool) -> Images:
    timeline = timeline_of(path)
    if timeline.exact and not sequential:
        if wanted[-1] >= len(timeline):
            raise _beyond(int(wanted[-1]), len(timeline))
        images = _by_stamps(path, timeline, wanted, scaling)
        if images is not None:
            return images
    # Frames are what decoding shows, as indexing counted them: packets may promise more or fewer.
    return _collect(enumerate(decode_from(path, timeline, 0)), wanted, scaling, len(timeline))


def _by_stamps(path: str, timeline: Timeline, wanted: Indices, scaling: _Scaling) -> Images | None:
    """The frames by an exact timeline; None where the decoded pictures have other time stamps.

    Of clips that lie far apart in a long file only what is around each is decoded.
    """
    if wanted[-1] >= len(timeline):
        return None
    keys = timeline.keys[np.searchsorted(timeline.keys, wanted[1:], side="right") - 1]
    parts = []
    for run in np.split(wanted, np.flatnonzero(keys - wanted[:-1] > SKIPPED) + 1):
        images = _run_by_stamps(path, timeline, run, scaling)
        if images is None:
            return None
        parts.append(images)
    if len({images.shape[1:] for images in parts}) > 1:
        raise VideoError("the picture's size changes in it; give a size to scale all frames to")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _run_by_stamps(path: str, timeline: Timeline, wanted: Indices, scaling: _Scaling) -> Images | None:
    """Frames that are decoded in one go."""
    for start in _keys_before(timeline, int(wanted[0])):
        try:
            return _collect(_located(path, timeline, start, int(wanted[0])), wanted, scaling, len(timeline))
        except _StampsDisagree:
            pass
    return None


def _keys_before(timeline: Timeline, frame: int) -> tuple[int, int]:
    """Where to begin decoding for a frame, and where if that fails.

    Containers without an index (MPEG-TS, -PS) land past the requested key, but hardly past three.
    """
    key = int(np.searchsorted(timeline.keys, frame, side="right")) - 1
    return int(timeline.keys[key]), int(timeline.keys[max(key - 2, 0)])


def _beyond(frame: int, frames: int) -> VideoError:
    return VideoError(f"frame {frame} was requested, but the file holds {frames}")


def _located(path: str, timeline: Timeline, start: int, wanted: int) -> Iterator[tuple[int, VideoFrame]]:
    """Frames and their numbers from about `start`, by time stamps; `_StampsDisagree` where these do not hold."""
    index = -1
    for frame in decode_from(path, timeline, start):
        if index < 0:
            if frame.pts is None:
                raise _StampsDisagree
            index = int(np.searchsorted(timeline.stamps, frame.pts))
            # Before the first key there may be pictures that lean on what was not read.
            key = int(np.searchsorted(timeline.keys, index))
            if key == len(timeline.keys) or timeline.keys[key] > wanted:
                raise _StampsDisagree
        if index >= len(timeline) or frame.pts != timeline.stamps[index]:
            raise _StampsDisagree
        yield index, frame
        index += 1
    raise _StampsDisagree  # the wanted ones did not come; counting from the start says why


def _collect(frames: Iterator[tuple[int, VideoFrame]], wanted: Indices, scaling: _Scaling, promised: int) -> Images:
    """The `wanted` (ascending) of numbered frames; `promised`: how many packets there are."""
    images: list[Images] = []
    index = -1
    for index, frame in frames:
        if index == wanted[len(images)]:
            images.append(scaling.image(frame))
            if images[0].shape != images[-1].shape:
                raise VideoError(f"the picture's size changes at frame {index}; give a size to scale all frames to")
        if len(images) == len(wanted):
            return np.stack(images)
    if index + 1 >= promised:
        raise _beyond(int(wanted[-1]), index + 1)
    raise VideoError(
        f"decoding ended before frame {wanted[len(images)]} of {promised}: the file is cut short or damaged"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
