"""Confusion matrices as plain numbers for the page's SVG: one square a pair of classes that occurs; the template draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIDE = 340.0  # of the whole square
LARGEST_CELL = 34.0
MOST_NAMED = 20  # classes beyond which names would not be readable


@dataclass(frozen=True)
class Square:
    """A pair of classes: place, strength (the share of the true class, 0..1), the count where it is to be read, a sentence."""

    x: float
    y: float
    share: float
    count: int | None
    title: str


@dataclass(frozen=True)
class Confusion:
    """The matrix of one classifier, rows the true class; `names` is empty where there are too many classes to name."""

    name: str
    cell: float
    side: float
    names: list[str]
    squares: list[Square]


def confusions(matrices: Mapping[str, Mapping[str, Any]]) -> list[Confusion]:
    """The matrices of an evaluation (`Evaluation.confusion`) ready to be drawn."""
    return [_confusion(name, matrix["labels"], matrix["counts"]) for name, matrix in matrices.items()]


def _confusion(name: str, labels: list[str], counts: list[list[int]]) -> Confusion:
    cell = min(SIDE / len(labels), LARGEST_CELL)
    named = len(labels) <= MOST_NAMED
    squares = []
    for row, (true, found) in enumerate(zip(labels, counts, strict=True)):
        videos = sum(found)
        for column, count in enumerate(found):
            if count:
                told = f"{count} of {videos} videos of {true} taken for {labels[column]}"
                squares.append(Square(column * cell, row * cell, count / videos, count if named else None, told))
    return Confusion(name, cell, cell * len(labels), list(labels) if named else [], squares)
