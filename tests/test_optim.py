"""LARS against a slow twin, one parameter and one number at a time."""

from __future__ import annotations

import pytest
import torch

from vicc_ray.config import OptimConfig
from vicc_ray.training.optim import LARS, make_optimiser


def _slow_lars(
    weights: list[torch.Tensor], grads: list[list[torch.Tensor]], lr: float, momentum: float, decay: float, trust: float
) -> list[torch.Tensor]:
    weights = [w.clone() for w in weights]
    buffers = [torch.zeros_like(w) for w in weights]
    for step in grads:
        for number, grad in enumerate(step):
            w = weights[number]
            w_norm, g_norm = float((w**2).sum()) ** 0.5, float((grad**2).sum()) ** 0.5
            update = grad.clone()
            if w_norm > 0 and g_norm > 0:
                update = trust * w_norm / (g_norm + decay * w_norm) * (grad + decay * w)
            buffers[number] = momentum * buffers[number] + update
            weights[number] = w - lr * buffers[number]
    return weights


@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_lars_equals_its_slow_twin(decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 4), (5,), (2, 3, 2))]
    start.append(torch.zeros(4, dtype=torch.float64))  # a bias at its start has no norm
    grads = [[torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in start] for _ in range(4)]
    grads[1][0] = torch.zeros_like(grads[1][0])
    params = [torch.nn.Parameter(w.clone()) for w in start]
    optimiser = LARS(params, lr=0.7, momentum=0.9, weight_decay=decay, trust=0.01)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimiser.step()
    for param, expected in zip(params, _slow_lars(start, grads, 0.7, 0.9, decay, 0.01), strict=True):
        torch.testing.assert_close(param.data, expected, rtol=1e-6, atol=1e-9)


def test_a_parameter_without_gradient_stays() -> None:
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))]
    params[0].grad = torch.ones(3)
    LARS(params, lr=0.1).step()
    assert not torch.equal(params[0], torch.ones(3))
    assert torch.equal(params[1], torch.ones(3))


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_state_continues_after_saving(name: str) -> None:
    def make() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        param = torch.nn.Parameter(torch.arange(1.0, 5.0))
        return param, make_optimiser([param], OptimConfig(name=name, lr=0.1))

    def run(param: torch.nn.Parameter, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            param.grad = torch.full((4,), float(step + 1))
            optimiser.step()

    whole, optimiser = make()
    run(whole, optimiser, range(4))
    first, optimiser = make()
    run(first, optimiser, range(2))
    second, restored = make()
    with torch.no_grad():
        second.copy_(first)
    restored.load_state_dict(optimiser.state_dict())
    run(second, restored, range(2, 4))
    torch.testing.assert_close(second, whole)
