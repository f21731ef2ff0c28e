"""Stages as data: who learns, who guides, from which weights, for how many steps, at which learning rate. Pure.

cycle 0     RGB-1               Flow-1               each encoder alone
cycle 1..   RGB-2 | Flow guides   Flow-2 | RGB guides   the guide is the other stream's newest encoder, frozen
       or   RGB-2 and Flow-2 in one stage, each guided by the other as it learns (schedule.cross.guide)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vicc_ray.config import STREAMS, Decoded, Duration, Experiment, Stream, decoded_for
from vicc_ray.errors import UserError
from vicc_ray.extensions import OBJECTIVES


@dataclass(frozen=True)
class Stage:
    """One stage; steps are optimiser steps of `global_batch` samples."""

    index: int
    name: str  # of the stage and of the encoder that it leaves, for example RGB-2
    stream: Stream  # the stream that learns
    guide: Stream | None  # the stream whose frozen encoder guides; None: single-stream
    starts_from: str | None  # name of the encoder that the learner starts from; None: random
    guided_by: str | None  # name of the encoder that guides
    first_step: int  # global step at which it begins
    steps: int
    cosine_steps: int
    warm_up: int  # first steps, over which the learning rate rises linearly to the cosine
    steps_per_epoch: int
    global_batch: int
    follows: bool = False  # whether crops follow what moves, so that flow is read also where no encoder takes it
    beside: str | None = None  # name of the encoder that the guide leaves, where it learns too; None: it is frozen

    @property
    def leaves(self) -> tuple[str, ...]:
        """The encoders that it leaves."""
        return (self.name,) if self.beside is None else (self.name, self.beside)

    def mirrored(self) -> Stage:
        """A stage in which both streams learn, seen from the other one."""
        assert self.guide is not None and self.beside is not None
        return replace(
            self,
            name=self.beside,
            beside=self.name,
            stream=self.guide,
            guide=self.stream,
            starts_from=self.guided_by,
            guided_by=self.starts_from,
        )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams whose views a step encodes, in the order of the run's streams."""
        both = (self.stream,) if self.guide is None else (self.stream, self.guide)
        return tuple(sorted(both, key=lambda stream: STREAMS[stream].motion))

    @property
    def decoded(self) -> tuple[Decoded, ...]:
        """The clips that a batch of this stage holds."""
        return decoded_for((*self.streams, "flow") if self.follows else self.streams)

    @property
    def views(self) -> int:
        """V: two clips of each stream."""
        return 2 * len(self.streams)

    @property
    def single(self) -> bool:
        """Whether the encoder learns from its own stream alone."""
        return self.guide is None

    @property
    def end(self) -> int:
        """The global step after its last one."""
        return self.first_step + self.steps

    @property
    def samples(self) -> int:
        """Samples that it trains on."""
        return self.steps * self.global_batch

    def in_steps(self, length: Duration) -> int:
        """A length in optimiser steps of this stage, whose own length a percentage is of."""
        return length.steps(steps_per_epoch=self.steps_per_epoch, global_batch=self.global_batch, whole=self.steps)


def make_stages(experiment: Experiment, videos: int) -> list[Stage]:
    """The run's stages for `videos` training videos; UserError where a global batch exceeds them."""
    stages: list[Stage] = []
    newest: dict[Stream, str] = {}
    first_step = 0
    for cycle in range(experiment.schedule.cycles + 1):
        together = cycle > 0 and experiment.schedule.cross.guide != "frozen"
        for stream in experiment.streams[:1] if together else experiment.streams:
            stage = _stage(experiment, videos, cycle, stream, newest, len(stages), first_step)
            guide = stage.guide
            if together and guide is not None:
                newest[guide] = _name(guide, cycle, experiment.schedule.cycles)
                stage = replace(stage, beside=newest[guide])
            stages.append(stage)
            newest[stream] = stage.name
            first_step = stage.end
    return stages


