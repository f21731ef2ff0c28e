"""Fast tests first; what needs Ray or a GPU comes last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b

import pytest
import torch
from tiny import tiny_manifest

from vicc_ray.data.manifest import Manifest

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter then; it decides so when it is imported first.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable order: cluster tests after all others."""
    items.sort(key=lambda item: "cluster" in item.keywords)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The tiny data set, made and indexed once a session."""
    return tiny_manifest(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def _object_store() -> Iterator[str]:
    """The address of an S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(_object_store: str, request: pytest.FixtureRequest) -> str:
    """A fresh bucket of an S3 server in this process, as a URI."""
    import boto3

    name = "vicc-" + blake2b(request.node.nodeid.encode(), digest_size=8).hexdigest()
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
