"""The fork server: one process a node that has imported what workers import, and forks one for each request of a `launcher`.

It computes nothing, holds no connection and starts no thread, so that a fork of it is as a fresh process is. It ends with its
parent (the node's raylet, or the driver of a cluster of this machine alone).
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from vicc_ray.cluster.warm.imports import import_late, import_ray, refresh_settings, shares_random_numbers
from vicc_ray.cluster.warm.launcher import ACCEPTED, CONTEXT, REFUSED, context_of, fits, start_cold

# Settings that act when a library is loaded, so a worker that wants other ones is started in Ray's way.
_AT_IMPORT = (
    "PYTHONPATH",
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PYTHONHASHSEED",
)
WATCH_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    """A worker to be: Ray's arguments, environment, folder; niceness and the kernel's score as Ray set them."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    niceness: int
    oom_score: str = ""
    streams: Sequence[int] = ()

    @classmethod
    def here(cls, arguments: Sequence[str]) -> Request:
        """The start that this very process was made for."""
        return cls(arguments, dict(os.environ), os.getcwd(), os.nice(0))


def given_settings() -> dict[str, str | None]:
    """Those of this process' settings that act at imports; before any, as OpenCV's changes one of them."""
    return {name: os.environ.get(name) for name in _AT_IMPORT}


def serve(path: str, given: Mapping[str, str | None], first: Request | None = None) -> NoReturn:
    """Listen at `path` and fork until the parent is gone. Without a way to fork safely, `first` starts in Ray's way.

    `given`: `given_settings` before the imports, which a worker has to have too.
    """
    parent = os.getppid()
    # Python 3.12 warns of threads, here those of OpenBLAS and Arrow, which end and begin again in a fork by themselves.
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    listener.listen(128)  # requests wait here while the imports go on
    import_late()
    if shares_random_numbers():
        listener.close()
        os.unlink(path)
        if first is not None:
            start_cold(list(first.arguments))
        os._exit(1)
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page
    if first is not None:
        _fork(first, listener)
    while os.getppid() == parent:
        _reap()
        ready, _, _ = select.select([listener], [], [], WATCH_SECONDS)
        if ready:
            _answer(listener, given)
    os._exit(0)


def _answer(listener: socket.socket, given: Mapping[str, str | None]) -> None:
    connection, _ = listener.accept()
    with connection, suppress(OSError, ValueError, KeyError, TypeError):
        if _user(connection) != os.getuid():
            return
        wanted = _receive(connection)
        if given == {name: wanted.environment.get(name) for name in given} and _fits(wanted):
            _fork(wanted, listener, connection)
            connection.sendall(ACCEPTED)
        else:
            connection.sendall(REFUSED)
        for stream in wanted.streams:
            os.close(stream)


def _fits(wanted: Request) -> bool:
    arguments = list(wanted.arguments)
    variables: Any = context_of(arguments).get("env_vars", {})
    return fits(arguments) and not set(_AT_IMPORT) & set(variables)


def _user(connection: socket.socket) -> int:
    """The user of the process at the other end."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def _receive(connection: socket.socket) -> Request:
    size, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data[: len(data) - len(data) % streams.itemsize])
    body = b""
    while len(body) < int.from_bytes(size, "little"):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError("a request that was cut short")
        body += part
    return Request(**json.loads(body), streams=tuple(streams))


def _fork(wanted: Request, *inherited: socket.socket) -> None:
    if os.fork():
        return
    status = 1
    try:
        for one in inherited:
            one.close()
        _become(wanted)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()  # into the worker's own log
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _become(wanted: Request) -> None:
    """Be the worker that Ray wanted, in this fork."""
    # Ray ends a worker with its whole process group, so each has one of its own.
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(wanted.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.nice(wanted.niceness - os.nice(0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(wanted.oom_score)
    os.environ.clear()
    os.environ.update(wanted.environment)
    os.chdir(wanted.folder)
    arguments = list(wanted.arguments)
    variables: Any = context_of(arguments).get("env_vars")
    if variables:
        from ray._private.utils import update_envs

        update_envs(variables)
    refresh_settings()
    _set_threads()
    sys.argv = [argument for argument in arguments if not argument.startswith((CONTEXT, "--language="))]
    sys.path[0:1] = [os.path.dirname(sys.argv[0])]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _set_threads() -> None:
    """What OMP_NUM_THREADS says of a worker, which its libraries have read before it was said."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads):
        import torch

        torch.set_num_threads(int(threads))


def _reap() -> None:
    """Let ended workers go."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Let the kernel send this process a signal when its parent ends."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def detach(*kept: int) -> None:
    """Let go, in a fork, of what is its parent's: the terminal and its signals, and all files but the `kept` ones.

    A lock of the parent's would be held for as long as any process has the file open.
    """
    os.setsid()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    start = 3
    for number in sorted(kept):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, 65536)


if __name__ == "__main__":
    settings = given_settings()
    import_ray(os.getppid())
    serve(sys.argv[1], settings, Request.here(sys.argv[2:]) if len(sys.argv) > 2 else None)
