"""The objective of ViCC: prototypes, the queue and the swapped prediction of a stage, put together from an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicc_ray.config import Experiment
from vicc_ray.data.randomness import WeightUse, weight_seed
from vicc_ray.objective.collapse import CollapseWatch
from vicc_ray.objective.contract import Objective, ObjectiveStage
from vicc_ray.objective.prototypes import Prototypes
from vicc_ray.objective.swapped import Outcome, SwappedPrediction, SwappedPredictionSettings


@dataclass(frozen=True)
class PrototypePhases:
    """What changes within a stage: rows of the queue in use, and the steps from which it joins and prototypes learn."""

    queue: int  # embeddings in use per assigned view: a multiple of the global batch
    queue_start: int  # step of the stage from which the queue joins the assignments
    freeze_prototypes: int  # steps of the stage for which the prototypes keep still


def prototype_phases(experiment: Experiment, stage: ObjectiveStage) -> PrototypePhases:
    """The phases of a stage of `experiment`."""
    settings = experiment.schedule.single if stage.single else experiment.schedule.cross
    rows = experiment.objective.queue
    return PrototypePhases(
        queue=rows - rows % stage.global_batch,
        queue_start=stage.in_steps(settings.queue_start),
        freeze_prototypes=stage.in_steps(settings.freeze_prototypes),
    )


class PrototypeObjective(Objective):
    """Swapped prediction of assignments to prototypes; `objective.name: prototypes`, the default.

    Attributes:
        prototypes: of the stream that learns, trained with the encoder.
        prediction: the loss, with its queue.
        phases: when the queue joins and the prototypes learn.
    """

    def __init__(self, experiment: Experiment, stage: ObjectiveStage, seed: int) -> None:
        super().__init__(experiment, stage, seed)
        self.experiment = experiment
        even = experiment.objective.even_prototypes
        # Even ones are the same in every stage and stream.
        source = weight_seed(WeightUse.OBJECTIVE, experiment.seed, 0) if even else seed
        self.prototypes = Prototypes(
            experiment.model.embedding_dim,
            experiment.objective.heads(stage.stream),
            torch.Generator().manual_seed(source),
            even,
        )
        self.phases = prototype_phases(experiment, stage)
        self.prediction = _prediction(experiment, stage, self.phases.queue)
        self.watch = CollapseWatch(experiment.train.collapse_warning_steps)

    def forward(self, embeddings: Sequence[Tensor], *, slots: Tensor, step: int) -> Outcome:
        """As `SwappedPrediction`."""
        use_queue = step >= self.phases.queue_start
        return self.prediction(embeddings, self.prototypes, slots=slots, use_queue=use_queue, step=step)

    def before_forward(self, step: int) -> None:
        """Scale the prototypes to unit length."""
        self.prototypes.normalise_()

    def after_backward(self, step: int) -> None:
        """Drop the prototypes' gradients for as long as they are frozen."""
        if step < self.phases.freeze_prototypes:
            for weight in self.prototypes.parameters():
                weight.grad = None

    def finish(self) -> None:
        """Scale the prototypes to unit length."""
        self.prototypes.normalise_()

    def memory(self) -> dict[str, Any]:
        """The whole queue."""
        return self.prediction.state_dict()

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Take this worker's share of a queue."""
        self.prediction.load_state_dict(state)

    def shared(self) -> list[Tensor]:
        """The rows that this worker puts into the queue, at their slots: none or float32 [A, B, D + 1]."""
        return self.prediction.shared

    def finish_step(self) -> None:
        """The queue has taken a step."""
        self.prediction.finish_step()

    def own_memory(self) -> dict[str, Any]:
        """The whole queue, as this worker has it."""
        return self.prediction.own_state()

    def heads(self) -> list[Tensor]:
        """The prototypes, [K_h, D] of each head."""
        return [weight.detach() for weight in self.prototypes.weights]

    @torch.no_grad()
    def load_heads(self, heads: Sequence[Tensor]) -> None:
        """Take the stream's earlier prototypes where there are as many; with another number of them it begins anew."""
        if not self.experiment.objective.even_prototypes and [len(head) for head in heads] == list(
            self.prototypes.counts
        ):
            for weight, saved in zip(self.prototypes.weights, heads, strict=True):
                weight.copy_(saved)

    def warnings(self) -> list[str]:
        """A queue that was rounded down or left out."""
        queue, rows = self.prediction.queue, self.experiment.objective.queue
        if queue is not None:
            note = queue.rounding_note()
            return [note] if note else []
        return [f"queue: {rows} rows are fewer than a global batch, so none is used"] if rows else []

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning where the loss has stayed at ln(K) for long."""
        return self.watch.observe(step, metrics["loss"], metrics["ln_k"])

    @classmethod
    def plan(cls, experiment: Experiment, stage: ObjectiveStage) -> dict[str, str]:
        """When the queue joins, and for how long the prototypes keep still."""
        phases = prototype_phases(experiment, stage)
        frozen = f"frozen for {phases.freeze_prototypes} steps" if phases.freeze_prototypes else "learnt"
        if experiment.objective.even_prototypes:
            frozen = "even, fixed"
        queue = f"{phases.queue} from step {phases.queue_start}" if phases.queue else "none"
        return {"queue": queue, "prototypes": frozen}


def _prediction(experiment: Experiment, stage: ObjectiveStage, queue: int) -> SwappedPrediction:
    settings = experiment.objective
    assigned = settings.views_for_assignment
    if assigned is not None:
        # A single-stream stage has the two views of its own stream only.
        assigned = tuple(view for view in assigned if view < stage.views) or None
    return SwappedPrediction(
        SwappedPredictionSettings(
            settings.temperature,
            settings.epsilon,
            settings.iterations,
            settings.queue if queue else 0,
            assigned,
            settings.guidance,
            settings.neighbours,
        ),
        views=stage.views,
        dim=experiment.model.embedding_dim,
        global_batch=stage.global_batch,
        stage=stage.name,
        short=experiment.augment.local_clips,
    )
