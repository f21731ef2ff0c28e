"""Fork servers without Ray's part: a worker that is forked is as one that Ray starts, and never shares what must be its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vicc_ray.cluster.warm import launcher, start
from vicc_ray.cluster.warm.head import Head

# In the place of Ray's default_worker.py: says what it is, and waits for its end where it is told to.
WORKER = """
import json, os, sys, time
if __name__ == "__main__":
    from unittest.mock import Mock
    from ray import ObjectID
    from ray.util import serialization_addons
    known = set(sys.modules)
    serialization_addons.apply(Mock())  # as a process does that first gives or takes an object of Ray's
    late = sorted(set(sys.modules) - known)
    about = {
        "late": late,
        "arguments": sys.argv[1:], "folder": os.getcwd(), "process": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0),
        "niceness": os.nice(0), "path": sys.path[0], "imported": "torch" in sys.modules, "random": ObjectID.from_random().hex(),
        "environment": {name: os.environ.get(name) for name in ("VICC_TEST", "PARENT_ONLY")},
    }
    print(json.dumps(about), flush=True)
    if "--fail" in sys.argv:
        raise ValueError("a worker that fails")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fork server as a node starts it, with what it imports."""
    path = str(tmp_path_factory.mktemp("fork") / "server")
    environment = {**os.environ, "PARENT_ONLY": "yes"}
    process = subprocess.Popen([sys.executable, "-m", "vicc_ray.cluster.warm.server", path], env=environment)
    yield path
    process.kill()
    process.wait()


def _launch(server: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Start a worker as Ray does: the launcher with the worker's script and its options."""
    script = folder / "default_worker.py"
    script.write_text(WORKER)
    given = {name: value for name, value in os.environ.items() if name not in ("PARENT_ONLY", launcher.OFF)}
    given |= {launcher.SERVER: server} if server else {}
    command = [sys.executable, launcher.__file__, str(script), *arguments]
    # Files, as a pipe would be held open by the worker.
    out, err = folder / "out", folder / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        done = subprocess.run(command, env=given | environment, cwd=folder, stdout=stdout, stderr=stderr, timeout=120)
    deadline = time.monotonic() + 30
    while not out.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    return subprocess.CompletedProcess(command, done.returncode, out.read_text(), err.read_text())


