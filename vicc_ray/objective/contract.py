"""What an objective is: the loss of a stage, with whatever it learns or remembers besides the encoder.

One of your own is a subclass of `Objective`, named in the experiment (`objective.name: package.module:Name`) or given by an
installed package (entry points `vicc_ray.objectives`). See docs/extending.md.

Shapes: V views (2 in a single-stream stage, 4 in a cross-stream one), n samples of this worker, D embedding size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vicc_ray.config import Duration, Experiment
from vicc_ray.errors import UserError


class NonFiniteError(UserError):
    """An embedding, a parameter or a loss is NaN or infinite; one line that names stage, step, worker and view."""


class ObjectiveStage(Protocol):
    """What an objective may know of its stage (`training.schedule.Stage`)."""

    @property
    def name(self) -> str:
        """Of the stage and of the encoder that it trains, for example RGB-2."""
        ...

    @property
    def stream(self) -> str:
        """The stream whose encoder learns."""
        ...

    @property
    def views(self) -> int:
        """V."""
        ...

    @property
    def global_batch(self) -> int:
        """Samples of a step over all workers."""
        ...

    @property
    def steps(self) -> int:
        """Optimiser steps of the stage."""
        ...

    @property
    def single(self) -> bool:
        """Whether the encoder learns from its own stream alone."""
        ...

    def in_steps(self, length: Duration) -> int:
        """A length in optimiser steps of this stage."""
        ...


class StepOutcome(Protocol):
    """The result of one step of an objective."""

    @property
    def loss(self) -> Tensor:
        """Scalar for backward, on this worker: the mean over the workers of its gradients is that of the global mean loss."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures for the records, over the global batch and the same on every worker; `loss` is among them.

        Every worker calls it, some steps apart, after the backward pass and before the step changes anything that lasts;
        figures of any other name are plotted under that name.
        """
        ...


class Objective(nn.Module):
    """The objective of one stage: a module whose parameters (prototypes, a predictor, none) are trained with the encoder.

    Every worker makes one, of the same initial state, and calls every method. Parameters take part in every step's loss.

    Args:
        experiment: all settings; `experiment.objective.options` are free for objectives of other packages.
        stage: what it is for.
        seed: of the initial parameters; the same on every worker.
    """

    def __init__(self, experiment: Experiment, stage: ObjectiveStage, seed: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, embeddings: Sequence[Tensor], *, slots: Tensor, step: int) -> StepOutcome:
        """The loss of one step.

        Args:
            embeddings: V tensors [n, D] of unit length, float32 or bfloat16, in the order f(x1), f(x2) of the encoder that
                learns, then g(m2), g(m1) of the other stream's encoder, which have no gradient; with `augment.local_clips` as many
                more, of the learner's short clips. n may differ between workers and may be 0; the loss is then 0 and still
                connected to its inputs.
            slots: int64 [n] in host memory, each sample's place in the global batch.
            step: optimiser steps of this stage so far.

        Raises:
            NonFiniteError: on every worker alike, before anything of the objective has changed; training goes back to the last
                checkpoint.
        """
        ...

    def before_forward(self, step: int) -> None:
        """Called before the forward pass of each step, for example to normalise parameters."""

    def after_backward(self, step: int) -> None:
        """Called when gradients are averaged over the workers and not yet applied, for example to drop some of them."""

    def finish(self) -> None:
        """Called at the end of the stage, before its encoder is written."""

    def memory(self) -> dict[str, Any]:
        """State besides parameters and buffers, for a checkpoint: tensors and plain values, the same on every worker."""
        return {}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """Take the `memory` of any number of workers."""

    def shared(self) -> list[Tensor]:
        """What this worker's part of the step adds to the memory, as float32 tensors that are summed in place over the workers.

        They travel with the gradients, so that each worker has the whole memory and one that is left can go on without the
        others. The same shapes on every worker; called after `forward`.
        """
        return []

    def finish_step(self) -> None:
        """Called when `shared` is summed and the gradients are averaged, just before they are applied."""

    def own_memory(self) -> dict[str, Any] | None:
        """`memory` as of the last finished step, from this worker alone; None where no worker alone has it.

        By default that of an objective without a memory. With None a worker's death costs the work since the last checkpoint.
        """
        return {} if type(self).memory is Objective.memory else None

    def heads(self) -> list[Tensor]:
        """Matrices [K, D] that are kept in the encoder's file and begin the stream's next stage; none by default."""
        return []

    def load_heads(self, heads: Sequence[Tensor]) -> None:
        """Begin with the heads of the stream's stage before this one; those that do not fit are passed over."""

    def warnings(self) -> list[str]:
        """Settings that were not taken as they are, one line each."""
        return []

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning for the reader where the recorded figures call for one, for example collapse; else None."""
        return None

    @classmethod
    def plan(cls, experiment: Experiment, stage: ObjectiveStage) -> dict[str, str]:
        """Columns of `vicc train --plan`: {name: value} of what the objective does in a stage."""
        return {}
