"""`vicc pack` and `vicc flow`: the pictures and the flow of a manifest's videos, made once on the whole cluster and stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.cluster.jobs import run_on_cluster
from vicc_ray.cluster.progress import Counter
from vicc_ray.cluster.session import job_session
from vicc_ray.config import Decoded, FlowConfig, decoded_for
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.flow.algorithms import fingerprint, uses_torch
from vicc_ray.data.flow.bound import measured_bound, stored_bound
from vicc_ray.data.guarded import MEMORY_BYTES, Failure
from vicc_ray.data.manifest import ALL, Manifest
from vicc_ray.data.packing import Packer, PackWork, Pieces, split_work
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.index import digests_of
from vicc_ray.data.store.store import NAMES, Header, PackedStore, picture_facts
from vicc_ray.data.store.writing import SHARD_BYTES, Key, NotWritten, list_loose, remove_unfinished, repair, seal
from vicc_ray.errors import UserError
from vicc_ray.runs.scale import Scale, experiment_at

# What opening and decoding a video may take, and each of its frames, before its process counts as hung. TV-L1 takes 0.25 s
# a field at 320 x 240 on one core.
START_SECONDS = 120.0
FRAME_SECONDS = 5.0


@dataclass(frozen=True)
class PackOptions:
    """Where and how the job runs; see the verb's help. `streams`: rgb for pictures, flow, or both."""

    streams: tuple[Decoded, ...] = ("rgb", "flow")
    workers: int | None = None
    use_gpu: bool = False
    address: str | None = None
    verbose: bool = False
    check: bool = False
    max_refused: float = 0.01
    interlaced: Interlaced = "weave"
    train_split: str = "train"  # whose videos `flow.bound: auto` is measured on
    shard_bytes: int = SHARD_BYTES

    @property
    def device(self) -> str:
        """Where flow is measured."""
        return "cuda" if self.use_gpu else "cpu"


@dataclass(frozen=True)
class PackRequest:
    """What the command line says of the clips: where they go, and what they are made with; None: the experiment's."""

    store: str | None = None
    experiment: Path | None = None
    overrides: tuple[str, ...] = ()
    scale: Scale = "full"
    size: str = "auto"
    algorithm: str | None = None
    weights: str | None = None


def pack_request(manifest: str, request: PackRequest, options: PackOptions) -> dict[str, Any]:
    """Pack as the command line says; the store's place, what it holds of each video, and the videos that could not be packed."""
    changes = list(request.overrides)
    changes += [f"flow.algorithm={request.algorithm}"] * (request.algorithm is not None)
    changes += [f"flow.weights={request.weights}"] * (request.weights is not None)
    changes += [f"clip.decode_size={_size(request.size)}"] if request.size != "auto" else []
    settings = experiment_at(request.experiment, changes, request.scale)
    own = (settings.clip.store, settings.flow.store) if "rgb" in options.streams else (settings.flow.store,)
    where = request.store or next((place for place in own if place), None)
    if where is None:
        raise UserError("--store: is not set; name a folder or URI for the clips, for example --store packed")
    if request.algorithm is None and options.streams == ("rgb", "flow"):  # an experiment may have no use for flow
        options = replace(options, streams=decoded_for(settings.streams))
    data = settings.data
    options = replace(options, max_refused=data.max_refused, interlaced=data.interlaced, train_split=data.train_split)
    rows = Manifest.read(manifest)
    store = pack_videos(rows, where, settings.flow, settings.clip.decode_size, options)
    missing = {row.id for stream in options.streams for row in store.missing(rows.videos, stream)}
    return {
        "store": where,
        "streams": list(options.streams),
        "videos": len(rows.videos) - len(missing),
        "refused": sorted(missing),
    }


def _size(text: str) -> str:
    if re.fullmatch(r"\d+x\d+", text) is None:
        raise UserError(f"--size {text}: is neither auto nor height x width, such as 128x171")
    return f"[{text.replace('x', ', ')}]"


