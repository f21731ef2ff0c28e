"""What no trial trains: the single-stream stages that all of them share, and stages that the metric does not build on.

The shared run is the sweep's experiment without its cross-stream stages, in a run folder of its own. A trial's folder begins
with that run's encoders and a checkpoint that says that those stages are done, so training goes on with the next one. In the
same way a trial that is judged by Flow-1 alone begins after RGB-1. What a stage learns follows from its place in the schedule
and the encoders that it starts from, so it is what it would be in a run of all stages.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress

from vicc_ray import storage
from vicc_ray.config import Experiment, SearchConfig
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder, versions
from vicc_ray.training.schedule import Stage, samples_at
from vicc_ray.tune.space import metrics_of

# Settings that act on cross-stream stages only.
_CROSS = ("schedule.cross", "schedule.cycles")
# Settings that may differ between the single-stream stages and the cross-stream ones that follow them.
_SEPARABLE = ("objective", "optim", "augment", *_CROSS)


def shared_stages(experiment: Experiment, search: SearchConfig, stages: list[Stage]) -> list[Stage]:
    """The stages that are made once for all trials; UserError where `share: single` is impossible."""
    if search.share == "none":
        return []
    named = measured(search)
    single = [stage for stage in stages if stage.guide is None]
    if search.share == "single":
        for path in search.space:
            if not _below(path, _SEPARABLE):
                raise UserError(
                    f"search.share: single cannot be, as {path} is searched and the cross-stream stages go on from what the "
                    "single-stream stages made with it; set search.share: auto"
                )
        if len(single) == len(stages) or named & {stage.name for stage in single}:
            raise UserError(
                "search.share: single leaves nothing to compare, as the metric is one of a single-stream stage; "
                "set search.share: none"
            )
        return single
    apart = all(_below(path, _CROSS) for path in search.space)
    return single if apart and len(single) < len(stages) and not named & {stage.name for stage in single} else []


def _below(path: str, groups: tuple[str, ...]) -> bool:
    return any(path == group or path.startswith(f"{group}.") for group in groups)


def describe_shared(
    experiment: Experiment, search: SearchConfig, stages: Sequence[Stage], shared: Sequence[Stage]
) -> str:
    """One line: what is made once and reused by every trial, and what none has to train."""
    reused = ["the manifest"]
    if experiment.clip.source == "store":
        reused.append(f"the packed store {experiment.clip.store}")
    if experiment.flow.source == "store":
        reused.append(f"the flow store {experiment.flow.store}")
    if not shared:
        skipped = " and ".join(stage.name for stage in stages[: first_stage(stages, measured(search), False).index])
        own = f"none trains {skipped}, which the metric does not build on" if skipped else "each trains every stage"
        return f"reused by every trial: {', '.join(reused)}; {own}"
    reused.append(" and ".join(stage.name for stage in shared))
    apart = [path for path in search.space if not _below(path, _CROSS)]
    only = f" (searched on the cross-stream stages only: {', '.join(apart)})" if apart else ""
    return f"reused by every trial: {', '.join(reused)}{only}"


def shared_experiment(experiment: Experiment, folder: str) -> Experiment:
    """The run of the stages that are shared, below the sweep's folder."""
    schedule = experiment.schedule.model_copy(update={"cycles": 0})
    return experiment.model_copy(update={"search": None, "schedule": schedule, "runs": folder, "name": "shared"})


def measured(search: SearchConfig) -> set[str]:
    """The stages that the metric names."""
    return {stage for stage, _ in metrics_of(search)}


def first_stage(stages: Sequence[Stage], named: Collection[str], shared: bool) -> Stage:
    """The stage that a trial begins with: after the shared ones, else the first that one of `named` builds on, or is."""
    if shared:
        return next(stage for stage in stages if stage.guide is not None)
    needed: set[str | None] = set(named)
    for stage in reversed(stages):
        if needed & set(stage.leaves):
            needed |= {stage.starts_from, stage.guided_by}
    return next(stage for stage in stages if needed & set(stage.leaves))


def begin_at(
    first: Stage, trial: RunFolder, experiment: Experiment, stages: Sequence[Stage], shared: RunFolder | None
) -> None:
    """Let a trial's folder begin with stage `first`, with the encoders of the shared run; nothing where it was begun before."""
    if first.index == 0 or storage.exists(storage.join(str(trial), trial.config.name)):
        return
    if shared is not None:
        shared.pull()
        for name in shared.encoders():
            _place(shared, trial, name)
    before = stages[first.index - 1].name
    trial.checkpoints.write(
        {"step": first.first_step, "stage": before, "trainer": {}},
        {
            "step": first.first_step,
            "stage": before,
            "samples": samples_at(stages, first.first_step),
            "workers": experiment.train.workers.min,
            "versions": versions(),
        },
    )


def _place(shared: RunFolder, trial: RunFolder, name: str) -> None:
    """An encoder of the shared run in a trial's folder: the same file where the file system can, else a copy."""
    source, target = shared.encoder(name), trial.encoder(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_file():
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
        with suppress(FileNotFoundError):
            os.replace(partial, target)
        partial.unlink(missing_ok=True)  # two names of one file are left as they are by a replacement
    trial.push(target)
