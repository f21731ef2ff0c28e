"""What class probabilities are worth: top-1, top-5, mean class accuracy, confusion; weights of two streams' mean.

n videos, C classes; probabilities [n,C] with rows that sum to 1, columns in the order of the classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vicc_ray.errors import UserError
from vicc_ray.metrics.fusion import GRID, PUBLISHED, mean_probabilities

TOP = 5
NAMED = 3  # of many unknown classes or videos, those that a message names


@dataclass(frozen=True)
class Accuracy:
    """Figures of a classifier on the videos of a split; shares of 1.

    Args:
        figures: "top-1", "top-5" (of more than 5 classes only) and "mean class", the mean over the classes that have
            videos of the share that is right.
        classes: class -> {"videos": how many, "top-1": share of them that is right}; those that have videos.
        confusion: counts [C][C]; rows are the true class, columns the most probable one.
    """

    figures: dict[str, float]
    classes: dict[str, dict[str, float]]
    confusion: list[list[int]]


def accuracy(probabilities: npt.NDArray[np.floating], labels: Sequence[str | None], classes: Sequence[str]) -> Accuracy:
    """Accuracy of class probabilities [n,C] of n videos with these labels; equal probabilities rank in class order.

    Raises UserError for no videos, one without a label or of a class that is not among `classes`, and NaN.
    """
    from sklearn.metrics import confusion_matrix

    true = class_numbers(labels, classes)
    table = _checked(probabilities, len(true), len(classes))
    ranks = _ranks(table, true)
    right = ranks == 0
    confusion = confusion_matrix(true, table.argmax(axis=1), labels=np.arange(len(classes)))
    per_class = {
        name: {"videos": int((true == number).sum()), "top-1": float(right[true == number].mean())}
        for number, name in enumerate(classes)
        if (true == number).any()
    }
    figures = {"top-1": float(right.mean())}
    if len(classes) > TOP:
        figures[f"top-{TOP}"] = float((ranks < TOP).mean())
    figures["mean class"] = float(np.mean([one["top-1"] for one in per_class.values()]))
    return Accuracy(figures, per_class, confusion.tolist())


def class_numbers(labels: Sequence[str | None], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The place of each label among the classes, int64 [n]; UserError where a label is missing, unknown or there is none."""
    if not len(labels):
        raise UserError("classification: there are no videos to test on; is the split empty?")
    missing = sum(label is None for label in labels)
    if missing:
        raise UserError(
            f"classification: {missing} of {len(labels)} videos to test on have no label; "
            "index them with labels, or test on another split"
        )
    places = {name: number for number, name in enumerate(classes)}
    unknown = Counter(label for label in labels if label not in places)
    if unknown:
        raise UserError(
            f"classification: {sum(unknown.values())} videos to test on are of {len(unknown)} classes that the classifier "
            f"has not learnt ({_some(sorted(map(str, unknown)))}); it knows {len(classes)} ({_some(sorted(classes))}); "
            "train on a split that has them, or test on another"
        )
    return np.array([places[str(label)] for label in labels], np.int64)


def check_probabilities(probabilities: npt.NDArray[np.floating], videos: Sequence[str], name: str) -> None:
    """UserError, naming the classifier and the first of the videos, where probabilities [n,C] hold NaN."""
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise UserError(
            f"classification: {name} gives NaN or infinite probabilities for {len(broken)} of {len(videos)} videos "
            f"(first: {videos[broken[0]]}); its weights or the videos are broken"
        )


def fit_mean_weights(
    streams: Sequence[npt.NDArray[np.floating]], labels: Sequence[str | None], classes: Sequence[str]
) -> tuple[float, float]:
    """Weights of two streams' probabilities [n,C] in `fusion.mean_probabilities`, by the top-1 on these videos.

    The pair (2 - w, w), w on the grid of `fusion.fit_weights`; of equal ones the nearest to the published (1, 1). The
    videos must be of the training split but **not** among those that the classifiers learnt from (a fold of
    `folds.grouped_folds`, `Probe.held_out`): of what it learnt from a classifier knows nearly all, the finetuned one all,
    so that the grid would weigh how much a stream overfits and not what it knows.
    """
    if len(streams) != 2:
        raise ValueError(f"fusion: {len(streams)} streams; weights are fitted for two")
    true = class_numbers(labels, classes)
    first, second = (_checked(stream, len(true), len(classes)) for stream in streams)
    best, chosen = -1.0, PUBLISHED
    for w in sorted(np.linspace(0, 2, GRID).tolist(), key=lambda w: abs(w - 1)):
        pair = round(2 - w, 6), round(w, 6)
        right = float((_ranks(mean_probabilities([first, second], pair), true) == 0).mean())
        if right > best:
            best, chosen = right, pair
    return chosen


def _checked(probabilities: npt.NDArray[np.floating], videos: int, classes: int) -> npt.NDArray[np.float64]:
    table = np.asarray(probabilities, dtype=np.float64)
    if table.shape != (videos, classes):
        raise ValueError(f"probabilities {list(table.shape)} of {videos} videos and {classes} classes")
    check_probabilities(table, [f"row {number}" for number in range(videos)], "the classifier")
    if table.min() < 0 or not np.allclose(table.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities: each row must have values of at least 0 that sum to 1")
    return table


def _ranks(table: npt.NDArray[np.float64], true: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many classes stand before the true one, int64 [n]: those that are more probable, or as probable and earlier."""
    own = table[np.arange(len(true)), true][:, None]
    earlier = np.arange(table.shape[1]) < true[:, None]
    before = (table > own) | ((table == own) & earlier)
    return np.asarray(before.sum(axis=1), np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