def pack_videos(
    manifest: Manifest, folder: str, flow: FlowConfig, size: tuple[int, int], options: PackOptions
) -> PackedStore:
    """Fill a store with what it lacks of the manifest's videos; the same call goes on after an interruption.

    UserError where the store holds something else or cannot be written, and at the end where too many videos could not be done.
    """
    folder = storage.absolute(folder)
    storage.refuse_credentials(folder, "--store")
    flow = _bounded(manifest, folder, flow, size, options)
    wanted = _header(flow, size, options)
    with storage.only_writer(folder, "'vicc pack' or 'vicc flow'"):
        store = PackedStore.create(folder, wanted)
        for line in repair(store, options.streams, options.check):
            console.print(line)
        job = _Job(store, manifest, options)
        # Without the index, which only the driver needs.
        packer = Packer(PackedStore(store.folder, store.header), flow, options.interlaced, options.device)
        job.run(packer)
        remove_unfinished(store)  # workers of a killed job may have lived a moment longer than it
        job.report()
    return store


def _bounded(
    manifest: Manifest, folder: str, flow: FlowConfig, size: tuple[int, int], options: PackOptions
) -> FlowConfig:
    """The settings with a number for `flow.bound`: in place of auto the store's, else what the training videos need."""
    if flow.bound != "auto" or "flow" not in options.streams:
        return flow
    bound = stored_bound(folder)
    if bound is None:
        split = options.train_split if options.train_split in manifest.splits else ALL
        rows = manifest.select(split)
        bound = measured_bound(rows, flow, size, options.interlaced, console.print)
    return flow.model_copy(update={"bound": bound})


def _header(flow: FlowConfig, size: tuple[int, int], options: PackOptions) -> Header:
    made, bound = None, None
    if "flow" in options.streams:
        made = json.loads(fingerprint(flow.algorithm, flow.weights, options.interlaced, flow.options))
        bound = float(flow.pixels)
    pictures = picture_facts() if "rgb" in options.streams else None
    return Header(size, options.interlaced, pictures, made, bound)


@dataclass
class _Job:
    """One call: what is there, what is left, what came of it."""

    store: PackedStore
    manifest: Manifest
    options: PackOptions
    refused: dict[str, str] = field(default_factory=dict)

    def run(self, packer: Packer) -> None:
        """Pack what is missing and move what is whole into shards."""
        rows, loose = self.manifest.videos, list_loose(self.store)
        work = self._left(rows, loose)
        with _Sealing(self.store, rows, self.options.shard_bytes) as sealing:
            sealing.add(loose)
            if work:
                self._pack(packer, work, sealing)
        for stream in self.options.streams:
            self.store.forget(stream)

    def _lacking(self, rows: Rows) -> NDArray[np.bool_]:
        """Which rows lack which of the streams, bool [n, S]."""
        return np.stack([self.store.lacks(rows, stream) for stream in self.options.streams], 1)

    def _left(self, rows: Rows, loose: Mapping[Key, int]) -> Pieces:
        """What is neither in a shard nor waits for one."""
        lacking, streams = self._lacking(rows), self.options.streams
        waiting = pa.array({key.content_hash for key in loose}, pa.string())
        # A few shards' entries wait at most, so their rows are few.
        places = np.flatnonzero(np.asarray(pc.is_in(rows.texts("content_hash"), value_set=waiting), bool))
        for place, row in zip(places.tolist(), rows.take(places), strict=True):
            lacking[place] &= [Key.of(row, stream) not in loose for stream in streams]
        left = int(lacking.any(1).sum())
        if 0 < left < len(rows):
            console.print(f"{self.store.folder}: {len(rows) - left} of {len(rows)} videos are there already")
        return split_work(rows, streams, lacking)

    def _pack(self, packer: Packer, work: Pieces, sealing: _Sealing) -> None:
        options = self.options
        names = " and ".join(
            f"{packer.flow.algorithm} flow" if stream == "flow" else NAMES[stream] for stream in options.streams
        )
        memory = None if "flow" in options.streams and uses_torch(packer.flow.algorithm) else MEMORY_BYTES
        gpus = 1 if options.use_gpu else 0
        with (
            quiet(scratch_log("pack"), options.verbose),
            job_session(options.workers, options.use_gpu, options.address, options.verbose) as actors,
            Counter(f"packing {names}, frames", int(work.frames.sum())) as counter,
        ):
            for place, outcome in run_on_cluster(packer, work, actors, _seconds, gpus, memory):
                counter.advance(int(work.frames[place]))
                if isinstance(outcome, Failure):
                    self.refused |= {row.id: outcome.reason for row in work[place].rows}
                    continue
                sealing.add(outcome.entries)
                self.refused |= outcome.refused
                if outcome.not_written is not None:
                    raise _full(self.store, outcome.not_written)

    def report(self) -> None:
        """Name what could not be read, count what is there; UserError for more than `max_refused`."""
        rows, options, folder = self.manifest.videos, self.options, self.store.folder
        missing = rows.where(self._lacking(rows).any(1))
        for row in missing:
            console.print(
                f"refused: {row.id}: {self.refused.get(row.id, 'was not packed; run the same command again')}"
            )
        what = " and ".join(NAMES[stream] for stream in options.streams)
        console.print(f"{folder}: {what} of {len(rows) - len(missing)} videos stored, {len(missing)} refused")
        if len(missing) > options.max_refused * len(rows):
            raise UserError(
                f"{len(missing)} of {len(rows)} videos could not be packed, more than data.max_refused = "
                f"{options.max_refused:g} allows; index them again, or raise data.max_refused"
            )


