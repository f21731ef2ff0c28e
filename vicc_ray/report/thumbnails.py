"""Moving thumbnails of videos: small animated WebP pictures as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from vicc_ray import storage
from vicc_ray.data.decode import MOST_OF_FFMPEG, bound_pixels, read_frames
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.guarded import Failure, Guarded
from vicc_ray.data.manifest import VideoRow, part_in, probe
from vicc_ray.data.pictures import Images
from vicc_ray.data.segments import by_table, part_between

LONG_SIDE = 96  # pixels
FRAMES = 16
MILLISECONDS = 100  # a frame
SECONDS = 60.0  # for the frames of one video; a decoder that takes longer counts as hung
STEP = 2  # video frames from one shown frame to the next, where the video is long enough
# What to try, from best to smallest, until a thumbnail fits its share of the page: WebP quality, every n-th frame.
ENCODINGS = ((55, 1), (40, 1), (25, 1), (20, 2), (10, 2), (5, 4))


STILL_QUALITY = 40


@dataclass(frozen=True)
class Thumbnail:
    """Two pictures of the middle of a video as data URIs: one frame, and some that repeat endlessly."""

    still: str
    moving: str


class Thumbnails:
    """Makes each video's thumbnail once; each is at most `most_bytes` long where its motion allows it.

    Videos are decoded in a process of its own, which `close` ends: one that crashes or hangs its decoder has no thumbnail.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._made: dict[str, Thumbnail | None] = {}
        self._frames: Guarded[str, Images] = Guarded(shown_frames, SECONDS)

    def close(self) -> None:
        """End the process; thumbnails that were made stay."""
        self._frames.close()

    def uri(self, video: str) -> str | None:
        """data:image/webp;... of the middle of `video`, which moves, or None where it cannot be read."""
        made = self.both(video)
        return made.moving if made else None

    def both(self, video: str) -> Thumbnail | None:
        """The thumbnail of `video`, or None where it cannot be read."""
        if video not in self._made:
            frames = self._frames(video)
            self._made[video] = None if isinstance(frames, Failure) else self._encode(frames)
        return self._made[video]

    def _encode(self, frames: Images) -> Thumbnail:
        data = b""
        for quality, every in ENCODINGS:
            data = animated_webp(frames[::every], quality, MILLISECONDS * every)
            if len(data) * 4 / 3 <= self.most_bytes:
                break
        still = animated_webp(frames[len(frames) // 2 :][:1], STILL_QUALITY, MILLISECONDS)
        return Thumbnail(*("data:image/webp;base64," + base64.b64encode(one).decode("ascii") for one in (still, data)))


def shown_frames(video: str) -> Images:
    """uint8 [n, H, W, 3]: up to FRAMES frames around the middle of the video, the long side LONG_SIDE pixels.

    `video` may name a part of one, `file.mp4@12.5-15` (seconds).
    """
    bound_pixels(MOST_OF_FFMPEG)  # whoever indexed it has decided; this process has a bound of its memory
    part = None if storage.exists(video) else part_in(video)
    name = part[0] if part else video
    row = part_between(_probed(name), part[1], part[2]) if part else _probed(name)
    step = max(1, min(STEP, row.frames // FRAMES))
    shown = min(FRAMES, row.frames)
    indices = (row.frames - (shown - 1) * step - 1) // 2 + step * np.arange(shown)
    scale = LONG_SIDE / max(row.height, row.width)
    size = max(2, round(row.height * scale)), max(2, round(row.width * scale))
    timeline = decode_table(row.frame_table) if by_table(row) else None
    frames = row.first_frame + indices.astype(np.int64)
    return read_frames(name, frames, size, row.decoder, timeline=timeline)


@lru_cache(maxsize=16)
def _probed(video: str) -> VideoRow:
    """A file's row; of a long file often several parts are shown."""
    return probe(video)


def animated_webp(frames: Images, quality: int, milliseconds: int) -> bytes:
    """frames uint8 [n, H, W, 3] -> an endlessly repeating WebP animation."""
    pictures = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        quality=quality,
        method=2,
    )
    return file.getvalue()