def _stage(
    experiment: Experiment,
    videos: int,
    cycle: int,
    stream: Stream,
    newest: dict[Stream, str],
    index: int,
    first_step: int,
) -> Stage:
    kind = "single" if cycle == 0 else "cross"
    settings = experiment.schedule.single if cycle == 0 else experiment.schedule.cross
    batch = settings.global_batch
    per_epoch = videos // batch
    if per_epoch == 0:
        raise UserError(
            f"schedule.{kind}.global_batch: {batch} samples a step need at least as many training videos, the manifest has "
            f"{videos}; set schedule.{kind}.global_batch to {videos} or less"
        )
    total = experiment.schedule.total

    def steps(length: Duration, whole: int | None) -> int:
        return length.steps(steps_per_epoch=per_epoch, global_batch=batch, whole=whole)

    count = steps(settings.stage_length(stream), steps(total, None) if total else None)
    other = next(one for one in experiment.streams if one != stream)
    return Stage(
        index=index,
        name=_name(stream, cycle, experiment.schedule.cycles),
        stream=stream,
        guide=other if cycle else None,
        starts_from=newest.get(stream),
        guided_by=newest[other] if cycle else None,
        first_step=first_step,
        steps=count,
        cosine_steps=max(count, steps(settings.cosine_over, count) if settings.cosine_over else count),
        warm_up=steps(experiment.optim.warm_up, count),
        steps_per_epoch=per_epoch,
        global_batch=batch,
        follows=experiment.augment.follow > 0 and experiment.clip.motion == "flow",
    )


def _name(stream: Stream, cycle: int, cycles: int) -> str:
    # The last cycle gives the published names; earlier cycles say which they are.
    title = STREAMS[stream].title
    if cycle == 0:
        return f"{title}-1"
    return f"{title}-2" if cycle == cycles else f"{title}-2-cycle{cycle}"


def locate(stages: Sequence[Stage], step: int) -> tuple[Stage, int]:
    """The stage of a global step and the step within it; IndexError past the end."""
    for stage in stages:
        if step < stage.end:
            return stage, step - stage.first_step
    raise IndexError(f"step {step} is past the last stage")


def samples_at(stages: Sequence[Stage], step: int) -> int:
    """Samples trained on when `step` global steps are done."""
    return sum(min(max(step - stage.first_step, 0), stage.steps) * stage.global_batch for stage in stages)


def every(length: Duration, stage: Stage) -> int:
    """A cadence in steps of a stage; 0 for never, and where it is counted in minutes."""
    if length.unit == "minutes":
        return 0
    return stage.in_steps(length)


def learning_rate(stage: Stage, step: int, lr: float, end_lr: float) -> float:
    """Cosine from `lr` at the stage's first step to `end_lr` at the end of `cosine_steps`, under the warm-up's rise."""
    progress = min(step / max(stage.cosine_steps, 1), 1.0)
    rise = min((step + 1) / (stage.warm_up + 1), 1.0)
    return rise * (end_lr + (lr - end_lr) * 0.5 * (1 + math.cos(math.pi * progress)))


def _starts(stage: Stage) -> str:
    both = (stage.starts_from, stage.guided_by) if stage.beside else (stage.starts_from,)
    return " + ".join(name or "random" for name in both)


def describe(stages: Sequence[Stage], experiment: Experiment) -> list[dict[str, str]]:
    """One row a stage, for `vicc train --plan`."""
    optim = experiment.optim
    objective = OBJECTIVES.load(experiment.objective.name, "objective.name")
    rows = []
    for stage in stages:
        last = learning_rate(stage, stage.steps - 1, optim.lr, optim.end_lr)
        rows.append(
            {
                "stage": " + ".join(stage.leaves),
                "starts from": _starts(stage),
                "guided by": "each other" if stage.beside else stage.guided_by or "-",
                "steps": str(stage.steps),
                "epochs": f"{stage.steps / stage.steps_per_epoch:.4g}",
                "global batch": str(stage.global_batch),
                "learning rate": f"{learning_rate(stage, 0, optim.lr, optim.end_lr):.3g} -> {last:.3g}",
            }
            | objective.plan(experiment, stage)
        )
    return rows
