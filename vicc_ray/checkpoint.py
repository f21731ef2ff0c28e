"""A run's folder and state on disk, independent of the number of workers. Nothing is ever unpickled.

runs/NAME/config.yaml          the resolved experiment          manifest.parquet   the videos, as they were indexed
          encoders/NAME.safetensors   what each stage left      provenance.json    what made it
          metrics.jsonl, tensorboard/ records of training       refused.jsonl      videos that failed in training
          ray/                 Ray Train's checkpoints          logs/              what Ray had to say
          results.json, neighbours.json, report.html            written by evaluation and report
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vicc_ray.config import Experiment, differences, dump_experiment, load_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError

STATE_FILE = "state.pt"
STATE_FORMAT = 1


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run lies."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.parquet"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def refused(self) -> Path:
        return self.path / "refused.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def neighbours(self) -> Path:
        return self.path / "neighbours.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def encoder(self, name: str) -> Path:
        """The file of the encoder that a stage left, for example RGB-2."""
        return self.path / "encoders" / f"{name}.safetensors"

    def encoders(self) -> list[str]:
        """Names of the encoders that are there."""
        return sorted(path.stem for path in (self.path / "encoders").glob("*.safetensors"))

    def experiment(self) -> Experiment:
        """The run's experiment; UserError where this is no run folder."""
        if not self.config.is_file():
            raise UserError(
                f"{self.path}: is not a run folder (it has no config.yaml); give a folder that 'vicc train' wrote"
            )
        return load_experiment(self.config)

    def read_manifest(self, experiment: Experiment) -> Manifest:
        """The manifest that the experiment names, else the one that the run was started with; UserError without either."""
        if experiment.data.manifest is not None:
            return Manifest.read(experiment.data.manifest)
        if self.manifest.is_file():
            return Manifest.read(self.manifest)
        raise UserError(
            "data.manifest: is not set; make one with 'vicc index DIR --out M.parquet' and --set data.manifest=M.parquet"
        )

    def open(self, experiment: Experiment, data_fingerprint: str) -> bool:
        """Claim the folder for an experiment; True where it resumes a run.

        UserError where the folder holds a run that would learn something else, naming each difference.
        """
        if self.config.exists():
            self._refuse_another_run(experiment, data_fingerprint)
            write_text(self.config, dump_experiment(experiment))
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        # config.yaml comes last: a folder that has one is complete.
        write_text(self.path / "provenance.json", json.dumps(provenance(data_fingerprint), indent=2) + "\n")
        write_text(self.config, dump_experiment(experiment))
        return False

    def provenance(self) -> dict[str, Any]:
        """What made the run."""
        loaded: dict[str, Any] = json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))
        return loaded

    def _refuse_another_run(self, experiment: Experiment, data_fingerprint: str) -> None:
        changed = differences(self.experiment(), experiment)
        if self.provenance()["data_fingerprint"] != data_fingerprint:
            changed.append("the videos of the manifest are not the same")
        if changed:
            raise UserError(
                f"{self.path}: holds a run of another experiment ({'; '.join(changed)}); "
                "choose another folder with --set name=..., or remove this one"
            )


def provenance(data_fingerprint: str) -> dict[str, Any]:
    """Versions, commit and data behind a result."""
    packages = ("vicc-ray", "torch", "torchvision", "ray", "numpy", "decord", "av", "opencv-contrib-python-headless")
    return {
        "data_fingerprint": data_fingerprint,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; a line is written whole or, by a crash, cut, and a cut line is passed over when read."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


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


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint's state (tensors, numbers, strings, lists and dicts of them) into a folder."""
    import torch

    torch.save({"format": STATE_FORMAT, **state}, folder / STATE_FILE)


def load_state(folder: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; UserError where it is damaged or of another format."""
    import torch

    path = folder / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); remove its folder to go back one"
        ) from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise UserError(f"{path}: is not a checkpoint of this version")
    return state
