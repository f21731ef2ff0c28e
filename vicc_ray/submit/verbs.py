"""`vicc submit` and `vicc jobs`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from vicc_ray import storage
from vicc_ray.config import Experiment
from vicc_ray.console import console, errors
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.submit.following import Job, JobClient, follow, last_line
from vicc_ray.submit.package import pack, portable
from vicc_ray.submit.request import (
    Environment,
    Request,
    Verb,
    attempt_id,
    attempt_of,
    make_request,
    plain_command,
    submission_base,
)

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def submit_experiment(
    experiment: Experiment,
    address: str,
    verb: Verb = "train",
    extra: Sequence[str] = (),
    environment: Environment | None = None,
    following: bool = False,
    verify: str = "true",
) -> Job:
    """Send an experiment to a cluster's jobs server, or come back to its job that runs there already.

    Prints the `ray job submit` command that does the same. With `following` the log is shown until the job's end. UserError
    for what the reader has to change, Interrupted when the reader stops following.
    """
    environment = environment or Environment()
    folder = _folder(experiment, verb)
    request = make_request(experiment, verb, extra, folder, environment)
    if not environment.image:
        console.print(f"sends {pack(experiment, folder).describe()}", markup=False)
    _tell_paths(experiment)
    from vicc_ray.submit.client import connect

    client = connect(address, verify)
    job, new = submit_or_attach(client, request)
    if new:
        console.print(f"{job.id}: submitted; the same without vicc:", markup=False)
        console.print(plain_command(request, job.id, address), markup=False, soft_wrap=True)
    else:
        console.print(f"{job.id}: runs already ({_ago(job)}); nothing new was submitted", markup=False)
    if following:
        return follow_job(client, job.id, address)
    console.print(f"follow it: {_return_line(job.id, address)}", markup=False)
    return job


def submit_or_attach(client: JobClient, request: Request) -> tuple[Job, bool]:
    """The request's job, and whether it was submitted now; a run has one job at a time.

    The n-th attempt at a run has an id that follows from the run, so that of two clients at once one submits and the other
    finds the id taken. UserError where the run's job of now was asked for something else.
    """
    attempts = {number: job for job in client.jobs() if (number := attempt_of(request.base, job.id))}
    newest = max(attempts, default=0)
    if newest and not attempts[newest].ended:
        return _same(attempts[newest], request), False
    new_id = attempt_id(request.base, newest + 1)
    if client.submit(new_id, request.entrypoint, request.runtime_env, request.metadata):
        return client.job(new_id) or Job(new_id, "PENDING"), True
    job = client.job(new_id)
    if job is None:
        raise UserError(
            f"{new_id}: the id is taken on this cluster by a job that is gone; choose another --set name=..."
        )
    return _same(job, request), False


def follow_job(client: JobClient, job_id: str, address: str) -> Job:
    """Show a job's log until it ends, then how it ended; Interrupted at Ctrl-C, which leaves the job alone."""
    try:
        job = follow(client, job_id, _write, lambda line: errors.print(line, markup=False))
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job_id} goes on; return to it with: {_return_line(job_id, address)}; end it with --stop instead of --follow"
        ) from None
    told = f" ({last_line(job)})" if job.status == "FAILED" and job.exit_code is None else ""
    errors.print(f"{job_id}: {job.status.lower()}, status {job.exit_status()}{told}", markup=False)
    return job


def find_job(client: JobClient, name: str) -> Job:
    """A job by its id, or the newest one of a run by the run's name; UserError where there is none."""
    job = client.job(name)
    if job:
        return job
    jobs = client.jobs()
    named = [job for job in jobs if (job.metadata or {}).get("name") == name]
    if not named:
        known = ", ".join(job.id for job in jobs[:5]) or "none"
        raise UserError(f"{name}: the cluster has no job of this id or name; its newest: {known}")
    return named[0]


def print_jobs(jobs: Sequence[Job]) -> None:
    """A line a job, newest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("job", "run", "status", "began", "took", "exit", "what happened"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        told = last_line(job) if job.status in ("FAILED", "PENDING") else ""
        code = "" if job.exit_code is None else str(job.exit_code)
        run = (job.metadata or {}).get("run", "")
        table.add_row(job.id, run, job.status.lower(), _clock(job.start), _took(job), code, told[:100])
    console.print(table)


def jobs_json(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """All of it, for a program."""
    return [asdict(job) for job in jobs]


def _same(job: Job, request: Request) -> Job:
    if (job.metadata or {}).get("asked") != request.metadata["asked"]:
        raise UserError(
            f"{job.id}: is in use by a job of this run with other settings; stop that one (vicc jobs {job.id} --stop), or "
            "choose another --set name=..."
        )
    return job


def _folder(experiment: Experiment, verb: Verb) -> Path:
    """Where the working_dir of a run's job is made, apart from another run's of the same name; it stays for the printed command."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vicc_ray" / "submit" / submission_base(verb, experiment.name, portable(experiment).run_folder)


def _tell_paths(experiment: Experiment) -> None:
    """Say which folders every node must see, where a name is a path."""
    shared = [f"runs ({storage.absolute(experiment.runs)})"] if not storage.is_uri(experiment.runs) else []
    manifest = experiment.data.manifest
    if manifest and not storage.is_uri(manifest):
        rows = Manifest.read(manifest).select("all")
        folders = sorted({str(Path(row.video).parent) for row in rows if not storage.is_uri(row.video)})
        if folders:
            shared.append(f"videos ({os.path.commonpath(folders) if len(folders) > 1 else folders[0]})")
    if shared:
        errors.print(
            f"every node must see the same folders: {', '.join(shared)}; 'vicc doctor' with this address looks whether they do",
            markup=False,
        )


def _write(text: str) -> None:
    # Colours and bars that begin their line anew are usual in a job's log; the console would show their codes.
    plain = _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    console.print(plain, end="", soft_wrap=True)


def _return_line(job_id: str, address: str) -> str:
    return f"vicc jobs {job_id} --address {address} --follow"


def _ago(job: Job) -> str:
    return f"since {_clock(job.start)}" if job.start else job.status.lower()


def _clock(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else "-"


def _took(job: Job) -> str:
    if job.start is None:
        return "-"
    seconds = (job.end or time.time()) - job.start
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
