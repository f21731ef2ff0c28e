"""Flow: reading it from the store beside reading RGB and beside measuring it while streaming; what the store costs; TV-L1
in PyTorch beside OpenCV's.

`vicc bench flow --manifest M.parquet` measures on the videos of a manifest, without one on synthetic videos.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks import Bar, Outcome, take_turns
from benchmarks.tvl1 import Tvl1Pair
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow.algorithms import BOUND, dequantise, fingerprint, flow_between, quantise
from vicc_ray.data.flow.codes import compute_codes
from vicc_ray.data.flow.contract import Field
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.probing import index
from vicc_ray.data.store.entry import Codes
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import Header, PackedStore
from vicc_ray.data.store.writing import LooseWriter, seal
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.errors import UserError

SIZE = (128, 171)
CLIP = 32
# Spread over the manifest: subjects and classes differ, and TV-L1 takes a sixth of a second a field.
VIDEOS = 8
# Of each video's start: what is stored to be read at random places, and what is compared value by value.
STORED_FRAMES = 160
COMPARED_FRAMES = 33
ALGORITHMS = ("dis", "tvl1")
MEAN_ERROR = 0.15
SHARE_OF_JPEG = 0.25


@dataclass
class _Quality:
    """Sums over the compared fields of one algorithm."""

    values: int = 0
    stored_bytes: int = 0
    gray_bytes: int = 0
    colour_bytes: int = 0
    error: float = 0.0
    end_point: float = 0.0
    exact: int = 0
    one_step: int = 0
    two_steps: int = 0

    def add(self, field: Field, stored: Codes, stored_bytes: int) -> None:
        """Compare float32 [n, H, W, 2] with what came back from the store."""
        codes = quantise(field)
        error = dequantise(stored).astype(np.float64) - np.clip(field, -BOUND, BOUND)
        steps = np.abs(stored.astype(np.int16) - codes)
        gray, colour = _jpeg_bytes(codes)
        self.values += steps.size
        self.stored_bytes += stored_bytes
        self.gray_bytes += gray
        self.colour_bytes += colour
        self.error += float(np.abs(error).sum())
        self.end_point += 2 * float(np.hypot(error[..., 0], error[..., 1]).sum())
        self.exact += int((steps == 0).sum())
        self.one_step += int((steps <= 1).sum())
        self.two_steps += int((steps <= 2).sum())

    @property
    def share_of_jpeg(self) -> float:
        """Bytes beside the smaller of the two ways to write JPEG."""
        return self.stored_bytes / min(self.gray_bytes, self.colour_bytes)

    def __str__(self) -> str:
        n, size = self.values, self.stored_bytes
        return (
            f"mean error {self.error / n:.4f} px (end point {self.end_point / n:.4f}); "
            f"{size / n * 2 * SIZE[0] * SIZE[1]:.0f} bytes a field, {size / self.gray_bytes:.3f} of two gray JPEGs, "
            f"{size / self.colour_bytes:.3f} of a colour JPEG; equal to the streamed value {self.exact / n:.2%}, "
            f"within a step {self.one_step / n:.3%}, within two {self.two_steps / n:.3%}"
        )


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Milliseconds for a 32-frame clip of 128 x 171 pixels, RGB and flow; error and bytes of the store in the facts."""
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        rows = _rows(Manifest.read(manifest) if manifest else _synthetic(Path(scratch)))
        quality = {name: _compare(rows, name, Path(scratch) / name) for name in ALGORITHMS}
        store = _store(Path(scratch) / "read", "dis")
        for row in rows:
            _write(store, row, compute_codes(row, "dis", SIZE))
        reader = EntryReader(store)
        clips = _clips(rows)
        tvl1 = Tvl1Pair.of([read_frames(row.video, frames, SIZE, row.decoder) for row, frames in clips])
        contenders = {
            "RGB clip from the file": _timed(
                clips, lambda row, frames: read_frames(row.video, frames, SIZE, row.decoder)
            ),
            "flow clip from the store": _timed(clips, lambda row, frames: reader.read(row, "flow", frames)),
            "flow clip streamed, DIS": _timed(clips, _streamed),
            **tvl1.contenders(),
        }
        outcome = Outcome("ms a clip", take_turns(contenders, rounds))
        reader.close()
    ratio = outcome.ratio("flow clip from the store", "RGB clip from the file")
    outcome.bars = [Bar("stored flow / RGB clip, time", ratio, 1.0, at_least=False)]
    for name, found in quality.items():
        outcome.bars.append(Bar(f"{name}: mean error, px", found.error / found.values, MEAN_ERROR, at_least=False))
        if manifest:  # synthetic scenes move everywhere at once, which says nothing about bytes
            outcome.bars.append(
                Bar(f"{name}: bytes / smaller JPEG", found.share_of_jpeg, SHARE_OF_JPEG, at_least=False)
            )
    outcome.bars += tvl1.bars(outcome)
    outcome.facts = {
        "videos": f"{len(rows)}, {CLIP} frames a clip at {SIZE[0]} x {SIZE[1]}, one thread",
        **{f"stored {name} beside the float field": str(found) for name, found in quality.items()},
        **tvl1.facts(),
    }
    return outcome


