"""What encoders learn by. `contract` is what an objective is; the others are ViCC's: prototypes, balanced assignments, the queue
and the swapped prediction.

Pure tensors and sums between workers (``vicc_ray.distributed``); on any number of workers the loss, the assignments
and the gradients are those of one worker with the same global batch and queue.
"""

from __future__ import annotations

from vicc_ray.objective.collapse import CollapseWatch
from vicc_ray.objective.contract import NonFiniteError, Objective, ObjectiveStage, StepOutcome
from vicc_ray.objective.prototype_objective import PrototypeObjective
from vicc_ray.objective.prototypes import Prototypes
from vicc_ray.objective.queue import Queue
from vicc_ray.objective.sinkhorn import sinkhorn
from vicc_ray.objective.swapped import Outcome, SwappedPrediction, SwappedPredictionSettings

__all__ = [
    "CollapseWatch",
    "NonFiniteError",
    "Objective",
    "ObjectiveStage",
    "Outcome",
    "PrototypeObjective",
    "Prototypes",
    "Queue",
    "StepOutcome",
    "SwappedPrediction",
    "SwappedPredictionSettings",
    "sinkhorn",
]
