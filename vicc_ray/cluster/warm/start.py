"""What a driver starts ahead: a fork server and the head of a cluster of this machine alone; on other clusters nodes do it.

`begin_head`, first thing in a command, forks the head's process before anything is imported; `import_forkable` imports Ray in the
way that allows a fork, and `cluster_here` forks the server from that and joins the two. Without them (in a test, a notebook) Ray
is started in this process and the server is a new one, which is slower and otherwise the same.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicc_ray import storage
from vicc_ray.cluster.warm.head import Head, start_head
from vicc_ray.cluster.warm.imports import import_ray, is_imported
from vicc_ray.cluster.warm.launcher import OFF, SERVER
from vicc_ray.cluster.warm.server import detach, end_with_parent, given_settings, serve

LAUNCHER = Path(__file__).with_name("launcher.py")
# Settings of Ray that every process of a session sees.
ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints would come twice
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# The same for a cluster that is this machine alone.
HERE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody gives notice here; it takes seconds of a core to start
    "RAY_prestart_worker_first_driver": "0",  # workers of no use, which a driver that joins would wait for
    "RAY_enable_worker_prestart": "0",
    "RAY_enable_metrics_collection": "0",  # nobody collects them here
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


@dataclass
class _Ahead:
    """What `begin_head` has begun."""

    folder: str
    head: Head | None
    given: Mapping[str, str | None]
    clean: bool = False  # Ray was imported in the way that allows a fork

    def end(self) -> None:
        """Of a command that ended before it came to use it."""
        os.environ.pop(SERVER, None)
        if self.head is not None:
            self.head.end()
        shutil.rmtree(self.folder, ignore_errors=True)


_ahead: _Ahead | None = None


def is_on() -> bool:
    """Whether workers may be forked; VICC_WARM_WORKERS=0 starts each of them in Ray's own way."""
    return os.environ.get(OFF) != "0" and sys.platform == "linux"


def init_settings(cpus: int, object_store: int, verbose: bool, dashboard: bool) -> dict[str, Any]:
    """Arguments of `ray.init` for a cluster of this machine alone, of that many logical CPUs and bytes of object store."""
    return {
        "address": "local",
        "num_cpus": cpus,
        "object_store_memory": object_store,
        "log_to_driver": verbose,
        "logging_level": "INFO" if verbose else "WARNING",
        # Where trials are stopped, Ray Train learns from it which placement groups are nobody's any more.
        "include_dashboard": dashboard,
        "dashboard_port": 0,
    }


def begin_head(settings: Mapping[str, Any]) -> None:
    """Begin to start a cluster of this machine alone, with `init_settings`; before any import of Ray, else it does nothing."""
    global _ahead
    if not is_on() or is_imported() or _ahead is not None:
        return
    folder = tempfile.mkdtemp(prefix="vicc-")  # of this user alone
    os.environ[SERVER] = os.path.join(folder, "forks")
    added = _set_environment()
    head = start_head(settings, not settings["log_to_driver"], LAUNCHER)
    for name in added:
        del os.environ[name]
    _ahead = _Ahead(folder, head, given_settings())
    atexit.register(_end_ahead)


def import_forkable() -> None:
    """Import Ray so that this process can be forked later; where it is imported already, it is as it is."""
    if is_imported() or _ahead is None:
        return
    import_ray(os.getpid())
    _ahead.clean = True


def _end_ahead() -> None:
    if _ahead is not None:  # forks end without this: they leave by `os._exit`
        _ahead.end()


@contextmanager
def cluster_here(settings: Mapping[str, Any]) -> Iterator[Head | None]:
    """The environment of a cluster of this machine alone, with a fork server where workers may be forked.

    Yields its head where `begin_head` began one with the same settings; else the caller starts Ray.
    """
    added = _set_environment()
    try:
        with _fork_server() as ahead:
            head = ahead.head if ahead else None
            fits = head is not None and dict(head.settings) == dict(settings)
            yield head if fits else None
    finally:
        for name in added:
            del os.environ[name]


@contextmanager
def _fork_server() -> Iterator[_Ahead | None]:
    global _ahead
    ahead, _ahead = _ahead, None
    if not is_on() or (SERVER in os.environ and ahead is None):
        yield None
        return
    ahead = ahead or _Ahead(tempfile.mkdtemp(prefix="vicc-"), None, {})
    path = os.environ[SERVER] = os.path.join(ahead.folder, "forks")
    process = _start_fork(path, ahead.given) if ahead.clean and not storage.remote_in_use() else _start_process(path)
    try:
        yield ahead
    finally:
        ahead.end()
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process, 0)


def _start_process(path: str) -> int:
    module = [sys.executable, "-m", "vicc_ray.cluster.warm.server", path]
    return subprocess.Popen(module, stdin=subprocess.DEVNULL, start_new_session=True).pid


def _start_fork(path: str, given: Mapping[str, str | None]) -> int:
    process = os.fork()
    if process:
        return process
    try:
        detach()
        end_with_parent()
        serve(path, given)
    finally:
        os._exit(1)


def _set_environment() -> list[str]:
    """Set what Ray's processes are to see; returns the names that are to be removed with the cluster."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    added = [name for name in HERE if name not in os.environ]
    os.environ.update({name: HERE[name] for name in added})
    return added


def interpreter_of_nodes() -> str:
    """The command of a runtime environment's `py_executable`: each node's own Python with the launcher, where that is there.

    Nodes may have neither this process' paths nor its package, so the command looks at the node: Ray names its Python in the
    raylet's command line, and the raylet is the parent of the shell that this runs in.
    """
    launcher = shlex.quote(str(LAUNCHER))
    python = "$(tr '\\0' '\\n' < /proc/$PPID/cmdline | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p')"
    return f"{python} $(test -f {launcher} && echo {launcher})"
