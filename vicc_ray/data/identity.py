"""What the settings of clips and flow stand for, by content: caches and resumed runs compare this, not the names of files."""

from __future__ import annotations

import json
from typing import Any

from vicc_ray.config import Experiment
from vicc_ray.data.store.checking import store_of
from vicc_ray.data.store.store import PackedStore


def flow_identity(experiment: Experiment) -> dict[str, Any]:
    """All that decides the numbers of an experiment's flow: algorithm, parameters, weights' hash, library, bound, source,
    and how the pictures that it compares are made.

    Of a store it is what the store says that it was made with, wherever it lies. UserError for a store or a file of weights
    that is not there.
    """
    flow = experiment.flow
    where = store_of(experiment, "flow")
    if where is not None:
        header = PackedStore.open(where).header
        return {**(header.flow or {}), "bound": header.bound, "size": list(header.size), "source": "store"}
    from vicc_ray.data.flow.algorithms import fingerprint

    return {
        **json.loads(fingerprint(flow.algorithm, flow.weights, experiment.data.interlaced, flow.options)),
        "bound": flow.pixels,
        "source": "stream",
    }


def pictures_identity(experiment: Experiment) -> dict[str, Any] | None:
    """How the pictures of an experiment's packed store are coded; None where they come from the videos themselves."""
    where = store_of(experiment, "rgb")
    if where is None:
        return None
    return {"encoder": dict((PackedStore.open(where).header.pictures or {}).get("encoder", {}))}
