"""`vicc tune`: check, share, run the trials, write the result; the same command goes on where an earlier one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from vicc_ray import storage
from vicc_ray.cluster.resources import this_machine
from vicc_ray.config import Experiment, SearchConfig, decoded_for, load_experiment, with_settings
from vicc_ray.config.published import experiment_file
from vicc_ray.console import console, quiet
from vicc_ray.data.flow.bound import with_bound
from vicc_ray.data.identity import flow_identity
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.store.checking import check_stored
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.batches import training_samples
from vicc_ray.training.driver import check_refused
from vicc_ray.training.schedule import Stage
from vicc_ray.tune.folder import SweepFolder
from vicc_ray.tune.history import finished, open_study, preview, running
from vicc_ray.tune.plan import TrialsPlan, plan_trials, with_drivers
from vicc_ray.tune.results import print_results, write_results
from vicc_ray.tune.sharing import describe_shared, shared_experiment, shared_stages
from vicc_ray.tune.space import check_space, corners, describe_point, search_of
from vicc_ray.tune.sweep import Sweep

SHOWN = 8  # trials of a dry run


@dataclass(frozen=True)
class PreparedSweep:
    """A sweep that passed every check that needs no cluster."""

    experiment: Experiment
    search: SearchConfig
    folder: SweepFolder
    manifest: Manifest
    stages: list[Stage]
    shared: list[Stage]

    @property
    def videos(self) -> int:
        """Training samples of an epoch."""
        return len(training_samples(self.experiment, self.manifest))


def load_sweep(where: str, overrides: Sequence[str], resume: bool = False) -> Experiment:
    """The experiment of a sweep file, or of a sweep folder; UserError where there is nothing to resume and `resume` is set."""
    if storage.is_uri(where) or Path(where).is_dir():
        folder = SweepFolder.at(where)
        folder.experiment()
        return load_experiment(folder.config, overrides)
    experiment = load_experiment(experiment_file(where), overrides)
    if resume and not SweepFolder.at(experiment.run_folder).exists():
        raise UserError(f"--resume: {experiment.run_folder} holds no sweep; leave --resume out to begin one")
    return experiment


def check(experiment: Experiment) -> PreparedSweep:
    """Everything that can be said before a cluster is there; UserError where the sweep cannot be run."""
    search = search_of(experiment)
    folder = SweepFolder.at(experiment.run_folder)
    experiment = _absolute(experiment)
    if experiment.data.manifest is None:
        raise UserError("data.manifest: is not set; make one with 'vicc index DIR --out M.parquet'")
    manifest = Manifest.read(experiment.data.manifest)
    check_refused(experiment, manifest)
    # One number for all trials, which are compared.
    experiment = with_bound(experiment, manifest, console.print, folder.begun)
    stages = check_space(experiment, search, len(training_samples(experiment, manifest)))
    _check_labels(experiment, search, manifest)
    _check_flow(experiment, search, manifest)
    return PreparedSweep(experiment, search, folder, manifest, stages, shared_stages(experiment, search, stages))


def _absolute(experiment: Experiment) -> Experiment:
    """Trials run in other folders than this process, so what is named by path must mean the same there."""
    places = {field: storage.absolute(name) for field, name in experiment.places.items()}
    return with_settings(experiment, places, "paths")


def _check_labels(experiment: Experiment, search: SearchConfig, manifest: Manifest) -> None:
    from vicc_ray.training.monitor import monitor_plan

    if monitor_plan(experiment, manifest) is None:
        data = experiment.data
        raise UserError(
            f"search.metric: {search.metric} is never reported, as no labelled videos are in the splits '{data.gallery_split}' "
            f"and '{data.query_split}'; index with labels and a split, or set data.gallery_split and data.query_split"
        )


def _check_flow(experiment: Experiment, search: SearchConfig, manifest: Manifest) -> None:
    """Every kind of flow that a trial may need is in the store that it would read."""
    videos = manifest.select(experiment.data.train_split)
    seen = []
    for point in corners(search):
        changed = with_settings(experiment, point, "search.space")
        kind = (changed.flow, changed.clip)
        if kind not in seen:
            seen.append(kind)
            check_stored(changed, videos, decoded_for(changed.streams))


def _flow_of(sweep: PreparedSweep) -> dict[str, Any] | None:
    """What decides the flow that trials learn from; None where no stage does."""
    if not any("flow" in stage.decoded for stage in sweep.stages):
        return None
    return flow_identity(sweep.experiment)


def run_sweep(experiment: Experiment, address: str | None = None, verbose: bool = False) -> SweepFolder:
    """Run a sweep until its budget is spent, going on where an earlier call ended; returns its folder.

    UserError for what the reader has to change, Interrupted after Ctrl-C or --stop.
    """
    prepared = check(experiment)
    plan = None
    if address is None:
        plan = plan_trials(prepared.experiment, prepared.search, this_machine(), local=True)
    with prepared.folder.driven():
        resumes = prepared.folder.open(
            prepared.experiment,
            prepared.manifest.fingerprint(),
            _flow_of(prepared),
            prepared.manifest.earlier_fingerprint(),
        )
        prepared.folder.run.forget_stop()
        study = open_study(prepared.folder, prepared.search)
        sweep = Sweep(prepared.folder, prepared.experiment, prepared.search, study, prepared.videos)
        if resumes:
            console.print(f"{prepared.folder}: going on after {_counts(study)}")
        if running(study) or not sweep.spent():
            prepared.folder.note("start", trials=len(study.get_trials(deepcopy=False)))
            _run(prepared, sweep, plan, address, verbose)
        else:
            console.print(f"{prepared.folder}: the budget of {prepared.search.budget} is spent; nothing to try")
        write_results(
            prepared.folder, prepared.experiment, prepared.search, study, bool(prepared.shared), prepared.videos
        )
    if sweep.error:
        raise sweep.error
    if sweep.closing:
        raise Interrupted(f"stopped after {_counts(study)}; the same command goes on in {prepared.folder}")
    if not finished(study):
        raise UserError(
            f"search.budget: {prepared.search.budget} were spent before any trial came to its end; "
            "raise search.budget, or lower the stages' lengths"
        )
    print_results(prepared.folder, prepared.search, study)
    return prepared.folder


def _run(prepared: PreparedSweep, sweep: Sweep, plan: TrialsPlan | None, address: str | None, verbose: bool) -> None:
    from vicc_ray.cluster.ahead import begin_cluster
    from vicc_ray.cluster.warm.start import import_forkable

    settings = plan.whole if plan else prepared.experiment.train
    begin_cluster(settings, address, verbose, dashboard=True)
    import_forkable()
    from vicc_ray.cluster.launch import run_training
    from vicc_ray.cluster.session import ray_session
    from vicc_ray.tune.execution import DRIVER_BYTES, cluster, driver_memory, run_trials

    with quiet(prepared.folder.logs / "ray.log", verbose), ray_session(settings, address, verbose, dashboard=True):
        if plan is None:
            plan = plan_trials(prepared.experiment, prepared.search, cluster(settings), local=False)
        plan = with_drivers(plan, driver_memory(), DRIVER_BYTES)
        sweep.plan = plan
        console.print(plan.describe())
        console.print(describe_shared(prepared.experiment, prepared.search, prepared.stages, prepared.shared))
        if prepared.shared:
            alone = plan.train.model_copy(update={"threads": prepared.experiment.train.threads})
            shared = shared_experiment(prepared.experiment, str(prepared.folder)).model_copy(update={"train": alone})
            sweep.shared = str(run_training(shared, "auto", verbose))
        run_trials(sweep, plan.concurrency)


def _counts(study: optuna.Study) -> str:
    done, begun = len(finished(study)), len(study.get_trials(deepcopy=False))
    return f"{done} finished trials" + (f" and {begun - done} unfinished ones" if begun > done else "")


def dry_run_sweep(experiment: Experiment, address: str | None) -> dict[str, Any]:
    """Print what the sweep would do: its plan on this machine, what is shared, the next trials. Gives the same for a program."""
    prepared = check(experiment)
    history = open_study(prepared.folder, prepared.search, read_only=True)
    sweep = Sweep(prepared.folder, prepared.experiment, prepared.search, history, prepared.videos)
    left = sweep.trials_left()
    count = min(SHOWN, SHOWN if left is None else left)
    trials = preview(history, prepared.search, count)
    plan = plan_trials(prepared.experiment, prepared.search, this_machine(), local=True) if address is None else None
    if plan:
        console.print(plan.describe())
    console.print(describe_shared(prepared.experiment, prepared.search, prepared.stages, prepared.shared))
    console.print(f"budget: {prepared.search.budget}; the next trials, before anything is learnt from them:")
    for number, point in trials:
        console.print(f"trial {number}: {describe_point(point)}")
    return {
        "plan": plan.describe() if plan else None,
        "trials": [{"trial": number, "settings": point} for number, point in trials],
        "budget": str(prepared.search.budget),
    }


def request_stop(experiment: Experiment) -> SweepFolder:
    """Ask a sweep's driver to end; UserError where there is no sweep."""
    folder = SweepFolder.at(experiment.run_folder)
    folder.experiment()
    RunFolder.at(experiment.run_folder).request_stop()
    return folder
