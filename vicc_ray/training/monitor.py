"""Retrieval recall during training, on a fixed subset whose clips the workers keep in memory, a share each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vicc_ray import distributed
from vicc_ray.config import STREAMS, Decoded, Experiment, Stream
from vicc_ray.data.augment import stream_input
from vicc_ray.data.clips import subset
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.motion_crop import motion_crops
from vicc_ray.errors import UserError
from vicc_ray.metrics.retrieval import recall_at_k
from vicc_ray.models.encoder import Encoder

CHUNK = 16  # clips encoded at a time


@dataclass(frozen=True)
class MonitorPlan:
    """The videos of the subset: the first `gallery` rows are searched, the others are queries."""

    videos: tuple[VideoRow, ...]
    gallery: int
    labels: tuple[int, ...]


def monitor_plan(experiment: Experiment, manifest: Manifest) -> MonitorPlan | None:
    """A fixed subset of gallery and query, the same for a given seed; None where monitoring is off or has no labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if experiment.evaluate.monitor_every.value <= 0:
        return None
    try:
        gallery, query = (
            manifest.select(split) for split in (experiment.data.gallery_split, experiment.data.query_split)
        )
    except UserError:
        return None
    half = experiment.evaluate.monitor_videos // 2
    gallery = gallery.where(gallery.texts("label").is_valid())
    gallery = gallery.take(subset(0, len(gallery), half))
    known = sorted(str(label) for label in gallery.counts("label"))
    query = query.where(pc.is_in(query.texts("label"), value_set=pa.array(known, pa.string())))
    query = query.take(subset(1, len(query), half))
    if not gallery or not query:
        return None
    rows = (*gallery, *query)
    return MonitorPlan(rows, len(gallery), tuple(known.index(str(row.label)) for row in rows))


class Monitor:
    """Recall of an encoder, the same on all workers, on the subset; every worker calls it and gets the same figures.

    Args:
        plan: the whole subset.
        rows: which of its rows this worker holds; those that nobody holds count as not there.
        clips: their centre clips as decoded, uint8 [m, T, H, W, 3] of rgb and [m, T, H, W, 2] of flow.
    """

    def __init__(
        self,
        plan: MonitorPlan,
        rows: Sequence[int],
        clips: Mapping[Decoded, Tensor],
        experiment: Experiment,
        device: torch.device,
    ) -> None:
        self.plan, self.rows, self.device = plan, torch.tensor(list(rows), dtype=torch.int64), device
        self.clips = motion_crops(clips, experiment.evaluate.motion_crop)
        self.size, self.style = experiment.clip.size, experiment.augment.style

    @torch.inference_mode()
    def __call__(self, encoder: Encoder, stream: Stream) -> dict[str, float]:
        """R@1 and R@5 of the encoder's features of one stream; nothing where either side has no video left."""
        training = encoder.training
        encoder.eval()
        starts = range(0, len(self.rows), CHUNK)
        mine = [self._features(encoder, stream, slice(start, start + CHUNK)) for start in starts]
        encoder.train(training)
        features = torch.cat(mine) if mine else torch.zeros(0, encoder.feature_dim)
        everyone = torch.cat(distributed.gather_rows(features.contiguous()))
        numbers = torch.cat(distributed.gather_rows(self.rows))
        order = torch.argsort(numbers)
        everyone, labels = everyone[order], np.asarray(self.plan.labels)[numbers[order].numpy()]
        cut = int((numbers < self.plan.gallery).sum())
        known = np.isin(labels, labels[:cut])  # a class may have lost its videos in the gallery
        everyone, labels = everyone[known], labels[known]
        if not 0 < cut < len(labels):
            return {}  # one side has no video that can be read
        ks = tuple(k for k in (1, 5) if k <= cut)
        recall: dict[int, Any] = recall_at_k(everyone[:cut], labels[:cut], everyone[cut:], labels[cut:], ks=ks)
        return {f"R@{k}": float(value) for k, value in recall.items()}

    def _features(self, encoder: Encoder, stream: Stream, rows: slice) -> Tensor:
        kind = STREAMS[stream].decoded
        clips = {kind: self.clips[kind][rows].to(self.device)}
        return encoder.features(stream_input(clips, stream, self.size, self.style)).cpu()
