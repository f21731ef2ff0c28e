"""Fast tests first; what needs Ray or a GPU comes last."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_manifest

from vicc_ray.data.manifest import Manifest

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable order: cluster tests after all others."""
    items.sort(key=lambda item: "cluster" in item.keywords)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The tiny data set, made and indexed once a session."""
    return tiny_manifest(tmp_path_factory.mktemp("tiny"))
