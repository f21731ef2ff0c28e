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

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from vicc_ray import distributed

# Makes the logits [V, N, S] of some of a worker's rows.
LogitsBlock: TypeAlias = Callable[[], Tensor]


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
    logits: Tensor | Sequence[LogitsBlock],
    counts: Sequence[int],
    iterations: int,
    *,
    maxima: Tensor | None = None,
    totals: Tensor | None = None,
) -> Tensor:
    """The f [V, S] of the head of this file for ``logits`` = scores / epsilon [V, N, S], or some of the N rows after others.

    Blocks are made anew for each of the ``iterations + 1`` passes over them, so that only one is in memory at a time.

    ``maxima`` and ``totals`` (any shape, dtype of ``logits``) travel for nothing with the first MAX and the first SUM
    and are replaced by their maximum and sum over the workers.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    blocks = [lambda: logits] if isinstance(logits, Tensor) else logits
    peak = _over(blocks, _peak, torch.maximum)
    no_message = peak.new_empty(0)
    distributed.all_reduce_max_(peak, no_message if maxima is None else maxima)
    total = _over(blocks, lambda block: (block - peak.unsqueeze(1)).exp().sum(dim=1), torch.add)
    distributed.all_reduce_sum_(total, no_message if totals is None else totals)
    potentials = -(peak + total.log())
    for _ in range(iterations - 1):
        shift = potentials.unsqueeze(1)
        use = _over(blocks, partial(_use, shift=shift, counts=counts), torch.add)
        distributed.all_reduce_sum_(use)
        potentials = potentials - use.log()
    return potentials


def _over(
    blocks: Sequence[LogitsBlock], part: Callable[[Tensor], Tensor], join: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """What the blocks' parts [V, S] come to together."""
    whole = part(blocks[0]())
    for block in blocks[1:]:
        whole = join(whole, part(block()))
    return whole


def _peak(block: Tensor) -> Tensor:
    views, rows, width = block.shape
    # A worker without rows must not decide anything: -inf in the maximum, 0 in the sum.
    return block.amax(dim=1) if rows else block.new_full((views, width), -torch.inf)


def _use(block: Tensor, shift: Tensor, counts: Sequence[int]) -> Tensor:
    return per_head_softmax(block + shift, counts).sum(dim=1)


def per_head_softmax(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Softmax over the last axis [..., S], for every head's K_h columns on their own."""
    return torch.cat([part.softmax(dim=-1) for part in torch.split(logits, list(counts), dim=-1)], dim=-1)


def per_head_log_softmax(logits: Tensor, counts: Sequence[int]) -> Tensor:
    """Logarithm of ``per_head_softmax`` [..., S], without its underflow."""
    return torch.cat([part.log_softmax(dim=-1) for part in torch.split(logits, list(counts), dim=-1)], dim=-1)
