"""Clips of videos through a process of its own: what a decode actor holds, so that no file can end it, hang it or fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from vicc_ray.config import MAX_PIXELS, ClipConfig, DataConfig, Decoded, FlowConfig
from vicc_ray.data.decode import bound_pixels
from vicc_ray.data.flow.algorithms import uses_torch
from vicc_ray.data.flow.sources import FlowSource, flow_source
from vicc_ray.data.guarded import MEMORY_BYTES, Failure, Guarded
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.samples import Clips, Request, by_file, read_together

Answer: TypeAlias = Clips | VideoError


class ClipReader:
    """Reads clips as `vicc_ray.data.samples.read_clips` does, in a child process that starts with the first one.

    A crash, a hang (`data.decode_timeout`) or a leak of a decoder costs that video, not the caller. With
    `data.decoder: pyav` decord is not used. Picklable before its first use.
    """

    def __init__(self, clip: ClipConfig, flow: FlowConfig, data: DataConfig) -> None:
        self.clip, self.flow, self.data = clip, flow, data
        self._guarded: Guarded[list[Request], list[Answer]] | None = None

    @property
    def pid(self) -> int | None:
        """The child process, if it has been started."""
        return self._guarded.pid if self._guarded else None

    def read(self, video: VideoRow, starts: Sequence[int], streams: Sequence[Decoded]) -> Clips:
        """The clips of a video that begin at the positions `starts`, of RGB, flow or both.

        Raises `VideoError` with the reason where the file cannot deliver them or the decoder did not survive it.
        """
        answer = self.read_all([(video, starts, streams)])[0]
        if isinstance(answer, VideoError):
            raise answer
        return answer

    def read_all(self, requests: Sequence[Request]) -> list[Answer]:
        """As `read`, for several, in their order; those of one file are read one after another while it is at hand."""
        answers: list[Answer] = [VideoError("was not read")] * len(requests)
        for places in by_file(requests):
            for place, answer in zip(places, self._of_file([requests[place] for place in places]), strict=True):
                answers[place] = answer
        return answers

    def _of_file(self, requests: list[Request]) -> list[Answer]:
        row = requests[0][0]
        if row.width * row.height > self.data.max_pixels:
            reason = f"its pictures have {row.width} x {row.height} pixels, more than data.max_pixels = {self.data.max_pixels}"
            return [VideoError(reason)] * len(requests)
        plain: list[Request] = [
            (self._decoded_by(row), tuple(starts), tuple(streams)) for row, starts, streams in requests
        ]
        guarded = self._started()
        guarded.timeout_seconds = self.data.decode_timeout * len(requests)
        outcome = guarded(plain)
        if not isinstance(outcome, Failure):
            return outcome
        if len(requests) == 1:
            return [VideoError(outcome.reason)]
        # One of them did it: each by itself costs only that one.
        return [answer for request in requests for answer in self._of_file([request])]

    def _decoded_by(self, row: VideoRow) -> VideoRow:
        return replace(row, decoder="pyav") if self.data.decoder == "pyav" and row.decoder == "decord" else row

    def _started(self) -> Guarded[list[Request], list[Answer]]:
        if self._guarded is None:
            reading = _Reading(self.clip, self.flow, self.data.max_pixels, self.data.interlaced)
            heavy = self.flow.source == "stream" and uses_torch(self.flow.algorithm)
            # In proportion, where larger pictures are allowed than usual.
            memory = None if heavy else MEMORY_BYTES * max(1, -(-self.data.max_pixels // MAX_PIXELS))
            self._guarded = Guarded(reading, self.data.decode_timeout, memory_bytes=memory)
        return self._guarded

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

    def __call__(self, requests: list[Request]) -> list[Answer] | Failure:
        bound_pixels(self.max_pixels)
        try:
            if self.source is None and any("flow" in streams for _, _, streams in requests):
                self.source = flow_source(self.flow, self.clip)
            return read_together(requests, self.clip, self.flow, self.interlaced, self.source)
        except VideoError as error:
            return Failure(str(error))
        except Exception as error:
            # Not foreseen, so its kind is named too: the message alone may say nothing.
            return Failure(f"{type(error).__name__}: {' '.join(str(error).split())}")
