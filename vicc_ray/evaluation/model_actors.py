"""What a model actor does: decoded windows in, their features or class probabilities out. No Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from vicc_ray import storage
from vicc_ray.config import STREAMS, Decoded, Experiment, Stream
from vicc_ray.data.augment import AugmentSettings, as_stream, draw_jitter, stream_input
from vicc_ray.data.motion_crop import motion_crops
from vicc_ray.data.randomness import jitter_key
from vicc_ray.evaluation.crops import COUNTS, crop_views
from vicc_ray.evaluation.stored import JITTER_P
from vicc_ray.models.classifier_file import load_classifier
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.models.planar import arrange, layout_of


def _clips(
    rows: Mapping[str, Any], streams: Iterable[Stream], experiment: Experiment, device: torch.device
) -> dict[Decoded, torch.Tensor]:
    """The decoded windows that some streams are made from, uint8 [w, T, H, W, C], or the crops of them where things move."""
    decoded = experiment.decoded_at_test(streams)
    clips: dict[Decoded, torch.Tensor] = {name: torch.from_numpy(np.array(rows[name])).to(device) for name in decoded}
    return motion_crops(clips, experiment.evaluate.motion_crop)


class EncodeWindows:
    """A model actor: windows in, their features by each encoder (name -> path or URI) out.

    With `jitter` windows get a colour jitter, which is drawn from (seed, the video's key, first frame).
    """

    def __init__(
        self,
        encoders: Mapping[str, str],
        experiment: Experiment,
        use_gpu: bool,
        threads: int,
        jitter: bool = False,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment, self.jitter = experiment, jitter
        files = {}
        for name, where in encoders.items():
            with storage.local_copy(where) as path:
                files[name] = load_encoder(path)
        self.streams = {name: file.stream for name, file in files.items()}
        self.layout = layout_of(experiment.train, self.device)
        self.encoders = {name: arrange(file.build(), experiment.train, self.device) for name, file in files.items()}

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """uint8 windows [w, T, H, W, C] a stream -> video, refused and features float32 [w, d] an encoder."""
        row: dict[str, Any] = {"video": rows["video"], "refused": rows["refused"]}
        inputs: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            clips = _clips(rows, self.streams.values(), self.experiment, self.device)
            for name, encoder in self.encoders.items():
                stream = self.streams[name]
                if stream not in inputs:
                    inputs[stream] = self._input(rows, clips, stream)
                row[name] = encoder.features(inputs[stream]).cpu().numpy()
        return row

    def _input(self, rows: dict[str, Any], clips: Mapping[Decoded, torch.Tensor], stream: Stream) -> Any:
        """float32 [w, 3, T, size, size]."""
        experiment, jitter = self.experiment, None
        if self.jitter:
            settings = AugmentSettings(experiment.clip.size, jitter=experiment.augment.jitter)
            places = zip(rows["key"].tolist(), rows["start"].tolist(), strict=True)
            # A start below 0 is that of a short video's only window.
            keys = [jitter_key(experiment.seed, video, max(start, 0)) for video, start in places]
            jitter = draw_jitter(settings, keys, JITTER_P)
        view = stream_input(clips, stream, experiment.clip.size, experiment.augment.style, jitter)
        return view.contiguous(memory_format=self.layout)


class ClassifyWindows:
    """A model actor: windows in, their class probabilities by each classifier out."""

    def __init__(self, classifiers: Mapping[str, str], experiment: Experiment, use_gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self.experiment = experiment
        files = {name: load_classifier(path) for name, path in classifiers.items()}
        self.streams = {name: file.stream for name, file in files.items()}
        self.layout = layout_of(experiment.train, self.device)
        self.classifiers = {name: arrange(file.build(), experiment.train, self.device) for name, file in files.items()}

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """uint8 windows [w, T, H, W, C] a stream -> video, refused and probabilities float32 [w, classes] a classifier."""
        crops, augment = self.experiment.evaluate.crops, self.experiment.augment
        row: dict[str, Any] = {"video": rows["video"], "refused": rows["refused"]}
        with torch.inference_mode():
            clips = _clips(rows, self.streams.values(), self.experiment, self.device)
            for stream in dict.fromkeys(self.streams.values()):
                mine = [name for name in self.classifiers if self.streams[name] == stream]
                sums: dict[str, Any] = dict.fromkeys(mine, 0)
                for view in crop_views(clips[STREAMS[stream].decoded], self.experiment.clip.size, crops, augment.style):
                    x = as_stream(view, stream).contiguous(memory_format=self.layout)
                    for name in mine:
                        sums[name] = sums[name] + self.classifiers[name](x).softmax(dim=1)
                row |= {name: (total / COUNTS[crops]).cpu().numpy() for name, total in sums.items()}
        return row
