"""What the training loop needs to know of what is learnt: its plan, how a stage is opened, what it writes at its end. No Ray.

The loop, with its checkpoints, restarts and records, is the same for pretraining (`training.pretraining`) and for classifiers
(`training.classification`). A task is sent to every worker, so it is plain data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from vicc_ray.config import Experiment, Stream
from vicc_ray.data.manifest import Manifest
from vicc_ray.models.encoder import Encoder
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import Batch, TrainingPlan
from vicc_ray.training.schedule import Stage
from vicc_ray.training.survival import OwnState


class Measured(Protocol):
    """What a step gave."""

    def metrics(self) -> dict[str, float]:
        """Figures for the records, the same on every worker; among them `loss`."""
        ...


class Learner(Protocol):
    """A stage being trained on one worker; every worker calls every method."""

    optimiser: Optimizer

    @property
    def encoder(self) -> Encoder:
        """The encoder of the stage's stream."""
        ...

    @property
    def encoders(self) -> Sequence[tuple[str, Stream, Encoder]]:
        """Name, stream and encoder of each that learns, the stage's own first: what the monitor measures the recall of."""
        ...

    def step(self, batch: Batch, step: int, measure: Callable[[Any], None] | None = None) -> Measured:
        """One optimiser step, `step` counted from the stage's start, also with no samples.

        `measure` takes what the step gave (it may send messages) before the step changes anything that lasts: so no worker has
        made a step whose figures it does not have.
        """
        ...

    def weights(self) -> Iterable[Tensor]:
        """What steps change and features depend on, of this worker: parameters and batch statistics. No message.

        Each in its own shape and dtype, not copied.
        """
        ...

    def share_statistics(self) -> None:
        """Give the encoder, on every worker, the batch statistics of all of them."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a restart needs, the same on every worker; tensors and plain values only."""
        ...

    def own_state(self) -> OwnState | None:
        """`state_dict` as of the last finished step, from this worker alone: no message, also in the middle of a step.

        None where no worker alone has it all.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning for the reader where the recorded figures of a step call for one; else None."""
        ...

    def warnings(self) -> Sequence[str]:
        """Lines for the reader about settings that were not taken as they were written."""
        ...


class Task(Protocol):
    """What is learnt."""

    def plan(self, experiment: Experiment, manifest: Manifest) -> TrainingPlan:
        """The stages and what each of their steps reads; UserError where the videos do not suffice."""
        ...

    def is_finished(self, folder: RunFolder, stage: Stage) -> bool:
        """Whether the stage is finished: its result is in the run's folder."""
        ...

    def open_stage(self, plan: TrainingPlan, folder: RunFolder, stage: Stage, device: torch.device) -> Learner:
        """The learner of a stage at its beginning, the same on every worker."""
        ...

    def close_stage(self, plan: TrainingPlan, folder: RunFolder, stage: Stage, learner: Any) -> None:
        """Write the stage's result, on worker 0; every worker calls it."""
        ...
