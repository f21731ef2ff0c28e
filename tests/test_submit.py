"""Submitting: what is sent, under which name, coming back to it, following over broken connections; a real jobs server last."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, tiny_experiment, tiny_manifest

from benchmarks.nodes import LocalCluster, Node, send
from vicc_ray.commands.jobs import find_job, follow_job
from vicc_ray.commands.submit import _folder, submit_or_attach
from vicc_ray.config import Experiment, load_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.runs.records import read_records
from vicc_ray.submit.following import Job, follow
from vicc_ray.submit.package import MOST_BYTES, pack, portable
from vicc_ray.submit.request import (
    Environment,
    Request,
    attempt_id,
    attempt_of,
    locked,
    make_request,
    parse_variables,
    parse_workers,
    plain_command,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def experiment(videos: Manifest, tmp_path: Path) -> Experiment:
    """The tiny experiment with its manifest in a file."""
    videos.write(tmp_path / "videos.parquet")
    return tiny_experiment(runs=str(tmp_path / "runs"), data={"manifest": str(tmp_path / "videos.parquet")})


def request_of(experiment: Experiment, folder: Path = Path("wd"), **settings: Any) -> Request:
    environment = Environment(**settings)
    return make_request(experiment, "train", [], folder, environment)


class FakeClient:
    """A jobs server that takes jobs and has a log; some of its connections break."""

    def __init__(
        self, log: str = "", breaks: tuple[int, ...] = (), end: str = "SUCCEEDED", code: int | None = 0
    ) -> None:
        self.known: dict[str, Job] = {}
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.log, self.breaks, self.end, self.code = log, list(breaks), end, code
        self.unreachable = 0
        self.hidden = False

    def job(self, job_id: str) -> Job | None:
        if self.unreachable:
            self.unreachable -= 1
            raise ConnectionError("away")
        return self.known.get(job_id)

    def jobs(self) -> list[Job]:
        return [] if self.hidden else list(self.known.values())

    def submit(self, job_id: str, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        if job_id in self.known:
            return False
        self.sent.append((entrypoint, runtime_env))
        self.known[job_id] = Job(job_id, "RUNNING", metadata=metadata)
        return True

    def stop(self, job_id: str) -> None:
        self.finish(job_id, "STOPPED", None)

    def finish(self, job_id: str, status: str, code: int | None) -> None:
        self.known[job_id] = replace(self.known[job_id], status=status, exit_code=code)

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else None
        for start in range(0, len(self.log[:end]), 3):
            yield self.log[:end][start : start + 3]
        if end is not None:
            raise ConnectionError("cut")
        self.finish(job_id, self.end, self.code)


# -- the working_dir


def test_working_dir_holds_what_is_needed_and_nothing_else(experiment: Experiment, tmp_path: Path) -> None:
    packed = pack(experiment, tmp_path / "wd")
    assert sorted(path.name for path in packed.folder.iterdir()) == ["experiment.yaml", "manifest.parquet", "vicc_ray"]
    there = sum(path.stat().st_size for path in packed.folder.rglob("*") if path.is_file())
    assert packed.bytes == there < 3 * 2**20
    assert not list(packed.folder.rglob("__pycache__"))
    assert (packed.folder / "vicc_ray" / "report" / "template.html.j2").is_file()


def test_what_was_sent_is_whole_elsewhere(experiment: Experiment, tmp_path: Path, videos: Manifest) -> None:
    """The packed experiment learns the same, and the packed code reads it without this checkout."""
    pack(experiment, tmp_path / "wd")
    sent = load_experiment(tmp_path / "wd" / "experiment.yaml")
    assert sent == portable(experiment) and sent.run_folder == experiment.run_folder
    code = (
        "import vicc_ray, sys; from vicc_ray.config import load_experiment as e; from vicc_ray.data.manifest import Manifest as m;"
        "print(vicc_ray.__path__[0], m.read(e('experiment.yaml').data.manifest).fingerprint())"
    )
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "wd", capture_output=True, text=True, check=True)
    where, fingerprint = told.stdout.split()
    assert Path(where) == tmp_path / "wd" / "vicc_ray" and fingerprint == videos.fingerprint()


def test_an_earlier_working_dir_leaves_nothing(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "wd").mkdir()
    (tmp_path / "wd" / "stale.py").write_text("")
    assert not (pack(experiment, tmp_path / "wd").folder / "stale.py").exists()


def test_two_gigabytes_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    with (tmp_path / "videos.parquet").open("r+b") as file:
        file.truncate(2 * 2**30)  # a hole: takes no disk
    with pytest.raises(UserError, match=r"2\.0 GiB \(manifest.*at most 100\.0 MiB.*store or a shared path") as told:
        pack(experiment, tmp_path / "wd")
    assert "\n" not in str(told.value) and not (tmp_path / "wd").exists()
    assert MOST_BYTES < 500 * 2**20, "Ray's own limit"


def test_manifest_must_be_there(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "videos.parquet").unlink()
    with pytest.raises(UserError, match=r"manifest .*: no such file"):
        pack(experiment, tmp_path / "wd")
    with pytest.raises(UserError, match=r"data\.manifest: is not set"):
        pack(tiny_experiment(), tmp_path / "wd")


# -- the request


def test_a_run_has_one_name_wherever_it_is_submitted_from(experiment: Experiment) -> None:
    first = request_of(experiment)
    assert first.base == request_of(experiment, Path("/elsewhere")).base
    assert first.base.startswith("vicc-train-tiny-")
    others = [
        request_of(tiny_experiment(runs="s3://bucket/runs", data={"manifest": "s3://bucket/m.parquet"})),
        make_request(experiment, "tune", [], Path("wd"), Environment()),
    ]
    assert len({first.base, *(other.base for other in others)}) == 3
    changed = request_of(tiny_experiment(**experiment.model_dump(mode="json") | {"seed": 4}))
    assert changed.base == first.base and changed.metadata["asked"] != first.metadata["asked"]


def test_attempts_are_counted() -> None:
    ids = [attempt_id("vicc-train-a", number) for number in (1, 2, 11)]
    assert [attempt_of("vicc-train-a", one) for one in ids] == [1, 2, 11]
    assert attempt_of("vicc-train-a", "vicc-train-ab") is None
    assert attempt_of("vicc-train-a", "vicc-train-a.b-1") is None


def test_words_of_each_verb(experiment: Experiment) -> None:
    def words(verb: Any, *extra: str) -> list[str]:
        return shlex.split(make_request(experiment, verb, extra, Path("wd"), Environment()).entrypoint)[3:]

    assert words("train") == ["train", "experiment.yaml"]
    assert words("tune") == ["tune", "experiment.yaml"]
    asked = ["--data", "a b.parquet", "--set", "x={y: 1}"]
    assert words("evaluate", *asked) == ["evaluate", experiment.run_folder, *asked]


def test_lock_leaves_ray_to_the_cluster(experiment: Experiment) -> None:
    packages = request_of(experiment, lock=ROOT / "requirements.lock").runtime_env["pip"]["packages"]
    assert any(line.startswith("torch==") for line in packages)
    assert not any(line.startswith(("ray=", "ray[", "#")) for line in packages)
    # One package a line, by version and platform: its hashes would travel with every task.
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^ ]+( ; .+)?", line) for line in packages)
    assert not any("--hash" in line for line in packages)
    with pytest.raises(UserError, match="--lock missing: cannot be read"):
        locked(Path("missing"))
    with pytest.raises(UserError, match="give one of them"):
        request_of(experiment, lock=ROOT / "requirements.lock", image="a")


def test_beside_an_image_the_experiment_travels_as_a_variable(tmp_path: Path) -> None:
    """Ray's own check takes the environment, and the shell line hands the verb the whole experiment."""
    from ray.runtime_env import RuntimeEnv

    elsewhere = tiny_experiment(runs="s3://bucket/runs", data={"manifest": "s3://bucket/m.parquet"})
    asked = request_of(elsewhere, image="registry/vicc:1")
    RuntimeEnv(**asked.runtime_env)
    assert set(asked.runtime_env) == {"image_uri", "env_vars"}
    (tmp_path / "vicc").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncp "$2" {tmp_path}/got.yaml\nexit 7\n')
    (tmp_path / "vicc").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | asked.runtime_env["env_vars"]
    assert subprocess.run(asked.entrypoint, shell=True, env=environment).returncode == 7
    assert (tmp_path / "words").read_text() == "train experiment.yaml\n"
    assert load_experiment(tmp_path / "got.yaml") == elsewhere


