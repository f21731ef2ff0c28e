"""Protocol `probe`: multinomial logistic regression on stored features, fitted in seconds; no step of SGD, no videos.

n training videos, d feature size, C classes. With x the feature scaled to length 1 and then standardised by the training
side's mean and deviation, W [d,C] and b [C] minimise

    -1/n sum_i log softmax(W^T x_i + b)[y_i] + (lambda d / 2) |W|^2

where d stands in the penalty because |x|^2 is about d, so that one grid of lambda fits features of any size. It is not
the published linear probe (`training/classification.py`), and its numbers are not to be compared with published ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import VideoFeatures
from vicc_ray.metrics.folds import Indices, grouped_folds

Floats = npt.NDArray[np.float32]

# From strong to weak: each fit starts from the one before, and the first rise of the held-out loss ends the path.
PENALTIES = tuple(10.0**-power for power in range(2, 9))
FOLDS = 3
# A fold's fits only choose lambda; the last fit is the probe.
FOLD_TOLERANCE, FOLD_STEPS = 1e-4, 100
TOLERANCE, STEPS = 1e-5, 1000
UNCHOSEN = 1e-5  # lambda where nothing can be held out: every class has one group only


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted probe; `probabilities` applies it.

    Args:
        classes: their names, sorted: the columns of probabilities.
        penalty: the chosen lambda.
        mean, scale: of the training side's features of length 1, float32 [d].
        weights, bias: W float32 [d,C] and b float32 [C].
        losses: lambda -> mean log loss on held-out videos; empty where nothing could be held out.
        held_rows: training rows (int64 [m]) that were held out, of classes known to the rest.
        held_out: their probabilities by fits that had not seen their group, float32 [m,C]: for weights of two streams
            (`accuracy.fit_mean_weights`). Two streams' tables of the same videos have the same `held_rows`.
    """

    classes: tuple[str, ...]
    penalty: float
    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    losses: dict[float, float]
    held_rows: Indices
    held_out: Floats

    def probabilities(self, rows: Floats) -> Floats:
        """Class probabilities float32 [n,C] of features [n,d]; UserError for NaN and for features of another size."""
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise UserError(
                f"probe: features {list(rows.shape)} for a probe fitted on features of {len(self.mean)} values; "
                "take features of the same encoder"
            )
        _check_finite(rows, [f"row {number}" for number in range(len(rows))], "features to be classified")
        logits = (_unit(rows) - self.mean) / self.scale @ self.weights + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
        shares: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares


def fit_probe(train: VideoFeatures) -> Probe:
    """The probe of a training split's features; lambda has the lowest log loss over held-out groups.

    Folds keep groups (clips of one source video) together; videos of unknown group stand for themselves. The log loss
    and not the accuracy chooses, as it separates neighbours on the grid with few videos, too, and as R+F averages the
    probabilities themselves. The same features give the same probe. Raises UserError for no videos or one class only,
    videos without a label and features that are not finite.
    """
    labels = _labels(train)
    _check_finite(train.vectors, train.ids, "features to learn from")
    classes, targets = np.unique(np.asarray(labels), return_inverse=True)
    rows, mean, scale = _standardised(train.vectors)
    folds = _usable_folds(targets, labels, train.groups)
    losses, held_rows, held_out = _path(rows, targets, folds, len(classes))
    penalty = min(losses, key=losses.__getitem__) if losses else UNCHOSEN
    weights, bias = _parameters(_model(penalty, rows, targets, TOLERANCE, STEPS).fit(rows, targets))
    names = tuple(str(name) for name in classes)
    return Probe(names, penalty, mean, scale, weights, bias, losses, held_rows, held_out)


def _labels(train: VideoFeatures) -> list[str]:
    labels = [label for label in train.labels if label is not None]
    if len(labels) < len(train):
        raise UserError(
            f"probe: {len(train) - len(labels)} of {len(train)} videos to learn from have no label; "
            "index them with labels, or train on another split"
        )
    if len(set(labels)) < 2:
        have = f"are all of class {labels[0]}" if labels else "are none"
        raise UserError(f"probe: the videos to learn from {have}; at least two classes are needed")
    return labels


