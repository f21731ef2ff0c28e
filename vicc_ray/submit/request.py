"""A request to the jobs server: a name that follows from the run's, the words of the verb, the environment. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from vicc_ray import storage
from vicc_ray.config import Experiment, dump_experiment, with_settings
from vicc_ray.errors import UserError
from vicc_ray.submit.package import EXPERIMENT, portable

Verb = Literal["train", "tune", "evaluate", "doctor"]
PACKAGE_VARIABLE = "VICC_EXPERIMENT"

# What every job gets. Ray kills a job 3 s after it was to stop; a checkpoint may take longer.
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "120", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Environment:
    """Where the job's packages come from, and what it finds in its environment.

    Neither `lock` nor `image`: the packages that the nodes have. `lock`: a requirements file that is installed on each
    node first. `image`: a container image that has everything, this package too. `variables` hold no secrets.
    """

    lock: Path | None = None
    image: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A job as the jobs server takes it. `base` is what the submission ids of all its attempts begin with."""

    base: str
    words: tuple[str, ...]
    runtime_env: dict[str, Any]
    metadata: dict[str, str]

    @property
    def entrypoint(self) -> str:
        """The command as one line for a shell."""
        return shlex.join(self.words)


def make_request(
    experiment: Experiment, verb: Verb, extra: Sequence[str], folder: Path, environment: Environment
) -> Request:
    """The job that runs a verb on an experiment whose working_dir is `folder`, with `extra` words for the verb.

    UserError for what would carry a secret into the job's description, which everybody sees who sees the cluster.
    """
    _refuse_secrets(environment.variables)
    if environment.lock and environment.image:
        raise UserError("--lock and --image: give one of them; an image has its packages already")
    target = portable(experiment)
    words = _words(target, verb, extra)
    variables = ENVIRONMENT | dict(environment.variables)
    runtime_env: dict[str, Any] = {"env_vars": variables}
    if environment.image:
        # Ray takes no working_dir beside an image, so the experiment travels as a variable.
        runtime_env["image_uri"] = environment.image
        runtime_env["env_vars"] = variables | {PACKAGE_VARIABLE: dump_experiment(_in_place(experiment))}
        script = f'cd "$(mktemp -d)" && printenv {PACKAGE_VARIABLE} > {EXPERIMENT} && exec vicc "$@"'
        words = ["sh", "-c", script, "sh", *words]
    else:
        runtime_env["working_dir"] = str(folder)
        words = ["python", "-m", "vicc_ray.cli", *words]
    if environment.lock:
        runtime_env["pip"] = {"packages": locked(environment.lock), "pip_check": False}
    asked = digest(dump_experiment(target), *words)
    metadata = {"name": experiment.name, "verb": verb, "run": target.run_folder, "asked": asked}
    return Request(submission_base(verb, experiment.name, target.run_folder), tuple(words), runtime_env, metadata)


def submission_base(verb: str, name: str, run_folder: str) -> str:
    """The name of a run's jobs: the same wherever and whenever it is submitted, another one for another folder."""
    return f"vicc-{verb}-{name}-{digest(run_folder)}"


def attempt_id(base: str, attempt: int) -> str:
    """The submission id of the n-th (from 1) attempt: a cluster takes each id once."""
    return base if attempt == 1 else f"{base}.{attempt}"


def attempt_of(base: str, submission_id: str) -> int | None:
    """Which attempt an id stands for; None where it is another run's."""
    if submission_id == base:
        return 1
    number = submission_id.removeprefix(f"{base}.")
    return int(number) if submission_id != number and number.isdecimal() else None


def plain_command(request: Request, submission_id: str, address: str) -> str:
    """The `ray job submit` command that does the same, for a shell."""
    words = ["ray", "job", "submit", "--address", address, "--submission-id", submission_id]
    kept = dict(request.runtime_env)
    if "working_dir" in kept:
        words += ["--working-dir", kept.pop("working_dir")]
    words += ["--runtime-env-json", json.dumps(kept), "--metadata-json", json.dumps(request.metadata), "--no-wait"]
    return shlex.join([*words, "--", *request.words])


def locked(lock: Path) -> list[str]:
    """The packages of a requirements file, without its hashes; Ray is the cluster's own, and cannot be changed for a job.

    The hashes of a lock have 300 KB, and Ray sends what a job's environment is with every task.
    """
    try:
        lines = lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    except OSError as error:
        raise UserError(f"--lock {lock}: cannot be read ({error.strerror}); give requirements.lock") from None
    kept = [re.sub(r"\s--hash=\S+", "", line.split(" #")[0]).strip() for line in lines]
    return [line for line in kept if line and not line.startswith("#") and not re.match(r"ray(\[|=|$)", line)]


def parse_variables(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` texts; UserError for one that is not, or whose name says that it is secret."""
    variables: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env {name}: write it as NAME=VALUE, for example --env AWS_REGION=us-west-2")
        variables[name] = value
    return variables


def parse_workers(text: str) -> str:
    """`4` or `2:8` as a value of train.workers."""
    if match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text):
        return f"{{min: {match[1]}, max: {match[2]}}}"
    if not re.fullmatch(r"[1-9]\d*", text):
        raise UserError(f"--workers {text}: write a number, or the least and the most as 2:8")
    return text


def digest(*texts: str) -> str:
    """8 hex digits that stand for texts."""
    return blake2b("\0".join(texts).encode(), digest_size=4).hexdigest()


def _in_place(experiment: Experiment) -> Experiment:
    """The experiment with absolute paths, its manifest where it is: nothing goes along with an image."""
    manifest = experiment.data.manifest
    if manifest is None or not storage.is_uri(manifest):
        raise UserError(
            f"data.manifest: {manifest} is a file of this machine, and nothing can be sent beside --image; put it into the "
            "store and name it there, or leave --image out"
        )
    return with_settings(portable(experiment), {"data.manifest": manifest}, "submit")


def _words(target: Experiment, verb: Verb, extra: Sequence[str]) -> list[str]:
    return [verb, target.run_folder if verb == "evaluate" else EXPERIMENT, *extra]


def _refuse_secrets(variables: Mapping[str, str]) -> None:
    for name in variables:
        if storage.SECRET_NAME.search(name):
            raise UserError(
                f"--env {name}: looks like a secret, and everybody who sees the cluster sees a job's variables; give the "
                "nodes their rights instead (a role of the machine, a service account, a secret of the pod)"
            )