class _Sealing:
    """Moves entries into shards beside the job, as soon as there are enough of them; the rest at the end."""

    def __init__(self, store: PackedStore, rows: Rows, shard_bytes: int) -> None:
        self.store, self.shard_bytes = store, shard_bytes
        # Shards are in the manifest's order as far as what is finished together allows: evaluation reads on.
        marks = _marks(digests_of(rows)[:, 0], rows.numbers("first_frame"))
        self._places = np.argsort(marks, kind="stable")
        self._sorted = marks[self._places]
        self._waiting: dict[Decoded, dict[Key, int]] = {}
        self._bytes: dict[Decoded, int] = {}  # of those that wait
        self._moving: list[Future[int]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")

    def __enter__(self) -> _Sealing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Seal the rest where all went well; entries that stay loose are sealed by the next call."""
        try:
            if kind is None:
                for stream in list(self._waiting):
                    self._seal(stream)
                with _as_full(self.store):
                    for move in self._moving:
                        move.result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(self, entries: Mapping[Key, int]) -> None:
        """Entries that are whole, with their bytes."""
        for key, size in entries.items():
            waiting = self._waiting.setdefault(key.stream, {})
            self._bytes[key.stream] = self._bytes.get(key.stream, 0) + size - waiting.get(key, 0)
            waiting[key] = size
            if self._bytes[key.stream] >= self.shard_bytes:
                self._seal(key.stream)
        for move in self._moving:
            if move.done():
                with _as_full(self.store):
                    move.result()

    def _seal(self, stream: Decoded) -> None:
        keys = sorted(self._waiting.pop(stream, {}))
        self._bytes[stream] = 0
        if keys:
            order = np.argsort(self._place_of(keys), kind="stable")
            self._moving.append(self._pool.submit(seal, self.store, [keys[place] for place in order.tolist()]))

    def _place_of(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        """The place in the manifest of the first row with each key's content and first frame; the manifest's end: none."""
        marks = _marks(
            np.array([int(key.content_hash[:16], 16) for key in keys], np.uint64),
            np.array([key.first_frame for key in keys], np.int64),
        )
        at = np.searchsorted(self._sorted, marks)
        found = at < len(self._sorted)
        found[found] = self._sorted[at[found]] == marks[found]
        places = np.full(len(keys), len(self._places), np.int64)
        places[found] = self._places[at[found]]
        return places


def _marks(digests: NDArray[np.uint64], first: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each content and first frame; that two may share one costs a shard its order and nothing else."""
    marks: NDArray[np.uint64] = digests + first.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return marks


@contextmanager
def _as_full(store: PackedStore) -> Iterator[None]:
    try:
        yield
    except NotWritten as error:
        raise _full(store, str(error)) from error


def _full(store: PackedStore, reason: str) -> UserError:
    return UserError(
        f"store {store.folder}: cannot be written: {reason}; what is packed stays: make room, then run the same command again"
    )


def _seconds(work: PackWork) -> float:
    return START_SECONDS + FRAME_SECONDS * work.frames
