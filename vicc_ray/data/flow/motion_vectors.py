"""Flow from the motion vectors that are in the video file already: no picture is compared with another.

A codec stores for most blocks of a picture where in another picture they look alike. FFmpeg's decoder gives these vectors
out; here they become a dense field of the velocity at each pixel:

- a vector is divided by the distance to the picture that it refers to. FFmpeg gives the direction, not the picture; taken
  is the nearest reference picture in that direction that was decoded before, which is too near for the blocks (few in
  real videos) that refer to a farther one. A block with two vectors gets their mean.
- every block is filled with its vector; blocks without one (intra) get that of the nearest block which has one.
- the field from frame i to i + 1 is frame i + 1's. A frame without vectors (an I-frame) gets the linear interpolation
  between the nearest frames before and after it that have some, up to `REACH` frames away; the only neighbour's field
  where there is one; no motion where there is none.

Legend: n fields; H x W the decode size; h x w the file's size; c cells of 4 x 4 file pixels, the smallest block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from vicc_ray.data.decode import Decoder, Indices, Timeline, VideoError, fetched, open_video, timeline_of
from vicc_ray.data.flow.field_vectors import Luma, Reference, field_velocities, luma_of
from vicc_ray.data.nal import is_reference, length_bytes
from vicc_ray.data.pictures import Orientation, orientation_of

Field = NDArray[np.float32]

# Codecs whose decoder in FFmpeg exports vectors, each seen to do so rightly.
CODECS = frozenset(
    {
        *("h264", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"),
        *("h261", "h263", "flv1", "rv10", "rv20", "snow"),
    }
)
# FFmpeg keeps no vectors of MPEG-4's B-frames and exports zeros: they count as frames without vectors.
NO_B_VECTORS = frozenset({"mpeg4"})
# Interlaced, their blocks may lie in fields, and nothing that FFmpeg exports says so: `field_vectors`.
FIELD_BLOCKS = frozenset({"h264"})
# FFmpeg's field orders (AVFieldOrder) with the bottom field shown first.
BOTTOM_FIELD_FIRST = (3, 4)
CELL = 4
REACH = 4
_ADVICE = "use flow.algorithm dis, farneback, tvl1 or raft"
# References that are remembered: H.264 allows 16.
REFERENCES = 16


@dataclass(frozen=True)
class _Picture:
    """One decoded picture: FFmpeg's table of vectors (None: there is none to be used) and the file's picture size.

    `past`, `future`: frames to the pictures referred to before and after it. `velocities`: float32 [n, 2] pixels a frame,
    where the vectors alone do not give them.
    """

    index: int
    vectors: NDArray[Any] | None
    past: int
    future: int
    height: int
    width: int
    orientation: Orientation
    velocities: Field | None = None


# Frame index, picture, distances to the references before and after it, velocities where they had to be found out.
_Decoded = tuple[int, VideoFrame, int, int, Field | None]


class _FieldsMet(Exception):
    """A picture has blocks in fields: its pixels are needed."""


class _StampsDisagree(Exception):
    """Decoded pictures are not where the packets' time stamps promised them."""


def identity() -> dict[str, Any]:
    """What decides the numbers: FFmpeg's version and this file's rules."""
    return {"libavcodec": ".".join(map(str, av.library_versions["libavcodec"])), "reach": REACH, "rules": 2}


def motion_vector_fields(video: str, origins: Indices, size: tuple[int, int], decoder: Decoder = "pyav") -> Field:
    """The fields from frames `origins` to the next ones: int64 [n] -> float32 [n, H, W, 2], (u, v) in decoded pixels.

    Origins may repeat and stand in any order; only the range that they span is decoded. `size` is (H, W) of the upright
    picture; vectors are scaled and turned with it. `decoder` is the manifest's choice: with `pyav-sequential` frames are
    counted from the start. Raises `VideoError` for a codec that exports no vectors and where a frame is not there.
    """
    wanted, places = np.unique(np.asarray(origins, np.int64), return_inverse=True)
    if not len(wanted) or wanted[0] < 0:
        raise ValueError("origins must hold at least one frame index, none below 0")
    with fetched(video) as path:
        timeline = _checked_timeline(path)
        if timeline.exact and decoder != "pyav-sequential":
            first = max(int(wanted[0]) + 1 - REACH, 0)
            key = int(timeline.keys[max(int(np.searchsorted(timeline.keys, first, side="right")) - 1, 0)])
            # Containers without an index may land past the key; from the start no seeking is needed.
            for start in sorted({key, 0}, reverse=True):
                try:
                    return _collect(_fields(path, timeline, start, size, trusted=True), wanted, size)[places]
                except _StampsDisagree:
                    pass
        return _collect(_fields(path, timeline, 0, size, trusted=False), wanted, size)[places]


