"""A decoded picture of PyAV -> an image in RGB: scaled, coloured and turned by one rule, whatever the file and its reader.

FFmpeg's scaler treats pictures by their marks: those marked interlaced field by field, and colour beside or between the
columns of the luma as the stream says. decord's older FFmpeg knows neither. Here both marks are replaced, so that the two
readers give the same image bit for bit (8-bit 4:2:0), and the same pictures look the same in every container:

- scaled bilinearly, colour samples centred between the luma samples that they belong to;
- pictures marked interlaced: `weave` scales both fields as one picture, as if the mark were not there; `deinterlace` keeps
  the top field alone, the later one of two moments goes. Other pictures are the same under both;
- turned and mirrored as the display matrix says.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import av
import av.filter
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Interlaced = Literal["weave", "deinterlace"]

# Counts changes of the rules above: part of the key of everything that is made of pictures and stored.
RULES = 2
# Sizes, formats and marks that are met in turn in one process.
GRAPHS = 16


@dataclass(frozen=True)
class Orientation:
    """From the stored picture to the upright one: `transposed` (rows become columns), then mirrored along x and y."""

    transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether no turning alone makes the picture upright: text in the stored picture is in mirror writing."""
        return self.transposed ^ self.mirror_x ^ self.mirror_y

    @property
    def degrees(self) -> int:
        """The clockwise turn: 0, 90, 180 or 270 degrees; of a `mirrored` one that which follows a mirroring along x."""
        mirror_x = self.mirror_x ^ self.mirrored if not self.transposed else self.mirror_x
        mirror_y = self.mirror_y if not self.transposed else self.mirror_y ^ self.mirrored
        return {(False, False): 0, (True, True): 180, (True, False): 90, (False, True): 270}[mirror_x, mirror_y]

    def upright(self, image: NDArray[Any]) -> NDArray[Any]:
        """A view of [H, W, ...] (stored) as it is to be shown: [W, H, ...] where `transposed`."""
        turned = image.swapaxes(0, 1) if self.transposed else image
        return turned[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]

    def stored(self, size: tuple[int, int]) -> tuple[int, int]:
        """The stored picture's (H, W) for an upright `size`; the other way round too."""
        return (size[1], size[0]) if self.transposed else size


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the picture's display matrix says; angles between are rounded to the nearest quarter turn."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return Orientation()
    # x' = a x + c y, y' = b x + d y, with y downwards.
    a, b, _, c, d = np.frombuffer(cast(Any, side), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(False, mirror_x=a < 0, mirror_y=d < 0)


def to_image(frame: VideoFrame, size: tuple[int, int] | None, interlaced: Interlaced = "weave") -> Images:
    """One decoded picture as uint8 RGB [H, W, 3], upright; `size` is the upright (H, W), None keeps the file's."""
    orientation = orientation_of(frame)
    height, width = orientation.stored(size) if size else (frame.height, frame.width)
    field = interlaced == "deinterlace" and frame.interlaced_frame
    source = (frame.width, frame.height, frame.format.name, int(frame.colorspace), int(frame.color_range))
    scaler = _scaler(threading.get_ident(), source, (height, width), field)
    image: Images = orientation.upright(scaler(frame))
    return image


class _Scaler:
    """FFmpeg's filters from one kind of picture to RGB of one size."""

    def __init__(self, source: tuple[int, int, str, int, int], size: tuple[int, int], field: bool) -> None:
        width, height, format_name, colorspace, color_range = source
        graph = av.filter.Graph()
        # Slices for threads of its own would take cores that other readers have.
        graph.threads = 1
        marks = f"colorspace={colorspace}:range={color_range}"
        self._first = graph.add("buffer", f"video_size={width}x{height}:pix_fmt={format_name}:time_base=1/1:{marks}")
        self._last = graph.add("buffersink")
        steps = [
            *([graph.add("field", "type=top")] if field else []),
            graph.add("setparams", "field_mode=prog:chroma_location=center"),
            graph.add("scale", f"{size[1]}:{size[0]}:flags=bilinear"),
            graph.add("format", "pix_fmts=rgb24"),
        ]
        graph.link_nodes(self._first, *steps, self._last).configure()
        self._graph = graph  # the nodes do not keep it

    def __call__(self, frame: VideoFrame) -> Images:
        self._first.push(frame)
        picture = self._last.pull()
        assert isinstance(picture, VideoFrame)
        return np.asarray(picture.to_ndarray(), np.uint8)


@lru_cache(maxsize=GRAPHS)
def _scaler(_thread: int, source: tuple[int, int, str, int, int], size: tuple[int, int], field: bool) -> _Scaler:
    """A filter graph belongs to one thread."""
    return _Scaler(source, size, field)
