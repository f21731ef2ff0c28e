"""The project's one way to fill a page: strict templates that escape what they show, in a file that appears whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, facts: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """The page of a template file; a fact that the template needs and `facts` lacks is an error, never a blank."""
    pages = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(filters or {})
    return pages.get_template(template.name).render(facts)


def attribute(text: str) -> str:
    """A text, safe in an attribute in single quotes, in which JSON is a third shorter than with its quotes escaped."""
    return text.replace("&", "&amp;").replace("'", "&#39;").replace("<", "&lt;")


def distinct_names(paths: Iterable[str]) -> dict[str, str]:
    """A short name of each path or URI: the file's, with the folders that it takes to distinguish it from the others."""
    parts = {path: (unquote(path) if "://" in path else path).strip("/").split("/") for path in set(paths)}
    names, length = dict[str, str](), 0
    while len(names) < len(parts):
        length += 1
        tails = {path: "/".join(cells[-length:]) for path, cells in parts.items() if path not in names}
        counts = Counter(tails.values())
        longest = max(len(cells) for cells in parts.values())
        names.update({path: tail for path, tail in tails.items() if counts[tail] == 1 or length >= longest})
    return names
