"""The probe on stored features: its objective, its choice of lambda, its errors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import VideoFeatures
from vicc_ray.evaluation.probe import PENALTIES, UNCHOSEN, Probe, fit_probe


def _features(
    classes: int, each: int, size: int, distance: float, seed: int = 0, groups: int | None = 4
) -> VideoFeatures:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, size)) * distance
    numbers = np.repeat(np.arange(classes), each)
    vectors = (centres[numbers] + rng.standard_normal((len(numbers), size)) + 1.5).astype(np.float32)
    own = [None if groups is None else f"{number}-{i % groups}" for i, number in enumerate(numbers)]
    rows = len(numbers)
    return VideoFeatures(
        [f"{i}.mp4" for i in range(rows)], [f"class {n}" for n in numbers], own, ["train"] * rows, [1] * rows, vectors
    )


def _changed(table: VideoFeatures, **columns: object) -> VideoFeatures:
    return VideoFeatures(**({name: getattr(table, name) for name in table.__dataclass_fields__} | columns))


def _twin_gradient(
    probe: Probe, table: VideoFeatures
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gradient of the penalised mean log loss at the probe's W and b, and probabilities, a row at a time, in float64."""
    n, d = table.vectors.shape
    unit = [row / np.linalg.norm(row) for row in table.vectors.astype(np.float64)]
    mean, deviation = np.mean(unit, axis=0), np.std(unit, axis=0)
    weights, bias = probe.weights.astype(np.float64), probe.bias.astype(np.float64)
    at_weights, at_bias = probe.penalty * d * weights, np.zeros(len(bias))
    shares = []
    for row, label in zip(unit, table.labels, strict=True):
        x = (row - mean) / deviation
        powers = np.exp(x @ weights + bias)
        shares.append(powers / powers.sum())
        for number, name in enumerate(probe.classes):
            error = powers[number] / powers.sum() - (name == label)
            at_weights[:, number] += error * x / n
            at_bias[number] += error / n
    return at_weights, at_bias, np.array(shares)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_of_the_stated_objective_vanishes_at_the_fit(classes: int) -> None:
    table = _features(classes, 24, 12, 0.6)
    probe = fit_probe(table)
    at_weights, at_bias, probabilities = _twin_gradient(probe, table)
    assert np.abs(at_weights).max() < 3e-4 and np.abs(at_bias).max() < 3e-4
    slope = np.abs(probe.penalty * 12 * probe.weights).max()
    assert slope > 3e-3  # what vanishes is a sum of terms that do not
    np.testing.assert_allclose(probe.probabilities(table.vectors), probabilities, atol=1e-4)


def test_separable_classes_are_recovered() -> None:
    probe = fit_probe(_features(6, 12, 16, 3.0))
    other = _features(6, 10, 16, 3.0, seed=1)
    table = probe.probabilities(other.vectors)
    assert table.dtype == np.float32 and table.shape == (60, 6)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-5)
    assert [probe.classes[number] for number in table.argmax(axis=1)] == list(other.labels)


def test_length_and_offsets_of_features_do_not_matter_but_their_direction_does() -> None:
    table = _features(4, 20, 8, 1.0)
    probe = fit_probe(table)
    other = _features(4, 5, 8, 1.0, seed=2).vectors
    np.testing.assert_allclose(probe.probabilities(other), probe.probabilities(7 * other), atol=1e-5)
    assert not np.allclose(probe.probabilities(other), probe.probabilities(-other), atol=0.1)


def test_fits_are_the_same_again() -> None:
    table = _features(5, 16, 12, 0.7)
    first, second = fit_probe(table), fit_probe(table)
    assert first.penalty == second.penalty and first.losses == second.losses
    np.testing.assert_array_equal(first.weights, second.weights)


