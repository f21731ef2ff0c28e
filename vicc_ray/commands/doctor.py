"""`vicc doctor`: query, check, print a table with what to do."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from uuid import uuid4

from rich.table import Table

from vicc_ray import storage
from vicc_ray.config import Experiment
from vicc_ray.console import console, quiet, scratch_log
from vicc_ray.data.flow.algorithms import BOUND
from vicc_ray.data.flow.bound import bounded
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.doctor.checks import Finding, check_network, check_nodes
from vicc_ray.doctor.demand import check_demand
from vicc_ray.doctor.facts import Question
from vicc_ray.runs.folder import versions
from vicc_ray.training.schedule import make_stages

# Videos that each node tries: the first, one in the middle, the last.
TRIED = 3


def examine(experiment: Experiment | None, address: str | None, verbose: bool = False) -> list[Finding]:
    """All findings about a cluster (None: this machine alone), and about an experiment's run on it where one is given."""
    question, largest_batch = Question(), 0
    if experiment is not None:
        question, largest_batch = _question(experiment)
    try:
        with quiet(scratch_log("doctor"), verbose):
            return _examine(experiment, question, largest_batch, address)
    finally:
        if question.folder:
            with suppress(OSError):
                storage.remove_folder(question.folder)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed."""
    return not any(finding.state == "failure" for finding in findings)


def print_findings(findings: Sequence[Finding]) -> None:
    """The table, failures with what to do."""
    marks = {"ok": "ok", "warning": "warning", "failure": "FAILS"}
    table = Table(box=None, pad_edge=False)
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(marks[finding.state], finding.check, finding.message, finding.remedy)
    console.print(table)
    failures = sum(finding.state == "failure" for finding in findings)
    console.print(f"{failures} to repair" if failures else "nothing to repair")


def findings_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """All of it, for a program."""
    return [asdict(finding) for finding in findings]


def _question(experiment: Experiment) -> tuple[Question, int]:
    """What is requested of the nodes for an experiment, and the largest batch of its stages."""
    videos: tuple[VideoRow, ...] = ()
    batches = [experiment.schedule.single.global_batch, experiment.schedule.cross.global_batch]
    if experiment.data.manifest is not None:
        rows = Manifest.read(experiment.data.manifest).select(experiment.data.train_split)
        batches = [stage.global_batch for stage in make_stages(experiment, len(rows))]
        videos = tuple(rows[place] for place in sorted({0, len(rows) // 2, len(rows) - 1})[:TRIED])
    folder = storage.join(storage.absolute(experiment.runs), f"doctor-{uuid4().hex[:8]}")
    if experiment.flow.bound == "auto":  # what a sample takes does not depend on it
        experiment = bounded(experiment, BOUND)
    return Question(folder, experiment, videos), max(batches)


def _examine(
    experiment: Experiment | None, question: Question, largest_batch: int, address: str | None
) -> list[Finding]:
    from vicc_ray.doctor.cluster import capacity, connected, measure_network, query_nodes

    with connected(address):
        nodes = query_nodes(question)
        driver = {"python": platform.python_version()} | versions()
        findings = check_nodes(nodes, driver, storage.absolute(experiment.runs) if experiment else None)
        findings += check_network(measure_network())
        if experiment is not None:
            findings += check_demand(experiment, largest_batch, capacity(nodes))
    return findings
