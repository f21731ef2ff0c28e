"""Clips of videos through a process of its own: what a decode actor holds, so that no file can end it, hang it or fill it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from vicc_ray.config import MAX_PIXELS, ClipConfig, DataConfig, Decoded, Experiment, FlowConfig
from vicc_ray.data.decode import bound_pixels
from vicc_ray.data.flow.algorithms import uses_torch
from vicc_ray.data.flow.sources import FlowSource, flow_source
from vicc_ray.data.guarded import MEMORY_BYTES, Failure, Guarded
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.samples import Answer, Clips, Request, by_file, read_together
from vicc_ray.data.store.checking import store_of
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store_reader import StoreReader


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

    def read_all(self, requests: Sequence[Request], into: Sequence[Clips] | None = None) -> list[Answer]:
        """As `read`, for several, in their order; those of one file are read one after another while it is at hand.

        `into`: arrays of the right shapes that the clips are written to, which are the answers then.
        """
        answers: list[Answer] = [VideoError("was not read")] * len(requests)
        for places in by_file(requests):
            for place, answer in zip(places, self._of_file([requests[place] for place in places]), strict=True):
                answers[place] = (
                    answer if isinstance(answer, VideoError) else _kept(answer, into[place] if into else None)
                )
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
        # One of them did it: each by itself costs only that one. What the child shares holds until its next answer.
        return [
            answer if isinstance(answer, VideoError) else _kept(answer, None)
            for request in requests
            for answer in self._of_file([request])
        ]

    def _decoded_by(self, row: VideoRow) -> VideoRow:
        return replace(row, decoder="pyav") if self.data.decoder == "pyav" and row.decoder == "decord" else row

    def _started(self) -> Guarded[list[Request], list[Answer]]:
        if self._guarded is None:
            reading = _Reading(self.clip, self.flow, self.data.max_pixels, self.data.interlaced)
            heavy = self.flow.source == "stream" and uses_torch(self.flow.algorithm)
            # In proportion, where larger pictures are allowed than usual.
            memory = None if heavy else MEMORY_BYTES * max(1, -(-self.data.max_pixels // MAX_PIXELS))
            self._guarded = Guarded(reading, self.data.decode_timeout, memory_bytes=memory, views=True)
        return self._guarded

    def close(self) -> None:
        """End the child; a later `read` starts another."""
        if self._guarded is not None:
            self._guarded.close()
            self._guarded = None


def _kept(clips: Clips, into: Clips | None) -> Clips:
    """Clips out of the memory that is written anew by the next answer."""
    if into is None:
        return {name: array.copy() for name, array in clips.items()}
    for name, array in clips.items():
        np.copyto(into[name], array)
    return into


def make_reader(experiment: Experiment, opened: dict[str, PackedStore] | None = None) -> ClipReader | StoreReader:
    """What reads an experiment's clips: from its packed store, or from the videos; `opened`: stores that are open already."""
    if store_of(experiment, "rgb") is not None:
        return StoreReader(experiment, opened)
    return ClipReader(experiment.clip, experiment.flow, experiment.data)


def read_here(
    experiment: Experiment, requests: Sequence[Request], into: Sequence[Clips] | None = None
) -> Sequence[Answer]:
    """As `ClipReader.read_all`, in this process and with nothing kept: for a caller that no file may end is `make_reader`."""
    if store_of(experiment, "rgb") is not None:
        with closing(StoreReader(experiment)) as reader:
            return reader.read_all(requests, into)
    answers = read_together(requests, experiment.clip, experiment.flow, experiment.data.interlaced)
    if into is None:
        return answers
    return [
        answer if isinstance(answer, VideoError) else _kept(answer, out)
        for answer, out in zip(answers, into, strict=True)
    ]


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
