"""Clips from packed stores: what a decode actor holds where nothing is decoded from the videos themselves.

Entries are checked by their checksums before they are decoded, so they are decoded in this process: no other process that could
crash instead of it, and no copies between the two.

Legend: c clips of T frames; RGB is uint8 [c, T, H, W, 3], flow uint8 [c, T, H, W, 2].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.decode import VideoError
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.samples import Answer, Clips, Request, clip_frames, clip_points, empty_clips, flow_origin
from vicc_ray.data.store.checking import store_of
from vicc_ray.data.store.reading import EntryReader, Fetched, Wanted
from vicc_ray.data.store.store import PackedStore


@dataclass(frozen=True)
class _Part:
    """One stream of one request: what is wanted of its entry, and for each place of the clips the frame that goes there."""

    place: int
    wanted: Wanted
    frames: NDArray[np.int64]  # [c, T]


class StoreReader:
    """Reads clips as `vicc_ray.data.samples.read_clips` does, from the stores of an experiment; for one thread.

    `opened`: stores that are open already, by the place that the experiment names; others are opened with the first clip.
    Picklable before its first use.
    """

    pid = None  # there is no other process

    def __init__(self, experiment: Experiment, opened: dict[str, PackedStore] | None = None) -> None:
        self.experiment, self.opened = experiment, dict(opened or {})
        self._readers: dict[str, EntryReader] = {}

    def read(self, video: VideoRow, starts: Sequence[int], streams: Sequence[Decoded]) -> Clips:
        """The clips of a row that begin at the positions `starts`; `VideoError` with the reason where the store lacks them."""
        answer = self.read_all([(video, starts, streams)])[0]
        if isinstance(answer, VideoError):
            raise answer
        return answer

    def read_all(self, requests: Sequence[Request], into: Sequence[Clips] | None = None) -> list[Answer]:
        """As `read`, for several, in their order; what they need of a store is fetched at once.

        `into`: arrays of the right shapes that the clips are written to, which are the answers then.
        """
        clip = self.experiment.clip
        out = into or [empty_clips(len(starts), streams, clip) for _, starts, streams in requests]
        answers: list[Answer] = list(out)
        parts: list[_Part] = []
        for place, request in enumerate(requests):
            try:
                parts += self._parts(place, request)
            except VideoError as error:
                answers[place] = error
        for part, fetched in self._fetched(parts):
            if not isinstance(answers[part.place], VideoError):
                try:
                    self._decode(part, fetched, out[part.place][part.wanted.stream])
                except VideoError as error:
                    answers[part.place] = error
                    for array in out[part.place].values():  # what came of it before
                        array[...] = 0
        return answers

    def close(self) -> None:
        """Close the stores' files; a later `read` opens them again."""
        for reader in self._readers.values():
            reader.close()

    def _parts(self, place: int, request: Request) -> list[_Part]:
        row, starts, streams = request
        clip = self.experiment.clip
        seconds = None
        if clip.fps is not None and not row.constant_rate:
            seconds = self._reader(streams[0]).seconds(row)
            if seconds is None:
                raise VideoError(
                    "the store does not say when its pictures are shown, which clip.fps needs; pack it again"
                )
        frames = clip_frames(clip_points(row, starts, clip), row, seconds, clip)
        found = []
        for stream in streams:
            own = frames if stream == "rgb" else flow_origin(frames, row)
            found.append(_Part(place, Wanted(row, stream, np.unique(own)), own))
        return found

    def _fetched(self, parts: Sequence[_Part]) -> list[tuple[_Part, Fetched | VideoError | None]]:
        by_reader: dict[int, tuple[EntryReader, list[_Part]]] = {}
        for part in parts:
            reader = self._reader(part.wanted.stream)
            by_reader.setdefault(id(reader), (reader, []))[1].append(part)
        return [
            pair
            for reader, own in by_reader.values()
            for pair in zip(own, reader.fetch([part.wanted for part in own]), strict=True)
        ]

    def _decode(self, part: _Part, fetched: Fetched | VideoError | None, out: NDArray[np.uint8]) -> None:
        """Write each frame to all its places in the clips uint8 [c, T, H, W, ...]; it is decoded once."""
        flat = out.reshape(-1, *out.shape[2:])
        places: dict[int, list[int]] = {}
        for place, number in enumerate(part.frames.ravel().tolist()):
            places.setdefault(number, []).append(place)

        def put(number: int, image: NDArray[np.uint8]) -> None:
            for place in places[number]:
                flat[place] = image

        self._reader(part.wanted.stream).decode(part.wanted, fetched, put)

    def _reader(self, stream: Decoded) -> EntryReader:
        where = store_of(self.experiment, stream)
        assert where is not None  # see `vicc_ray.data.reader.make_reader`
        if where not in self._readers:
            store = self.opened.get(where)
            self._readers[where] = EntryReader(store or PackedStore.open(where))
        return self._readers[where]
