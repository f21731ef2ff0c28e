"""What a flow setting stands for, by content: caches and resumed runs compare this, not the names of files and stores."""

from __future__ import annotations

import json
from typing import Any

from vicc_ray.config import FlowConfig
from vicc_ray.data.flow.store import FlowStore
from vicc_ray.data.pictures import Interlaced


def flow_identity(flow: FlowConfig, interlaced: Interlaced = "weave") -> dict[str, Any]:
    """All that decides the numbers of an experiment's flow: algorithm, parameters, weights' hash, library, bound, source,
    and how the pictures that it compares are made.

    Of a store it is what the store says that it was made with, wherever it lies. UserError for a store or a file of weights
    that is not there.
    """
    if flow.source == "store" and flow.store is not None:
        store = FlowStore.open(flow.store)
        made = json.loads(store.fingerprint)
        return {**made, "bound": store.bound, "size": list(store.size), "source": "store"}
    from vicc_ray.data.flow.algorithms import fingerprint

    return {
        **json.loads(fingerprint(flow.algorithm, flow.weights, interlaced, flow.options)),
        "bound": flow.bound,
        "source": "stream",
    }
