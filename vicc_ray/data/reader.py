"""Clips of videos through a process of its own: what a decode actor holds, so that no file can end it, hang it or fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vicc_ray.config import MAX_PIXELS, ClipConfig, DataConfig, Decoded, FlowConfig
from vicc_ray.data.decode import bound_pixels
from vicc_ray.data.flow.algorithms import uses_torch
from vicc_ray.data.flow.sources import FlowSource, flow_source
from vicc_ray.data.guarded import MEMORY_BYTES, Failure, Guarded
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.samples import Clips, read_clips

Request = tuple[VideoRow, tuple[int, ...], tuple[Decoded, ...]]


class ClipReader:
    """Reads clips as `vicc_ray.data.samples.read_clips` does, in a child process that starts with the first one.

    A crash, a hang (`data.decode_timeout`) or a leak of a decoder costs that video, not the caller. With
    `data.decoder: pyav` decord is not used. Picklable before its first use.
    """

    def __init__(self, clip: ClipConfig, flow: FlowConfig, data: DataConfig) -> None:
        self.clip, self.flow, self.data = clip, flow, data
        self._guarded: Guarded[Request, Clips] | None = None

    @property
    def pid(self) -> int | None:
        """The child process, if it has been started."""
        return self._guarded.pid if self._guarded else None

    def read(self, video: VideoRow, starts: Sequence[int], streams: Sequence[Decoded]) -> Clips:
        """The clips of a video that begin at the positions `starts`, of RGB, flow or both.

        Raises `VideoError` with the reason where the file cannot deliver them or the decoder did not survive it.
        """
        if self.data.decoder == "pyav" and video.decoder == "decord":
            video = replace(video, decoder="pyav")
        if video.width * video.height > self.data.max_pixels:
            raise VideoError(
                f"its pictures have {video.width} x {video.height} pixels, more than data.max_pixels = {self.data.max_pixels}"
            )
        if self._guarded is None:
            reading = _Reading(self.clip, self.flow, self.data.max_pixels, self.data.interlaced)
            heavy = self.flow.source == "stream" and uses_torch(self.flow.algorithm)
            # In proportion, where larger pictures are allowed than usual.
            memory = None if heavy else MEMORY_BYTES * max(1, -(-self.data.max_pixels // MAX_PIXELS))
            self._guarded = Guarded(reading, self.data.decode_timeout, memory_bytes=memory)
        outcome = self._guarded((video, tuple(starts), tuple(streams)))
        if isinstance(outcome, Failure):
            raise VideoError(outcome.reason)
        return outcome

    def close(self) -> None:
        """End the child; a later `read` starts another."""
        if self._guarded is not None:
            self._guarded.close()
            self._guarded = None


@dataclass
class _Reading:
    """What the child does; its source of flow is made there, with the first clip of flow."""

    clip: ClipConfig
    flow: FlowConfig
    max_pixels: int
    interlaced: Interlaced
    source: FlowSource | None = None

    def __call__(self, request: Request) -> Clips | Failure:
        video, starts, streams = request
        bound_pixels(self.max_pixels)
        try:
            if "flow" in streams and self.source is None:
                self.source = flow_source(self.flow, self.clip)
            return read_clips(video, starts, streams, self.clip, self.flow, self.interlaced, self.source)
        except VideoError as error:
            return Failure(str(error))
        except Exception as error:
            # Not foreseen, so its kind is named too: the message alone may say nothing.
            return Failure(f"{type(error).__name__}: {' '.join(str(error).split())}")
