"""What Ray executes to start a worker process: passes the start to the node's fork server, or does it in Ray's way.

Only the standard library, and no import of this package: it runs for every worker, before anything is warm. It takes the place of
Ray's `setup_worker.py` on a cluster of this machine alone, and of the interpreter (a runtime environment's `py_executable`) on
any other. The process group, niceness and streams are those that Ray gave to this process.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
import time
from hashlib import blake2b
from importlib.util import find_spec

SERVER = "VICC_FORK_SERVER"  # where the driver's server listens, on a cluster of this machine alone
OFF = "VICC_WARM_WORKERS"  # 0: every worker starts in Ray's way
CONTEXT = "--serialized-runtime-env-context="
ACCEPTED, REFUSED = b"y", b"n"
WAIT_SECONDS = 60.0  # for a server that another process of this node is starting


def main(arguments: list[str]) -> None:
    """Start the worker that Ray's `arguments` describe: default_worker.py and its options."""
    if os.environ.get(OFF) != "0" and fits(arguments):
        path = os.environ.get(SERVER)
        if path:
            if pass_on(path, arguments, WAIT_SECONDS):
                return
        elif pass_to_the_node(arguments):
            return
    start_cold(arguments)


def fits(arguments: list[str]) -> bool:
    """Whether the worker is to run this interpreter, in no container and under no other command."""
    context = context_of(arguments)
    return "--language=JAVA" not in arguments and not (
        context.get("command_prefix")
        or context.get("override_worker_entrypoint")
        or context.get("py_executable", sys.executable) != sys.executable
    )


def context_of(arguments: list[str]) -> dict[str, object]:
    """The runtime environment that Ray sends along; empty without one."""
    found = [argument[len(CONTEXT) :] for argument in arguments if argument.startswith(CONTEXT)]
    return dict(json.loads(found[0])) if found else {}


def pass_to_the_node(arguments: list[str]) -> bool:  # noqa: RET503
    """Hand the start to this node's server, or become it; False where neither can be."""
    path = node_path(arguments)
    if path is None or find_spec("vicc_ray") is None or find_spec("fcntl") is None:
        return False
    import fcntl

    if pass_on(path, arguments, 0.0):
        return True
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process of this node is starting it
        return pass_on(path, arguments, WAIT_SECONDS)
    os.set_inheritable(lock, True)  # held as long as the server lives
    os.execv(sys.executable, [sys.executable, "-m", "vicc_ray.cluster.warm.server", path, *arguments])


def node_path(arguments: list[str]) -> str | None:
    """Where the server of this node and these paths of modules listens: beside the node's own sockets, which are its user's."""
    sockets = [os.path.dirname(a.split("=", 1)[1]) for a in arguments if a.startswith("--raylet-name=")]
    if not sockets:
        return None
    parts = (os.environ.get("RAY_RAYLET_PID", ""), sys.executable, os.environ.get("PYTHONPATH", ""), os.getcwd())
    return os.path.join(sockets[0], "f" + blake2b("\n".join(parts).encode(), digest_size=4).hexdigest())


def pass_on(path: str, arguments: list[str], seconds: float) -> bool:
    """Whether the server at `path` took the start; waits so long for one to listen."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
                server.connect(path)
                return request(server, arguments)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def request(server: socket.socket, arguments: list[str]) -> bool:
    """Send this process' part: arguments, environment, folder, niceness and the three standard streams."""
    message = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.nice(0),
        "oom_score": _oom_score(),
    }
    body = json.dumps(message).encode()
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([len(body).to_bytes(4, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams.tobytes())])
    server.sendall(body)
    return server.recv(1) == ACCEPTED


def _oom_score() -> str:
    try:
        with open("/proc/self/oom_score_adj") as file:
            return file.read()
    except OSError:
        return ""


def start_cold(arguments: list[str]) -> None:
    """Become the worker in Ray's way."""
    if any(argument.startswith(("--language=", CONTEXT)) for argument in arguments):
        arguments = [os.path.join(os.path.dirname(arguments[0]), "setup_worker.py"), *arguments]
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
