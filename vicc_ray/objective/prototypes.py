"""Prototypes: the unit vectors that embeddings are compared with.

Shapes: N rows, D embedding width, K_h prototypes of head h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Prototypes(nn.Module):
    """One bias-free [K_h, D] weight per head, rows of length 1; parameters ``weights.0``, ``weights.1``, ...

    Args:
        dim: D.
        counts: K_h of every head; the usual is one head.
        generator: source of the first directions (uniform on the sphere). None draws with seed 0, which is right
            when the weights are about to be loaded.
    """

    def __init__(self, dim: int, counts: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        if dim < 1 or not counts or min(counts) < 2:
            raise ValueError(f"prototypes need dim >= 1 and at least 2 in every head, got dim={dim}, counts={counts}")
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        self.dim = dim
        self.counts = tuple(counts)
        draws = [torch.randn(count, dim, generator=source, device=source.device).cpu() for count in counts]
        self.weights = nn.ParameterList([nn.Parameter(draw) for draw in draws])
        self.normalise_()

    @torch.no_grad()
    def normalise_(self) -> None:
        """Scale every prototype to length 1, in place and outside the graph; call before every forward."""
        for weight in self.weights:
            weight.div_(torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(1e-12))

    def forward(self, z: Tensor) -> list[Tensor]:
        """Scores of embeddings ``z`` [N, D] with the prototypes of every head: a list of [N, K_h].

        float32 whatever autocast says (float64 where an input is), because epsilon divides the scores by 0.05 and
        less: half precision is known to cost accuracy here.
        """
        with torch.autocast(z.device.type, enabled=False):
            return [self._scores(z, weight) for weight in self.weights]

    @staticmethod
    def _scores(z: Tensor, weight: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(z.dtype, weight.dtype), torch.float32)
        return z.to(dtype) @ weight.to(dtype).T
