"""Encoders and videos -> pooled features, by Ray Data: CPU actors decode, model actors encode with every encoder at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from vicc_ray.config import Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.pipeline import evaluation_windows, iterate_blocks, list_windows
from vicc_ray.resources import ResourcePlan

Features = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTable:
    """Features of the videos that could be read, the mean over their windows, in the order of the videos."""

    videos: tuple[VideoRow, ...]
    features: dict[str, Features]  # encoder name -> float32 [n, d]
    refused: tuple[tuple[str, str], ...]  # (path, reason)


class EncodeWindows:
    """A model actor: windows in, their features by each encoder out."""

    def __init__(self, encoders: Mapping[str, str], experiment: Experiment, use_gpu: bool, threads: int) -> None:
        import torch

        from vicc_ray.weights import load_encoder

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment = experiment
        files = {name: load_encoder(Path(path)) for name, path in encoders.items()}
        self.streams = {name: file.stream for name, file in files.items()}
        self.layout = torch.channels_last_3d if experiment.train.channels_last else torch.contiguous_format
        self.encoders = {
            name: file.build().to(self.device).to(memory_format=self.layout) for name, file in files.items()
        }

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """uint8 windows [w, T, H, W, C] a stream -> video, refused and features float32 [w, d] an encoder."""
        import torch

        from vicc_ray.data.augment import evaluation_input

        experiment = self.experiment
        row: dict[str, Any] = {"video": rows["video"], "refused": rows["refused"]}
        inputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for name, encoder in self.encoders.items():
                stream = self.streams[name]
                if stream not in inputs:
                    clips = torch.from_numpy(np.array(rows[stream])).to(self.device)
                    view = evaluation_input(clips, experiment.clip.size, experiment.augment.style)
                    inputs[stream] = view.contiguous(memory_format=self.layout)
                row[name] = encoder.features(inputs[stream]).cpu().numpy()
        return row


def extract_features(
    encoders: Mapping[str, Path],
    videos: Sequence[VideoRow],
    experiment: Experiment,
    resources: ResourcePlan,
    threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Features of every encoder (name -> file) for every video, the mean over its windows; an open Ray session is needed.

    A window is decoded once for all encoders. Unreadable videos are left out and listed. `on_progress` is called with the
    number of windows that have just been finished.
    """
    windows = list_windows(videos, experiment.clip, experiment.evaluate.windows)
    paths = {name: str(path) for name, path in encoders.items()}
    encoded = evaluation_windows(videos, windows, experiment, *resources.decoders(resources.workers)).map_batches(
        EncodeWindows,
        fn_constructor_args=(paths, experiment, resources.use_gpu, threads),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.use_gpu else 0,
        compute=ActorPoolStrategy(
            min_size=resources.min_workers, max_size=resources.workers, max_tasks_in_flight_per_actor=2
        ),
    )
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("video", "refused", *encoders)}
    for block in iterate_blocks(encoded.iterator()):
        for name, rows in parts.items():
            rows.append(block[name])
        if on_progress:
            on_progress(len(block["video"]))
    columns = {name: np.concatenate(rows) for name, rows in parts.items()}
    return _mean_over_windows(columns, videos, tuple(encoders))


def _mean_over_windows(
    columns: dict[str, NDArray[Any]], videos: Sequence[VideoRow], names: tuple[str, ...]
) -> FeatureTable:
    """One row a video from one row a window; a video with an unreadable window is left out."""
    refused = {
        int(video): str(reason) for video, reason in zip(columns["video"], columns["refused"], strict=True) if reason
    }
    kept = [number for number in range(len(videos)) if number not in refused]
    order = np.argsort(columns["video"], kind="stable")
    firsts = np.searchsorted(columns["video"][order], kept)
    counts = np.bincount(columns["video"], minlength=len(videos))[kept]
    features = {}
    for name in names:
        rows = columns[name][order]
        features[name] = np.stack([rows[a : a + n].mean(axis=0) for a, n in zip(firsts, counts, strict=True)]).astype(
            np.float32
        )
    listed = tuple((videos[number].video, reason) for number, reason in sorted(refused.items()))
    return FeatureTable(tuple(videos[number] for number in kept), features, listed)
