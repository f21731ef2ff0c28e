"""Packed stores for tests: made here without Ray, of videos or of arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import Decoded, FlowConfig
from vicc_ray.data.flow.algorithms import fingerprint, quantise
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.packing import Packed, Packer, split_work
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.rows import Rows
from vicc_ray.data.store.entry import Seconds
from vicc_ray.data.store.store import Header, PackedStore, picture_facts
from vicc_ray.data.store.writing import Key, LooseWriter, list_loose, seal

Codes = NDArray[np.uint8]
BOTH: tuple[Decoded, Decoded] = ("rgb", "flow")
DIS = FlowConfig()


def header_of(
    size: tuple[int, int], streams: Sequence[Decoded] = BOTH, flow: FlowConfig = DIS, interlaced: Interlaced = "weave"
) -> Header:
    """What a store says that is made now with these settings."""
    made = (
        json.loads(fingerprint(flow.algorithm, flow.weights, interlaced, flow.options)) if "flow" in streams else None
    )
    pictures = picture_facts() if "rgb" in streams else None
    return Header(size, interlaced, pictures, made, float(flow.pixels) if made else None)


def make_store(
    folder: Path | str,
    size: tuple[int, int],
    streams: Sequence[Decoded] = BOTH,
    flow: FlowConfig = DIS,
    interlaced: Interlaced = "weave",
) -> PackedStore:
    """A store with nothing in it, or the one that is there."""
    return PackedStore.create(str(folder), header_of(size, streams, flow, interlaced))


def write_loose(
    store: PackedStore, row: VideoRow, stream: Decoded, chunks: Iterable[Codes], seconds: Seconds | None = None
) -> Key:
    """Store an entry of these pictures or fields, which waits for a shard then."""
    with closing(LooseWriter(store, row, stream, seconds)) as writer:
        for chunk in chunks:
            writer.add(chunk)
        writer.finish()
        return writer.key


def seal_all(store: PackedStore, entries_a_shard: int = 3) -> None:
    """Move all that is loose into shards."""
    loose = sorted(list_loose(store))
    for stream in BOTH:
        keys = [key for key in loose if key.stream == stream]
        for begin in range(0, len(keys), entries_a_shard):
            seal(store, keys[begin : begin + entries_a_shard])
        store.forget(stream)


def write_entry(
    store: PackedStore, row: VideoRow, stream: Decoded, chunks: Iterable[Codes], seconds: Seconds | None = None
) -> Key:
    """Store an entry of these pictures or fields in a shard of its own; the key it has."""
    key = write_loose(store, row, stream, chunks, seconds)
    seal(store, [key])
    store.forget(stream)
    return key


def pack(
    store: PackedStore,
    rows: Sequence[VideoRow],
    streams: Sequence[Decoded] = BOTH,
    flow: FlowConfig = DIS,
    interlaced: Interlaced = "weave",
    entries_a_shard: int = 3,
) -> list[Packed]:
    """Pack what a store lacks of some rows, as `vicc pack` does; what became of each piece of work."""
    columns = Rows.of(rows)
    lacking = np.stack([store.lacks(columns, stream) for stream in streams], 1)
    packer = Packer(store, flow, interlaced)
    found = [packer(work) for work in split_work(columns, streams, lacking)]
    seal_all(store, entries_a_shard)
    return found


def row_of(frames: int, digits: str = "ab", video: str = "", first: int = 0, whole: int = 0) -> VideoRow:
    """A row of `DIGITS.mp4`, whose content hash are these digits; with `whole` a part of so many frames from `first` on."""
    video = video or f"{digits}.mp4"
    row = VideoRow(video=video, frames=frames, fps=25.0, content_hash=digits * 16, decoder="pyav")
    if not whole:
        return row
    return replace(row, first_frame=first, file_frames=whole, start=first / 25, end=(first + frames) / 25, group=video)


def smooth_codes(n: int, size: tuple[int, int], seed: int = 0) -> Codes:
    """Smooth quantised fields that drift, so that each differs from its neighbours."""
    y, x = np.mgrid[: size[0], : size[1]] / 16.0
    phase = np.random.default_rng(seed).uniform(0, 6) + np.arange(n)[:, None, None] / 4
    return quantise(np.stack([4 * np.sin(x + phase), 3 * np.cos(y + phase)], -1).astype(np.float32))


def psnr(got: Codes, want: Codes) -> float:
    """Of all values together, in dB."""
    error = float(np.mean((got.astype(np.float64) - want) ** 2))
    return 10 * float(np.log10(255.0**2 / error)) if error else float("inf")
