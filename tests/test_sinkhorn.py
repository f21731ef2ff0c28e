"""Sinkhorn-Knopp against a slow twin, and its promises over the whole range of sizes and epsilons."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vicc_ray.objective.sinkhorn import prototype_potentials, sinkhorn


def twin(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The algorithm as it is told, one view and head [N, K], in float64 and without logarithms."""
    m = torch.exp((scores.double() - scores.double().max()) / epsilon)
    rows, prototypes = m.shape
    m = m / m.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            m[:, k] = m[:, k] / m[:, k].sum() / prototypes
        for n in range(rows):
            m[n] = m[n] / m[n].sum() / rows
    return m / m.sum(dim=1, keepdim=True)


def draw_scores(kind: str, rows: int, prototypes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return torch.rand(rows, prototypes, generator=generator) * 2 - 1
    if kind == "equal rows":  # every sample scores alike
        return (torch.rand(1, prototypes, generator=generator) * 2 - 1).repeat(rows, 1)
    if kind == "equal values":  # a score row of all equal values
        return (torch.rand(rows, 1, generator=generator) * 2 - 1).repeat(1, prototypes)
    if kind == "one-hot":
        hit = torch.randint(prototypes, (rows,), generator=generator)
        return torch.nn.functional.one_hot(hit, prototypes).float()
    assert kind == "signed one-hot"
    hit = torch.randint(prototypes, (rows,), generator=generator)
    return torch.nn.functional.one_hot(hit, prototypes).float() * 2 - 1


KINDS = ["random", "equal rows", "equal values", "one-hot", "signed one-hot"]
EPSILONS = [0.005, 0.01, 0.05, 0.2, 1.0]


def promises(scores: Tensor, epsilon: float, iterations: int = 3) -> None:
    q = sinkhorn(scores.unsqueeze(0), [scores.shape[1]], epsilon, iterations)[0]
    assert q.dtype == torch.float32 and q.shape == scores.shape
    assert torch.isfinite(q).all() and (q >= 0).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(len(q)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_equals_the_slow_twin(kind: str, epsilon: float) -> None:
    scores = draw_scores(kind, 23, 7, seed=1)
    expected = twin(scores, epsilon, 3)
    in_double = sinkhorn(scores.double().unsqueeze(0), [7], epsilon, 3)[0]
    torch.testing.assert_close(in_double, expected, rtol=1e-9, atol=1e-12)
    # float32 keeps scores / epsilon to 2^-24 of their size: that is what the assignment can be known to.
    in_single = sinkhorn(scores.unsqueeze(0), [7], epsilon, 3)[0]
    torch.testing.assert_close(in_single.double(), expected, rtol=3e-7 / epsilon + 2e-6, atol=1e-6)


def test_views_and_heads_do_not_touch_each_other() -> None:
    scores = torch.stack([draw_scores("random", 12, 16, seed) for seed in range(3)])
    together = sinkhorn(scores, [5, 11], 0.05, 3)
    for view in range(3):
        for columns in (slice(0, 5), slice(5, 16)):
            expected = twin(scores[view, :, columns], 0.05, 3)
            torch.testing.assert_close(together[view, :, columns].double(), expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 4096),
    st.integers(2, 3000),
    st.floats(0.005, 1.0),
    st.integers(1, 10),
    st.integers(0, 2**32),
)
def test_finite_and_rows_sum_to_one(
    kind: str, rows: int, prototypes: int, epsilon: float, iterations: int, seed: int
) -> None:
    rows = min(rows, max(1, 100_000 // prototypes))  # keep the many draws small; the largest stand below
    promises(draw_scores(kind, rows, prototypes, seed), epsilon, iterations)


@pytest.mark.parametrize(
    ("kind", "rows", "prototypes", "epsilon"),
    [
        ("random", 4096, 3000, 0.005),
        ("one-hot", 4096, 3000, 0.005),
        ("signed one-hot", 4096, 2, 0.005),
        ("equal rows", 1, 3000, 0.005),
        ("equal values", 4096, 300, 1.0),
    ],
)
def test_largest_sizes(kind: str, rows: int, prototypes: int, epsilon: float) -> None:
    promises(draw_scores(kind, rows, prototypes, seed=0), epsilon)


def test_potentials_are_bounded_as_proved() -> None:
    """1 / K <= use <= N, also where one prototype takes almost everything (float32, smallest epsilon)."""
    for kind in KINDS:
        logits = draw_scores(kind, 50, 40, seed=3).unsqueeze(0) / 0.005
        before = prototype_potentials(logits, [40], 1)
        for iterations in range(2, 8):
            after = prototype_potentials(logits, [40], iterations)
            use = (before - after).double().exp()
            slack = 1e-3  # potentials near 200 are kept to 1.5e-5
            assert (use >= (1 - slack) / 40).all() and (use <= 50 * (1 + slack)).all()
            before = after


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 64), st.integers(2, 48), st.floats(0.05, 1.0), st.integers(0, 2**32))
def test_prototypes_are_used_equally_after_many_iterations(
    kind: str, rows: int, prototypes: int, epsilon: float, seed: int
) -> None:
    scores = draw_scores(kind, rows, prototypes, seed)
    q = sinkhorn(scores.unsqueeze(0), [prototypes], epsilon, 800)[0]
    torch.testing.assert_close(q.sum(dim=0), torch.full((prototypes,), rows / prototypes), rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_use_becomes_equal_at_the_smallest_epsilon_too(kind: str) -> None:
    scores = draw_scores(kind, 96, 24, seed=5).unsqueeze(0)
    unequal = [
        float((sinkhorn(scores, [24], 0.005, iterations)[0].sum(dim=0) / 4 - 1).abs().max())
        for iterations in (3, 100, 1000)
    ]
    assert unequal[2] <= unequal[1] + 1e-4 <= unequal[0] + 2e-4
    assert unequal[2] < 0.02, unequal


def test_no_rows_at_all() -> None:
    assert sinkhorn(torch.empty(2, 0, 7), [7], 0.05, 3).shape == (2, 0, 7)


def test_no_iteration_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sinkhorn(torch.zeros(1, 2, 2), [2], 0.05, 0)