def test_lambda_is_the_best_on_held_out_groups() -> None:
    weak, strong = fit_probe(_features(4, 40, 20, 3.0)), fit_probe(_features(4, 40, 20, 0.15))
    for probe in (weak, strong):
        assert probe.penalty == min(probe.losses, key=probe.losses.__getitem__)
        assert list(probe.losses) == list(PENALTIES[: len(probe.losses)])
    assert weak.penalty < strong.penalty


def test_held_out_probabilities_come_from_fits_without_the_group() -> None:
    """Each group has a code of its own in its features: whoever has seen it knows the class, whoever has not guesses."""
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((24, 40)).astype(np.float32) * 4
    groups, labels = np.repeat(np.arange(24), 5), np.repeat(np.arange(24) % 2, 5)
    vectors = codes[groups] + rng.standard_normal((120, 40)).astype(np.float32) * 0.3
    table = VideoFeatures(
        [f"{i}" for i in range(120)],
        [f"class {n}" for n in labels],
        [f"g{n}" for n in groups],
        ["train"] * 120,
        [1] * 120,
        vectors,
    )
    grouped, alone = fit_probe(table), fit_probe(_changed(table, groups=[None] * 120))
    for probe, low, high in ((grouped, 0.25, 0.75), (alone, 0.95, 1.0)):
        assert probe.held_rows.tolist() == list(range(120))
        np.testing.assert_allclose(probe.held_out.sum(axis=1), 1, atol=1e-4)
        right = float((probe.held_out.argmax(axis=1) == labels[probe.held_rows]).mean())
        assert low <= right <= high
    held = grouped.held_out[np.arange(120), labels[grouped.held_rows]]
    assert grouped.losses[grouped.penalty] == pytest.approx(float(-np.log(held).mean()), rel=1e-4)


def test_classes_of_one_group_are_learnt_but_never_asked_about() -> None:
    table = _features(4, 12, 10, 2.0)
    groups = ["one" if label == "class 3" else group for label, group in zip(table.labels, table.groups, strict=True)]
    probe = fit_probe(_changed(table, groups=groups))
    assert probe.classes == ("class 0", "class 1", "class 2", "class 3")
    assert {table.labels[row] for row in probe.held_rows} == {"class 0", "class 1", "class 2"}
    assert probe.probabilities(table.vectors).argmax(axis=1)[-12:].tolist() == [3] * 12


def test_where_nothing_can_be_held_out_lambda_is_fixed() -> None:
    table = _features(5, 1, 10, 2.0)
    probe = fit_probe(table)
    assert probe.penalty == UNCHOSEN and not probe.losses and not len(probe.held_rows)
    assert probe.probabilities(table.vectors).argmax(axis=1).tolist() == list(range(5))


def test_a_dead_feature_and_an_empty_vector_do_no_harm() -> None:
    table = _features(3, 12, 10, 2.0)
    vectors = table.vectors.copy()
    vectors[:, 4] = 0
    vectors[0] = 0
    probe = fit_probe(_changed(table, vectors=vectors))
    assert np.isfinite(probe.probabilities(vectors)).all()


def test_bad_features_are_refused_in_one_line() -> None:
    table = _features(3, 6, 8, 1.0)
    broken = table.vectors.copy()
    broken[4, 2] = np.nan
    cases = [
        (_changed(table, vectors=broken), r"1 of 18 features to learn from hold NaN.*first: 4\.mp4"),
        (_changed(table, labels=[None, *table.labels[1:]]), "1 of 18 videos to learn from have no label"),
        (_changed(table, labels=["x"] * 18), "all of class x; at least two classes"),
        (VideoFeatures([], [], [], [], [], table.vectors[:0]), "are none; at least two classes"),
    ]
    for bad, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            fit_probe(bad)
        assert "\n" not in str(caught.value)
    probe = fit_probe(table)
    with pytest.raises(UserError, match=r"first: row 4"):
        probe.probabilities(broken)
    with pytest.raises(UserError, match="features of 8 values"):
        probe.probabilities(table.vectors[:, :5])
