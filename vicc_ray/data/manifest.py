"""The manifest: one row a video, in one Parquet file. What is there, how to read it, and what was refused and why.

`probe` asks the file itself, not its header. `Manifest` holds the rows, the refused ones apart.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import (
    DECODERS,
    Decoder,
    Images,
    Timeline,
    VideoError,
    decode_from,
    local_path,
    open_video,
    read_timeline,
    rotation_of,
    to_image,
)
from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Manifest", "VideoError", "VideoRow", "content_hash", "probe"]

# One packet of these is one picture. Others (MPEG-4 part 2 has empty pictures, VP8 hidden ones) are decoded whole,
# once, to count.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg1video", "mpeg2video", "mjpeg", "ffv1", "png"}
# decord seeks by an index; in containers without one (MPEG-PS, -TS) it was seen to be 12 frames off from the start.
DECORD_CONTAINERS = {"mov", "matroska", "avi"}
SAMPLE_SIZE = (32, 32)
# Mean grey levels between decord's and PyAV's picture at that size: rounding gives up to 3, 10-bit sources included.
SAME_PICTURE = 5.0


@dataclass(frozen=True, slots=True)
class VideoRow:
    """One video. Sizes are pixels of the upright picture; `rotation` is clockwise degrees already counted in them.

    `frames` counts pictures really there. `fps` is their mean rate and `duration_seconds` the time they cover.
    `refused` is the reason why the video cannot be used, or None; a refused row may know nothing but its name.
    """

    video: str
    label: str | None = None
    split: str = "train"
    group: str | None = None
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    rotation: int = 0
    duration_seconds: float = 0.0
    codec: str = ""
    bytes: int = 0
    content_hash: str = ""
    decoder: Decoder = "decord"
    refused: str | None = None


def content_hash(path: str, edge: int = 1 << 20) -> str:
    """blake2b-128 (hex) of the file's size with its first and last MiB; of all of it up to 2 MiB."""
    digest = blake2b(digest_size=16)
    size = os.path.getsize(path)
    digest.update(f"{size}:".encode())
    with open(path, "rb") as file:
        digest.update(file.read(edge))
        if size > edge:
            file.seek(max(edge, size - edge))
            digest.update(file.read())
    return digest.hexdigest()


def probe(video: str) -> VideoRow:
    """Open, count and try one video; raises `VideoError` with the reason where it cannot be used.

    Decodes the first picture and the stretch after the last key frame (where a cut or damaged file shows itself), or
    all pictures where packets do not tell their number; compares decord with PyAV there to choose the reader.
    """
    with open_video(video) as (container, stream):
        timeline = read_timeline(container, stream)
        codec = stream.codec_context.codec.canonical_name
        declared = float(stream.average_rate or stream.guessed_rate or 0)
        indexed = bool(DECORD_CONTAINERS.intersection(container.format.name.split(",")))
    if not len(timeline):
        raise VideoError("the video stream holds no whole picture")
    path = local_path(video)
    look = _look(video, timeline, count=codec not in ONE_PICTURE_A_PACKET)
    decoder: Decoder = "pyav" if look.stamps_hold else "pyav-sequential"
    # decord skips by time stamps: where they do not hold it returns a neighbour of the asked frame.
    if indexed and look.stamps_hold and _decord_agrees(path, look):
        decoder = "decord"
    fps = _rate(timeline, declared)
    return VideoRow(
        video=video,
        frames=look.frames,
        fps=fps,
        width=look.width,
        height=look.height,
        rotation=look.rotation,
        duration_seconds=look.frames / fps if fps else 0.0,
        codec=codec,
        bytes=os.path.getsize(path),
        content_hash=content_hash(path),
        decoder=decoder,
    )


@dataclass(frozen=True)
class _Look:
    """What decoding showed: pictures, whether their time stamps are the packets', a few of them at `SAMPLE_SIZE`."""

    frames: int
    width: int
    height: int
    rotation: int
    stamps_hold: bool
    samples: dict[int, Images]


def _look(video: str, timeline: Timeline, count: bool) -> _Look:
    """Decode the first picture and the last stretch; or all (`count`, or where the stretch is not as promised)."""
    first = next(decode_from(video, timeline, 0), None)
    if first is None:
        raise VideoError("no picture can be decoded")
    start = 0 if count else int(timeline.keys[-1])
    # The second picture after the last key shows where decord's seeking lands; the last one, how the file ends.
    landing = min(int(timeline.keys[-1]) + 1, len(timeline) - 1)
    samples = {0: to_image(first, SAMPLE_SIZE)}
    stamps: list[int | None] = []
    last = first
    for last in decode_from(video, timeline, start):
        if start + len(stamps) == landing:
            samples[landing] = to_image(last, SAMPLE_SIZE)
        stamps.append(last.pts)
    frames = start + len(stamps)
    samples[frames - 1] = to_image(last, SAMPLE_SIZE)
    hold = timeline.exact and stamps == timeline.stamps[start:].tolist()
    if start and not hold:
        return _look(video, timeline, count=True)
    height, width = to_image(first, None).shape[:2]
    return _Look(frames, width, height, rotation_of(first), hold, samples)


