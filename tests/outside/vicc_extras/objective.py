"""An objective: InfoNCE (van den Oord et al., 2018) between the views, with a learnt temperature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vicc_ray import distributed
from vicc_ray.config import Experiment
from vicc_ray.objective import Objective, ObjectiveStage


@dataclass(frozen=True)
class Outcome:
    """`loss` for backward, and sums over this worker's rows and pairs of views: loss, rows whose own clip scores highest, rows."""

    loss: Tensor
    sums: Tensor

    def metrics(self) -> dict[str, float]:
        """Mean loss and share of right matches over the global batch."""
        sums = self.sums.clone()
        distributed.all_reduce_sum_(sums)
        loss, right, rows = sums.tolist()
        return {"loss": loss / max(rows, 1.0), "matched": right / max(rows, 1.0)}


class InfoNCE(Objective):
    """Each view of a sample is to be nearer to its other views than to those of the worker's other samples.

    `objective.options`: `temperature` at the start.
    """

    def __init__(self, experiment: Experiment, stage: ObjectiveStage, seed: int) -> None:
        super().__init__(experiment, stage, seed)
        start = float(experiment.objective.options.get("temperature", 0.1))
        self.log_scale = nn.Parameter(torch.tensor(-math.log(start)))

    def forward(self, embeddings: Sequence[Tensor], *, slots: Tensor, step: int) -> Outcome:
        rows = torch.tensor(float(len(slots)), device=embeddings[0].device)
        everywhere = rows.clone()
        distributed.all_reduce_sum_(everywhere)
        target = torch.arange(len(slots), device=rows.device)
        # The learner's two views with each other and with those of the guide; the guide's own have no gradient.
        pairs = [pair for pair in combinations(range(len(embeddings)), 2) if pair[0] < 2]
        total, right = embeddings[0].sum() * 0 + self.log_scale * 0, torch.zeros_like(rows)
        for one, other in pairs:
            scores = embeddings[one].float() @ embeddings[other].float().T * self.log_scale.exp()
            total = total + F.cross_entropy(scores, target, reduction="sum")
            right += (scores.detach().argmax(dim=1) == target).sum() if len(slots) else 0
        total, right = total / len(pairs), right / len(pairs)
        loss = total * (distributed.world_size() / everywhere.clamp_min(1))
        return Outcome(loss, torch.stack([total.detach(), right, rows]))
