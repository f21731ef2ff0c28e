"""A file's rows -> their entries in a packed store: decoded once, from its first frame on that is wanted.

Rows that follow one another in a file are decoded in one go; pictures and flow of a row come of the same decoded frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import compress, pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import MAX_PIXELS, Decoded, FlowConfig
from vicc_ray.data.decode import VideoError, bound_pixels, fetched
from vicc_ray.data.flow.algorithms import flow_algorithm, quantise
from vicc_ray.data.flow.codes import CHUNK, RunningFlow, fields_of_file, row_pictures, row_timeline
from vicc_ray.data.flow.contract import FileFlowAlgorithm, FlowAlgorithm
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pictures import Images, Interlaced
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.index import digests_of
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store.writing import Key, LooseWriter, NotWritten

# Frames of one piece of work: what an interruption costs at most, and how long files are shared among processes.
MOST_FRAMES = 15_000


@dataclass(frozen=True)
class PackWork:
    """Rows of one file in order, and the streams that each lacks."""

    rows: tuple[VideoRow, ...]
    streams: tuple[tuple[Decoded, ...], ...]

    @property
    def frames(self) -> int:
        """Of all rows."""
        return sum(row.frames for row in self.rows)


@dataclass(frozen=True)
class Packed:
    """What became of it: the bytes of each entry, the rows (ids) that cannot be read, and why the store takes no more."""

    entries: dict[Key, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    not_written: str | None = None


class Pieces(Sequence[PackWork]):
    """Work that is made when it is taken, from columns: some 40 bytes a row until then.

    Args:
        rows: of a manifest.
        streams: S of them.
        order: the rows that lack something, by file: int64 [m].
        lacking: of these, which streams: bool [m, S].
        edges: where the pieces begin in them, and the end: int64 [p + 1].
    """

    def __init__(
        self,
        rows: Rows,
        streams: Sequence[Decoded],
        order: NDArray[np.int64],
        lacking: NDArray[np.bool_],
        edges: NDArray[np.int64],
    ) -> None:
        self.rows, self.streams, self.order, self.lacking, self.edges = rows, tuple(streams), order, lacking, edges
        before = np.concatenate([[0], np.cumsum(rows.numbers("frames")[order])])
        self.frames: NDArray[np.int64] = np.diff(before[edges])  # of each piece

    def __len__(self) -> int:
        return len(self.edges) - 1

    @overload
    def __getitem__(self, place: int) -> PackWork: ...

    @overload
    def __getitem__(self, place: slice) -> list[PackWork]: ...

    def __getitem__(self, place: int | slice) -> PackWork | list[PackWork]:
        if not isinstance(place, slice):
            return self._made(range(len(self))[place], range(len(self))[place] + 1)[0]
        start, stop, _ = place.indices(len(self))
        return self._made(start, stop)[:: place.step]

    def _made(self, start: int, stop: int) -> list[PackWork]:
        edges = self.edges[start : stop + 1].tolist()
        rows = list(self.rows.take(self.order[edges[0] : edges[-1]]))
        flags = self.lacking[edges[0] : edges[-1]].tolist()
        streams = [tuple(compress(self.streams, flag)) for flag in flags]
        spans = [slice(first - edges[0], last - edges[0]) for first, last in pairwise(edges)]
        return [PackWork(tuple(rows[span]), tuple(streams[span])) for span in spans]


def split_work(rows: Rows, streams: Sequence[Decoded], lacking: NDArray[np.bool_]) -> Pieces:
    """Rows and which of the streams each lacks, bool [n, S], as pieces of work: of one file, at most `MOST_FRAMES` where it has
    several rows. Of rows of the same content (copies) the first that lacks a stream gets it."""
    places = np.flatnonzero(lacking.any(1))
    chosen = rows.take(places)
    digests, first, frames = digests_of(chosen), chosen.numbers("first_frame"), chosen.numbers("frames")
    lacking = lacking[places]
    # By content, then as the rows lie in their file.
    order = np.lexsort((places, frames, first, digests[:, 1], digests[:, 0]))
    keys = np.stack([digests[:, 0], digests[:, 1], first.astype(np.uint64), frames.astype(np.uint64)], 1)[order]
    wanted = lacking[order]
    for stream in range(len(streams)):
        at = np.flatnonzero(wanted[:, stream])
        wanted[at[1:][(keys[at[1:]] == keys[at[:-1]]).all(1)], stream] = False
    kept = wanted.any(1)
    order, keys, wanted = order[kept], keys[kept], wanted[kept]
    begins = np.concatenate([[True], (keys[1:, :2] != keys[:-1, :2]).any(1)])[: len(order)]
    # Files in the order of their first rows.
    starts = np.flatnonzero(begins)
    earliest = np.minimum.reduceat(places[order], starts) if len(starts) else starts
    again = np.lexsort((np.arange(len(order)), np.repeat(earliest, np.diff([*starts, len(order)]))))
    edges = _edges(frames[order[again]], begins[again])
    return Pieces(rows, streams, places[order[again]], wanted[again], edges)


def _edges(frames: NDArray[np.int64], begins: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where pieces begin among rows that lie file by file (`begins`: bool [m]), and the end; see `split_work`."""
    files = np.append(np.flatnonzero(begins), len(frames))
    before = np.concatenate([[0], np.cumsum(frames)])
    inner: list[int] = []
    for number in np.flatnonzero(np.diff(files) > 1).tolist():
        begin, stop = int(files[number]), int(files[number + 1])
        while begin < stop:
            begin = max(int(np.searchsorted(before, before[begin] + MOST_FRAMES, "right")) - 1, begin + 1)
            inner += [begin] if begin < stop else []
    return np.unique(np.concatenate([files, np.array(inner, np.int64)]))


