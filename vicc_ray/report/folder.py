"""What a run folder holds, read with care: all but config.yaml may be missing, and a crash may have cut a line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vicc_ray.errors import UserError
from vicc_ray.evaluation import results
from vicc_ray.evaluation.results import Evaluation

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """One run: `config` parsed and as text, metrics by kind in order of samples, evaluations with the newest first,
    neighbours, and `notes`.

    `notes`: one sentence for each part that is missing or broken, for the reader of the page.
    """

    name: str
    config: Record
    config_text: str
    train: list[Record]
    monitor: list[Record]
    evaluations: list[Evaluation]
    neighbours: Record | None
    notes: list[str]


def read_folder(folder: Path) -> RunFolder:
    """Read one run folder; UserError where it is none, or where its config.yaml cannot be read."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no run folder, as it has no config.yaml; give the folder that `vicc train` wrote")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    notes: list[str] = []
    records = _read_metrics(folder / "metrics.jsonl", notes)
    return RunFolder(
        name=folder.resolve().name,
        config=config if isinstance(config, dict) else {},
        config_text=text,
        train=_last_told(records, "train"),
        monitor=_last_told(records, "monitor"),
        evaluations=_read_evaluations(folder / "evaluations", notes),
        neighbours=_read_object(folder / "neighbours.json", "there is no gallery of neighbours", notes),
        notes=notes,
    )


def number(record: Record, key: str) -> float | None:
    """The finite number under `key`, or None."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _read_metrics(path: Path, notes: list[str]) -> list[Record]:
    if not path.is_file():
        notes.append("metrics.jsonl is missing: there are no curves.")
        return []
    records, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if isinstance(record, dict):
            records.append(record)
    if broken:
        notes.append(f"metrics.jsonl: {broken} unreadable line{'s' if broken > 1 else ''} left out.")
    return records


def _last_told(records: list[Record], kind: str) -> list[Record]:
    """Records of one kind by samples seen. A resumed run tells steps twice: its last word on a sample count holds."""
    last: dict[float, Record] = {}
    for record in records:
        samples = number(record, "samples")
        if record.get("kind") == kind and samples is not None:
            last[samples] = record
    return [last[samples] for samples in sorted(last)]


def _read_evaluations(folder: Path, notes: list[str]) -> list[Evaluation]:
    files = sorted(folder.glob("*.json"), key=lambda file: (-file.stat().st_mtime, file.name))
    if not files:
        notes.append("evaluations is missing: nothing has been evaluated.")
    found = []
    for file in files:
        try:
            found.append(results.read(file))
        except UserError as error:
            notes.append(f"evaluations: {str(error).replace(str(file), file.name)}.")
    return found


def _read_object(path: Path, lack: str, notes: list[str]) -> Record | None:
    if not path.is_file():
        notes.append(f"{path.name} is missing: {lack}.")
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} is not JSON ({error}): {lack}.")
        return None
    if not isinstance(value, dict):
        notes.append(f"{path.name} holds no JSON object: {lack}.")
        return None
    return value
