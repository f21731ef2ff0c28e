"""The report's figures: curves over samples with levels and stages, and confusion matrices."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vicc_ray.report.plots import BAND, GRID, LEVEL, MUTED, plain, plain_figure

HEIGHT = 330
POINTS = 400  # a curve of more points is drawn as the means of this many stretches
FEWEST_POINTS = 40  # where a page has very many curves
MOST_LEGEND = 12  # curves beyond which a legend would be longer than the figure; pointing at one names it
MOST_TOLD = 6  # curves beyond which a text alternative has their range alone
NARROWEST_LABELLED_STAGE = 0.09  # of the width
LARGEST_CELL = 34  # pixels
LARGEST_SIDE = 340
MOST_NAMED = 20  # classes beyond which names would not be readable

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
class Chart:
    """A figure for the page: `json` is Plotly's, `note` a sentence under the title, `alt` what it shows, in words."""

    title: str
    note: str
    json: str
    alt: str = ""


def chart(
    title: str,
    curves: Sequence[Curve],
    *,
    note: str = "",
    levels: Sequence[Level] = (),
    bands: Sequence[tuple[float, float, str]] = (),
    percent: bool = False,
    most: int = POINTS,
) -> Chart | None:
    """Curves over samples; None where no curve has a point. y starts at 0; with `percent`, shares are shown as 0-100 %.

    `levels`: references that the y range includes. `bands`: (x0, x1, label) stretches of the x axis, shaded in turn. `most`:
    points of a curve, beyond which it is thinned.
    """
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return None
    x_high = max([*(x for curve in curves for x, _ in curve.points), *(x1 for _, x1, _ in bands)]) or 1.0
    drawn = [
        _line(curve, plain(name), percent, number == 0, most)
        for name, same in itertools.groupby(curves, key=lambda curve: curve.name)
        for number, curve in enumerate(same)
    ]
    shapes, texts = _references(levels, bands, x_high)
    axis = {"text": "samples seen", "font": {"color": MUTED, "size": 12}, "standoff": 6}
    layout = {
        "xaxis": {"title": axis, "range": [0, x_high], "gridcolor": GRID, "zeroline": False},
        "yaxis": {"range": _range(curves, levels, percent), "gridcolor": GRID, "zeroline": False}
        | ({"tickformat": ".0%"} if percent else {}),
        "shapes": shapes,
        "annotations": texts,
        "showlegend": len({curve.name for curve in curves}) <= MOST_LEGEND,
    }
    return Chart(title, note, plain_figure(drawn, layout, HEIGHT), _told(curves, percent))


