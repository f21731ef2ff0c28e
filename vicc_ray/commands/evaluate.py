"""`vicc evaluate`: runs and data sets in, a table each and their mean and spread out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.session import ray_session
from vicc_ray.config import Experiment
from vicc_ray.console import console, quiet
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.protocols import EvaluationProtocol, EvaluationTask, RayAccess, judge
from vicc_ray.evaluation.results import (
    Evaluation,
    Spread,
    figures,
    name_of_data,
    plain_name,
    row_name,
    summarise,
    title_of_protocol,
    with_videos,
)
from vicc_ray.extensions import PROTOCOLS
from vicc_ray.runs.encoders import open_encoders
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.driver import check_refused

ALL = "all"


def evaluate_runs(
    runs: Sequence[str],
    protocol: str = "retrieval",
    data: Sequence[str] = (),
    train_on: str | None = None,
    test_on: str | None = None,
    overrides: Sequence[str] = (),
    address: str | None = None,
    verbose: bool = False,
) -> list[Evaluation]:
    """Judge each run on each data set (manifests; by default the run's own) by a protocol, or by all built-in ones.

    Results go into the runs' folders as they come. `train_on` is the split that is searched or learnt from, `test_on` the
    one that is tested. UserError for what the reader has to change, before anything runs.
    """
    kinds = [] if protocol == ALL else [PROTOCOLS.load(protocol, "--protocol")]
    kinds = kinds or [PROTOCOLS.load(name, "--protocol") for name in PROTOCOLS.built_in]
    found = []
    with ExitStack() as stack:
        ray = _Ray(stack, address, verbose)
        tasks = [task for run in runs for task in _tasks(run, data, train_on, test_on, overrides, ray)]
        protocols: list[tuple[EvaluationTask, EvaluationProtocol]] = []
        for task in tasks:
            check_refused(task.experiment, task.manifest)
            protocols += [(task, kind(task)) for kind in kinds]
        stack.enter_context(quiet(tasks[0].folder.logs / "ray.log", verbose))
        ray.experiment = tasks[0].experiment
        for task, one in protocols:
            found.append(judge(task, one))
    return found


class _Ray:
    """One Ray session for everything, started by the first that needs it."""

    def __init__(self, stack: ExitStack, address: str | None, verbose: bool) -> None:
        self.stack, self.address, self.verbose = stack, address, verbose
        self.experiment = Experiment()
        self.plan: ResourcePlan | None = None

    def resources(self) -> ResourcePlan:
        if self.plan is None:
            self.plan = self.stack.enter_context(ray_session(self.experiment.train, self.address, self.verbose))
        return self.plan

    def access(self) -> RayAccess:
        return RayAccess(self.resources, self.address, self.verbose)


def _tasks(
    run: str, data: Sequence[str], train_on: str | None, test_on: str | None, overrides: Sequence[str], ray: _Ray
) -> Iterator[EvaluationTask]:
    """One task a data set of a run."""
    folder = RunFolder.at(run)
    with folder.as_user_errors():
        folder.pull()
    experiment = folder.experiment(overrides)
    splits = {"gallery_split": train_on, "query_split": test_on}
    changed = {name: split for name, split in splits.items() if split is not None}
    settings = experiment.model_copy(update={"data": experiment.data.model_copy(update=changed)})
    files = list(data) or [text.partition("=")[2] for text in overrides if text.startswith("data.manifest=")]
    named = experiment.data.manifest or folder.manifest
    if not files and not folder.manifest.is_file():
        raise UserError(f"{folder}: has no manifest of its own; name the videos with --data MANIFEST")
    encoders = open_encoders(folder)
    for file, name in [(file, file) for file in files] or [(str(folder.manifest), str(named))]:
        manifest = Manifest.read(file)
        yield EvaluationTask(folder, settings, manifest, data_name(manifest, name), encoders, ray.access(), say)


def data_name(manifest: Manifest, file: str | Path) -> str:
    """What results call a data set: the name that its layout gives, else that of the manifest's file."""
    return plain_name(manifest.dataset or Path(file).stem)


def say(line: str) -> None:
    """A line for the reader."""
    console.print(line)


def print_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """A table each, then mean and spread where there are several."""
    for evaluation in evaluations:
        print_evaluation(evaluation, evaluations)
    if len(evaluations) > 1:
        console.print(_summary(summarise(evaluations)))


def evaluations_json(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """{"evaluations": [...], "summary": [...]} of plain values."""
    return {
        "evaluations": [asdict(one) for one in evaluations],
        "summary": [asdict(one) for one in summarise(evaluations)],
    }


def print_evaluation(evaluation: Evaluation, among: Sequence[Evaluation] = ()) -> None:
    """The table on the terminal, chance beside it, how the figures came about and what was left out.

    `among`: those that are printed with it.
    """
    columns = list(dict.fromkeys(key for row in evaluation.rows for key in figures(row)))
    table = Table(title=title_of(evaluation, among))
    table.add_column("encoder")
    for column in columns:
        table.add_column(column, justify="right")
    for row in evaluation.rows:
        cells = figures(row)
        table.add_row(row_name(row), *(f"{cells[column]:.3f}" if column in cells else "" for column in columns))
    console.print(table)
    for note in evaluation.notes:
        say(note)
    for video, reason in evaluation.refused:
        say(f"left out: {video}: {reason}")
    if evaluation.refused:
        say(f"{len(evaluation.refused)} videos left out")


def title_of(evaluation: Evaluation, among: Sequence[Evaluation] = ()) -> str:
    """What was judged, on what, and what guessing gives."""
    one = evaluation
    retrieval = one.protocol in ("retrieval", "reference")
    sides = f"{one.test} queries in {one.train} videos" if retrieval else f"{one.test} videos, learnt on {one.train}"
    where = name_of_data(one, among)
    chance = f"chance {'R@1' if retrieval else 'top-1'} {one.chance:.3f}"
    trial = " (trial sizes)" if one.scale != "full" else ""
    return f"{one.run}: {title_of_protocol(one.protocol, one.title).lower()} on {where}{trial}: {sides}, {chance}"


def _summary(spreads: Sequence[Spread]) -> Table:
    metrics = list(dict.fromkeys(one.metric for one in spreads))
    table = Table(title="mean ± standard deviation over folds and seeds")
    for column in ("protocol", "data", "encoder", "n"):
        table.add_column(column)
    for metric in metrics:
        table.add_column(metric, justify="right")
    rows: dict[tuple[Any, ...], dict[str, Spread]] = {}
    for one in spreads:
        settings = tuple(sorted((key, str(value)) for key, value in one.settings.items()))
        key = (one.protocol, one.data, one.videos, one.encoder, one.train_on, one.test_on, one.scale, settings)
        rows.setdefault(key, {})[one.metric] = one
    for (protocol, data, videos, encoder, *_), found in rows.items():
        count = str(max(one.count for one in found.values()))
        name = with_videos(data, videos, {one.videos for one in spreads if one.data == data})
        table.add_row(protocol, name, encoder, count, *(spread_text(found.get(metric)) for metric in metrics))
    return table


def spread_text(spread: Spread | None) -> str:
    """0.621 ± 0.012; the mean alone of one value."""
    if spread is None:
        return ""
    return f"{spread.mean:.3f}" + ("" if spread.deviation is None else f" ± {spread.deviation:.3f}")
