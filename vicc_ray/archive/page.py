"""The pages of an archive: strips of moving thumbnails with what is known of each, and maybe a map. Every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vicc_ray.archive.search import Answer
from vicc_ray.errors import UserError
from vicc_ray.report.charts import Chart
from vicc_ray.report.pages import distinct_names, render
from vicc_ray.report.plots import NO_SCRIPTS, scripts
from vicc_ray.report.thumbnails import Thumbnails
from vicc_ray.runs.records import write_text

PAGE_BYTES = 6_000_000  # of thumbnails on a page
MOST_BYTES = 40_000  # of a thumbnail
MOST_SHOWN = 400  # thumbnails on a page: each is decoded when the page is made


@dataclass(frozen=True)
class Card:
    """A video or a part of one: its id, which the thumbnail is made of, and lines for the reader. `kind`: query, kept or plain."""

    id: str
    video: str
    place: str = ""
    label: str = ""
    note: str = ""
    kind: str = "plain"


@dataclass(frozen=True)
class Strip:
    """Cards that belong together, under a heading."""

    title: str
    note: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Page:
    """A page: `verb` that made it, title, a sentence, facts (name, value), strips, and a chart."""

    verb: str
    title: str
    text: str
    facts: Sequence[tuple[str, str]]
    strips: Sequence[Strip]
    chart: Chart | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def write_page(page: Page, out: Path) -> None:
    """Make the thumbnails and write the page; UserError where it cannot be written. At most `MOST_SHOWN` cards are shown."""
    strips, left_out = _cut(page.strips)
    notes = list(page.notes) + ([f"{left_out} more are not shown"] if left_out else [])
    cards = [card for strip in strips for card in strip.cards]
    names = distinct_names(card.video for card in cards)
    with closing(Thumbnails(min(MOST_BYTES, PAGE_BYTES // max(len(cards), 1)))) as thumbnails:
        uris = {card.id: thumbnails.uri(card.id) for card in cards}
    facts = {
        "verb": page.verb,
        "title": page.title,
        "text": page.text,
        "facts": page.facts,
        "notes": notes,
        "strips": strips,
        "names": names,
        "uris": uris,
        "chart": page.chart,
        "scripts": scripts() if page.chart else NO_SCRIPTS,
    }
    try:
        write_text(out, render(Path(__file__).with_name("page.html.j2"), facts))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def _cut(strips: Sequence[Strip]) -> tuple[list[Strip], int]:
    """The first strips, with as many cards as are shown, and how many cards were left out."""
    kept, room = [], MOST_SHOWN
    for strip in strips:
        if room <= 0:
            break
        kept.append(Strip(strip.title, strip.note, strip.cards[:room]))
        room -= len(kept[-1].cards)
    return kept, sum(len(strip.cards) for strip in strips) - sum(len(strip.cards) for strip in kept)


def search_page(answers: Sequence[Answer], facts: Sequence[tuple[str, str]]) -> Page:
    """Each query with its neighbours, the nearest first."""
    strips = []
    for answer in answers:
        query = Card(answer.query, answer.video, clock(answer.start, answer.end), "", "query", "query")
        found = [
            Card(
                match.id,
                match.video,
                clock(match.start, match.end),
                match.label or "",
                f"{match.rank}. similarity {match.similarity:.3f}",
            )
            for match in answer.matches
        ]
        strips.append(Strip(answer.query, "", [query, *found]))
    text = "The nearest first; similarity is the cosine of two vectors, 1 for the same."
    return Page("search", "What looks like it", text, facts, strips)


def clock(start: float, end: float) -> str:
    """A place in a file: 1:02.5 - 1:10."""
    return f"{_clock(start)} - {_clock(end)}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds, 1), 3600)
    minutes, left = divmod(rest, 60)
    text = f"{left:04.1f}".removesuffix(".0")
    return f"{int(hours)}:{int(minutes):02d}:{text}" if hours else f"{int(minutes)}:{text}"
