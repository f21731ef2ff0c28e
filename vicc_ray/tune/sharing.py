"""What all trials have in common and is made once: the single-stream stages where no searched setting acts on them.

The shared run is the sweep's experiment without its cross-stream stages, in a run folder of its own. A trial's folder begins
with that run's encoders and a checkpoint that says that those stages are done, so training goes on with the next one.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from vicc_ray import storage
from vicc_ray.config import Experiment, SearchConfig
from vicc_ray.errors import UserError
from vicc_ray.run_folder import RunFolder, versions
from vicc_ray.train.schedule import Stage, make_stages, samples_at
from vicc_ray.tune.space import metrics_of

# Settings that act on cross-stream stages only.
_CROSS = ("schedule.cross", "schedule.cycles")
# Settings that may differ between the single-stream stages and the cross-stream ones that follow them.
_SEPARABLE = ("objective", "optim", "augment", *_CROSS)


def shared_stages(experiment: Experiment, search: SearchConfig, stages: list[Stage]) -> list[Stage]:
    """The stages that are made once for all trials; UserError where `share: single` is impossible."""
    if search.share == "none":
        return []
    named = {stage for stage, _ in metrics_of(search)}
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


def describe_shared(experiment: Experiment, search: SearchConfig, shared: list[Stage]) -> str:
    """One line: what is made once and reused by every trial."""
    reused = ["the manifest"]
    if experiment.flow.source == "store":
        reused.append(f"the flow store {experiment.flow.store}")
    if not shared:
        return f"reused by every trial: {', '.join(reused)}; each trial trains all of its stages"
    reused.append(" and ".join(stage.name for stage in shared))
    apart = [path for path in search.space if not _below(path, _CROSS)]
    only = f" (searched on the cross-stream stages only: {', '.join(apart)})" if apart else ""
    return f"reused by every trial: {', '.join(reused)}{only}"


def shared_experiment(experiment: Experiment, folder: str) -> Experiment:
    """The run of the stages that are shared, below the sweep's folder."""
    schedule = experiment.schedule.model_copy(update={"cycles": 0})
    return experiment.model_copy(update={"search": None, "schedule": schedule, "runs": folder, "name": "shared"})


def begin_from(shared: RunFolder, trial: RunFolder, experiment: Experiment, videos: int) -> None:
    """Let a trial's folder begin where the shared run ended; nothing where the trial was begun before."""
    if storage.exists(storage.join(str(trial), trial.config.name)):
        return
    shared.pull()
    for name in shared.encoders():
        _place(shared, trial, name)
    stages = make_stages(experiment, videos)
    last = [stage for stage in stages if stage.guide is None][-1]
    trial.checkpoints.write(
        {"step": last.end, "stage": last.name, "trainer": {}},
        {
            "step": last.end,
            "stage": last.name,
            "samples": samples_at(stages, last.end),
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
