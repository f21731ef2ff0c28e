"""Recorded steps of the published implementation, computed on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_device import GPU, needs_gpu

from vicc_ray.objective import Prototypes, SwappedPrediction, SwappedPredictionSettings

pytestmark = needs_gpu
PARITY = Path(__file__).parent.parent / "data" / "parity"


@pytest.mark.parametrize("case", ["single_w1", "cross_w1"])
def test_recorded_steps(case: str) -> None:
    record = np.load(PARITY / f"{case}.npz")
    meta = json.loads(str(record["meta"]))
    settings = SwappedPredictionSettings(
        temperature=meta["temperature"],
        epsilon=meta["epsilon"],
        iterations=meta["sinkhorn_iterations"],
        views_for_assignment=tuple(meta["views_for_assignment"]),
    )
    batch, dim, views = meta["batch"], meta["dim"], record["view_embeddings"]
    assert not meta["queue_size"]
    objective = SwappedPrediction(settings, views=len(views), dim=dim, global_batch=batch, stage=meta["stage"])
    prototypes = Prototypes(dim, [meta["num_prototypes"]]).to(GPU)
    with torch.no_grad():
        prototypes.weights[0].copy_(torch.from_numpy(record["prototypes"]))
    before_norm = [torch.from_numpy(view).to(GPU).requires_grad_() for view in views[:2]]
    z = [torch.nn.functional.normalize(learned, dim=-1) for learned in before_norm]
    z += [torch.from_numpy(view).to(GPU) for view in views[2:]]
    outcome = objective(z, prototypes, slots=torch.arange(batch), use_queue=True, step=0)
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    np.testing.assert_allclose(outcome.assignments.cpu(), record["assignments"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(float(outcome.loss.detach()), record["loss_per_rank"][0], rtol=1e-5)
    for view in range(2):
        expected, gradient = record[f"grad_view{view}"], before_norm[view].grad
        assert gradient is not None
        np.testing.assert_allclose(gradient.cpu(), expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
