"""Ray's jobs server as a `JobClient`: connecting, requests, and its errors in a line each."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from vicc_ray.errors import UserError
from vicc_ray.submit.following import Job

ANSWER_SECONDS = 15.0
_Result = TypeVar("_Result")


def connect(address: str, verify: str = "true") -> RayJobs:
    """A client of the jobs server at `http(s)://HOST:PORT`, Ray's dashboard.

    `verify` of an https certificate: true, false, or a file of trusted ones. UserError where the address is none, does not
    answer, needs a token that was not shown, or belongs to another version of Ray.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        raise UserError(
            f"--address {address}: jobs go to Ray's dashboard; write http://HOST:8265 (8265 is its usual port, "
            "'ray dashboard CLUSTER.yaml' or 'kubectl port-forward' bring it to this machine)"
        )
    _try_out(address, verify)
    headers = json.loads(os.environ.get("RAY_JOB_HEADERS", "null"))
    trusted: bool | str = {"true": True, "false": False}.get(verify.lower(), verify)
    try:
        client = JobSubmissionClient(address, headers=headers, verify=trusted)
    except AuthenticationError:
        raise _no_token(address) from None
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        raise UserError(f"--address {address}: Ray's jobs server does not answer ({_one_line(error)})") from None
    # Ray has just requested it, and gives it nowhere else.
    there = getattr(client, "_server_ray_version", None)
    if there is not None and there != ray.__version__:
        raise UserError(
            f"--address {address}: the cluster runs Ray {there}, this is Ray {ray.__version__}; training relies on one version: "
            "start the cluster with the packages of requirements.lock (cluster/Containerfile)"
        )
    return RayJobs(client, address)


class RayJobs:
    """See `JobClient`."""

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self.client, self.address = client, address

    def job(self, job_id: str) -> Job | None:
        """A job; None where there is none of this id."""
        try:
            return _job(self._call(self.client.get_job_info, job_id))
        except RuntimeError as error:
            if "status code 404" in str(error):
                return None
            raise ConnectionError(_one_line(error)) from error

    def jobs(self) -> list[Job]:
        """Jobs that were submitted to the server, newest first; drivers that connected by themselves are none."""
        try:
            found = self._call(self.client.list_jobs)
        except RuntimeError as error:
            raise ConnectionError(_one_line(error)) from error
        jobs = [_job(details) for details in found if details.submission_id]
        return sorted(jobs, key=lambda job: job.start or 0.0, reverse=True)

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        """Submit a job; False where the id is taken."""
        try:
            self._call(
                self.client.submit_job,
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata=metadata,
            )
        except (RuntimeError, ValueError) as error:
            if "already" in str(error) and job_id in str(error):
                return False
            raise UserError(f"--address {self.address}: the cluster refused the job ({_one_line(error)})") from None
        return True

    def stop(self, job_id: str) -> None:
        """Ask a job to end; Ray kills it where it does not within RAY_JOB_STOP_WAIT_TIME_S."""
        try:
            self._call(self.client.stop_job, job_id)
        except RuntimeError as error:
            raise UserError(f"{job_id}: could not be stopped ({_one_line(error)})") from None

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """The job's log from its beginning, piece by piece, until the job's end."""
        import aiohttp

        try:
            async for piece in self.client.tail_job_logs(job_id):
                yield piece
        except (aiohttp.ClientError, RuntimeError) as error:
            raise ConnectionError(_one_line(error)) from error

    def _call(self, function: Callable[..., _Result], *args: Any, **kwargs: Any) -> _Result:
        try:
            return function(*args, **kwargs)
        except AuthenticationError:
            raise _no_token(self.address) from None
        except requests.RequestException as error:
            raise ConnectionError(_one_line(error)) from error


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        start=details.start_time / 1e3 if details.start_time else None,
        end=details.end_time / 1e3 if details.end_time else None,
        exit_code=details.driver_exit_code,
        metadata=details.metadata or {},
    )


def _try_out(address: str, verify: str) -> None:
    """A first question with a time limit, which Ray's client has not."""
    context = None
    try:
        if address.startswith("https://") and verify.lower() != "true":
            unverified = verify.lower() == "false"
            context = ssl._create_unverified_context() if unverified else ssl.create_default_context(cafile=verify)
        urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS, context=context).close()
    except urllib.error.HTTPError:
        return  # it answers, and Ray's client says what is wrong
    except FileNotFoundError:
        raise UserError(
            f"--verify {verify}: no such file; give a file of trusted certificates, true or false"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"--address {address}: nothing answers there ({_one_line(error)}); is the head running, and its dashboard "
            "reachable from here ('ray dashboard CLUSTER.yaml', 'kubectl port-forward' or an ssh tunnel bring it here)?"
        ) from None


def _no_token(address: str) -> UserError:
    return UserError(
        f"--address {address}: the cluster requires its token; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
        "(or RAY_AUTH_TOKEN) with the token that its nodes were started with"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(getattr(error, "reason", None) or error).split())[:300] or type(error).__name__