def _rate(timeline: Timeline, declared: float) -> float:
    """Frames a second: the header's where the packets' times bear it out, else theirs."""
    span = float(timeline.stamps[-1] - timeline.stamps[0]) * timeline.time_base if timeline.exact else 0.0
    measured = (len(timeline) - 1) / span if span > 0 else declared
    return declared if abs(declared - measured) <= 0.05 * measured else measured


def _decord_agrees(path: str, look: _Look) -> bool:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), width=SAMPLE_SIZE[1], height=SAMPLE_SIZE[0], num_threads=1)
        if len(reader) != look.frames:
            return False
        for index, ours in look.samples.items():
            theirs: NDArray[np.uint8] = reader[index].asnumpy()
            if theirs.shape != ours.shape or np.abs(theirs.astype(np.int16) - ours).mean() > SAME_PICTURE:
                return False
    except (decord.DECORDError, RuntimeError, IndexError):
        return False
    return True


class Manifest:
    """The rows of one data set: `videos` can be used, `refused` cannot. Of a path that comes twice the first stays."""

    def __init__(self, rows: Iterable[VideoRow]) -> None:
        unique: dict[str, VideoRow] = {}
        for row in rows:
            unique.setdefault(row.video, row)
        self.videos = [row for row in unique.values() if row.refused is None]
        self.refused = [row for row in unique.values() if row.refused is not None]

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def labels(self) -> list[str]:
        """The classes of the usable videos, sorted; unlabelled videos add none."""
        return sorted({row.label for row in self.videos if row.label is not None})

    @property
    def splits(self) -> dict[str, int]:
        """Usable videos in each split, by name."""
        return {
            name: sum(row.split == name for row in self.videos) for name in sorted({row.split for row in self.videos})
        }

    def select(self, split: str) -> list[VideoRow]:
        """The usable videos of one split, in the manifest's order; `UserError` where there is none."""
        rows = [row for row in self.videos if row.split == split]
        if not rows:
            have = ", ".join(f"{name} ({count})" for name, count in self.splits.items()) or "no usable video at all"
            raise UserError(f"the manifest has no video in split '{split}'; it has: {have}")
        return rows

    def fingerprint(self) -> str:
        """32 hex digits for the usable videos' contents, labels, splits, groups and order, wherever the files lie."""
        digest = blake2b(digest_size=16)
        for row in self.videos:
            digest.update(repr((row.content_hash, row.frames, row.label, row.split, row.group, row.decoder)).encode())
        return digest.hexdigest()

    def write(self, path: str | Path) -> None:
        """Write one Parquet file; it appears under its name only when whole."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = [asdict(row) for row in [*self.videos, *self.refused]]
        descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
        try:
            pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), partial)
            os.chmod(partial, 0o644)
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what `write` wrote; `UserError` for a missing file, another format, missing columns, unknown values."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise UserError(f"manifest {path}: no such file; make one with 'vicc index DIR --out {path}'")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"manifest {path}: not a Parquet file; make one with 'vicc index DIR --out M.parquet'"
            ) from error
        missing = [f.name for f in fields(VideoRow) if f.name not in table.column_names]
        if missing:
            raise UserError(f"manifest {path}: missing columns {', '.join(missing)}; make it with 'vicc index'")
        try:
            rows = table.select([f.name for f in fields(VideoRow)]).cast(_schema()).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise UserError(f"manifest {path}: a column has another type than 'vicc index' writes: {error}") from error
        for row in rows:
            if row["decoder"] not in DECODERS:
                raise UserError(
                    f"manifest {path}: decoder '{row['decoder']}' of {row['video']}; allowed: {', '.join(DECODERS)}"
                )
        return cls(VideoRow(**row) for row in rows)


def _schema() -> pa.Schema:
    """Column names and types; only label, group and refused may be empty."""
    import pyarrow as pa

    kinds = {
        "str": pa.string(),
        "str | None": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "Decoder": pa.string(),
    }
    return pa.schema([pa.field(f.name, kinds[str(f.type)], nullable="None" in str(f.type)) for f in fields(VideoRow)])
