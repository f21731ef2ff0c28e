"""`vicc submit`: an experiment to a cluster's jobs server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vicc_ray import storage
from vicc_ray.commands.jobs import clock, follow_job, return_line
from vicc_ray.config import Experiment
from vicc_ray.console import console, errors
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.submit.following import Job, JobClient
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
        console.print(f"sends {pack(experiment, folder).describe()}")
    _report_shared_paths(experiment)
    from vicc_ray.submit.client import connect

    client = connect(address, verify)
    job, new = submit_or_attach(client, request)
    if new:
        console.print(f"{job.id}: submitted; the same without vicc:")
        console.print(plain_command(request, job.id, address), soft_wrap=True)
    else:
        console.print(f"{job.id}: runs already ({_ago(job)}); nothing new was submitted")
    if following:
        return follow_job(client, job.id, address)
    console.print(f"follow it: {return_line(job.id, address)}")
    return job


def submit_or_attach(client: JobClient, request: Request) -> tuple[Job, bool]:
    """The request's job, and whether it was submitted now; a run has one job at a time.

    The n-th attempt at a run has an id that follows from the run, so that of two clients at once one submits and the other
    finds the id taken. UserError where the run's job of now was started with other settings.
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


def _report_shared_paths(experiment: Experiment) -> None:
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
            f"every node must see the same folders: {', '.join(shared)}; 'vicc doctor' with this address checks whether they do",
        )


def _ago(job: Job) -> str:
    return f"since {clock(job.start)}" if job.start else job.status.lower()
