"""Prototypes: the unit vectors that embeddings are compared with.

Shapes: N rows, D embedding width, K_h prototypes of head h.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SPREADING = 500  # steps of the search for an even spread


class Prototypes(nn.Module):
    """One bias-free [K_h, D] weight per head, rows of length 1; parameters ``weights.0``, ``weights.1``, ...

    Args:
        dim: D.
        counts: K_h of every head; the usual is one head.
        generator: source of the first directions (uniform on the sphere). None draws with seed 0, which is right
            when the weights are about to be loaded.
        even: they are spread evenly over the sphere (`evenly_spread`) and take no gradient.
    """

    def __init__(
        self, dim: int, counts: Sequence[int], generator: torch.Generator | None = None, even: bool = False
    ) -> None:
        super().__init__()
        if dim < 1 or not counts or min(counts) < 2:
            raise ValueError(f"prototypes need dim >= 1 and at least 2 in every head, got dim={dim}, counts={counts}")
        source = generator if generator is not None else torch.Generator().manual_seed(0)
        self.dim = dim
        self.counts = tuple(counts)
        if even:
            draws = [evenly_spread(count, dim, source) for count in counts]
        else:
            draws = [torch.randn(count, dim, generator=source, device=source.device).cpu() for count in counts]
        self.weights = nn.ParameterList([nn.Parameter(draw, requires_grad=not even) for draw in draws])
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


def evenly_spread(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Unit vectors [count, dim] whose nearest ones are as far apart as can be found, turned at random; the same for one seed.

    Up to dim + 1 of them are the corners of a regular simplex (every cosine -1 / (count - 1)), up to 2 dim those of a
    cross-polytope (no cosine above 0), which are the best there are (Rankin, 1955). More are found by descent on the mean over
    vectors of their largest cosine to another one (Mettes, van der Pol and Snoek, "Hyperspherical Prototype Networks", NeurIPS
    2019), smoothed by a log-sum-exp that sharpens on the way. Takes memory and time of count^2.
    """
    # float64: what rounding leaves apart on different processors is far below what float32 shows.
    draw = torch.randn(max(count, dim), dim, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    turn, _ = torch.linalg.qr(draw[:dim])
    if count <= dim + 1:
        # Rows of the centred identity lie in count - 1 dimensions; an orthonormal basis of them gives the coordinates.
        centred = torch.eye(count, dtype=torch.float64) - 1 / count
        basis = torch.linalg.svd(centred)[2][: count - 1]
        found = centred @ basis.T @ turn[: count - 1]
    elif count <= 2 * dim:
        found = torch.cat([turn, -turn])[:count]
    else:
        found = _parted(_descended(draw[:count]))
    return torch.nn.functional.normalize(found, dim=1).float()


def _descended(points: Tensor, first: float = 0.0) -> Tensor:
    """Points [K, D] pushed apart on the sphere, ever more by their nearest ones alone. `first`: the share of the way left out."""
    points = torch.nn.functional.normalize(points, dim=1)
    for step, sharpness in enumerate(torch.logspace(0, 2, SPREADING, dtype=torch.float64)):
        done = step / SPREADING
        if done < first:
            continue
        cosines = points @ points.T
        cosines.fill_diagonal_(-torch.inf)
        # The gradient of mean_i log sum_j exp(t c_ij) / t; both points of a pair move, the less the sharper it is.
        pull = torch.softmax(sharpness * cosines, dim=1)
        reach = (0.5 + 6 * done * (1 - done)) / sharpness
        points = torch.nn.functional.normalize(points - reach * (pull + pull.T) @ points, dim=1)
    return points


def _parted(points: Tensor) -> Tensor:
    """Points [K, D] none of which lies on another: two that the descent has pushed together, as it does on a circle, push each
    other nowhere. Such points go where most room is, one after another, and all are pushed apart again."""
    places = torch.randn(4096, points.shape[1], generator=torch.Generator().manual_seed(0), dtype=points.dtype)
    places = torch.nn.functional.normalize(places, dim=1)
    for _ in range(4):
        moved = False
        for _ in range(len(points)):
            apart = torch.acos((points @ points.T).fill_diagonal_(-1).amax(dim=1).clamp(-1, 1))
            closest = int(apart.argmin())
            if apart[closest] > 0.3 * apart.max():
                break
            points[closest] = places[(places @ points.T).amax(dim=1).argmin()]
            moved = True
        if not moved:
            break
        points = _descended(points, 0.75)
    return points
