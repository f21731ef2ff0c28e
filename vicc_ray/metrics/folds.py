"""Parts of a training split that are held out in turn, so that no source video is on both sides."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def grouped_folds(labels: Sequence[str], groups: Sequence[str | None], count: int) -> list[Indices]:
    """Up to `count` disjoint sets of rows, all rows together: a group is never divided, classes are spread evenly.

    A row of unknown group (None) is a group of its own. The same arguments give the same folds. Fewer than `count` where
    the largest class or the number of groups is smaller; then perhaps only one, which leaves nothing to learn from.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    own = [(group is None, str(number) if group is None else group) for number, group in enumerate(groups)]
    numbers = {group: number for number, group in enumerate(dict.fromkeys(own))}
    count = min(count, max(Counter(labels).values()), len(numbers))
    if count < 2:
        return [np.arange(len(labels), dtype=np.int64)]
    places = [numbers[group] for group in own]
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class is smaller than the number of folds
        parts = [held for _, held in StratifiedGroupKFold(count).split(classes, classes, places)]
    return [np.asarray(part, np.int64) for part in parts if len(part)]
