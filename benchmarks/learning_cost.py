"""What a recipe's data cost: processor time to pack pictures and motion stream of some training videos, beside pictures alone."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.learning_data import empty_store
from vicc_ray.config import Decoded, Experiment, decoded_for
from vicc_ray.data.clips import permuted
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.packing import Packer, split_work
from vicc_ray.data.randomness import RandomUse, key
from vicc_ray.data.rows import Rows
from vicc_ray.errors import UserError
from vicc_ray.runs.records import write_text

VIDEOS, ROUNDS = 24, 3
COSTS = "data_costs.json"

Costs = dict[str, float]


def data_cost(manifest: Manifest, experiment: Experiment, folder: Path) -> Costs:
    """`packing`: ms of processor time a training video for all that the recipe learns from; `motion`: how much of it more than
    pictures alone take, 0 where the motion stream is made of them.

    Measured on at most `VIDEOS` videos, the least of `ROUNDS` rounds after one that is not counted; kept below `folder` by what is
    packed, so that another call gives the same figures.
    """
    pictures, both = (_cost(manifest, experiment, streams, folder) for streams in (("rgb",), _streams(experiment)))
    return {"packing": both, "motion": both - pictures}


def _streams(experiment: Experiment) -> tuple[Decoded, ...]:
    return decoded_for(experiment.streams)


def _cost(manifest: Manifest, experiment: Experiment, streams: tuple[Decoded, ...], folder: Path) -> float:
    flow, size = experiment.flow, experiment.clip.decode_size
    name = f"{size[0]}x{size[1]} {' '.join(streams)}" + (
        f" {flow.algorithm} {flow.pixels:g}" if "flow" in streams else ""
    )
    file = folder / COSTS
    known: Costs = json.loads(file.read_text()) if file.is_file() else {}
    if name not in known:
        known[name] = round(_measured(manifest, experiment, streams), 2)
        write_text(file, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return known[name]


def _measured(manifest: Manifest, experiment: Experiment, streams: tuple[Decoded, ...]) -> float:
    """ms of processor time a video, the least of some rounds."""
    rows = manifest.select(experiment.data.train_split)
    some = rows.take(permuted(np.arange(min(VIDEOS, len(rows))), len(rows), key(RandomUse.SUBSET, 0)))
    with tempfile.TemporaryDirectory(prefix="vicc-") as place:
        rounds = [_round(some, experiment, streams, str(Path(place) / str(number))) for number in range(ROUNDS + 1)]
    return 1000 * min(rounds[1:]) / len(some)


def _round(rows: Rows, experiment: Experiment, streams: tuple[Decoded, ...], where: str) -> float:
    """Seconds of processor time to pack rows into an empty store at `where`."""
    store = empty_store(experiment, where)
    packer = Packer(store, experiment.flow, experiment.data.interlaced)
    work = split_work(rows, streams, np.ones((len(rows), len(streams)), bool))
    began = time.process_time()
    for piece in work:
        done = packer(piece)
        if done.refused or done.not_written:
            raise UserError(f"{where}: {done.not_written or done.refused}")
    return time.process_time() - began
