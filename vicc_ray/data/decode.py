"""Frames from a video file: decord where it can be trusted, PyAV everywhere else.

Two facts shape this file. decord is the faster reader, but of a container without an index, of a file whose packets do
not all hold a frame, or of a codec that it does not know it returns other frames than the asked ones without a word, so
`vicc_ray.data.manifest.probe` decides once for each video which reader is right for it. And a header's frame count is a
claim: here frame i is the i-th picture that the file shows, counted over its packets or over its decoded pictures.

Shapes: n frames, H rows, W columns; images are uint8 RGB [n, H, W, 3], the right way up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

Decoder = Literal["decord", "pyav", "pyav-sequential"]
"""`pyav` seeks by time stamps; `pyav-sequential` counts from the start, for files whose stamps cannot be trusted."""
DECODERS: tuple[Decoder, ...] = ("decord", "pyav", "pyav-sequential")

Images = NDArray[np.uint8]
Indices = NDArray[np.int64]


class VideoError(Exception):
    """A video that cannot deliver what was asked; the message is the reason, one line without the file's name."""


class _StampsDisagree(Exception):
    """Decoded pictures carry other time stamps than the packets promised: seeking would return wrong frames."""


@dataclass(frozen=True)
class Timeline:
    """What a file's packets promise.

    `stamps`: int64 [n], presentation times in units of `time_base` seconds, ascending, one a frame; 0..n-1 where the
    file has none or repeats them (`exact` is then false). `keys`: int64 [k], the frames at which decoding can start.
    """

    stamps: Indices
    keys: Indices
    exact: bool
    time_base: float

    def __len__(self) -> int:
        return len(self.stamps)

    def start_for(self, frame: int) -> int:
        """The last frame at or before `frame` at which decoding can start."""
        return int(self.keys[max(int(np.searchsorted(self.keys, frame, side="right")) - 1, 0)])


def local_path(video: str) -> str:
    """A `file://` URI or a path as an absolute path, so that a name such as `-x.mp4` or `a:b.mp4` is only a name."""
    parts = urlsplit(video) if "://" in video else None
    if parts is None:
        return os.path.abspath(video)
    if parts.scheme != "file":
        raise VideoError(f"{parts.scheme}:// is not a local file; only paths and file:// URIs are read")
    return unquote(parts.path)


@contextmanager
def open_video(video: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file and its picture stream for one decoding thread; FFmpeg's objections leave as `VideoError`."""
    av.logging.set_level(None)
    try:
        # Titles in a foreign encoding are no reason to lose the pictures.
        with av.open(local_path(video), metadata_errors="replace") as container:
            stream = _picture_stream(container)
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
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"no video stream (only {', '.join(kinds)})" if kinds else "no video stream")
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if stream.codec_context is None:
        raise VideoError("its codec is not known to FFmpeg")
    return stream


def read_timeline(container: InputContainer, stream: VideoStream) -> Timeline:
    """Walk all packets, decoding none. Left out: what is never shown (edit lists), cut off or before the first key."""
    shown: list[tuple[int | None, bool]] = []
    keyed = False
    try:
        for packet in container.demux(stream):
            keyed = keyed or packet.is_keyframe
            if packet.size and keyed and not packet.is_discard and not packet.is_corrupt:
                shown.append((packet.pts, packet.is_keyframe))
    except av.error.FFmpegError:
        pass  # a file cut short ends here; what came before it is there
    base = float(stream.time_base) if stream.time_base else 1.0
    stamped = [(pts, key) for pts, key in shown if pts is not None]
    if len({pts for pts, _ in stamped}) != len(shown):
        return Timeline(np.arange(len(shown)), np.zeros(1, np.int64), False, base)
    # Pictures shown before the first key refer to what is not in the file.
    ordered = sorted(item for item in stamped if item[0] >= stamped[0][0])
    keys = [i for i, (_, key) in enumerate(ordered) if key]
    return Timeline(np.array([pts for pts, _ in ordered], np.int64), np.array(keys or [0], np.int64), True, base)


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