def iterate_motion_vectors(video: str, size: tuple[int, int], decoder: Decoder = "pyav") -> Iterator[Field]:
    """All fields of a video in order, float32 [H, W, 2] each: what `motion_vector_fields` gives, decoded in one go."""
    with fetched(video) as path:
        timeline = _checked_timeline(path)
        done = 0
        if timeline.exact and decoder != "pyav-sequential":
            try:
                for done, field in _fields(path, timeline, 0, size, trusted=True):
                    if done:
                        yield field
                return
            except _StampsDisagree:
                pass
        for index, field in _fields(path, timeline, 0, size, trusted=False):
            if index > done:
                yield field


def _checked_timeline(path: str) -> Timeline:
    timeline = timeline_of(path)
    if len(timeline) > 1 and len(timeline.keys) == len(timeline):
        with open_video(path) as (container, stream):
            _codec_of(stream)
            if _all_intra(container, stream):
                raise VideoError(f"every picture is a key frame, so that it holds no motion vectors; {_ADVICE}")
    return timeline


def _codec_of(stream: VideoStream) -> str:
    codec: str = stream.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise VideoError(f"FFmpeg exports no motion vectors of {codec}; {_ADVICE}")
    return codec


def _all_intra(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the first pictures are really coded alone: AVI flags all of H.261 and H.263 so, wrongly."""
    try:
        return all(frame.pict_type == PictureType.I for frame in islice(container.decode(stream), REFERENCES))
    except av.error.FFmpegError:
        return True


def _collect(fields: Iterator[tuple[int, Field]], wanted: Indices, size: tuple[int, int]) -> Field:
    """The fields of the ascending origins `wanted`, out of fields that come with the frame that they lead to."""
    out = np.empty((len(wanted), *size, 2), np.float32)
    found = 0
    for index, field in fields:
        if index == wanted[found] + 1:
            out[found] = field
            found += 1
            if found == len(wanted):
                return out
    raise VideoError(f"there is no frame after frame {wanted[found]}: no motion leads from it")


def _fields(
    path: str, timeline: Timeline, start: int, size: tuple[int, int], trusted: bool
) -> Iterator[tuple[int, Field]]:
    """(frame, field that leads to it) in order from `start` on, gaps filled."""
    before: tuple[int, Field] | None = None
    gap: deque[int] = deque()
    for picture in _pictures(path, timeline, start, trusted):
        field = _dense(picture, size)
        if field is None:
            gap.append(picture.index)
            if picture.index - gap[0] == REACH:
                missing = gap.popleft()
                yield missing, _between(missing, before, None, size)
            continue
        after = (picture.index, field)
        while gap:
            missing = gap.popleft()
            yield missing, _between(missing, before, after, size)
        yield after
        before = after
    while gap:
        missing = gap.popleft()
        yield missing, _between(missing, before, None, size)


def _between(
    index: int, before: tuple[int, Field] | None, after: tuple[int, Field] | None, size: tuple[int, int]
) -> Field:
    """The field of a frame without vectors, from its neighbours within `REACH`."""
    near = [(abs(index - n), field) for n, field in filter(None, (before, after)) if abs(index - n) <= REACH]
    if not near:
        return np.zeros((*size, 2), np.float32)
    if len(near) == 1:
        return near[0][1]
    (left, first), (right, second) = near
    share = left / (left + right)
    return (first + (second - first) * share).astype(np.float32)


def _pictures(path: str, timeline: Timeline, start: int, trusted: bool) -> Iterator[_Picture]:
    """Pictures in the order of showing from frame `start` on. Untrusted time stamps: counted, and B-frames have no vectors."""
    following = start
    try:
        for picture in _decoded(path, timeline, start, trusted, rebuilt=False):
            yield picture
            following = picture.index + 1
    except _FieldsMet:
        for picture in _decoded(path, timeline, start, trusted, rebuilt=True):
            if picture.index >= following:
                yield picture


def _decoded(path: str, timeline: Timeline, start: int, trusted: bool, rebuilt: bool) -> Iterator[_Picture]:
    """As `_pictures`; `_FieldsMet` at a picture whose vectors mean nothing without its pixels, where they are not `rebuilt`."""
    with open_video(path) as (container, stream):
        codec = _codec_of(stream)
        # Vectors come before the pixels are rebuilt; leaving that out halves the time.
        skipped = {} if rebuilt else {"skip_idct": "all", "skip_loop_filter": "all"}
        exporting = {"flags2": "+export_mvs", **skipped}
        stream.codec_context.options = stream.codec_context.options | exporting
        no_b = codec in NO_B_VECTORS or not trusted
        if start:
            container.seek(int(timeline.stamps[start]), stream=stream)
        try:
            frames = _by_stamps(container, stream, timeline) if trusted else _by_count(container, stream)
            if codec in FIELD_BLOCKS:
                frames = _with_references(frames, stream) if rebuilt else _without_fields(frames)
            expected = start
            for index, frame, past, future, velocities in frames:
                if index < start:
                    continue
                if index != expected:
                    raise _StampsDisagree
                vectors = None if no_b and frame.pict_type == PictureType.B else _vectors(frame, codec)
                where = (frame.height, frame.width, orientation_of(frame))
                yield _Picture(index, vectors, past, future, *where, velocities)
                expected += 1
            if start and expected == start:
                raise _StampsDisagree
        except av.error.FFmpegError as error:
            raise VideoError(f"damaged: decoding stops ({error.strerror})") from error


def _without_fields(frames: Iterator[_Decoded]) -> Iterator[_Decoded]:
    for decoded in frames:
        if decoded[1].interlaced_frame:
            raise _FieldsMet
        yield decoded


def _with_references(frames: Iterator[_Decoded], stream: VideoStream) -> Iterator[_Decoded]:
    """The same with the velocities of interlaced pictures, each held back until the later picture it refers to is there."""
    lumas: dict[int, Luma] = {}
    waiting: deque[_Decoded] = deque()
    for decoded in frames:
        index, frame, _, _, _ = decoded
        lumas[index] = luma_of(frame)
        lumas.pop(index - 2 * REFERENCES, None)
        waiting.append(decoded)
        while waiting and (waiting[0][0] + waiting[0][3] in lumas or len(waiting) > REFERENCES):
            yield _resolved(waiting.popleft(), lumas, stream)
    while waiting:
        yield _resolved(waiting.popleft(), lumas, stream)


def _resolved(decoded: _Decoded, lumas: dict[int, Luma], stream: VideoStream) -> _Decoded:
    index, frame, past, future, _ = decoded
    vectors = _vectors(frame, "h264")
    if vectors is None or not frame.interlaced_frame:
        return decoded
    before, after = (
        Reference(lumas[place], distance) if place in lumas else None
        for place, distance in ((index - past, past), (index + future, future))
    )
    top_first = int(stream.codec_context.field_order) not in BOTTOM_FIELD_FIRST
    return index, frame, past, future, field_velocities(vectors, lumas[index], before, after, top_first)


def _by_stamps(container: InputContainer, stream: VideoStream, timeline: Timeline) -> Iterator[_Decoded]:
    """(frame index, picture, distance to the reference before it, and after it); the packets' order gives references."""
    order = _DecodingOrder(stream)
    for packet in container.demux(stream):
        if packet.pts is not None and packet.size:
            order.add(packet, int(np.searchsorted(timeline.stamps, packet.pts)))
        for frame in packet.decode():
            assert isinstance(frame, VideoFrame)
            place = int(np.searchsorted(timeline.stamps, -1 if frame.pts is None else frame.pts))
            if frame.pts is None or frame.pts < timeline.stamps[0]:
                continue
            if place == len(timeline) or timeline.stamps[place] != frame.pts:
                raise _StampsDisagree
            yield place, frame, *order.distances(place), None


def _by_count(container: InputContainer, stream: VideoStream) -> Iterator[_Decoded]:
    last = 0
    for index, frame in enumerate(container.decode(stream)):
        yield index, frame, max(index - last, 1), 1, None
        if frame.pict_type != PictureType.B:
            last = index


class _DecodingOrder:
    """Which pictures could be referred to when a picture was decoded."""

    def __init__(self, stream: VideoStream) -> None:
        context = stream.codec_context
        self._h264 = context.codec.canonical_name == "h264"
        self._length_bytes = length_bytes("h264", context.extradata or b"")
        self._references: deque[int] = deque(maxlen=REFERENCES)
        self._distances: dict[int, tuple[int, int]] = {}
        self._latest = -1

    def add(self, packet: Any, index: int) -> None:
        """The next packet holds the picture of this frame index."""
        before = [index - r for r in self._references if r < index]
        after = [r - index for r in self._references if r > index]
        self._distances[index] = (min(before, default=1), min(after, default=1))
        # What is shown after all that was decoded so far is an I or P picture. Others are B-frames: never referred to
        # in the older codecs; in H.264 the unit's header says it.
        if index > self._latest or (self._h264 and is_reference(bytes(packet), self._length_bytes)):
            self._references.append(index)
        self._latest = max(self._latest, index)

    def distances(self, index: int) -> tuple[int, int]:
        """Frames to the nearest reference before and after; called once for each picture."""
        return self._distances.pop(index, (1, 1))


def _vectors(frame: VideoFrame, codec: str) -> NDArray[Any] | None:
    side = frame.side_data.get("MOTION_VECTORS")
    if side is None:
        return None
    vectors: NDArray[Any] = side.to_ndarray().copy()
    if codec == "mpeg4":
        # Only field blocks are so wide and low there. FFmpeg has them in frame lines already and doubles them once more.
        vectors["motion_y"][(vectors["w"] == 16) & (vectors["h"] == 8)] //= 2
    return vectors


def _velocities(picture: _Picture, vectors: NDArray[Any]) -> Field:
    """float32 [n, 2], pixels a frame. FFmpeg: the block at dst is found at dst + motion / scale in what it refers to."""
    # Snow names the picture: -1 is the last one, -2 that before it.
    past = picture.past * np.maximum(-vectors["source"], 1)
    per_frame = np.where(vectors["source"] < 0, -1.0 / past, 1.0 / picture.future) / vectors["motion_scale"]
    velocities = np.stack([vectors["motion_x"], vectors["motion_y"]], -1) * per_frame[:, None]
    return np.asarray(velocities, np.float32)


def _dense(picture: _Picture, size: tuple[int, int]) -> Field | None:
    """The velocities of one picture at the decode size, upright; None where it has no vectors."""
    cells = _cells(picture)
    if cells is None:
        return None
    height, width = picture.orientation.stored(size)
    rows = ((np.arange(height) + 0.5) * (picture.height / height)).astype(np.int64) // CELL
    columns = ((np.arange(width) + 0.5) * (picture.width / width)).astype(np.int64) // CELL
    scale = np.array([width / picture.width, height / picture.height], np.float32)
    return _upright(cells[rows[:, None], columns] * scale, picture.orientation)


def _upright(field: Field, orientation: Orientation) -> Field:
    """A field of the stored picture as one of the upright picture: places and directions are turned and mirrored alike."""
    upright = orientation.upright(field)
    if orientation.transposed:
        upright = upright[..., ::-1]
    signs = (-1 if orientation.mirror_x else 1, -1 if orientation.mirror_y else 1)
    return np.ascontiguousarray(upright * np.array(signs, np.float32))


def _cells(picture: _Picture) -> Field | None:
    """Velocity in file pixels a frame for each cell: float32 [c rows, c columns, 2]; None without a single vector."""
    v = picture.vectors
    if v is None or not len(v):
        return None
    shape = (-(-picture.height // CELL), -(-picture.width // CELL))
    velocities = _velocities(picture, v) if picture.velocities is None else picture.velocities
    # Every cell of every block: a block's cells lie together, row after row.
    high, wide = -(-v["h"].astype(np.int64) // CELL), -(-v["w"].astype(np.int64) // CELL)
    cells_of = high * wide
    block = np.repeat(np.arange(len(v)), cells_of)
    place = np.arange(len(block)) - np.repeat(np.cumsum(cells_of) - cells_of, cells_of)
    down, right = np.divmod(place, wide[block])
    rows = ((v["dst_y"] - v["h"] // 2)[block] + CELL * down) // CELL
    columns = ((v["dst_x"] - v["w"] // 2)[block] + CELL * right) // CELL
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    flat, block = (rows * shape[1] + columns)[inside], block[inside]
    size = shape[0] * shape[1]
    sums = np.stack(
        [*(np.bincount(flat, velocities[block, axis], size) for axis in (0, 1)), np.bincount(flat, minlength=size)]
    )
    if not sums[2].any():
        return None
    known = sums[2].reshape(shape) > 0
    cells = (sums[:2] / np.maximum(sums[2], 1)).T.reshape(*shape, 2).astype(np.float32)
    return cells if known.all() else _fill(cells, known)


def _fill(cells: Field, known: NDArray[np.bool_]) -> Field:
    """Every cell that is not known gets the value of the nearest one that is."""
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros((int(labels.max()) + 1, 2), np.float32)
    table[labels[known]] = cells[known]
    filled: Field = table[labels]
    return filled
