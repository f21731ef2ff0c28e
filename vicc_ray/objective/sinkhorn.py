"""Sinkhorn-Knopp in the log domain over the rows of all workers.

Shapes: V views, N rows of this worker (any number, 0 too), K_h prototypes of head h, S = sum of K_h.

With L = scores / epsilon, the matrix exp(L_nk) is scaled by exp(f_k) per prototype and by a factor per sample. The
sample's factor is never needed: scaling a sample to a fixed sum is a softmax over its prototypes, up to a constant
that the next scaling of the prototypes and the last one of the samples both remove. What is left of an iteration is

    first:   f_k = -log sum_n exp(L_nk)                      (one MAX and one SUM between workers)
    others:  p_n = softmax_k(L_n + f),  f_k -= log sum_n p_nk  (one SUM)
    last:    q_n = softmax_k(L_n + f)

Why plain float32 sums are safe in the others: after any scaling of prototypes there are m_nk >= 0 with sum_n m_nk = 1
for every k, hence m_nk <= 1 and c_n = sum_k m_nk <= K. The samples' scaling gives p_nk = m_nk / c_n >= m_nk / K, so
1 / K <= sum_n p_nk <= N_global: neither the sum nor its logarithm can overflow or vanish, whatever epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vicc_ray import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, counts: Sequence[int], epsilon: float, iterations: int) -> Tensor:
    """Balanced assignments of this worker's rows, computed over the rows of all workers.

    ``iterations + 1`` messages of at most V * S numbers, whatever the number of workers, views, heads and rows.

    Args:
        scores: [V, N, S] cosines, heads side by side; N may differ between workers. float32, or float64 which stays.
        counts: K_h of every head, the same on every worker.
        epsilon: smoothness; the scores are divided by it.
        iterations: scalings of the prototypes, at least 1.

    Returns:
        [V, N, S]; the K_h numbers of every head are >= 0 and sum to 1.
    """
    logits = scores / epsilon
    return per_head_softmax(logits + prototype_potentials(logits, counts, iterations).unsqueeze(1), counts)


@torch.no_grad()
def prototype_potentials(
    logits: Tensor,
    counts: Sequence[int],
    iterations: int,
    *,
    maxima: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor:
    """The f [V, S] of the head of this file for ``logits`` = scores / epsilon [V, N, S].

    ``maxima`` and ``totals`` (any shape, dtype of ``logits``) travel for nothing with the first MAX and the first SUM
    and are replaced by their maximum and sum over the workers.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    no_message = logits.new_empty(0)
    views, rows, width = logits.shape
    # A worker without rows must not decide anything: -inf in the maximum, 0 in the sum.
    peak = logits.amax(dim=1) if rows else logits.new_full((views, width), -torch.inf)
    distributed.all_reduce_max_(peak, no_message if maxima is None else maxima)
    total = (logits - peak.unsqueeze(1)).exp().sum(dim=1)
    distributed.all_reduce_sum_(total, no_message if totals is None else totals)
    potentials = -(peak + total.log())
    for _ in range(iterations - 1):
        use = per_head_softmax(logits + potentials.unsqueeze(1), counts).sum(dim=1)
        distributed.all_reduce_sum_(use)
        potentials = potentials - use.log()
    return potentials


def per_head_softmax(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax over the last axis [..., S], for every head's K_h columns on their own."""
    return torch.cat([part.softmax(dim=-1) for part in torch.split(logits, list(counts), dim=-1)], dim=-1)


def per_head_log_softmax(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Logarithm of ``per_head_softmax`` [..., S], without its underflow."""
    return torch.cat([part.log_softmax(dim=-1) for part in torch.split(logits, list(counts), dim=-1)], dim=-1)
