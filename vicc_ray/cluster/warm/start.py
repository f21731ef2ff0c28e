"""Who runs a fork server: the driver of a cluster of this machine alone, as its own fork; on other clusters each node itself."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vicc_ray.cluster.warm.imports import import_ray, is_imported
from vicc_ray.cluster.warm.launcher import OFF, SERVER

LAUNCHER = Path(__file__).with_name("launcher.py")
_clean = False  # Ray was imported here in the way that allows a fork


def is_on() -> bool:
    """Whether workers may be forked; VICC_WARM_WORKERS=0 starts each of them in Ray's own way."""
    return os.environ.get(OFF) != "0" and sys.platform == "linux"


def prepare() -> None:
    """Import Ray in a driver so that it can be forked; before any other import of Ray, else it does nothing."""
    global _clean
    if is_on() and not is_imported():
        import_ray(os.getpid())
        _clean = True


@contextmanager
def server_here() -> Iterator[None]:
    """A fork server for a cluster that this process is about to start, whose workers find it through the environment."""
    if not is_on() or SERVER in os.environ:
        yield
        return
    folder = tempfile.mkdtemp(prefix="vicc-")  # of this user alone
    path = os.path.join(folder, "forks")
    process = _start(path)
    os.environ[SERVER] = path
    try:
        yield
    finally:
        del os.environ[SERVER]
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(process, 0)
        shutil.rmtree(folder, ignore_errors=True)


def _start(path: str) -> int:
    """The process number of a server: a fork of this process where Ray has not been at work in it, else a new process."""
    global _clean
    if not _clean:
        module = [sys.executable, "-m", "vicc_ray.cluster.warm.server", path]
        return subprocess.Popen(module, stdin=subprocess.DEVNULL, start_new_session=True, close_fds=True).pid
    _clean = False  # of what follows a fork may share nothing
    process = os.fork()
    if process:
        return process
    _serve_as_a_fork(path)
    return 0


def _serve_as_a_fork(path: str) -> None:
    try:
        os.setsid()  # Ctrl-C is for the driver
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.closerange(3, 65536)  # a lock of the driver's would be held by every fork
        from vicc_ray.cluster.warm.server import end_with_parent, serve

        end_with_parent()
        serve(path)
    finally:
        os._exit(1)


def interpreter_of_nodes() -> str:
    """The command of a runtime environment's `py_executable`: each node's own Python with the launcher, where that is there.

    Nodes may have neither this process' paths nor its package, so the command looks at the node: Ray names its Python in the
    raylet's command line, and the raylet is the parent of the shell that this runs in.
    """
    launcher = shlex.quote(str(LAUNCHER))
    python = "$(tr '\\0' '\\n' < /proc/$PPID/cmdline | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p')"
    return f"{python} $(test -f {launcher} && echo {launcher})"
