"""Tables as JSON: a list of objects, JSON lines, or a mapping from videos; as header and rows of text."""

from __future__ import annotations

import json
from typing import Any

from vicc_ray.data.layouts.candidates import VIDEO_EXTENSIONS, examples, extension
from vicc_ray.data.layouts.tree import read_text
from vicc_ray.errors import UserError

# What holds the list of entries where the file is an object (mmengine has `data_list`).
_LISTS = ("data_list", "data", "videos", "samples", "items", "entries")
PART = json.dumps({"segment": [12.5, 15], "label": "a class"})
READABLE = json.dumps({"video": "folder/a.mp4", "label": "a class"})


def read_json(name: str, fields: frozenset[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, every value as text; `fields` are the titles (in lower case) whose values matter.

    `UserError` for what is no JSON, holds no entries, or has several values where a video has one.
    """
    entries = [part for entry in _entries(name, _load(name)) for part in _parts(entry)]
    header = list(dict.fromkeys(key for entry in entries for key in entry))
    nested = [key for key in header if any(isinstance(entry.get(key), dict | list) for entry in entries)]
    if nested and not any(key.lower() in fields for key in header):
        raise UserError(f"{name}: its entries hold nested values ({examples(nested)}) and no known field; {_advice()}")
    if "annotations" in nested:
        raise UserError(
            f"{name}: 'annotations' are read as ActivityNet has them, a list of {PART} a video; {_advice()}"
        )
    rows = [
        [_text(name, number, key, entry.get(key), key.lower() in fields) for key in header]
        for number, entry in enumerate(entries, 1)
    ]
    return header, rows


def _advice() -> str:
    return f"an entry is readable as {READABLE}"


def _load(name: str) -> Any:
    text = read_text(name)
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        if extension(name) == ".json":
            return json.loads(text)
        return [json.loads(line) for line in lines]
    except RecursionError as error:
        raise UserError(f"{name}: cannot be read as JSON: it is nested too deeply") from error
    except ValueError as error:
        problem = error
    try:  # lines under the other's name, or the other way round
        return [json.loads(line) for line in lines] if extension(name) == ".json" else json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{name}: cannot be read as JSON: {problem}") from problem


def _entries(name: str, data: Any) -> list[dict[str, Any]]:
    """One object a video; a list of names and a mapping by names are made into that."""
    if isinstance(data, dict) and isinstance(data.get("database"), dict):  # ActivityNet's
        return [{"id": key} | value for key, value in data["database"].items() if isinstance(value, dict)]
    if isinstance(data, dict):
        inner = next((data[key] for key in _LISTS if isinstance(data.get(key), list)), None)
        if inner is None:
            return _mapped(name, data)
        data = inner
    if not isinstance(data, list) or not data:
        raise UserError(f"{name}: holds no list of videos; {_advice()}")
    entries = [{"video": entry} if isinstance(entry, str) else entry for entry in data]
    odd = next((number for number, entry in enumerate(entries, 1) if not isinstance(entry, dict)), None)
    if odd is not None:
        raise UserError(f"{name}: entry {odd} is {json.dumps(data[odd - 1])[:80]}; {_advice()}")
    return entries


def _parts(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """ActivityNet's parts of a video, an entry each; the entry itself where it has none."""
    parts = entry.get("annotations")
    if not isinstance(parts, list) or not all(_is_part(part) for part in parts):
        return [entry]
    video = {key: value for key, value in entry.items() if key != "annotations"}
    return [
        video | {"start": part["segment"][0], "end": part["segment"][1]} | {"label": part.get("label")}
        for part in parts
    ] or [video]


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and isinstance(part.get("segment"), list) and len(part["segment"]) == 2


def _mapped(name: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """`{"a.mp4": "class"}` or `{"a.mp4": {"label": "class"}}`."""
    if not data or any(extension(key) not in VIDEO_EXTENSIONS for key in data):
        raise UserError(f"{name}: holds no list of videos, and its keys ({examples(list(data))}) are none; {_advice()}")
    return [{"video": key} | (value if isinstance(value, dict) else {"label": value}) for key, value in data.items()]


def _text(name: str, number: int, key: str, value: Any, matters: bool) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if (
        value is None or value == [] or value != value or not matters
    ):  # a missing number is NaN, which differs from itself
        return ""
    if isinstance(value, dict | list):
        kind = f"several values ({examples([str(one) for one in value])})"
        raise UserError(f"{name}: entry {number}: '{key}' has {kind}, a video has one; {_advice()}")
    return str(value).strip()