def _about(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_forked_worker_is_as_one_that_was_started(server: str, tmp_path: Path) -> None:
    about = _about(_launch(server, tmp_path, "--node-id=1", "--language=PYTHON", VICC_TEST="mine"))
    assert about["imported"], "it was not forked"
    assert about["arguments"] == ["--node-id=1"]
    assert about["folder"] == str(tmp_path)
    assert about["path"] == str(tmp_path)
    assert about["group"] == about["process"], "Ray would end it together with others"
    assert about["environment"] == {"VICC_TEST": "mine", "PARENT_ONLY": None}
    assert about["niceness"] == os.nice(0)
    assert about["late"] == [], "each fork would have these in memory of its own"


def test_variables_of_a_runtime_environment_are_set(server: str, tmp_path: Path) -> None:
    context = json.dumps({"env_vars": {"VICC_TEST": "from ray"}, "py_executable": sys.executable})
    about = _about(_launch(server, tmp_path, launcher.CONTEXT + context))
    assert about["imported"]
    assert about["environment"]["VICC_TEST"] == "from ray"


def test_forks_draw_random_identities_of_their_own(server: str, tmp_path: Path) -> None:
    """Ray's would be the same ones: two workers would then write one object."""
    drawn = [_about(_launch(server, tmp_path))["random"] for _ in range(8)]
    assert len(set(drawn)) == 8


def test_a_worker_that_fails_says_so_in_its_own_log(server: str, tmp_path: Path) -> None:
    done = _launch(server, tmp_path, "--fail")
    deadline = time.monotonic() + 10
    while "ValueError" not in (tmp_path / "err").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert done.returncode == 0  # of the launcher; Ray watches the worker itself
    assert "a worker that fails" in (tmp_path / "err").read_text()


@pytest.mark.parametrize(
    "wanted",
    [{"PYTHONPATH": "/elsewhere"}, {"OPENBLAS_NUM_THREADS": "1"}, {launcher.OFF: "0"}],
    ids=lambda w: next(iter(w)),
)
def test_what_acts_at_imports_is_started_anew(server: str, tmp_path: Path, wanted: dict[str, str]) -> None:
    about = _about(_launch(server, tmp_path, **wanted))
    assert not about["imported"]
    assert about["arguments"] == []


def test_another_interpreter_or_command_is_ray_s_to_start() -> None:
    assert launcher.fits(["worker.py", "--language=PYTHON"])
    assert not launcher.fits(["worker.py", "--language=JAVA"])
    for context in (
        {"py_executable": "/other/python"},
        {"command_prefix": ["cd", "/x", "&&"]},
        {"override_worker_entrypoint": "w.py"},
    ):
        assert not launcher.fits(["worker.py", launcher.CONTEXT + json.dumps(context)])


def test_without_a_server_a_worker_starts_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = _about(_launch("", tmp_path))  # no server, and no node to have one on
    assert not about["imported"]


def test_a_node_s_server_lies_beside_its_own_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["worker.py", f"--raylet-name={tmp_path / 'raylet'}"]
    path = launcher.node_path(arguments)
    assert path is not None
    assert path.startswith(f"{tmp_path}/f")
    monkeypatch.setenv("PYTHONPATH", "/another/package")  # a job with another version of the package
    assert launcher.node_path(arguments) != path
    assert launcher.node_path(["worker.py"]) is None


def test_the_command_of_nodes_needs_no_path_that_they_may_not_have(tmp_path: Path) -> None:
    """Run by a shell whose parent names a Python as a raylet does, with the launcher and without it."""
    raylet = "import subprocess, sys; subprocess.run(['bash', '-c', sys.argv[1]])"
    for there in (True, False):
        command = start.interpreter_of_nodes()
        if not there:
            command = command.replace(str(start.LAUNCHER), "/nowhere/launcher.py")
        line = f"echo {command} worker.py"
        named = f"--python_worker_command={sys.executable} /ray/setup_worker.py --more"
        done = subprocess.run([sys.executable, "-c", raylet, line, named], capture_output=True, text=True, check=True)
        expected = [sys.executable, *([str(start.LAUNCHER)] if there else []), "worker.py"]
        assert done.stdout.split() == expected


def test_a_head_that_did_not_start_says_why() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as pipe:
        pipe.write(json.dumps({"error": "no room in the object store"}))
    with pytest.raises(RuntimeError, match="no room in the object store"):
        Head(0, ours, {}).address()
    ours, theirs = os.pipe()
    os.close(theirs)  # it was killed
    with pytest.raises(RuntimeError, match="its process ended"):
        Head(0, ours, {}).address()


def test_what_was_begun_ahead_is_not_begun_twice_nor_where_ray_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here Ray is imported already, so nothing is forked from this process."""
    import ray  # noqa: F401

    start.begin_head(start.init_settings(2, 10**8, verbose=False, dashboard=False))
    assert start._ahead is None
    assert launcher.SERVER not in os.environ


@pytest.mark.parametrize("remote", [False, True])
def test_a_driver_with_an_object_store_s_threads_is_not_forked(
    remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow's S3 client waits for ever in a fork, where the threads that answer it are missing."""
    made: list[str] = []

    def note(how: str, *_: Any) -> int:
        made.append(how)
        return subprocess.Popen(["sleep", "60"]).pid

    monkeypatch.setattr(start, "_ahead", start._Ahead(str(tmp_path / "ahead"), None, {}, clean=True))
    monkeypatch.setattr(start, "_start_fork", lambda *given: note("fork"))
    monkeypatch.setattr(start, "_start_process", lambda *given: note("process"))
    monkeypatch.setattr("vicc_ray.storage.remote_in_use", lambda: remote)
    with start.cluster_here(start.init_settings(2, 10**8, verbose=False, dashboard=False)) as head:
        assert head is None
    assert made == ["process" if remote else "fork"]
    assert launcher.SERVER not in os.environ
    assert start._ahead is None