def rotation_of(frame: VideoFrame) -> int:
    """How far the picture must be turned clockwise to stand upright: 0, 90, 180 or 270 degrees."""
    return round(-frame.rotation / 90) % 4 * 90


def to_image(frame: VideoFrame, size: tuple[int, int] | None) -> Images:
    """One decoded picture as uint8 RGB [H, W, 3], upright; `size` is the upright (H, W), None keeps the file's."""
    turns = rotation_of(frame) // 90
    height, width = size or (None, None)
    if turns % 2:
        height, width = width, height
    # Bilinear is decord's filter too: the two readers agree to a grey level or so.
    scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR")
    image: Images = np.rot90(scaled.to_ndarray(), -turns)
    return image


def read_frames(
    video: str, indices: Indices, size: tuple[int, int] | None = None, decoder: Decoder = "decord"
) -> Images:
    """The frames `indices` of one video: int64 [n] -> uint8 RGB [n, H, W, 3], upright, scaled while decoding.

    Indices count the pictures that the file shows, from 0; they may repeat and stand in any order, and only the range
    that they span is decoded, by one thread. `size` is (H, W) of the upright picture; None keeps the file's. `decoder`
    is the manifest's choice for this video; where decord fails, PyAV is asked. Nothing is kept open after the call.

    Raises `VideoError` where the file cannot deliver every one of these frames.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder {decoder!r} is not one of {', '.join(DECODERS)}")
    wanted, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
    if not len(wanted):
        raise ValueError("no frame index was given")
    if wanted[0] < 0:
        raise ValueError(f"frame index {wanted[0]} is negative")
    images = _read_decord(video, wanted, size) if decoder == "decord" else None
    if images is None:
        images = _read_pyav(video, wanted, size, sequential=decoder == "pyav-sequential")
    return images if np.array_equal(places, np.arange(len(wanted))) else images[places]


def _read_decord(video: str, wanted: Indices, size: tuple[int, int] | None) -> Images | None:
    """decord's answer, or None where it has none to be used. The reader is dropped here: kept ones grow without end."""
    import decord

    path = local_path(video)
    if not os.path.isfile(path):
        raise VideoError("no such file")
    decord.logging.set_level(decord.logging.QUIET)
    height, width = size or (-1, -1)
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=1)
        if wanted[-1] >= len(reader):
            return None
        images: Images = reader.get_batch(wanted.tolist()).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError):
        return None
    # A one-pixel-wide picture comes back with the padding of its row as channels.
    right = images.shape == (len(wanted), *(size or images.shape[1:3]), 3) and images.dtype == np.uint8
    return images if right else None


def _read_pyav(video: str, wanted: Indices, size: tuple[int, int] | None, sequential: bool) -> Images:
    with open_video(video) as (container, stream):
        timeline = read_timeline(container, stream)
    if wanted[-1] >= len(timeline):
        raise VideoError(f"frame {wanted[-1]} was asked for, but the file holds {len(timeline)}")
    if timeline.exact and not sequential:
        try:
            return _collect(video, timeline, wanted, size, timeline.start_for(int(wanted[0])), checked=True)
        except _StampsDisagree:
            pass
    return _collect(video, timeline, wanted, size, 0, checked=False)


def _collect(
    video: str, timeline: Timeline, wanted: Indices, size: tuple[int, int] | None, start: int, checked: bool
) -> Images:
    """Decode from frame `start` to the last wanted one; `checked` compares every time stamp with the timeline's."""
    images: list[Images] = []
    for index, frame in enumerate(decode_from(video, timeline, start), start):
        if checked and frame.pts != timeline.stamps[index]:
            raise _StampsDisagree
        if index == wanted[len(images)]:
            images.append(to_image(frame, size))
            if images[0].shape != images[-1].shape:
                raise VideoError(f"the picture's size changes at frame {index}; give a size to scale all frames to")
        if len(images) == len(wanted):
            return np.stack(images)
    if checked:
        raise _StampsDisagree  # a seek may land past the frame; counting from the start cannot
    raise VideoError(
        f"decoding ended before frame {wanted[len(images)]} of {len(timeline)}: the file is cut short or damaged"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
