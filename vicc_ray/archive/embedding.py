"""Rows of a manifest -> vectors in an archive: what is missing is embedded, block by block, and written in parts.

Windows are dealt into blocks by the whole list of rows, whatever of it is there already: a block that is made again after an
interruption holds the same clips, so that its vectors are the same to the bit.

Legend: w windows of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vicc_ray.archive.store import Archive, Segments
from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.stream import (
    SEGMENT_BLOCKS,
    WINDOWS_A_BLOCK,
    modelled_windows,
)
from vicc_ray.config import Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.rows import Places, Rows
from vicc_ray.errors import UserError
from vicc_ray.evaluation.means import Block, VideoMeans, video_means
from vicc_ray.evaluation.model_actors import EncodeWindows
from vicc_ray.runs.encoders import EncoderOnDisk

# A part is written when it has so many rows, or after so many seconds: what an interruption costs at most.
PART_ROWS, PART_SECONDS = 4096, 60.0


@dataclass(frozen=True)
class EmbeddingPlan:
    """Which blocks of windows have to be made.

    rows: all rows of the source. done: whether each is there already, bool [n]. windows: (row number, first frame) of all rows,
    int64 [W, 2], in order.
    """

    rows: Sequence[VideoRow]
    done: NDArray[np.bool_]
    windows: NDArray[np.int64]

    @property
    def blocks(self) -> list[int]:
        """The numbers of the blocks that hold a window of a row that is not there."""
        lacking = np.flatnonzero(~self.done[self.windows[:, 0]])
        found: list[int] = np.unique(lacking // WINDOWS_A_BLOCK).tolist()
        return found

    def of_block(self, block: int) -> NDArray[np.int64]:
        """The windows of a block, int64 [w, 2]."""
        return self.windows[block * WINDOWS_A_BLOCK : (block + 1) * WINDOWS_A_BLOCK]


def make_embedding_plan(
    archive: Archive, rows: Sequence[VideoRow], experiment: Experiment, windows: str
) -> EmbeddingPlan:
    """What an archive lacks of these rows; rows whose file has changed since are taken out of it first.

    Of what is there one part at a time is in memory.
    """
    rows = Rows.of(rows)
    places, contents = Places(rows.ids()), rows.texts("content_hash")
    done = np.zeros(len(rows), bool)
    for number, part in enumerate(archive.parts):
        ids, there = archive.ids_and_contents(part)
        found = places.find(ids)
        named = np.flatnonzero(found >= 0)
        same = np.asarray(pc.equal(contents.take(found[named]), there.take(named)), bool)
        done[found[named[same]]] = True
        if not same.all():
            archive.drop(number, np.isin(np.arange(len(found)), named[~same]))
    return EmbeddingPlan(rows, done, list_windows(rows, experiment.clip, windows, experiment.seed))


def embed_missing(
    archive: Archive,
    plan: EmbeddingPlan,
    encoders: Sequence[EncoderOnDisk],
    experiment: Experiment,
    resources: ResourcePlan,
    on_windows: Callable[[int], None],
) -> dict[str, str]:
    """Embed what is missing and write it as it comes; id -> reason of the rows that could not be.

    An open Ray session is needed. UserError where all that could be read gives NaN.
    """
    refused: dict[str, str] = {}
    held: list[tuple[VideoRow, VideoMeans]] = []
    began = time.monotonic()
    names = [encoder.name for encoder in encoders]
    for mean in video_means(_blocks(plan, encoders, experiment, resources, on_windows), names):
        row = plan.rows[mean.number]
        if plan.done[mean.number]:
            continue
        reason = mean.refused or _not_finite(mean, names)
        if reason:
            refused[row.id] = reason
        else:
            held.append((row, mean))
        if len(held) >= PART_ROWS or (held and time.monotonic() - began > PART_SECONDS):
            archive.write_part(_segments(held, names), refused)
            held, began = [], time.monotonic()
    archive.write_part(_segments(held, names), refused)
    if refused and not len(archive):
        first = next(iter(refused.items()))
        raise UserError(f"none of {len(refused)} videos and parts could be embedded (the first: {': '.join(first)})")
    return refused


def _blocks(
    plan: EmbeddingPlan,
    encoders: Sequence[EncoderOnDisk],
    experiment: Experiment,
    resources: ResourcePlan,
    on_windows: Callable[[int], None],
) -> Iterator[Block]:
    """Features of the windows of all blocks to be made, `video` being the row's number; some thousand blocks a data set."""
    decoded = experiment.decoded_at_test(encoder.stream for encoder in encoders)
    chosen = plan.blocks
    parts = (
        np.concatenate([plan.of_block(block) for block in chosen[first : first + SEGMENT_BLOCKS]])
        for first in range(0, len(chosen), SEGMENT_BLOCKS)
    )
    arguments = {encoder.name: encoder.shared_name for encoder in encoders}, experiment, resources.use_gpu, 1
    return modelled_windows(plan.rows, parts, experiment, decoded, EncodeWindows, arguments, resources, on_windows)


def _not_finite(mean: VideoMeans, names: Iterable[str]) -> str:
    wrong = [name for name in names if not np.isfinite(mean.vectors[name]).all()]
    return f"its vectors by {', '.join(wrong)} hold NaN or infinite values" if wrong else ""


def _segments(held: Sequence[tuple[VideoRow, VideoMeans]], names: Sequence[str]) -> Segments:
    rows = [row for row, _ in held]
    vectors = [np.concatenate([mean.vectors[name] for name in names]) for _, mean in held]
    return Segments(
        ids=[row.id for row in rows],
        videos=[row.video for row in rows],
        starts=[row.span[0] for row in rows],
        ends=[row.span[1] for row in rows],
        labels=[row.label for row in rows],
        groups=[row.group or row.video for row in rows],
        contents=[row.content_hash for row in rows],
        vectors=np.stack(vectors) if vectors else np.zeros((0, 0), np.float32),
    )


def reasons(refused: Mapping[str, str]) -> list[str]:
    """A line for each refused row."""
    return [f"refused: {name}: {reason}" for name, reason in refused.items()]
