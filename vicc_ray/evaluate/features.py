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
from vicc_ray.data.pipeline import evaluation_windows, iterate_blocks
from vicc_ray.resources import ResourcePlan

Features = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTable:
    """Features of the videos that could be read, the mean over their windows, in the order of the videos."""

    videos: tuple[VideoRow, ...]
    features: dict[str, Features]  # encoder name -> float32 [n, d]
    refused: tuple[tuple[str, str], ...]  # (path, reason)


class EncodeWindows:
    """A model actor: a video's windows in, the mean feature of each encoder out."""

    def __init__(self, encoders: Mapping[str, str], experiment: Experiment, use_gpu: bool, threads: int) -> None:
        import torch

        from vicc_ray.weights import load_encoder

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment = experiment
        files = {name: load_encoder(Path(path)) for name, path in encoders.items()}
        self.streams = {name: file.stream for name, file in files.items()}
        self.encoders = {name: file.build().to(self.device) for name, file in files.items()}

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Rows of one video: uint8 windows [w, T, H, W, C] a stream -> video, refused and a feature [1, d] an encoder."""
        import torch

        from vicc_ray.data.augment import evaluation_input

        experiment = self.experiment
        row: dict[str, Any] = {"video": rows["video"][:1], "refused": rows["refused"][:1]}
        inputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for name, encoder in self.encoders.items():
                stream = self.streams[name]
                if stream not in inputs:
                    clips = torch.from_numpy(np.array(rows[stream])).to(self.device)
                    inputs[stream] = evaluation_input(clips, experiment.clip.size, experiment.augment.style)
                row[name] = encoder.features(inputs[stream]).mean(0, keepdim=True).cpu().numpy()
        return row


def extract_features(
    encoders: Mapping[str, Path],
    videos: Sequence[VideoRow],
    experiment: Experiment,
    resources: ResourcePlan,
    threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> FeatureTable:
    """Features of every encoder (name -> file) for every video; an open Ray session is needed.

    A video is decoded once for all encoders. Unreadable videos are left out and listed. `on_progress` is called with the
    number of videos that have just been finished.
    """
    windows = evaluation_windows(videos, experiment, experiment.evaluate.windows, resources.decode_actors)
    paths = {name: str(path) for name, path in encoders.items()}
    encoded = windows.map_batches(
        EncodeWindows,
        fn_constructor_args=(paths, experiment, resources.use_gpu, threads),
        batch_size=None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.use_gpu else 0,
        compute=ActorPoolStrategy(size=resources.workers, max_tasks_in_flight_per_actor=2),
    )
    done: list[int] = []
    refused: list[tuple[str, str]] = []
    rows: dict[str, list[Features]] = {name: [] for name in encoders}
    for block in iterate_blocks(encoded.iterator()):
        number = int(block["video"][0])
        if block["refused"][0]:
            refused.append((videos[number].video, str(block["refused"][0])))
        else:
            done.append(number)
            for name in encoders:
                rows[name].append(np.asarray(block[name], np.float32))
        if on_progress:
            on_progress(1)
    width = {name: np.concatenate(parts) if parts else np.zeros((0, 1), np.float32) for name, parts in rows.items()}
    return FeatureTable(tuple(videos[number] for number in done), width, tuple(refused))
