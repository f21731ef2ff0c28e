"""What evaluations of a run gave: one JSON file each below the run's `evaluations` folder, all of them as one CSV table.

RUN/evaluations/PROTOCOL-DATA-TRAIN-TEST.json     one protocol on one data set
    results.csv                                   a line a figure of all of them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One protocol on one data set (one official split of it) of one run.

    Args:
        protocol: retrieval, reference (retrieval as published), linear, finetune or probe.
        run: name of the run; `seed` is its experiment's.
        data: name of the data set: the manifest's (ucf101, hmdb51, ...), else the stem of its file.
        fold: the official split of UCF101 or HMDB51, where the manifest tells.
        train_on: split that was learnt from or searched in; `test_on` the split that was asked about.
        train, test: numbers of videos on the two sides.
        rows: one an encoder, in the order of the table: {"name": "RGB-2", "R@1": 0.62, ..., "mAP": ...} of retrieval,
            {"name": "RGB-2", "top-1": ..., "top-5": ..., "mean class": ...} of classifiers; shares of 1.
        chance: the first figure of a guess.
        settings: what else decides the numbers (windows, crops, fusion, ...).
        classes: encoder -> class -> its figures.
        confusion: encoder -> {"labels": [C], "counts": [C][C]}, rows the true class.
        refused: (video, reason) of what could not be read.
        scale: full, or smoke for the small sizes of a trial run.
    """

    protocol: str
    run: str
    seed: int
    data: str
    fold: int | None
    train_on: str
    test_on: str
    train: int
    test: int
    rows: list[dict[str, Any]]
    chance: float
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    confusion: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    refused: tuple[tuple[str, str], ...] = ()
    scale: str = "full"
