"""Records of a run as JSON lines: appended while it goes, read by the report, the progress and `vicc status`."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vicc_ray.storage import whole_file

NUMBER = (int, float)
# What a record of a kind has at least; the empty kind stands for all. What lacks it was damaged.
Shape = Mapping[str, Mapping[str, Any]]
EVENTS: Shape = {"": {"kind": str, "time": NUMBER}}
METRICS: Shape = {
    "": {"kind": str},
    "train": {"stage": str, "step": int, "time": NUMBER, "loss": NUMBER},
    "monitor": {"stage": str, "step": int},
    "note": {"stage": str, "text": str},
}
# Events that are counted and say nothing to the reader.
COUNTED = ("start", "attempt")


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


class RecordWriter:
    """Appends records to a file. What a full or absent disk refuses is kept and written with a later one, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pending: list[str] = []
        self._lock = threading.Lock()

    def add(self, record: Mapping[str, Any]) -> None:
        """Append one record, after those that could not be written before."""
        with self._lock:
            self.pending.append(json.dumps(record) + "\n")
            try:
                # A line that a full disk cut short must not swallow the one that follows it.
                gap = "\n" if _cut(self.path) else ""
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(gap + "".join(self.pending))
                self.pending.clear()
            except OSError:
                pass


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; a line is written whole or, by a crash, cut, and a cut line is passed over when read."""
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if _cut(path) else "") + json.dumps(record) + "\n")


def _cut(path: Path) -> bool:
    """Whether the file's last line has no end."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) != b"\n"


def parse_record(line: bytes, shape: Shape | None = None) -> dict[str, Any] | None:
    """The record of a line; None for bytes that are none, or not one of this shape."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if shape is not None:
        fields = {**shape[""], **shape.get(str(record.get("kind")), {})}
        if not all(isinstance(record.get(name), kind) for name, kind in fields.items()):
            return None
    return record


def read_records(path: Path, shape: Shape | None = None) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file, in order; nothing where there is no file. Damaged lines are passed over."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            record = parse_record(line, shape)
            if record is not None:
                yield record


def last_records(path: Path, least: int, taken: int = 1 << 16) -> list[dict[str, Any]]:
    """The last records of a file, in order: at least so many where it has them, whatever its length; no damaged lines.

    `taken`: bytes read at first, four times as many where these do not do.
    """
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, 2)
        while True:
            start = max(size - taken, 0)
            file.seek(start)
            lines = file.read(size - start).splitlines()[1 if start else 0 :]  # the first one may begin before that
            found = [record for line in lines if (record := parse_record(line)) is not None]
            if len(found) >= least or not start:
                return found
            taken *= 4


def read_events(path: Path) -> list[dict[str, Any]]:
    """What happened to a run: records with `kind` and `time` (seconds)."""
    return list(read_records(path, EVENTS))


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of training, of one kind (train, monitor, note) or of all, with what `METRICS` says of each kind."""
    return [record for record in read_records(path, METRICS) if kind in (None, record["kind"])]


def number(record: Mapping[str, Any], name: str) -> float:
    """A figure of a record; NaN where it has none of this name."""
    value = record.get(name)
    return float(value) if isinstance(value, NUMBER) else math.nan


def unreadable_videos(path: Path) -> dict[str, str]:
    """Videos that could not be read when they were last tried, with the reason, by a run's refused.jsonl."""
    found: dict[str, str] = {}
    for record in read_records(path):
        video = record.get("video")
        if isinstance(video, str):
            found.pop(video, None)
            if not record.get("readable"):
                found[video] = str(record.get("reason", ""))
    return found


def forget_records_after(path: Path, step: int) -> None:
    """Drop records of steps beyond a checkpoint: what comes after it is trained, and recorded, again."""
    records = list(read_records(path))
    kept = [record for record in records if not isinstance(at := record.get("step", 0), NUMBER) or at <= step]
    if len(kept) < len(records):
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
