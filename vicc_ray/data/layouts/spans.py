"""Parts of videos in tables: which columns give their times, and how a cell is read.

| meaning | columns, in any case |
| --- | --- |
| start, end in seconds or [HH:]MM:SS | `start`, `end`; `start_time`, `end_time`; `time_start`, `time_end` (Kinetics); |
|   | `t_start`, `t_end`; `start_sec(onds)`, `end_sec(onds)`; `begin`, `end`; `start`, `stop`; |
|   | `start_timestamp`, `stop_timestamp` (EPIC-KITCHENS) or `end_timestamp` |
| frame numbers, the end not counted in | `start_frame`, `end_frame`; `first_frame`, `stop_frame` |
| middle of `AROUND` seconds | `timestamp`, `middle_frame_timestamp`, `keyframe_timestamp` (AVA) |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vicc_ray.data.layouts.candidates import Candidate, Span, examples
from vicc_ray.errors import UserError

AROUND = 3.0  # seconds of video that a row of AVA is about
_PAIRS = (
    ("start", "end"),
    ("start_time", "end_time"),
    ("time_start", "time_end"),
    ("t_start", "t_end"),
    ("start_seconds", "end_seconds"),
    ("start_sec", "end_sec"),
    ("start_timestamp", "stop_timestamp"),
    ("start_timestamp", "end_timestamp"),
    ("begin", "end"),
    ("start", "stop"),
)
_FRAME_PAIRS = (("start_frame", "end_frame"), ("start_frame", "stop_frame"), ("first_frame", "stop_frame"))
_MIDDLES = ("timestamp", "middle_frame_timestamp", "keyframe_timestamp")
COLUMNS = frozenset(_MIDDLES) | frozenset(title for pair in (*_PAIRS, *_FRAME_PAIRS) for title in pair)


def span_columns(header: Sequence[str]) -> dict[str, int]:
    """Where the times stand in a table's header: of `start` and `end`, `first` and `stop` (frames), or `middle`; else nothing."""
    lower = [title.lower() for title in header]
    for names, pairs in ((("start", "end"), _PAIRS), (("first", "stop"), _FRAME_PAIRS)):
        for pair in pairs:
            if pair[0] in lower and pair[1] in lower:
                return {name: lower.index(title) for name, title in zip(names, pair, strict=True)}
    middle = next((title for title in _MIDDLES if title in lower), None)
    return {} if middle is None else {"middle": lower.index(middle)}


def span_of(name: str, cells: Mapping[str, str]) -> Span | None:
    """The part that a row of the table `name` is about; None for a whole video. UserError for cells that are no times."""
    where = f"{name}: row {cells['number']}"
    if cells.get("middle"):
        middle = _seconds(where, cells["middle"])
        return Span(max(middle - AROUND / 2, 0.0), middle + AROUND / 2, row=where)
    for first, last in (("start", "end"), ("first", "stop")):
        given = [cells.get(first, ""), cells.get(last, "")]
        if all(given):
            start, end = (_seconds(where, cell) for cell in given)
            if first == "first" and (start != int(start) or end != int(end)):
                raise UserError(f"{where}: frames {given[0]} to {given[1]}: a frame's number is a whole one")
            return Span(start, end, first == "first", where)
        if any(given):
            raise UserError(f"{where}: has a start or an end, not both; give both, or neither for a whole video")
    return None


def _seconds(where: str, cell: str) -> float:
    """Seconds of `12.5`, `1:02.5` or `00:01:02.5`."""
    clock = re.fullmatch(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", cell.strip())
    if clock:
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])
    try:
        value = float(cell)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise UserError(f"{where}: time '{cell}'; a time is seconds from 0 on, or HH:MM:SS")
    return value


def merge_labels(candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[str]]:
    """Parts that a table names with several labels (AVA's actions of several people) without a label, and a note of these."""
    labels: dict[tuple[str, Span], set[str | None]] = {}
    for candidate in candidates:
        if candidate.span is not None:
            labels.setdefault((candidate.path, candidate.span), set()).add(candidate.label)
    several = {part for part, named in labels.items() if len(named) > 1}
    if not several:
        return list(candidates), []
    names = [f"{path} {span}" for path, span in labels if (path, span) in several]
    note = (
        f"{len(several)} parts have several labels, a part has one: these are used without a label: {examples(names)}"
    )
    return [replace(c, label=None) if (c.path, c.span) in several else c for c in candidates], [note]
