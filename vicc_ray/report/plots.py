"""Plotly's figures in a self-contained page: the figures as data, plotly.js once, and nothing else that may run.

A page's Content-Security-Policy names the hashes of these two scripts, so a text that slipped through as markup could not run.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from typing import Any

# Draws the figure of each element of class "plot" when it is first seen: a closed <details> has no width.
_DRAW = """
const draw = (plot) => {
  const figure = JSON.parse(plot.dataset.figure);
  Plotly.newPlot(plot, figure.data, figure.layout, {displaylogo: false, responsive: true, displayModeBar: false});
};
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }
}, {rootMargin: "400px"});
for (const plot of document.querySelectorAll(".plot")) { seen.observe(plot); }
window.addEventListener("beforeprint", () => {
  for (const plot of document.querySelectorAll(".plot:not(.js-plotly-plot)")) { draw(plot); }
});
"""
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
INK, MUTED, GRID = "#1d2530", "#667080", "#e8ebef"


@dataclass(frozen=True)
class Scripts:
    """What a page with figures holds once: the texts of its scripts, and their hashes for its policy."""

    texts: tuple[str, ...]
    policy: str


NO_SCRIPTS = Scripts((), "'none'")  # of a page without figures, which is 5 MB smaller


@cache
def scripts() -> Scripts:
    """plotly.js and what draws the figures; the page's policy may have `script-src` followed by `policy`."""
    from plotly.offline import get_plotlyjs

    texts = (get_plotlyjs(), _DRAW)
    hashes = (base64.b64encode(sha256(text.encode()).digest()).decode() for text in texts)
    return Scripts(texts, " ".join(f"'sha256-{one}'" for one in hashes))


def figure_json(figure: Any, height: int) -> str:
    """A Plotly figure as JSON, for the attribute `data-figure` of an element of class "plot"; the template escapes it."""
    figure.update_layout(
        template="plotly_white",
        title=None,
        height=height,
        margin={"l": 52, "r": 16, "t": 26, "b": 42},
        font={"family": _FONT, "size": 12, "color": INK},
        legend={"orientation": "h", "yanchor": "top", "y": -0.24, "x": 0},
        hoverlabel={"font": {"family": _FONT}},
    )
    text: str = figure.to_json()
    return text


def plain(text: str) -> str:
    """A name for a figure's texts, in which Plotly would read some tags and entities."""
    return escape(text, quote=False)
