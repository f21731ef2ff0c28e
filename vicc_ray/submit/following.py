"""A job's log on this terminal until the job's end, over connections that break."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from vicc_ray.errors import UserError

ENDS = ("SUCCEEDED", "FAILED", "STOPPED")
# Seconds to the next try after a connection broke, at first and at most, and how long no try may succeed.
WAIT, MOST_WAIT, PATIENCE = 1.0, 15.0, 600.0


@dataclass(frozen=True)
class Job:
    """What the jobs server knows of a job; times are seconds since 1970."""

    id: str
    status: str
    message: str = ""
    start: float | None = None
    end: float | None = None
    exit_code: int | None = None
    metadata: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in ENDS

    def exit_status(self) -> int:
        """The status of the job's own command; 130 where it was stopped, 1 where it did not come to run."""
        if self.exit_code is not None:
            return self.exit_code
        return {"SUCCEEDED": 0, "STOPPED": 130}.get(self.status, 1)


class JobClient(Protocol):
    """What is needed of the jobs server. ConnectionError where it does not answer, UserError where it refuses."""

    def job(self, job_id: str) -> Job | None:
        """A job; None where there is none of this id."""
        ...

    def jobs(self) -> list[Job]:
        """All jobs that were submitted to the server."""
        ...

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        """Submit a job; False where the id is taken."""
        ...

    def stop(self, job_id: str) -> None:
        """Ask a job to end."""
        ...

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """The job's log from its beginning, piece by piece as it is written, until the job's end."""
        ...


def follow(
    client: JobClient,
    job_id: str,
    write: Callable[[str], None],
    report: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """Give a job's log to `write` until it ends, and what happens on the way to `tell`; returns the ended job.

    A broken connection is made again and the log goes on where it stopped. UserError where the server has not answered for
    `PATIENCE` seconds, or no longer knows the job.
    """
    shown, waited, pause, reported = 0, 0.0, WAIT, ""
    while True:
        try:
            job = _known(client, job_id)
            if job.status == "PENDING":
                waiting = job.message or "waits for the cluster"
                if waiting != reported:
                    report(f"{job_id}: {waiting}")
                    reported = waiting
                pause = WAIT
            else:
                shown = asyncio.run(_tail(client, job_id, shown, write))
                job = _known(client, job_id)
                if job.ended:
                    return job
                pause, waited = WAIT, 0.0
        except (ConnectionError, _Broken) as error:
            shown = max(shown, getattr(error, "shown", 0))
            if waited == 0.0:
                report(f"{job_id}: the connection broke, trying again; the job goes on without it")
            if waited >= PATIENCE:
                raise UserError(
                    f"the jobs server has not answered for {waited / 60:.0f} minutes; the job may go on: "
                    "'vicc jobs --address URL' shows when the server is back"
                ) from None
            waited += pause
            pause = min(2 * pause, MOST_WAIT)
        sleep(pause)


class _Broken(Exception):
    """The log ended before the job; `shown` characters were seen."""

    def __init__(self, shown: int) -> None:
        super().__init__(shown)
        self.shown = shown


async def _tail(client: JobClient, job_id: str, shown: int, write: Callable[[str], None]) -> int:
    """Write what comes after the first `shown` characters of the log; returns how many are shown now."""
    seen = 0
    try:
        async for piece in client.tail(job_id):
            seen += len(piece)
            new = seen - shown
            if new > 0:
                write(piece[-new:])
                shown = seen
    except (TimeoutError, ConnectionError, OSError, RuntimeError):
        raise _Broken(shown) from None
    return shown


def _known(client: JobClient, job_id: str) -> Job:
    job = client.job(job_id)
    if job is None:
        raise UserError(
            f"{job_id}: the cluster knows no such job (was its head started anew?); submit it again, it resumes"
        )
    return job


def last_line(job: Job) -> str:
    """The end of a job's message, which may hold the end of its log."""
    with suppress(IndexError):
        return job.message.strip().splitlines()[-1].strip()
    return ""