def _work(pairs: Sequence[tuple[VideoRow, tuple[Decoded, ...]]]) -> PackWork:
    return PackWork(tuple(row for row, _ in pairs), tuple(streams for _, streams in pairs))


@dataclass
class Packer:
    """Packs pieces of work into a store; what each process of the job runs.

    `flow`: the settings by which flow is measured, on `device` (cpu or cuda).
    """

    store: PackedStore
    flow: FlowConfig
    interlaced: Interlaced = "weave"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._algorithm: FlowAlgorithm | FileFlowAlgorithm | None = None

    def __call__(self, work: PackWork) -> Packed:
        """Stores what a piece of work lacks; a row that cannot be read costs those that follow it without a gap, no others."""
        packed = Packed()
        row = work.rows[0]
        bound_pixels(max(MAX_PIXELS, row.width * row.height))  # whoever indexed it has decided
        try:
            with fetched(row.video) as path:
                for run in _runs(work):
                    self._run(run, path, packed)
        except VideoError as error:
            packed.refused.update({row.id: str(error) for row in work.rows})
        except NotWritten as error:
            return replace(packed, not_written=str(error))
        return packed

    def _run(self, run: PackWork, path: str, packed: Packed) -> None:
        left = {row.id for row in run.rows}
        try:
            with closing(_Pictures(self, run, path)) as pictures:
                for row, streams in zip(run.rows, run.streams, strict=True):
                    packed.entries.update(self._row(row, streams, path, pictures))
                    left.discard(row.id)
        except VideoError as error:
            packed.refused.update(dict.fromkeys(left, str(error)))

    def _row(
        self, row: VideoRow, streams: Sequence[Decoded], path: str, pictures: _Pictures
    ) -> Iterator[tuple[Key, int]]:
        seconds = None
        if not row.constant_rate:
            seconds = row_timeline(row, path).seconds[row.first_frame : row.first_frame + row.frames]
        with ExitStack() as stack:
            writers = {
                stream: stack.enter_context(closing(LooseWriter(self.store, row, stream, seconds)))
                for stream in streams
            }
            algorithm = self.algorithm if "flow" in streams else None
            running = RunningFlow(algorithm, row.frames) if isinstance(algorithm, FlowAlgorithm) else None
            for images in pictures.of(row):
                if "rgb" in writers:
                    writers["rgb"].add(images)
                if running is not None:
                    writers["flow"].add(quantise(running.add(images), self.flow.pixels))
            if isinstance(algorithm, FileFlowAlgorithm):
                for field_ in fields_of_file(row, path, self.store.header.size, CHUNK["cpu"], algorithm):
                    writers["flow"].add(quantise(field_, self.flow.pixels))
            yield from [(writer.key, writer.finish()) for writer in writers.values()]

    @property
    def algorithm(self) -> FlowAlgorithm | FileFlowAlgorithm:
        """How flow is measured; made with the first video."""
        if self._algorithm is None:
            flow = self.flow
            self._algorithm = flow_algorithm(flow.algorithm, flow.weights, self.device, flow.options)
        return self._algorithm

    def needs_pictures(self, streams: Sequence[Decoded]) -> bool:
        """Whether frames are decoded for these streams."""
        return "rgb" in streams or ("flow" in streams and isinstance(self.algorithm, FlowAlgorithm))


class _Pictures:
    """The pictures of rows that follow one another in a file, decoded in one go."""

    def __init__(self, packer: Packer, run: PackWork, path: str) -> None:
        whole = replace(run.rows[0], frames=run.frames)
        self.needed = any(packer.needs_pictures(streams) for streams in run.streams)
        size, chunk = packer.store.header.size, CHUNK[packer.device.partition(":")[0]]
        self._chunks = row_pictures(whole, path, size, chunk, packer.interlaced)
        self._left: Images | None = None

    def of(self, row: VideoRow) -> Iterator[Images]:
        """The next `row.frames` pictures, some at a time; nothing where none are needed."""
        due = row.frames if self.needed else 0
        while due:
            images = next(self._chunks) if self._left is None else self._left
            self._left = images[due:] if len(images) > due else None
            yield images[:due]
            due -= len(images[:due])

    def close(self) -> None:
        """Close the file."""
        self._chunks.close()  # type: ignore[attr-defined]


def _runs(work: PackWork) -> Iterator[PackWork]:
    """The rows that follow one another without a gap, together."""
    pairs: list[tuple[VideoRow, tuple[Decoded, ...]]] = []
    for pair in zip(work.rows, work.streams, strict=True):
        if pairs and pair[0].first_frame != pairs[-1][0].last_frame + 1:
            yield _work(pairs)
            pairs = []
        pairs.append(pair)
    if pairs:
        yield _work(pairs)
