"""`vicc quickstart`: the whole path on a data set that it makes for itself. Each part is skipped where it is done already."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vicc_ray.cluster.launch import run_training
from vicc_ray.cluster.session import ray_session
from vicc_ray.commands.evaluate import data_name, evaluations_json, print_evaluation, say
from vicc_ray.commands.index import IndexOptions, index_videos
from vicc_ray.commands.pack import PackOptions, pack_videos
from vicc_ray.config import Experiment, decoded_for
from vicc_ray.console import console, quiet
from vicc_ray.data.clips import window_span
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.evaluation.neighbours import Retrieval
from vicc_ray.evaluation.protocols import EvaluationTask, RayAccess, judge
from vicc_ray.report import write_report
from vicc_ray.runs.encoders import open_encoders
from vicc_ray.runs.folder import RunFolder

FRAMES = 16  # a video; clips are shorter, so that their windows differ


def run_quickstart(experiment: Experiment, train_per_class: int, query_per_class: int, verbose: bool) -> dict[str, Any]:
    """Data set, manifest, packed store, four stages on two workers, retrieval, report; some minutes on two cores.

    Gives the run's folder, its page, the seconds that all took, and the evaluation.
    """
    started = time.monotonic()
    folder = RunFolder.at(experiment.run_folder)
    manifest_file = _prepare(folder, train_per_class, query_per_class, experiment)
    experiment = experiment.model_copy(
        update={"data": experiment.data.model_copy(update={"manifest": str(manifest_file)})}
    )
    # One Ray for packing, training and evaluation: its start costs as much as a stage.
    with quiet(folder.logs / "ray.log", verbose), ray_session(experiment.train, None, verbose) as resources:
        if experiment.clip.source == "stream":
            experiment = _packed(experiment, Manifest.read(str(manifest_file)), folder, verbose)
        run_training(experiment, None, verbose)
        manifest = Manifest.read(folder.manifest)
        ray = RayAccess(lambda: resources, None, verbose)
        task = EvaluationTask(
            folder, experiment, manifest, data_name(manifest, manifest_file), open_encoders(folder), ray, say
        )
        evaluation = judge(task, Retrieval(task))
    print_evaluation(evaluation)
    write_report([folder.path], folder.report)
    seconds = time.monotonic() - started
    console.print(f"report: {folder.report}  ({seconds:.0f} s in all)")
    return {
        "run": str(folder),
        "page": str(folder.report),
        "seconds": round(seconds, 1),
        **evaluations_json([evaluation]),
    }


def _packed(experiment: Experiment, manifest: Manifest, folder: RunFolder, verbose: bool) -> Experiment:
    """The experiment that reads clips and flow from a store, which every epoch would decode and measure anew otherwise."""
    where, data = str(folder.path / "packed"), experiment.data
    options = PackOptions(decoded_for(experiment.streams), verbose=verbose, interlaced=data.interlaced)
    pack_videos(manifest, where, experiment.flow, experiment.clip.decode_size, options)
    return experiment.model_copy(
        update={"clip": experiment.clip.model_copy(update={"source": "store", "store": where})}
    )


def _prepare(folder: RunFolder, train_per_class: int, query_per_class: int, experiment: Experiment) -> Path:
    """The videos and their manifest."""
    console.print("making the motion data set: 8 classes that differ in motion only")
    table = make_dataset(
        folder.path / "data",
        train_per_class=train_per_class,
        query_per_class=query_per_class,
        frames=FRAMES,
        seed=experiment.seed,
    )
    manifest = folder.path / "videos.parquet"
    if not manifest.is_file() or manifest.stat().st_mtime < table.stat().st_mtime:
        clip = window_span(experiment.clip.frames, experiment.clip.stride)
        index_videos(str(table), manifest, IndexOptions(clip=clip))
    return manifest
