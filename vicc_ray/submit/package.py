"""The working_dir of a job: this package's code, the resolved experiment and its manifest; nothing else, and bounded."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import vicc_ray
from vicc_ray import storage
from vicc_ray.config import Experiment, dump_experiment, with_settings
from vicc_ray.data.manifest import Manifest, manifest_files
from vicc_ray.errors import UserError

# Ray refuses 500 MiB and keeps the folder in the head's memory; a manifest of Kinetics-400 has about 20 MiB.
MOST_BYTES = 100 * 2**20
EXPERIMENT, MANIFEST = "experiment.yaml", "manifest.parquet"


@dataclass(frozen=True)
class Package:
    """A working_dir: where it lies, and the bytes of each part of it."""

    folder: Path
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """One line for the reader."""
        return f"{readable(self.bytes)}: " + ", ".join(f"{name} {readable(size)}" for name, size in self.parts.items())


def pack(experiment: Experiment, folder: Path) -> Package:
    """Make the working_dir of an experiment at `folder`, in place of an earlier one there.

    The experiment in it is complete (no `extends`), its paths absolute and its manifest the copy beside it. UserError
    where the manifest is missing or the whole would exceed `MOST_BYTES`; nothing is copied then.
    """
    manifest = experiment.data.manifest
    if manifest is None:
        raise UserError(
            "data.manifest: is not set; make one with 'vicc index DIR|URI --out M.parquet' and --set data.manifest=M.parquet"
        )
    code = _code()
    text = dump_experiment(portable(experiment)).encode()
    parts = {
        "vicc_ray": sum(path.stat().st_size for path in code),
        EXPERIMENT: len(text),
        MANIFEST: _size(manifest),
    }
    _refuse_large(parts)
    # Made beside it and then put in its place, so that no job is sent a half of it.
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _fill(made, code, text)
        Manifest.copy(manifest, made / MANIFEST)
        if folder.exists():
            shutil.rmtree(folder)
        made.replace(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Package(folder, parts)


def _fill(folder: Path, code: list[Path], experiment: bytes) -> None:
    root = _root()
    for path in code:
        target = folder / "vicc_ray" / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / EXPERIMENT).write_bytes(experiment)


def portable(experiment: Experiment) -> Experiment:
    """The experiment as it reads on another machine: paths absolute, the manifest beside it."""
    changes = {field: storage.absolute(name) for field, name in experiment.places.items()}
    return with_settings(experiment, changes | {"data.manifest": MANIFEST}, "submit")


def readable(size: int) -> str:
    """Bytes for the reader."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB") if size >= 2**20 else (2**10, "KiB")
    return f"{size / unit:.1f} {name}"


def _refuse_large(parts: dict[str, int]) -> None:
    total = sum(parts.values())
    if total > MOST_BYTES:
        largest = max(parts, key=lambda name: parts[name])
        raise UserError(
            f"the job's folder would have {readable(total)} ({largest}: {readable(parts[largest])}), at most "
            f"{readable(MOST_BYTES)} are sent; put what is large where every node reads it (a store or a shared path)"
        )


def _root() -> Path:
    return Path(vicc_ray.__path__[0])


def _code() -> list[Path]:
    """The files of this package, without what Python made of them."""
    files = (path for path in sorted(_root().rglob("*")) if path.is_file())
    return [path for path in files if "__pycache__" not in path.parts and not path.name.startswith(".")]


def _size(manifest: str) -> int:
    entries = [storage.describe(name) for name in manifest_files(manifest)]
    if None in entries:
        raise UserError(f"manifest {manifest}: no such file; make one with 'vicc index DIR --out {manifest}'")
    return sum(entry.bytes for entry in entries if entry)
