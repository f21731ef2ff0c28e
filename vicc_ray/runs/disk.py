"""What a run keeps on disk, by part and in bytes. Lists names; reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vicc_ray import storage
from vicc_ray.runs.folder import RunFolder

RECORDS = "records and tables"  # files of the run's folder itself


def files_of(folder: RunFolder) -> dict[str, storage.FileEntry]:
    """The files below a run's folder, where the run is (its store, for one under a URI), by their names within it."""
    where = str(folder)
    if not storage.exists(where):
        return {}
    entries = storage.list_files(where)
    return {entry.name.removeprefix(where).lstrip("/"): entry for entry in entries}


def sizes(files: Mapping[str, storage.FileEntry]) -> dict[str, int]:
    """Bytes of each part (encoders, checkpoints, features, ...), the largest first."""
    found: dict[str, int] = {}
    for name, entry in files.items():
        part = name.split("/")[0] if "/" in name else RECORDS
        found[part] = found.get(part, 0) + entry.bytes
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def total(entries: Sequence[storage.FileEntry]) -> int:
    """Bytes of some files."""
    return sum(entry.bytes for entry in entries)


def readable_bytes(count: float) -> str:
    """1234567 as 1.2 MiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
