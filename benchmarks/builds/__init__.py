"""What `benchmarks/against` measures: this build beside an earlier one, both from outside, in turn on one machine."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import Bar
from benchmarks.product import Product

OLD, NEW = "old", "new"
# Per build, per figure, a value each round.
Rounds = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured: seconds of a run with faults, seconds from fault to fault, seconds of an undisturbed one, trials."""

    seconds: float = 720.0
    period: float = 90.0
    undisturbed: float = 180.0
    steady: float = 60.0
    trials: int = 12


@dataclass(frozen=True)
class Turn:
    """One product measured once: `folder` is its own and empty, `shared` is the same for all turns of both products."""

    product: Product
    build: str
    folder: Path
    shared: Path
    sizes: Sizes = Sizes()
    number: int = 0  # of the round, from 0

    def manifest(self, table: Callable[[Path], Path], name: str = "small") -> Path:
        """The product's own index of videos that are made once for both products."""
        folder = self.shared / name
        made = folder / "table.txt"
        if not made.exists():
            folder.mkdir(parents=True, exist_ok=True)
            made.write_text(str(table(folder)))
        manifest = folder / f"{self.build}.parquet"
        if not manifest.exists():
            self.product.run("index", made.read_text(), "--out", str(manifest))
        return manifest


@dataclass
class Measured:
    """Named figures, their units in their names, and tables: {title: {row: {column: value}}}."""

    figures: dict[str, float]
    tables: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """What a figure has to reach: the median of its ratios new/old, that of the new build alone, or of new - old."""

    figure: str
    bar: float
    at_least: bool = False
    of: Literal["ratio", "new", "difference"] = "ratio"

    def judge(self, rounds: Rounds) -> Bar | None:
        """None where no build has the figure; a build that lacks it misses the bar."""
        new, old = (rounds[build].get(self.figure, ()) for build in (NEW, OLD))
        if not new and not old:
            return None
        name = self.figure if self.of == "new" else f"{self.figure}, {'new/old' if self.of == 'ratio' else 'new - old'}"
        values = list(new) if self.of == "new" else ratios(new, old) if self.of == "ratio" else minus(new, old)
        reached = statistics.median(values) if values else None
        missing = -math.inf if self.at_least else math.inf
        return Bar(name, missing if reached is None else reached, self.bar, self.at_least)


@dataclass(frozen=True)
class BuildBench:
    """A bench of one product, and what the two builds' figures have to reach."""

    text: str
    measure: Callable[[Turn], Measured]
    limits: tuple[Limit, ...]
    rounds: int = 3


def order(number: int) -> tuple[str, str]:
    """Who is first in a round; it alternates, so that neither build always has the warmer machine."""
    return (OLD, NEW) if number % 2 == 0 else (NEW, OLD)


def ratios(new: Sequence[float], old: Sequence[float]) -> list[float]:
    """new/old round by round, which holds when the machine's speed drifts; 1 where both are 0, infinite where the old one is."""
    return [a / b if b else 1.0 if a == b else math.inf for a, b in zip(new, old, strict=False)]


def minus(new: Sequence[float], old: Sequence[float]) -> list[float]:
    """new - old round by round."""
    return [a - b for a, b in zip(new, old, strict=False)]
