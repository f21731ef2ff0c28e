"""Records of a run as JSON lines: appended while it goes, read by the report, the progress and `vicc status`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vicc_ray.storage import whole_file


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


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file, in order; nothing where there is no file."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def forget_records_after(path: Path, step: int) -> None:
    """Drop records of steps beyond a checkpoint: what comes after it is trained, and recorded, again."""
    records = list(read_records(path))
    kept = [record for record in records if record.get("step", 0) <= step]
    if len(kept) < len(records):
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