def _references(
    levels: Sequence[Level], bands: Sequence[tuple[float, float, str]], x_high: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Plotly's shapes and annotations of levels and bands."""
    shapes: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    for level in levels:
        x0, x1 = 0.0 if level.x0 is None else level.x0, x_high if level.x1 is None else level.x1
        line = {"color": LEVEL, "width": 1, "dash": "dot"}
        shapes.append({"type": "line", "x0": x0, "x1": x1, "y0": level.y, "y1": level.y, "line": line})
        place = {"x": x1, "y": level.y, "xanchor": "right", "yanchor": "bottom", "showarrow": False}
        texts.append({"text": plain(level.label), **place})
    for number, (x0, x1, label) in enumerate(bands):
        if number % 2:
            area = {"type": "rect", "x0": x0, "x1": x1, "y0": 0, "y1": 1, "yref": "y domain"}
            shapes.append({**area, "fillcolor": BAND, "line": {"width": 0}, "layer": "below"})
        if x1 - x0 >= NARROWEST_LABELLED_STAGE * x_high:
            place = {"x": (x0 + x1) / 2, "y": 1.0, "yref": "paper", "yanchor": "bottom", "showarrow": False}
            texts.append({"text": plain(label), **place})
    return shapes, texts


def _told(curves: Sequence[Curve], percent: bool) -> str:
    """What the curves show, for who cannot see them: where each begins and ends, or the range of the ends of very many."""

    def value(y: float) -> str:
        return f"{100 * y:.1f} %" if percent else f"{y:.4g}"

    if len(curves) > MOST_TOLD:
        ends = [curve.points[-1][1] for curve in curves]
        return f"{len(curves)} curves, which end between {value(min(ends))} and {value(max(ends))}"
    return "; ".join(f"{one.name} from {value(one.points[0][1])} to {value(one.points[-1][1])}" for one in curves)


def _line(curve: Curve, name: str, percent: bool, first: bool, most: int) -> dict[str, Any]:
    """Plotly's trace of a curve."""
    points = thinned(curve.points, most)
    return {
        "type": "scatter",
        "x": [_short(x) for x, _ in points],
        "y": [_short(y) for _, y in points],
        "name": name,
        "legendgroup": name,
        "showlegend": first,
        "mode": "lines+markers" if curve.dots else "lines",
        "line": {"color": curve.colour, "width": 2, "dash": "dash" if curve.dashed else "solid"},
        "marker": {"size": 6},
        "hovertemplate": f"%{{y:{'.1%' if percent else '.4g'}}} at %{{x:,.4s}} samples",
    }


def _range(curves: Sequence[Curve], levels: Sequence[Level], percent: bool) -> list[float]:
    """The y range: from 0 (or the lowest value) to a little above the highest value or level; Plotly leaves shapes out of it."""
    values = [y for curve in curves for _, y in curve.points] + [level.y for level in levels]
    low = min(0.0, *values)
    high = 1.0 if percent and max(values) > 0.75 else low + 1.08 * (max(values) - low)
    return [low, high if high > low else low + 1]


def _short(value: float) -> float:
    """A value with as many digits as a figure can show, which makes pages half as long."""
    return float(f"{value:.6g}")


def points_each(curves: int, page: int = 60_000) -> int:
    """Points of a curve on a page of so many curves."""
    return max(FEWEST_POINTS, min(POINTS, page // max(curves, 1)))


def thinned(points: Sequence[Point], limit: int = POINTS) -> list[Point]:
    """At most `limit` points: the means of as many equal stretches of a longer curve."""
    if len(points) <= limit:
        return list(points)
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    stretches = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def confusions(matrices: Mapping[str, Mapping[str, Any]], found: str = "classified as") -> list[Chart]:
    """The matrices of an evaluation (`Evaluation.confusion`) as figures: a row a true class, darker a larger share of it.

    found: what a column's class is to the videos of a row, as "3 videos of fall FOUND orbit" says it.
    """
    return [_confusion(name, matrix["labels"], matrix["counts"], found) for name, matrix in matrices.items()]


def _confusion(name: str, labels: Sequence[str], counts: Sequence[Sequence[int]], found: str) -> Chart:
    named = len(labels) <= MOST_NAMED
    names = [plain(label) for label in labels]
    shares = [[_short(count / max(sum(row), 1)) if count else None for count in row] for row in counts]
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#e9eef6"], [1, "#1f4e8c"]],
        "showscale": False,
        "customdata": counts,
        "hovertemplate": f"%{{customdata}} videos of %{{y}} {found} %{{x}}, %{{z:.1%}}<extra></extra>",
    }
    if named:
        heat |= {"text": [[str(count) if count else "" for count in row] for row in counts], "texttemplate": "%{text}"}
    axis = {"showticklabels": named, "type": "category", "showgrid": False, "automargin": True} | (
        {} if named else {"ticks": ""}
    )
    layout = {"xaxis": axis, "yaxis": axis | {"autorange": "reversed"}}
    height = round(min(LARGEST_SIDE, LARGEST_CELL * len(labels))) + (130 if named else 60)
    right, videos = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
    alt = f"{right} of {videos} videos in their own class"
    if worst := _most_confused(labels, counts):
        alt += f"; most often confused: {worst}"
    return Chart(name, "", plain_figure([heat], layout, height), alt)


def _most_confused(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The largest number off the diagonal, in words; empty where all are right."""
    wrong = {(row, column): number for row, all_of in enumerate(counts) for column, number in enumerate(all_of)}
    off = {place: number for place, number in wrong.items() if number and place[0] != place[1]}
    if not off:
        return ""
    row, column = max(off, key=lambda place: off[place])
    return f"{labels[row]} as {labels[column]}, {off[row, column]} of {sum(counts[row])}"


def count(value: float) -> str:
    """1234 as 1.23k, 5000000 as 5M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
