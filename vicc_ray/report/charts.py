"""Line charts as plain numbers for the page's SVG: scales, ticks and paths; the template draws them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 560.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 24.0, 38.0
POINTS = 400  # a curve of more points is drawn as the means of this many stretches
NARROWEST_LABELLED_BAND = 44.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line: (x, y) points in ascending x; `dots` marks each point, for sparse curves."""

    name: str
    colour: str
    points: Sequence[Point]
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal reference from x0 to x1, or over the whole width."""

    y: float
    label: str
    x0: float | None = None
    x1: float | None = None


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    path: str
    dots: list[tuple[float, float, str]]
    dashed: bool


@dataclass(frozen=True)
class LevelLine:
    x0: float
    x1: float
    y: float
    label: str
    label_y: float


@dataclass(frozen=True)
class Band:
    x: float
    width: float
    label: str
    shaded: bool


@dataclass(frozen=True)
class Chart:
    """A chart in SVG units (WIDTH x HEIGHT), ready to draw."""

    title: str
    note: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    levels: list[LevelLine]
    bands: list[Band]
    legend: list[tuple[str, str, bool]] = field(default_factory=list)
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    note: str = "",
    x_label: str = "samples seen",
    levels: Sequence[Level] = (),
    bands: Sequence[tuple[float, float, str]] = (),
    percent: bool = False,
) -> Chart | None:
    """Lay a chart out; None where no curve has a point. y starts at 0; with `percent`, shares are shown as 0-100 %.

    `levels`: references that the y range includes. `bands`: (x0, x1, label) stretches of the x axis, shaded in turn.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    x_low = min([0.0, *(x for curve in curves for x, _ in curve.points)])
    x_high = max([*(x for curve in curves for x, _ in curve.points), *(x1 for _, x1, _ in bands)])
    x_high = x_high if x_high > x_low else x_low + 1
    y_values = [y for curve in curves for _, y in curve.points] + [level.y for level in levels]
    y_low = min(0.0, *y_values)
    y_high = 1.0 if percent and max(y_values) > 0.75 else (max(y_values) - y_low) * 1.08 + y_low
    y_high = y_high if y_high > y_low else y_low + 1

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def up(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    def show(y: float) -> str:
        return f"{100 * y:.4g} %" if percent else f"{y:.4g}"

    lines = []
    for curve in curves:
        at = [(across(x), up(y)) for x, y in thinned(curve.points)]
        path = "M" + "L".join(f"{x} {y}" for x, y in at)
        told = [f"{curve.name}: {show(y)} at {count(x)} samples" for x, y in curve.points] if curve.dots else []
        dots = [(x, y, text) for (x, y), text in zip(at, told, strict=False)]
        lines.append(Line(curve.name, curve.colour, path, dots, curve.dashed))
    flat = []
    for level in levels:
        x0 = LEFT if level.x0 is None else across(level.x0)
        x1 = WIDTH - RIGHT if level.x1 is None else across(level.x1)
        y = up(level.y)
        flat.append(LevelLine(x0, x1, y, level.label, y - 4 if y > TOP + 14 else y + 12))
    return Chart(
        title=title,
        note=note,
        x_label=x_label,
        x_ticks=[Tick(across(x), count(x)) for x in ticks(x_low, x_high, 5)],
        y_ticks=[Tick(up(y), show(y)) for y in ticks(y_low, y_high, 5)],
        lines=lines,
        levels=flat,
        bands=[_band(across(x0), across(x1), label, i % 2 == 1) for i, (x0, x1, label) in enumerate(bands)],
        legend=list(dict.fromkeys((line.name, line.colour, line.dashed) for line in lines)),
    )


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: the means of as many equal stretches of a longer curve."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, near `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def count(value: float) -> str:
    """1234 as 1.23k, 5000000 as 5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _band(x0: float, x1: float, label: str, shaded: bool) -> Band:
    wide = x1 - x0 >= NARROWEST_LABELLED_BAND
    return Band(x0, round(x1 - x0, 1), label if wide else "", shaded)
