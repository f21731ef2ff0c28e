"""`vicc jobs`: list a cluster's jobs, follow one, or end one."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vicc_ray.console import console, errors
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.submit.following import Job, JobClient, follow, last_line

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def follow_job(client: JobClient, job_id: str, address: str) -> Job:
    """Show a job's log until it ends, then how it ended; Interrupted at Ctrl-C, which leaves the job alone."""
    try:
        job = follow(client, job_id, _write, lambda line: errors.print(line))
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job_id} goes on; return to it with: {return_line(job_id, address)}; end it with --stop instead of --follow"
        ) from None
    detail = f" ({last_line(job)})" if job.status == "FAILED" and job.exit_code is None else ""
    errors.print(f"{job_id}: {job.status.lower()}, status {job.exit_status()}{detail}")
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
        detail = last_line(job) if job.status in ("FAILED", "PENDING") else ""
        code = "" if job.exit_code is None else str(job.exit_code)
        run = (job.metadata or {}).get("run", "")
        table.add_row(job.id, run, job.status.lower(), clock(job.start), _took(job), code, detail[:100])
    console.print(table)


def jobs_json(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """All of it, for a program."""
    return [asdict(job) for job in jobs]


def _write(text: str) -> None:
    # Colours and bars that begin their line anew are usual in a job's log; the console would show their codes.
    plain = _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    console.print(plain, end="", soft_wrap=True)


def return_line(job_id: str, address: str) -> str:
    """The command that shows a job's log again."""
    return f"vicc jobs {job_id} --address {address} --follow"


def clock(moment: float | None) -> str:
    """A moment in seconds since 1970 as local time, for a table."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else "-"


def _took(job: Job) -> str:
    if job.start is None:
        return "-"
    seconds = (job.end or time.time()) - job.start
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
