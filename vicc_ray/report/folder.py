"""What a run folder holds, read with care: all but config.yaml may be missing, and a crash may have cut a line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicc_ray.config import Experiment, load_experiment
from vicc_ray.errors import UserError
from vicc_ray.evaluation import results
from vicc_ray.evaluation.results import Evaluation
from vicc_ray.runs.records import read_records

Record = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """One run: its settings (None where this version cannot read them), the text of its config.yaml, metrics by kind in order
    of samples, evaluations with the newest first, neighbours, and `notes`.

    `notes`: one sentence for each part that is missing or broken, for the reader of the page.
    """

    name: str
    experiment: Experiment | None
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
    notes: list[str] = []
    experiment = _experiment(path, notes)
    records = _read_metrics(folder / "metrics.jsonl", notes)
    return RunFolder(
        name=folder.resolve().name,
        experiment=experiment,
        config_text=text,
        train=_newest(records, "train"),
        monitor=_newest(records, "monitor"),
        evaluations=_read_evaluations(folder / "evaluations", notes),
        neighbours=_read_object(folder / "neighbours.json", "there is no gallery of neighbours", notes),
        notes=notes,
    )


def _experiment(path: Path, notes: list[str]) -> Experiment | None:
    """The run's settings, through the checks of every experiment file, so that no setting is read that does not exist."""
    try:
        return load_experiment(path)
    except UserError as error:
        if "is not valid YAML" in str(error):
            raise
        notes.append(f"config.yaml: {str(error).replace(f'{path}: ', '')}; its settings are shown as text only.")
        return None


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
    lines = sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    records = list(read_records(path))
    broken = lines - len(records)
    if broken:
        notes.append(f"metrics.jsonl: {broken} unreadable line{'s' if broken > 1 else ''} left out.")
    return records


def _newest(records: list[Record], kind: str) -> list[Record]:
    """Records of one kind by samples seen. A resumed run may have a count of samples twice: its newest record holds."""
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