def _check_finite(vectors: Floats, names: Sequence[str], what: str) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise UserError(
            f"probe: {len(broken)} of {len(vectors)} {what} hold NaN or infinite values (first: {names[broken[0]]}); "
            "the checkpoint's weights or the videos are broken"
        )


def _unit(vectors: Floats) -> Floats:
    """Rows of length 1; a zero row stays."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    rows: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return rows


def _standardised(vectors: Floats) -> tuple[Floats, Floats, Floats]:
    """Rows of length 1 made mean 0 and deviation 1 along each of d; with the mean and the deviation (1 where it is 0)."""
    rows = _unit(vectors)
    mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    centre = mean.astype(np.float32)
    scale = np.where(deviation < 1e-7, 1.0, deviation).astype(np.float32)
    return (rows - centre) / scale, centre, scale


def _usable_folds(targets: Indices, labels: list[str], groups: Sequence[str | None]) -> list[tuple[Indices, Indices]]:
    """(rows to learn from, rows held out) of each fold; held out are rows only whose class is learnt."""
    usable = []
    for held in grouped_folds(labels, groups, FOLDS):
        learnt = np.setdiff1d(np.arange(len(targets)), held)
        tested = held[np.isin(targets[held], targets[learnt])]
        if len(tested) and len(np.unique(targets[learnt])) > 1:
            usable.append((learnt, tested))
    return usable


def _path(
    rows: Floats, targets: Indices, folds: list[tuple[Indices, Indices]], classes: int
) -> tuple[dict[float, float], Indices, Floats]:
    """Held-out loss of each lambda tried, up to the first rise; the held-out rows and their probabilities at the best."""
    tested = np.concatenate([held for _, held in folds]) if folds else np.empty(0, np.int64)
    best, losses = np.empty((len(tested), classes), np.float32), dict[float, float]()
    if not folds:
        return losses, tested, best
    sides = [rows[learnt] for learnt, _ in folds]
    known = [targets[learnt] for learnt, _ in folds]
    models = [
        _model(PENALTIES[0], side, own, FOLD_TOLERANCE, FOLD_STEPS) for side, own in zip(sides, known, strict=True)
    ]
    for penalty in PENALTIES:
        table = np.zeros_like(best)
        start = 0
        for (_, held), side, own, model in zip(folds, sides, known, models, strict=True):
            _fit_fold(model.set_params(C=_inverse(penalty, side, own)), side, own)
            table[start : start + len(held), model.classes_] = model.predict_proba(rows[held])
            start += len(held)
        loss = float(
            -np.log(np.maximum(table[np.arange(len(tested)), targets[tested]], 1e-30), dtype=np.float64).mean()
        )
        if losses and loss >= min(losses.values()):
            losses[penalty] = loss
            break
        losses[penalty], best = loss, table
    order = np.argsort(tested)
    return losses, tested[order], best[order]


def _model(penalty: float, rows: Floats, targets: Indices, tolerance: float, steps: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_inverse(penalty, rows, targets), tol=tolerance, max_iter=steps, warm_start=True)


def _inverse(penalty: float, rows: Floats, targets: Indices) -> float:
    """scikit-learn's C, which multiplies the sum of the losses beside |W|^2 / 2.

    Of two classes it fits the difference w of their columns: |W|^2 is then |w|^2 / 2, as the columns are -w/2 and w/2.
    """
    share = 0.5 if len(np.unique(targets)) == 2 else 1.0
    return float(1 / (share * penalty * rows.shape[1] * len(rows)))


def _fit_fold(model: Any, rows: Floats, targets: Indices) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # A fit of a fold that stops early still shows whether its lambda is better than the one before.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, targets)


def _parameters(model: Any) -> tuple[Floats, Floats]:
    """W float32 [d,C] and b float32 [C]."""
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] == 1:
        weights, bias = np.concatenate([-weights / 2, weights / 2], axis=1), np.concatenate([-bias / 2, bias / 2])
    return np.ascontiguousarray(weights, np.float32), bias.astype(np.float32)
