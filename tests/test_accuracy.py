"""Accuracy, confusion and weights of two streams, each against a slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vicc_ray.errors import UserError
from vicc_ray.metrics.accuracy import accuracy, check_probabilities, class_numbers, fit_mean_weights
from vicc_ray.metrics.folds import grouped_folds
from vicc_ray.metrics.fusion import mean_probabilities

NAMES = ["a", "b", "c", "d", "e", "f", "g"]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def _made(seed: int, videos: int, classes: int, strength: float) -> tuple[NDArray[np.float64], list[str]]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, videos)
    logits = rng.standard_normal((videos, classes))
    logits[np.arange(videos), true] += strength
    return _softmax(logits), [NAMES[number] for number in true]


def _top(table: NDArray[np.float64], labels: list[str], classes: list[str], k: int) -> float:
    hits = 0
    for row, label in zip(table.tolist(), labels, strict=True):
        best = sorted(range(len(classes)), key=lambda number: (-row[number], number))[:k]
        hits += label in [classes[number] for number in best]
    return hits / len(labels)


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_their_slow_twins(seed: int) -> None:
    table, labels = _made(seed, 60, 7, 1.0)
    table[:20] = _softmax(np.round(3 * np.log(table[:20])) / 3)  # some equal probabilities
    found = accuracy(table.astype(np.float32), labels, NAMES)
    table = table.astype(np.float32).astype(np.float64)
    assert found.figures["top-1"] == _top(table, labels, NAMES, 1)
    assert found.figures["top-5"] == _top(table, labels, NAMES, 5)
    shares = []
    for name in sorted(set(labels)):
        mine = [number for number, label in enumerate(labels) if label == name]
        shares.append(_top(table[mine], [name] * len(mine), NAMES, 1))
        assert found.classes[name] == {"videos": len(mine), "top-1": shares[-1]}
    assert found.figures["mean class"] == pytest.approx(sum(shares) / len(shares))
    counts = [[0] * 7 for _ in NAMES]
    for row, label in zip(table.tolist(), labels, strict=True):
        counts[NAMES.index(label)][row.index(max(row))] += 1
    assert found.confusion == counts


def test_classes_without_videos_and_few_classes() -> None:
    table, labels = _made(0, 30, 3, 2.0)
    found = accuracy(table, labels, NAMES[:3])
    assert "top-5" not in found.figures
    absent = accuracy(table[:2], ["a", "a"], NAMES[:3])
    assert set(absent.classes) == {"a"} and absent.figures["mean class"] == absent.figures["top-1"]
    assert len(absent.confusion) == 3


def test_a_classifier_that_does_not_choose_is_not_right_everywhere() -> None:
    found = accuracy(np.full((14, 7), 1 / 7), NAMES * 2, NAMES)
    assert found.figures == {"top-1": 1 / 7, "top-5": 5 / 7, "mean class": 1 / 7}


def test_bad_input_is_refused_in_one_line() -> None:
    table = np.full((2, 3), 1 / 3)
    cases = [
        (table[:0], [], "no videos"),
        (table, ["a", None], "1 of 2 videos to test on have no label"),
        (table, ["a", "z"], r"has not learnt \(z\); it knows 3 \(a, b, c\)"),
        (np.where(np.eye(2, 3) > 0, np.nan, table), ["a", "b"], "NaN or infinite probabilities for 2 of 2"),
    ]
    for probabilities, labels, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            accuracy(probabilities, labels, NAMES[:3])  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"RGB-2 gives NaN.*1 of 2.*first: q\.mp4"):
        check_probabilities(np.array([[0.5, 0.5], [np.nan, 1]]), ["p.mp4", "q.mp4"], "RGB-2")
    for broken in (table[:, :2], table * 2, table - 1):
        with pytest.raises(ValueError, match="probabilities"):
            accuracy(broken, ["a", "b"], NAMES[:3])
    assert class_numbers(["c", "a"], NAMES).tolist() == [2, 0]


def test_weights_of_two_streams_are_the_best_of_the_grid() -> None:
    sure, labels = _made(5, 300, 7, 1.5)
    noise, _ = _made(6, 300, 7, 0.0)
    noise = _softmax(3 * np.log(noise))
    weights = fit_mean_weights([sure, noise], labels, NAMES)
    tried = [(2 - w / 10, w / 10) for w in range(21)]
    tops = [_top(mean_probabilities([sure, noise], pair), labels, NAMES, 1) for pair in tried]
    best = [pair for pair, top in zip(tried, tops, strict=True) if top == max(tops)]
    assert weights == pytest.approx(min(best, key=lambda pair: abs(pair[1] - 1)))
    assert weights[0] > 1.5
    swapped = fit_mean_weights([noise, sure], labels, NAMES)
    assert swapped == pytest.approx(weights[::-1])
    assert fit_mean_weights([sure, sure], labels, NAMES) == (1, 1)
    with pytest.raises(ValueError, match="two"):
        fit_mean_weights([sure], labels, NAMES)


def test_folds_keep_groups_together_and_classes_spread() -> None:
    labels = [NAMES[number % 4] for number in range(120)]
    groups = [f"{label}-{number // 12}" for number, label in enumerate(labels)]
    folds = grouped_folds(labels, groups, 3)
    assert sorted(np.concatenate(folds).tolist()) == list(range(120))
    for held in folds:
        inside = {groups[number] for number in held}
        assert inside.isdisjoint(groups[number] for number in set(range(120)) - set(held.tolist()))
        counts = [sum(labels[number] == name for number in held) for name in NAMES[:4]]
        assert min(counts) >= 6
    again = grouped_folds(labels, groups, 3)
    assert all(np.array_equal(one, other) for one, other in zip(folds, again, strict=True))


def test_folds_of_unknown_groups_and_of_too_few_rows() -> None:
    folds = grouped_folds(["a", "b"] * 6, [None] * 12, 3)
    assert [len(held) for held in folds] == [4, 4, 4]
    assert all(sum(number % 2 for number in held) == 2 for held in folds)
    assert len(grouped_folds(["a", "b", "c"], [None] * 3, 3)) == 1
    assert len(grouped_folds(["a", "b"] * 4, ["same"] * 8, 3)) == 1
    assert len(grouped_folds(["a", "a", "b"], [None] * 3, 3)) == 2
    # A group that happens to be called like a row's number is not that row.
    held = grouped_folds(["a", "a", "a", "a"], ["3", "3", "3", None], 2)
    assert sorted(map(len, held)) == [1, 3]
