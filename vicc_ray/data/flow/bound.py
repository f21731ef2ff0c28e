"""`flow.bound: auto`: the bound that the motion of a data set needs, measured once, before a run, a store or a sweep begins.

Flow is stored in 256 codes between -bound and bound. Where the bound is far above the motion, slow motion falls into a few codes;
where it is below, motion is clipped. Every process of a run uses one number, so it is measured by the driver alone and written
into the run's settings or the store's header.

Legend: n fields, H x W decode size; a field is float32 [H, W, 2] = (u, v) in pixels a frame.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.config import MAX_PIXELS, Experiment, FlowConfig
from vicc_ray.data.clips import permuted
from vicc_ray.data.decode import bound_pixels, fetched, read_frames
from vicc_ray.data.flow.algorithms import BOUND, flow_algorithm, flow_of_frames, uses_torch
from vicc_ray.data.flow.contract import Field, FileFlowAlgorithm
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.guarded import MEMORY_BYTES, Failure, Guarded
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pictures import Interlaced
from vicc_ray.data.randomness import RandomUse, key
from vicc_ray.data.rows import Rows
from vicc_ray.data.segments import by_table
from vicc_ray.data.store.checking import store_of
from vicc_ray.data.store.store import PackedStore, read_header
from vicc_ray.errors import UserError

# The sample: at most so many videos, consecutive fields of each, and every fourth pixel of them in both directions.
VIDEOS, FIELDS, EVERY = 64, 8, 4
# Of |u| and |v| over the sample. What moves along one axis in 2 % of the picture is 1 % of these numbers: the 99th percentile would
# clip all of its motion.
QUANTILE = 0.999
# What it is rounded up to, 1 and 1.5 times powers of two: a sample that is a little different gives the same number.
GRID = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
# What a video of the sample may take before its process counts as hung: TV-L1 takes 0.25 s a field of 320 x 240.
SECONDS = 120.0 + 5.0 * FIELDS

Say = Callable[[str], None]
Item = tuple[VideoRow, NDArray[np.int64]]


def with_bound(
    experiment: Experiment, manifest: Manifest, say: Say, begun: Callable[[], Experiment | None] = lambda: None
) -> Experiment:
    """The experiment with a number for `flow.bound`: itself where it has one.

    In place of auto: the bound of the store that flow is read from; else that of the run or sweep that was begun (`begun`); else
    what a sample of the training videos needs. Without a stream of flow it is never used, and is the published one. `say` takes a
    line for the reader. UserError where the store is absent or holds no flow, and where no video of the sample can be read.
    """
    flow, where = experiment.flow, store_of(experiment, "flow")
    if flow.bound != "auto":
        return experiment
    if experiment.clip.motion != "flow":
        return bounded(experiment, BOUND)
    if where is None:
        earlier = begun()
        if earlier is not None and earlier.flow.bound != "auto":
            return bounded(experiment, earlier.flow.bound)
        rows = manifest.select(experiment.data.train_split)
        size = experiment.clip.decode_size
        return bounded(experiment, measured_bound(rows, flow, size, experiment.data.interlaced, say))
    known = PackedStore.open(where).header.bound
    if known is None:
        raise UserError(
            f"flow.bound: auto is that of the store, and {where} holds no flow; give a number, or pack its flow"
        )
    return bounded(experiment, known)


def bounded(experiment: Experiment, bound: float) -> Experiment:
    """The experiment with this `flow.bound`."""
    return experiment.model_copy(update={"flow": experiment.flow.model_copy(update={"bound": float(bound)})})


def stored_bound(folder: str) -> float | None:
    """The bound of a store's flow, by path or URI; None where there is no store, or it holds no flow yet."""
    header = read_header(folder)
    return None if header is None or header.flow is None or header.bound is None else float(header.bound)


def measured_bound(
    rows: Rows, flow: FlowConfig, size: tuple[int, int], interlaced: Interlaced = "weave", say: Say = lambda line: None
) -> float:
    """The bound in pixels that a sample of the rows needs: the `QUANTILE` of |u| and |v| at the decode size, up to `GRID`'s next.

    The same rows, algorithm and size give the same number, whatever the experiment's seed. A video that cannot be read is left
    out; UserError where that are all.
    """
    heavy = uses_torch(flow.algorithm)
    measure = _Motion(flow, size, interlaced)
    found: list[NDArray[np.float32]] = []
    problem = "they have one frame each"
    with closing(
        Guarded[Item, NDArray[np.float32]](measure, SECONDS, memory_bytes=None if heavy else MEMORY_BYTES)
    ) as child:
        for item in sampled(rows):
            outcome = child(item)
            if isinstance(outcome, Failure):
                problem = f"{item[0].id}: {outcome.reason}"
            else:
                found.append(outcome.ravel())
    if not found:
        raise UserError(
            f"flow.bound: auto is measured, and no training video has motion to measure ({problem}); give a number"
        )
    pixels = float(np.quantile(np.concatenate(found), QUANTILE))
    bound = next((one for one in GRID if one >= pixels), GRID[-1])
    say(
        f"flow.bound: auto is {bound:g} px: in {len(found)} training videos {100 * QUANTILE:g} % of the motion is below "
        f"{pixels:.2f} px a frame ({flow.algorithm}, {size[0]}x{size[1]})"
    )
    return bound


def sampled(rows: Rows) -> list[Item]:
    """At most `VIDEOS` of the rows and, of each, the frames that at most `FIELDS` consecutive fields lead from, int64 [n].

    Drawn anew by nothing: the same for the same number of rows. Rows of one frame have no motion and are left out.
    """
    entropy = key(RandomUse.BOUND, 0)
    places = permuted(np.arange(min(VIDEOS, len(rows))), len(rows), entropy) if len(rows) else np.arange(0)
    draws = np.random.default_rng(entropy).random(len(places))
    items = []
    for row, draw in zip(rows.take(places), draws.tolist(), strict=True):
        fields = row.frames - 1
        first = row.first_frame + int(draw * (max(fields - FIELDS, 0) + 1))
        if fields > 0:
            items.append((row, np.arange(first, first + min(FIELDS, fields))))
    return items


@dataclass
class _Motion:
    """What the process does that no file can end: |u| and |v| of some pixels of a video's fields, float32 [n, h, w, 2]."""

    flow: FlowConfig
    size: tuple[int, int]
    interlaced: Interlaced

    def __call__(self, item: Item) -> NDArray[np.float32] | Failure:
        row, origins = item
        bound_pixels(max(MAX_PIXELS, row.width * row.height))  # whoever indexed it has decided
        made: Any = flow_algorithm(self.flow.algorithm, self.flow.weights, options=self.flow.options)
        with fetched(row.video) as path:
            fields: Field
            if isinstance(made, FileFlowAlgorithm):
                fields = made.fields_of_file(path, origins, self.size, row.decoder)
            else:
                frames = np.arange(origins[0], origins[-1] + 2)
                timeline = decode_table(row.frame_table) if by_table(row) else None
                images = read_frames(path, frames, self.size, row.decoder, self.interlaced, timeline)
                fields = flow_of_frames(made, images)
        kept: NDArray[np.float32] = np.abs(fields[:, ::EVERY, ::EVERY])
        return kept
