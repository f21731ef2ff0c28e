"""Activation checkpointing: a backbone keeps the maps between its parts only and computes the rest again in backward.

One more forward a step, for a fraction of the memory. Exact, batch norm's running statistics included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputing(parts: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    """The composition of a backbone's parts, [B, C, T, H, W] -> maps, that keeps no maps inside a part for backward."""

    def forward(x: Tensor) -> Tensor:
        for part in parts:
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, part))
        return x

    return forward


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward, and around its repetition in backward."""
    return nullcontext(), _statistics_kept(part)


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Batch norm normalises by its batch as before, and its running statistics do not learn from it a second time."""
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
