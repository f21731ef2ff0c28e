"""Small real video files for tests, and frames whose number and orientation can be read off their pixels.

Shapes: frames are uint8 RGB [n, H, W, 3].
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

BITS = 8
# For libx264: after a key come pictures that are shown before it and lean on the stretch before.
OPEN_GOPS = {"x264-params": "keyint=8:open-gop=1:bframes=3:scenecut=0"}


def numbered_frames(n: int, height: int = 64, width: int = 96, start: int = 0) -> NDArray[np.uint8]:
    """Frame i shows the number `start + i` as 8 bars, black or white, over its lower half; above, four corner colours.

    Upper left red, upper right green; the lower half's bars run left to right from the highest bit, so that a turned or
    mirrored picture cannot be read.
    """
    frames = np.full((n, height, width, 3), 40, np.uint8)
    frames[:, : height // 2, : width // 2] = (220, 20, 20)
    frames[:, : height // 2, width // 2 :] = (20, 200, 20)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for i in range(n):
        for bit in range(BITS):
            white = (start + i) >> (BITS - 1 - bit) & 1
            frames[i, height // 2 :, edges[bit] : edges[bit + 1]] = 230 if white else 25
    return frames


def read_number(frame: NDArray[np.uint8]) -> int:
    """The number of a frame of `numbered_frames` at any scale; -1 where it does not stand upright."""
    height, width = frame.shape[:2]
    left, right = frame[height // 4, width // 4].astype(int), frame[height // 4, width * 3 // 4].astype(int)
    if left[0] - left[1] < 80 or right[1] - right[0] < 80:
        return -1
    centres = (np.arange(BITS) + 0.5) * width / BITS
    bars = frame[height * 3 // 4, centres.astype(int)].mean(-1) > 128
    return int(sum(int(white) << (BITS - 1 - bit) for bit, white in enumerate(bars)))


def shifted_texture(n: int, height: int, width: int, u: float, v: float, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random texture that moves by (u, v) pixels a frame; u positive moves it to the right, v downwards."""
    rng = np.random.default_rng(seed)
    margin = 8 + int(np.ceil(max(abs(u), abs(v)) * n))
    noise = rng.standard_normal((height + 2 * margin, width + 2 * margin)).astype(np.float32)
    field = cv2.GaussianBlur(noise, (0, 0), 2.0)
    field = (field - field.min()) / (field.max() - field.min()) * 255
    frames = []
    for i in range(n):
        move = np.array([[1, 0, u * i - margin], [0, 1, v * i - margin]], np.float32)
        frames.append(cv2.warpAffine(field, move, (width, height), flags=cv2.INTER_CUBIC))
    gray = np.clip(np.stack(frames), 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    codec: str = "libx264",
    fps: int = 25,
    gop: int = 12,
    stamps: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    title: str = "",
) -> Path:
    """Encode at high quality; `stamps` (milliseconds, one a frame) make the frame rate variable. Returns `path`.

    H.264 has B-frames, so that decoding order is not showing order; MP4 has its index in front, as uploads have.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = {"libx264": {"crf": "10", "preset": "veryfast", "bf": "2"}, "libvpx-vp9": {"crf": "10", "cpu-used": "8"}}
    faststart = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=faststart) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(
            codec, rate=fps, options={**quality.get(codec, {"qscale": "2"}), **(options or {})}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        base = Fraction(1, 1000) if stamps is not None else Fraction(1, fps)
        stream.codec_context.time_base = base
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base, frame.pts = base, i if stamps is None else stamps[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, clockwise: int) -> Path:
    """Write into an MP4's track header that the picture is to be shown turned clockwise by 90, 180 or 270 degrees."""
    return set_matrix(path, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise])


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d) into an MP4's track header: x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (value * 0x10000 for value in matrix)
    place = data.index(b"tkhd") + 4 + 40  # after the box's name: version, times, ids, layer, volume
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def write_interlaced(
    path: Path, moments: NDArray[np.uint8], codec: str, options: dict[str, str], top_first: bool = True
) -> Path:
    """Frame i has its earlier field from picture 2 i of `moments` and its later one from picture 2 i + 1; marked interlaced."""
    first = 0 if top_first else 1
    frames = moments[::2].copy()
    frames[:, 1 - first :: 2] = moments[1::2, 1 - first :: 2]
    marks = {
        "libx264": {"x264-params": f"{'tff' if top_first else 'bff'}=1:{options.pop('x264-params', '')}"},
        "dvvideo": {},
    }
    return write_video(path, frames, codec, options=marks.get(codec, {"flags": "+ildct+ilme"}) | options)


def truncate(path: Path, keep: float) -> Path:
    """Cut the file to this share of its bytes, as a broken upload does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def spoil(path: Path, start: float, stop: float, seed: int = 0) -> Path:
    """Overwrite this stretch of the file (shares of its bytes) with noise."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(seed).integers(0, 256, last - first, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path
