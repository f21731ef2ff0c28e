"""One run of `vicc bench learning`: the training loop in this process from a packed store, then the recall of its encoders."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.learning_data import windows
from vicc_ray.config import STREAMS, Decoded, Experiment, Stream
from vicc_ray.data.augment import stream_input
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.motion_crop import motion_crops
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.errors import UserError
from vicc_ray.evaluation.neighbours import fused_name
from vicc_ray.metrics.fusion import fused_recall_at_k
from vicc_ray.metrics.retrieval import recall_at_k
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.models.planar import arrange
from vicc_ray.runs.checkpoint import State
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records, write_text
from vicc_ray.training.batches import Block, TrainingPlan, decode_shares
from vicc_ray.training.loop import Notice, train
from vicc_ray.training.monitor import Monitor, MonitorPlan, monitor_plan
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.survival import Finished

RESULT, QUERIES = "result.json", "queries.json"
SHOWN = tuple(f"{kind.title}-{level}" for level in (1, 2) for kind in STREAMS.values())
Table = NDArray[np.float32]


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        curve: (samples of all stages, stage, R@1 of the monitored videos), as measured in training.
        recall: R@1 of each encoder over all windows of the held-out videos.
        samples: of all stages.
        seconds, core_seconds: of the training loop, its measurements included: on the clock, and of processor time.
    """

    curve: list[tuple[int, str, float]]
    recall: dict[str, float]
    samples: int
    seconds: float
    core_seconds: float

    @classmethod
    def read(cls, folder: Path) -> RunResult | None:
        """Of a finished run; None where it is not finished."""
        file = folder / RESULT
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        found["curve"] = [(int(samples), str(stage), float(recall)) for samples, stage, recall in found["curve"]]
        return cls(**found)


class Host:
    """What the loop needs, in one process: blocks from the packed store, no checkpoints (a run is minutes)."""

    def __init__(self, plan: TrainingPlan, reader: StoreReader) -> None:
        self.plan, self.reader = plan, reader
        self.device = torch.device("cpu")

    def blocks(self, first_step: int) -> Iterator[Block]:
        """One step after another."""
        for step in range(first_step, self.plan.steps):
            yield decode_shares(self.plan, range(step, step + 1), 0, 1, self.reader.read_all)

    def save(self, state: State, about: dict[str, Any]) -> None:
        """Nothing is kept."""

    def finished(self, step: Finished) -> None:
        """Nothing is kept."""

    def notice(self) -> Notice:
        """Nobody requests anything."""
        return Notice()


def run_once(experiment: Experiment, where: Path) -> RunResult:
    """Train an experiment below `where` on one thread and measure its encoders; written there when it is whole."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(experiment, where)
    finally:
        torch.set_num_threads(threads)


def _run(experiment: Experiment, where: Path) -> RunResult:
    manifest = Manifest.read(str(experiment.data.manifest))
    task = Pretraining()
    plan = task.plan(experiment, manifest)
    folder = RunFolder(where)
    folder.open(experiment, manifest.fingerprint())
    began, cores = time.monotonic(), time.process_time()
    with closing(StoreReader(experiment)) as reader:
        monitor = _monitor(experiment, manifest, reader)
        train(task, plan, folder, Host(plan, reader), None, monitor)
    seconds, core_seconds = time.monotonic() - began, time.process_time() - cores
    records = [record for record in read_records(folder.metrics) if record["kind"] == "monitor"]
    curve = [(int(record["samples"]), str(record["stage"]), float(record["R@1"])) for record in records]
    recall = encoders_recall(folder, experiment, manifest, experiment.data.query_split)
    result = RunResult(curve, recall, sum(stage.samples for stage in plan.stages), seconds, core_seconds)
    write_text(where / RESULT, json.dumps(asdict(result), indent=1) + "\n")
    return result


def search_queries(where: Path) -> dict[str, float]:
    """R@1 of a finished run's encoders on the queries: measured once, then read."""
    file = where / QUERIES
    if not file.is_file():
        folder = RunFolder(where)
        experiment = folder.experiment()
        found = encoders_recall(folder, experiment, Manifest.read(str(experiment.data.manifest)), "query")
        write_text(file, json.dumps(found, indent=1) + "\n")
    recall: dict[str, float] = json.loads(file.read_text())
    return recall


def encoders_recall(folder: RunFolder, experiment: Experiment, manifest: Manifest, split: str) -> dict[str, float]:
    """R@1 of each encoder and of the newest two together, the training videos as the gallery, means over all windows."""
    sides = [list(manifest.select(name)) for name in (experiment.data.train_split, split)]
    labels = [[row.label for row in rows] for rows in sides]
    names = [name for name in SHOWN if folder.encoder(name).is_file()]
    if not names:
        raise UserError(f"{folder}: holds no encoder")
    tables = [_features(folder, names, experiment, rows) for rows in sides]
    recall = {name: recall_at_k(tables[0][name], labels[0], tables[1][name], labels[1], (1,))[1] for name in names}
    pair = [name for name in names if name.endswith(names[-1][-2:])]
    if len(pair) == 2:
        stacked = [[table[name] for name in pair] for table in tables]
        together = fused_recall_at_k(stacked[0], labels[0], stacked[1], labels[1], (1,))
        recall[fused_name((pair[0], pair[1]))] = together[1]
    return recall


@torch.inference_mode()
def _features(folder: RunFolder, names: list[str], experiment: Experiment, rows: list[Any]) -> dict[str, Table]:
    """float32 [n, d] of each encoder: the mean over a video's windows."""
    files = {name: load_encoder(folder.encoder(name)) for name in names}
    cpu = torch.device("cpu")
    encoders = {name: arrange(file.build(), experiment.train, cpu).eval() for name, file in files.items()}
    found: dict[str, list[Table]] = {name: [] for name in names}
    for clips in windows(experiment, rows, experiment.decoded_at_test(file.stream for file in files.values())):
        whole: Mapping[Decoded, torch.Tensor] = {stream: torch.from_numpy(array) for stream, array in clips.items()}
        tensors = motion_crops(whole, experiment.evaluate.motion_crop)
        inputs: dict[Stream, torch.Tensor] = {}
        for name, encoder in encoders.items():
            stream = files[name].stream
            if stream not in inputs:
                inputs[stream] = stream_input(tensors, stream, experiment.clip.size, experiment.augment.style)
            found[name].append(encoder.features(inputs[stream]).mean(dim=0).numpy())
    return {name: np.stack(table) for name, table in found.items()}


def _monitor(experiment: Experiment, manifest: Manifest, reader: StoreReader) -> Monitor | None:
    """The recall in training, with the centre clip of each of its videos in memory."""
    plan: MonitorPlan | None = monitor_plan(experiment, manifest)
    if plan is None:
        return None
    clip = experiment.clip
    streams: tuple[Decoded, ...] = tuple(dict.fromkeys(STREAMS[stream].decoded for stream in experiment.streams))
    parts = [
        reader.read(row, evaluation_starts(row.frames, clip.frames, clip.stride, "centre"), streams)
        for row in plan.videos
    ]
    clips = {stream: torch.from_numpy(np.concatenate([part[stream] for part in parts])) for stream in streams}
    return Monitor(plan, range(len(plan.videos)), clips, experiment, torch.device("cpu"))
