"""Which paused trial of a sweep trains on: asynchronous successive halving with promotions. Pure.

Trials are not stopped for good. Each one trains to its first rung and pauses there, with its checkpoint. Whenever there is room
for a trial, a paused one goes on to its next rung if it is among the best 1/reduction of those that came to its rung so far;
only where there is none, a new one begins (Li et al., A system for massively parallel hyperparameter tuning, MLSys 2020,
algorithm 2; `asha` is the variant that decides at once, as Optuna has it). A sweep of n trials then trains about
n g + n/r (r g - g) + n/r² (r² g - r g) + ... samples, with first rung g and reduction r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """A trial as far as it is known.

    Attributes:
        number: the trial's.
        looks: {samples: value}, a high value is a good one.
        allowed: samples that it may train; it pauses at the first measurement from there on. 0: it has not begun.
        full: samples of the whole trial.
        busy: whether it runs.
        over: whether it came to an end of its own (complete, failed) and cannot go on.
    """

    number: int
    looks: Mapping[int, float]
    allowed: int
    full: int
    busy: bool = False
    over: bool = False

    @property
    def paused(self) -> bool:
        """Whether it waits at a rung."""
        waits = not self.over and not self.busy and 0 < self.allowed < self.full
        return waits and max(self.looks, default=0) >= self.allowed

    def at(self, rung: int) -> float | None:
        """The value at its first measurement from a rung on; None where it did not come there."""
        return next((self.looks[samples] for samples in sorted(self.looks) if samples >= rung), None)


@dataclass(frozen=True)
class Promotion:
    """A paused trial may train until it has seen `samples`."""

    number: int
    samples: int


def rungs(first: int, reduction: int, full: int) -> list[int]:
    """Samples at which a trial pauses, the end of the whole trial last."""
    found = []
    while first < full:
        found.append(first)
        first *= reduction
    return [*found, full]


def next_rung(curve: Curve, first: int, reduction: int) -> int:
    """The rung that a paused trial would go on to."""
    return next(rung for rung in rungs(first, reduction, curve.full) if rung > curve.allowed)


def promoted(curves: Sequence[Curve], first: int, reduction: int) -> Promotion | None:
    """The paused trial that goes on now, from the highest rung that has one; None where none is good enough yet.

    Of equal ones the older one.
    """
    for rung in sorted({curve.allowed for curve in curves if curve.paused}, reverse=True):
        there = [(value, -curve.number, curve) for curve in curves if (value := curve.at(rung)) is not None]
        there.sort(key=lambda one: one[:2], reverse=True)
        for _, _, curve in there[: len(there) // reduction]:
            if curve.paused and curve.allowed == rung:
                return Promotion(curve.number, next_rung(curve, first, reduction))
    return None


def to_the_end(curves: Sequence[Curve]) -> Promotion | None:
    """The best of the trials that wait at the highest rung, to its end: where no other trial came to its own, one has to."""
    waiting = [curve for curve in curves if curve.paused]
    if not waiting:
        return None
    top = max(curve.allowed for curve in waiting)
    best = max((curve for curve in waiting if curve.allowed == top), key=lambda one: (one.at(top), -one.number))
    return Promotion(best.number, best.full)
