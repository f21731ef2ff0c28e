"""Plotly's figures in a self-contained page: the figures as data, plotly.js once, and nothing else that may run.

A page's Content-Security-Policy names the hashes of these two scripts, so a text that slipped through as markup could not run.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from typing import Any

# A page's colours in the light -> in the dark, where it has both (`palette_style`). Against white and #14181f those of lines and
# bars have a contrast of 3 to 1 and more, those of texts 4.5 to 1: a test computes it.
INK, MUTED, LEVEL, GRID, BAND, TRACK = "#1d2530", "#5c6675", "#4a5260", "#e3e7ec", "#f2f4f7", "#eceff2"
PALETTE = {
    INK: "#e6eaf0",
    MUTED: "#a3adba",
    LEVEL: "#a3adbb",
    GRID: "#2c343f",
    BAND: "#1c222b",
    TRACK: "#262d37",
    "#5a93c7": "#4d86bd",
    "#1c5d99": "#7fb8ee",
    "#0b3558": "#c4e0fb",
    "#bf7d22": "#b57c36",
    "#945306": "#f0ae5c",
    "#6f3d00": "#fbdcae",
    "#4f9a62": "#56945f",
    "#2f7a3c": "#85cf94",
    "#1c4a25": "#c3ecca",
    "#a8669a": "#b070a2",
    "#8e3b72": "#dc8fc2",
    "#5e2049": "#f0c3e0",
    "#5b5f97": "#a9adec",
    "#a23b3b": "#ee8f8f",
    "#2a7f86": "#6fd0d8",
    "#6b6b6b": "#b5b5b5",
    "#6d4a9c": "#bd9bea",
    "#7d838c": "#8f97a1",
    "#e9eef6": "#1f2a38",  # the ends of a confusion matrix
    "#1f4e8c": "#7fb8ed",
}

# Draws the figure of each element of class "plot" when it is first seen: a closed <details> has no width. Colours of PALETTE are
# taken from the page's style, so that they are those of the reader's theme; paper gets the light ones, and narrower figures.
_DRAW = """
const root = document.documentElement;
const style = getComputedStyle(root);
const tone = (key, value) => typeof value === "string" && value[0] === "#"
  ? style.getPropertyValue("--c-" + value.slice(1)).trim() || value : value;
const draw = (plot, width) => {
  const figure = JSON.parse(plot.dataset.figure, tone);
  if (width) { figure.layout.width = width; }
  Plotly.newPlot(plot, figure.data, figure.layout, {responsive: !width, displayModeBar: false, staticPlot: Boolean(width)});
};
const plots = (which) => [...document.querySelectorAll(which)];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }
}, {rootMargin: "400px"});
for (const plot of plots(".plot")) { seen.observe(plot); }
const again = () => { for (const plot of plots(".js-plotly-plot")) { draw(plot); } };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
let opened = [];
addEventListener("beforeprint", () => {
  root.classList.add("print");
  opened = plots("details.print:not([open])").filter((one) => !one.parentElement.closest("details:not([open])"));
  for (const one of opened) { one.open = true; }
  for (const plot of plots(".plot")) {
    if (!plot.closest("details:not([open])")) { seen.unobserve(plot); draw(plot, 330); }
  }
});
addEventListener("afterprint", () => {
  root.classList.remove("print");
  for (const one of opened) { one.open = false; }
  again();
});
"""

# A thumbnail moves while it is pointed at or has the focus, and large in a dialog when it is chosen; all at once by a button.
_VIEW = """
const viewer = document.querySelector("dialog.viewer");
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const thumbs = [...document.querySelectorAll("button.frame")];
const all = document.querySelector("button.all");
const move = (thumb, on) => {
  const picture = thumb.querySelector("img");
  thumb.still = thumb.still || picture.src;
  picture.src = on ? thumb.dataset.moving : thumb.still;
};
const playing = () => all.getAttribute("aria-pressed") === "true";
for (const thumb of thumbs) {
  for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
    thumb.addEventListener(event, () => { if (!playing() && !calm.matches) { move(thumb, on); } });
  }
  thumb.addEventListener("click", () => {
    viewer.querySelector("img").src = thumb.dataset.moving;
    viewer.querySelector("img").alt = thumb.querySelector("img").alt;
    viewer.querySelector("p").textContent = thumb.getAttribute("aria-label").split(":")[0];
    viewer.showModal();
  });
}
all.addEventListener("click", () => {
  const on = !playing();
  all.setAttribute("aria-pressed", String(on));
  for (const thumb of thumbs) { move(thumb, on); }
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) { viewer.close(); } });
"""
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Scripts:
    """What a page with figures holds once: the texts of its scripts, and their hashes for its policy."""

    texts: tuple[str, ...]
    policy: str


NO_SCRIPTS = Scripts((), "'none'")  # of a page without figures, which is 5 MB smaller


@cache
def scripts(figures: bool = True, thumbnails: bool = False) -> Scripts:
    """What a page's figures need (plotly.js, which is 5 MB, and what draws them) and its thumbnails.

    The page's policy may have `script-src` followed by `policy`.
    """
    from plotly.offline import get_plotlyjs

    texts = ((get_plotlyjs(), _DRAW) if figures else ()) + ((_VIEW,) if thumbnails else ())
    hashes = (base64.b64encode(sha256(text.encode()).digest()).decode() for text in texts)
    return Scripts(texts, " ".join(f"'sha256-{one}'" for one in hashes)) if texts else NO_SCRIPTS


def palette_style() -> str:
    """The custom properties of PALETTE, `--c-1d2530` and so on, for the light and for the dark."""
    light, dark = ("".join(f"--c-{name[1:]}:{colour};" for name, colour in side) for side in (_same(), PALETTE.items()))
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root:not(.print){{{dark}}}}}"


def _same() -> list[tuple[str, str]]:
    return [(name, name) for name in PALETTE]


def tone(colour: str) -> str:
    """A colour of PALETTE as a style of the page takes it."""
    return f"var(--c-{colour[1:]})"


def figure_json(figure: Any, height: int) -> str:
    """A Plotly figure as JSON, for the attribute `data-figure` of an element of class "plot"; the template escapes it."""
    figure.update_layout(template="plotly_white", title=None, **_common(height))
    text: str = figure.to_json()
    return text


def plain_figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], height: int) -> str:
    """The same of traces and a layout as plain values: ten times as fast and as short as through Plotly's own objects."""
    return json.dumps({"data": data, "layout": {**_common(height), **layout}}, separators=(",", ":"), allow_nan=False)


def _common(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 52, "r": 16, "t": 26, "b": 42},
        "font": {"family": _FONT, "size": 12, "color": INK},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.27, "x": 0},
        "hoverlabel": {"font": {"family": _FONT}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }


def plain(text: str) -> str:
    """A name for a figure's texts, in which Plotly would read some tags and entities."""
    return escape(text, quote=False)
