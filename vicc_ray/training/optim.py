"""Optimisers of the encoders: LARS as published, SGD and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from vicc_ray.config import OptimConfig


class LARS(Optimizer):
    """SGD with momentum whose gradient is scaled layer by layer (You, Gitman, Ginsburg 2017, without clipping).

    For a parameter w with gradient g:  g' = trust * |w| / (|g| + weight_decay * |w|) * (g + weight_decay * w), where the
    factor is 1 and the decay is left out if |w| or |g| is 0; then  m = momentum * m + g'  and  w = w - lr * m.
    All parameters are updated by multi-tensor operations.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update; a closure is not supported."""
        if closure is not None:
            raise ValueError("LARS.step takes no closure")
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in weights if p.grad is not None]
        momenta = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p)) for p in weights]
        weight_norms = torch.stack(torch._foreach_norm(weights))
        grad_norms = torch.stack(torch._foreach_norm(grads))
        decay = group["weight_decay"]
        scaled = (weight_norms > 0) & (grad_norms > 0)
        # 1e-8 keeps the ratio finite for a gradient that is almost nothing.
        ratio = group["trust"] * weight_norms / (grad_norms + decay * weight_norms + 1e-8)
        factors = list(torch.where(scaled, ratio, torch.ones_like(ratio)).unbind())
        decays = list(torch.where(scaled, ratio * decay, torch.zeros_like(ratio)).unbind())
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_addcmul_(momenta, grads, factors)
        if decay:
            torch._foreach_addcmul_(momenta, weights, decays)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])


def make_optimiser(params: Sequence[Tensor], settings: OptimConfig) -> Optimizer:
    """The optimiser named in the settings; its learning rate is set anew before every step.

    On a GPU torch's own optimisers run as one kernel; on a CPU as multi-tensor operations, whose rounding recorded runs have.
    """
    kernel: dict[str, Any] = {"fused": True} if params[0].is_cuda else {"foreach": True}
    if settings.name == "adamw":
        return AdamW(params, lr=settings.lr, weight_decay=settings.weight_decay, **kernel)
    if settings.name == "sgd":
        return SGD(params, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay, **kernel)
    return LARS(params, settings.lr, settings.momentum, settings.weight_decay, settings.trust)
