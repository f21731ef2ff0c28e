"""Both streams learn in one stage, each from the other's assignments: two stages' trainers that share views and guide each other.

The views of the first trainer's objective are f(x1), f(x2), g(m2), g(m1), of the second's g(m1), g(m2), f(x2), f(x1); in each,
the other stream's embeddings carry no gradient. They are the ones that the other encoder learns by in this step
(`schedule.cross.guide: learning`), or come from its averaged weights (`averaged`), a mean teacher (Tarvainen and Valpola, 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vicc_ray.config import Stream
from vicc_ray.models.encoder import Encoder
from vicc_ray.objective import StepOutcome
from vicc_ray.training.batches import Batch
from vicc_ray.training.step import StageTrainer
from vicc_ray.training.survival import OwnState

_ENCODER = "encoder"  # the part of a state that each worker has statistics of its own in


@dataclass(frozen=True)
class JointOutcome:
    """What a step gave each trainer; `second` is known by its stream in the records."""

    first: StepOutcome
    second: StepOutcome
    stream: Stream

    def metrics(self) -> dict[str, float]:
        """The figures of the first under their names, those of the second as flow_loss, flow_entropy and so on."""
        return self.first.metrics() | {f"{self.stream}_{name}": value for name, value in self.second.metrics().items()}


class JointTrainer:
    """`Learner` of a stage in which the stage's stream and its guide learn together.

    Args:
        first: trainer of the stage, without a guide of its own.
        second: trainer of the same stage seen from the other stream (`Stage.mirrored`).
    """

    def __init__(self, first: StageTrainer, second: StageTrainer) -> None:
        self.sides = (first, second)
        self.optimiser = first.optimiser
        self.averaged = first.experiment.schedule.cross.guide == "averaged"

    @property
    def encoder(self) -> Encoder:
        """That of the stage's own stream."""
        return self.sides[0].encoder

    @property
    def encoders(self) -> list[tuple[str, Stream, Encoder]]:
        """Name, stream and encoder of both."""
        return [one for side in self.sides for one in side.encoders]

    def step(self, batch: Batch, step: int, measure: Callable[[JointOutcome], None] | None = None) -> JointOutcome:
        """One optimiser step of both; as `StageTrainer.step`."""
        first, second = self.sides
        with first.kernels():
            (x1, x2), others = first.views(batch)
            assert others is not None
            pairs = ((x1, x2), (others[1], others[0]))
            short = first.short_views(batch)
            for side in self.sides:
                side.begin(step)
            learnt = [
                side.embed(pair, short[side.stage.stream], step) for side, pair in zip(self.sides, pairs, strict=True)
            ]
            guides = [self._guide(*one) for one in zip(self.sides, pairs, learnt, strict=True)]
            given = [[*learnt[one][:2], *reversed(guides[1 - one]), *learnt[one][2:]] for one in (0, 1)]
            outcomes = [side.outcome(z, batch.slots, step) for side, z in zip(self.sides, given, strict=True)]
            for side, outcome in zip(self.sides, outcomes, strict=True):
                side.backward(outcome.loss)
            for side in self.sides:
                side.settle(step)
            both = JointOutcome(outcomes[0], outcomes[1], second.stage.stream)
            if measure is not None:
                measure(both)
            for side in self.sides:
                side.apply(len(batch.slots))
        return both

    def _guide(self, side: StageTrainer, views: tuple[Tensor, Tensor], learnt: Sequence[Tensor]) -> list[Tensor]:
        """What the other stream learns from: two embeddings [b, D] without gradient."""
        return side.embed_averaged(views) if self.averaged else [z.detach() for z in learnt[:2]]

    def weights(self) -> list[Tensor]:
        """As `StageTrainer.weights`, of both."""
        return [tensor for side in self.sides for tensor in side.weights()]

    def share_statistics(self) -> None:
        """Give both encoders, on every worker, the batch statistics of all of them."""
        for side in self.sides:
            side.share_statistics()

    def state_dict(self) -> dict[str, Any]:
        """As `StageTrainer.state_dict`, of both."""
        return _joined([side.state_dict() for side in self.sides])

    @torch.no_grad()
    def own_state(self) -> OwnState | None:
        """As `StageTrainer.own_state`, of both; None where one has none."""
        found = [side.own_state() for side in self.sides]
        states = [one for one in found if one is not None]
        if len(states) < len(found):
            return None
        names = [f"{place}.{name}" for place, one in enumerate(states) for name in one.statistics]
        return OwnState(_joined([one.state for one in states]), _ENCODER, names, states[0].rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of a stage saved by any number of workers."""
        for place, (side, rest) in enumerate(zip(self.sides, state["sides"], strict=True)):
            prefix = f"{place}."
            encoder = {
                name.removeprefix(prefix): value for name, value in state[_ENCODER].items() if name.startswith(prefix)
            }
            side.load_state_dict({**rest, _ENCODER: encoder})

    def observe(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A warning where the recorded figures of either call for one."""
        first, second = self.sides
        prefix = f"{second.stage.stream}_"
        theirs = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
        return first.observe(step, metrics) or second.observe(step, theirs)

    def warnings(self) -> list[str]:
        """Settings that this stage could not take as they are, each once."""
        return list(dict.fromkeys(line for side in self.sides for line in side.warnings()))


def _joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """States of both with their encoders in one part."""
    encoders = {
        f"{place}.{name}": value for place, state in enumerate(states) for name, value in state[_ENCODER].items()
    }
    rest = [{name: value for name, value in state.items() if name != _ENCODER} for state in states]
    return {_ENCODER: encoders, "sides": rest}
