"""The streams: what an encoder takes, and all that is known of each in one table.

A sample is decoded into clips of RGB and, where a stream needs them, of optical flow. A stream is a view of these clips: RGB as it
is, flow, or made of the RGB frames on the training device: their differences, or flow by Lucas and Kanade's method. A run has RGB
and one motion stream (`clip.motion`), each of which guides the other in cross-stream stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Stream = Literal["rgb", "flow", "difference", "lucas_kanade"]
Decoded = Literal["rgb", "flow"]
Motion = Literal["flow", "difference", "lucas_kanade"]

# Channels of decoded clips, uint8 [T, H, W, channels]: red, green, blue; u, v.
CHANNELS: dict[Decoded, int] = {"rgb": 3, "flow": 2}


@dataclass(frozen=True)
class StreamKind:
    """One stream.

    Attributes:
        name: in settings and files.
        title: in names of stages and encoders: Flow-2.
        decoded: the clips that it is made from.
        motion: whether it shows motion alone; such a one stands next to RGB.
        number: keeps the seeds of a run's streams apart.
    """

    name: Stream
    title: str
    decoded: Decoded
    motion: bool
    number: int


STREAMS: dict[Stream, StreamKind] = {
    kind.name: kind
    for kind in (
        StreamKind("rgb", "RGB", "rgb", motion=False, number=0),
        StreamKind("flow", "Flow", "flow", motion=True, number=1),
        StreamKind("difference", "Difference", "rgb", motion=True, number=1),
        StreamKind("lucas_kanade", "LK", "rgb", motion=True, number=1),
    )
}
MOTIONS: tuple[Stream, ...] = tuple(kind.name for kind in STREAMS.values() if kind.motion)


def decoded_for(streams: Iterable[Stream]) -> tuple[Decoded, ...]:
    """The clips that have to be decoded for some streams, each kind once, RGB first."""
    needed = {STREAMS[stream].decoded for stream in streams}
    return tuple(kind for kind in CHANNELS if kind in needed)


def stream_titled(title: str) -> Stream | None:
    """The stream of a title, as names of encoders begin with it (`Flow-2`); None for another word."""
    return next((kind.name for kind in STREAMS.values() if kind.title.lower() == title.lower()), None)