def _synthetic(folder: Path) -> Manifest:
    table = make_dataset(folder / "data", train_per_class=1, query_per_class=1, frames=80, size=240, fps=25)
    return index(scan(table))


def _rows(manifest: Manifest) -> list[VideoRow]:
    """Some of the videos, evenly spread, each cut to its start."""
    long = [row for row in manifest.videos if row.frames > COMPARED_FRAMES]
    if not long:
        raise UserError(f"the manifest has no usable video of more than {COMPARED_FRAMES} frames to measure on")
    places = np.unique(np.linspace(0, len(long) - 1, VIDEOS).astype(int))
    return [replace(long[i], frames=min(long[i].frames, STORED_FRAMES)) for i in places]


def _compare(rows: Sequence[VideoRow], algorithm: str, folder: Path) -> _Quality:
    store = _store(folder, algorithm)
    quality = _Quality()
    for row in rows:
        row = replace(row, frames=COMPARED_FRAMES)
        field = flow_between(read_frames(row.video, np.arange(COMPARED_FRAMES), SIZE, row.decoder), algorithm)
        size = _write(store, row, [quantise(field)])
        with closing(EntryReader(store)) as reader:
            quality.add(field, reader.read(row, "flow", np.arange(len(field))), size)
    return quality


def _store(folder: Path, algorithm: str) -> PackedStore:
    return PackedStore.create(str(folder), Header(SIZE, flow=json.loads(fingerprint(algorithm)), bound=BOUND))


def _write(store: PackedStore, row: VideoRow, chunks: Iterable[Codes]) -> int:
    """Store the fields of a row, given as uint8 [m, H, W, 2] at a time, in a shard of its own; the entry's bytes."""
    with closing(LooseWriter(store, row, "flow", None)) as writer:
        for chunk in chunks:
            writer.add(chunk)
        size = writer.finish()
    seal(store, [writer.key])
    store.forget("flow")
    return size


def _jpeg_bytes(codes: Codes) -> tuple[int, int]:
    """Bytes as the published recipe would store them: u and v as gray JPEGs of quality 100; one colour JPEG (u, v, 128)."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100]
    gray = colour = 0
    for field in codes:
        gray += sum(len(cv2.imencode(".jpg", field[..., k], quality)[1]) for k in (0, 1))
        third = np.full(field.shape[:2], 128, np.uint8)
        colour += len(cv2.imencode(".jpg", np.dstack([field, third]), quality)[1])
    return gray, colour


def _clips(rows: Sequence[VideoRow]) -> list[tuple[VideoRow, np.ndarray]]:
    """One window of each video, at a place that its content chooses."""
    clips = []
    for row in rows:
        start = int(row.content_hash[:8], 16) % (row.frames - CLIP)
        clips.append((row, np.arange(start, start + CLIP)))
    return clips


def _streamed(row: VideoRow, frames: np.ndarray) -> Codes:
    numbers = np.append(frames, frames[-1] + 1)
    return quantise(flow_between(read_frames(row.video, numbers, SIZE, row.decoder), "dis"))


def _timed(
    clips: Sequence[tuple[VideoRow, np.ndarray]], read: Callable[[VideoRow, np.ndarray], Codes]
) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for row, frames in clips:
            read(row, frames)
        return (time.perf_counter() - started) * 1000 / len(clips)

    return run