def test_beside_an_image_the_manifest_lies_in_a_store(experiment: Experiment) -> None:
    with pytest.raises(UserError, match="is a file of this machine, and nothing can be sent beside --image"):
        request_of(experiment, image="registry/vicc:1")


def test_plain_command_says_the_same(experiment: Experiment) -> None:
    """What Ray's own command line makes of the printed words is the request."""
    asked = make_request(experiment, "evaluate", ["--data", "a b"], Path("wd"), Environment(variables={"A": "b c"}))
    words = shlex.split(plain_command(asked, "an-id", "http://h:8265"))
    split = words.index("--")
    assert words[:3] == ["ray", "job", "submit"] and shlex.join(words[split + 1 :]) == asked.entrypoint
    options = dict(zip(words[3 : split - 1 : 2], words[4:split:2], strict=True))
    assert json.loads(options["--runtime-env-json"]) | {"working_dir": options["--working-dir"]} == asked.runtime_env
    assert json.loads(options["--metadata-json"]) == asked.metadata
    assert (options["--submission-id"], options["--address"]) == ("an-id", "http://h:8265")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "db_password", "AWS_ACCESS_KEY_ID"])
def test_a_secret_is_not_sent(name: str, experiment: Experiment) -> None:
    with pytest.raises(UserError, match="looks like a secret") as told:
        request_of(experiment, variables={name: "hunter2"})
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize("uri", ["s3://key:word@bucket/runs", "s3://bucket/runs?secret_key=word"])
def test_credentials_in_a_uri_are_refused(uri: str, videos: Manifest) -> None:
    with pytest.raises(UserError, match="runs: the URI carries credentials") as told:
        request_of(tiny_experiment(runs=uri, data={"manifest": "s3://b/m.parquet"}))
    assert "word@" not in str(told.value) and "=word" not in str(told.value)


def test_nothing_of_this_environment_is_sent(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    asked = request_of(experiment)
    assert "hunter2" not in repr(asked) + plain_command(asked, "id", "http://h:1")


def test_texts_of_options() -> None:
    assert parse_workers("4") == "4" and yaml.safe_load(parse_workers("2:8")) == {"min": 2, "max": 8}
    for text in ("0", "2-8", "a", "2:", ":8"):
        with pytest.raises(UserError, match="write a number"):
            parse_workers(text)
    assert parse_variables(["A=b=c", "D="]) == {"A": "b=c", "D": ""}
    with pytest.raises(UserError, match="--env A-B: write it as NAME=VALUE"):
        parse_variables(["A-B=c"])


def test_two_runs_of_one_name_are_sent_from_two_folders(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed command sends the folder again, so it must be that of its own run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = experiment.model_copy(update={"runs": str(tmp_path / "others")})
    folders = {_folder(one, verb) for one in (experiment, other) for verb in ("train", "evaluate")}
    assert len(folders) == 4
    assert _folder(experiment, "train") == _folder(experiment, "train")


def test_a_package_that_cannot_be_made_leaves_the_earlier_one(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(experiment, tmp_path / "wd")
    before = sorted(path for path in packed.folder.rglob("*"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        pack(experiment, tmp_path / "wd")
    assert sorted(path for path in packed.folder.rglob("*")) == before
    assert not list(tmp_path.glob(".wd*"))


# -- one job a run


def test_the_second_submission_comes_back_to_the_first(experiment: Experiment) -> None:
    client, asked = FakeClient(), request_of(experiment)
    first, new = submit_or_attach(client, asked)
    again, new_again = submit_or_attach(client, asked)
    assert (new, new_again) == (True, False) and first.id == again.id == asked.base and len(client.sent) == 1


def test_two_clients_at_once_are_one_job(experiment: Experiment) -> None:
    client, asked = FakeClient(), request_of(experiment)
    submit_or_attach(client, asked)
    client.hidden = True  # the other one listed the jobs before
    job, new = submit_or_attach(client, asked)
    assert not new and job.id == asked.base and len(client.sent) == 1


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_an_ended_job_is_gone_on_with_under_the_next_id(status: str, experiment: Experiment) -> None:
    client, asked = FakeClient(), request_of(experiment)
    for expected in (asked.base, f"{asked.base}.2", f"{asked.base}.3"):
        job, new = submit_or_attach(client, asked)
        assert new and job.id == expected
        client.finish(job.id, status, 1)


def test_an_id_in_use_for_something_else_is_refused(experiment: Experiment) -> None:
    client = FakeClient()
    submit_or_attach(client, request_of(experiment))
    changed = request_of(tiny_experiment(**experiment.model_dump(mode="json") | {"seed": 4}))
    with pytest.raises(
        UserError, match=r"is in use by a job of this run with other settings; stop that one \(vicc jobs"
    ):
        submit_or_attach(client, changed)


def test_jobs_are_found_by_the_runs_name() -> None:
    client = FakeClient()
    client.known = {"a": Job("a", "RUNNING", metadata={"name": "mine"}), "b": Job("b", "RUNNING", metadata={})}
    assert find_job(client, "mine").id == "a" and find_job(client, "b").id == "b"
    with pytest.raises(UserError, match="no job of this id or name; its newest: a, b"):
        find_job(client, "other")


# -- following


def followed(client: FakeClient, **job: Any) -> tuple[str, list[str], Job]:
    client.known["j"] = Job("j", **{"status": "RUNNING"} | job)
    written, told, pauses = [], [], []  # type: ignore[var-annotated]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if client.known["j"].status == "PENDING" and len(pauses) == 3:
            client.finish("j", "RUNNING", None)

    end = follow(client, "j", written.append, told.append, sleep)
    return "".join(written), told, end


def test_a_broken_connection_loses_and_repeats_nothing() -> None:
    log = "".join(f"line {number}\n" for number in range(20))
    written, told, end = followed(FakeClient(log, breaks=(10, 7, 40, 41)))
    assert written == log and end.status == "SUCCEEDED"
    assert told and all("the connection broke" in line for line in told)


def test_a_server_away_for_a_while_is_waited_for() -> None:
    client = FakeClient("done\n")
    client.unreachable = 3
    assert followed(client)[0] == "done\n"


def test_a_server_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()
    client.unreachable = 10**6
    with pytest.raises(UserError, match=r"has not answered for 1. minutes; the job may go on"):
        followed(client)
    assert 10**6 - client.unreachable < 60


def test_waiting_for_the_cluster_is_told_once() -> None:
    written, told, _ = followed(FakeClient("x"), status="PENDING", message="no node has room")
    assert told == ["j: no node has room"] and written == "x"


@pytest.mark.parametrize(
    ("end", "code", "status"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("STOPPED", None, 130), ("FAILED", None, 1)]
)
def test_exit_status_is_the_jobs(end: str, code: int | None, status: int) -> None:
    assert followed(FakeClient("", end=end, code=code))[2].exit_status() == status


def test_ctrl_c_leaves_the_job_and_says_how_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient()
    client.known["j"] = Job("j", "RUNNING")

    def interrupted(*_: Any) -> Job:
        raise KeyboardInterrupt

    monkeypatch.setattr("vicc_ray.commands.jobs.follow", interrupted)
    with pytest.raises(Interrupted, match=r"j goes on; return to it with: vicc jobs j --address http://h:1 --follow"):
        follow_job(client, "j", "http://h:1")
    assert client.known["j"].status == "RUNNING"


# -- addresses


def vicc(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "vicc"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


class OtherVersion(http.server.BaseHTTPRequestHandler):
    """A jobs server of an old Ray, or one that wants a token."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        told = {"version": "4", "ray_version": "2.9.0", "ray_commit": "x", "session_name": "s"}
        self.wfile.write(json.dumps(told).encode() if self.status == 200 else b"Unauthorized")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("status", "told"), [(200, "the cluster runs Ray 2.9.0, this is Ray"), (401, "requires its token")]
)
def test_servers_that_cannot_be_used(status: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from vicc_ray.submit.client import connect

    monkeypatch.setattr(OtherVersion, "status", status)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), OtherVersion) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match=told):
            connect(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_addresses_that_are_none() -> None:
    from vicc_ray.submit.client import connect

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(UserError, match=r"nothing answers there .*is the head running"):
        connect(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="write http://HOST:8265"):
        connect("127.0.0.1:6379")
    with pytest.raises(UserError, match=r"--verify missing\.pem: no such file"):
        connect(f"https://127.0.0.1:{port}", "missing.pem")


def test_a_mistake_is_one_line_and_status_2(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(experiment.model_dump(mode="json")))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    told = vicc("submit", str(tmp_path / "e.yaml"), "--address", "http://127.0.0.1:1", env=environment)
    assert told.returncode == 2 and told.stderr.strip().splitlines()[-1].startswith(
        "vicc: --address http://127.0.0.1:1"
    )


# -- a real jobs server


class JobsCluster(LocalCluster):
    """A head with its dashboard at a known port, and the interpreter of this test as `python`."""

    @property
    def jobs(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return super().environment | {"PATH": path}

    def start_head(self) -> Node:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.dashboard = probe.getsockname()[1]
        options = ["--head", f"--port={self.port}", "--num-cpus=2", f"--dashboard-port={self.dashboard}"]
        self.head = self._start([*options, "--include-dashboard=true", "--dashboard-host=127.0.0.1"])
        wait_for_port(self.dashboard)
        return self.head


def wait_for_port(port: int, host: str = "127.0.0.1", seconds: float = 90) -> None:
    """Ray says that it runs before its dashboard answers."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nothing at {host}:{port}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def jobs_cluster() -> Iterator[JobsCluster]:
    """A one-node cluster with its jobs server."""
    with tempfile.TemporaryDirectory(prefix="vj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = JobsCluster(Path(folder))
        try:
            cluster.start_head()
            yield cluster
        finally:
            cluster.stop()


@pytest.mark.cluster
def test_a_run_through_the_jobs_server(jobs_cluster: JobsCluster, tmp_path: Path) -> None:
    """Submit and follow; the client dies; submitting again comes back to the same job; the status is the job's; stop."""
    tiny_manifest(tmp_path / "data").write(tmp_path / "videos.parquet")
    tree = TINY | {"runs": str(tmp_path / "runs"), "data": {"manifest": str(tmp_path / "videos.parquet")}}
    tree["schedule"] = {**TINY["schedule"], "cross": {**TINY["schedule"]["cross"], "length": "60 steps"}}
    tree["train"] = TINY["train"] | {"checkpoint_every": "10 steps"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    environment = jobs_cluster.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    words = ["submit", str(tmp_path / "tiny.yaml"), "--address", jobs_cluster.jobs, "--follow"]
    program = str(Path(sys.executable).parent / "vicc")
    log = tmp_path / "client.log"
    with log.open("wb") as file:
        first = subprocess.Popen([program, *words], stdout=file, stderr=subprocess.STDOUT, env=environment)
    metrics = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and any(r["kind"] == "train" for r in read_records(metrics))):
        assert first.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    send(first.pid, signal.SIGKILL)
    first.wait()
    shown = log.read_text()
    assert "submitted; the same without vicc:" in shown and "ray job submit --address" in shown and "training" in shown

    again = vicc(*words, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "runs already" in again.stdout and "finished; encoders in" in again.stdout
    assert "succeeded, status 0" in again.stderr
    listed = json.loads(vicc("jobs", "--address", jobs_cluster.jobs, "--json", env=environment).stdout)["jobs"]
    assert [job["status"] for job in listed] == ["SUCCEEDED"] and listed[0]["id"].startswith("vicc-train-tiny-")
    assert listed[0]["metadata"]["run"] == str(tmp_path / "runs" / "tiny")
    starts = [event for event in read_records(tmp_path / "runs" / "tiny" / "events.jsonl") if event["kind"] == "start"]
    assert len(starts) == 1, "the second client started no second run"

    told = vicc("submit", str(tmp_path / "tiny.yaml"), *words[2:], "--set", "seed=4", env=environment)
    assert told.returncode == 2 and "holds a run of another experiment" in told.stdout


@pytest.mark.cluster
def test_a_job_is_stopped_by_name(jobs_cluster: JobsCluster, tmp_path: Path) -> None:
    from vicc_ray.submit.client import connect

    client = connect(jobs_cluster.jobs)
    assert client.submit("sleeper", "sleep 300", {"env_vars": {}}, {"name": "napping"})
    assert not client.submit("sleeper", "sleep 300", {"env_vars": {}}, {})
    told = vicc("jobs", "napping", "--address", jobs_cluster.jobs, "--stop", "--follow", env=jobs_cluster.environment)
    assert told.returncode == 130 and "stopped, status 130" in told.stderr, told.stdout + told.stderr
    told = vicc("jobs", "other", "--address", jobs_cluster.jobs, env=jobs_cluster.environment)
    assert told.returncode == 2 and "no job of this id or name" in told.stderr
