"""A run's folder: which file lies where, what made the run, and who may go on with it.

RUNS/NAME/config.yaml          the resolved experiment          manifest.parquet   the videos, as they were indexed
          encoders/NAME.safetensors   what each stage left      provenance.json    what made it
          checkpoints/         the state of training            events.jsonl       starts, faults, resizes
          metrics.jsonl, tensorboard/ records of training       refused.jsonl      videos that failed in training
          evaluations/*.json, results.csv, neighbours.json      what evaluation found
          features/*.parquet   of videos, by each encoder      report.html         what both come to
          logs/                what Ray had to say              sinks.json         numbers of the run on tracking servers

A run under a URI (`s3://bucket/runs`) has a mirror on each machine that works on it, and one for each of its workers:
files are read and written there and pushed to the store, checkpoints go to the store directly. What the store does not
have (any more) the mirror has not either. A run under a path is its own mirror.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from vicc_ray import storage
from vicc_ray.config import Experiment, differences, dump_experiment, load_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.pictures import RULES
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import CheckpointStore
from vicc_ray.runs.records import write_text

# Not fetched with the others: read where they are, fetched when they are needed, or of no use elsewhere.
SETTLED_SECONDS = 60.0
# Since a file that nobody finished was last written to; pages and tables are written by other commands without the lock.
UNFINISHED_SECONDS = 3600.0
_NOT_PULLED = {"checkpoints", "tensorboard", "logs", "features"}
# Of this machine alone: a store need not have them. The lock and the logs may be open while a mirror is cleared.
_OPEN, _OWN = {"lock", "logs"}, {"lock", "logs", "samples", "features"}


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run lies: `path` on this machine, `remote` the URI that it mirrors, if there is one."""

    path: Path
    remote: str | None = None

    @classmethod
    def at(cls, where: str | Path, mirror: str = "") -> RunFolder:
        """The run folder of a path or URI; `mirror` names one of this machine's mirrors of a URI.

        A process that appends to records needs a mirror of its own: another's `fetch` puts the store's older copy there.
        """
        name = str(where)
        local = storage.local_path(name)
        if local is not None:
            return cls(Path(local))
        uri = storage.absolute(name)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        digest = blake2b(uri.encode(), digest_size=8).hexdigest()
        return cls(cache / "vicc_ray" / "runs" / f"{digest}{mirror and '-'}{mirror}" / uri.rsplit("/", 1)[1], uri)

    def __str__(self) -> str:
        return self.remote or str(self.path)

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return CheckpointStore(storage.join(str(self), "checkpoints"))

    def shared_name(self, path: Path) -> str:
        """The name by which every machine reads a file of the mirror: its path, or its URI in the store."""
        inner = path.relative_to(self.path).parts
        return storage.join(str(self), *(map(quote, inner) if self.remote else inner))

    def push(self, *paths: Path) -> None:
        """Put files of the mirror into the store; those that are not there are passed over."""
        if self.remote is None:
            return
        for path in paths:
            if path.is_file():
                storage.upload(path, self.shared_name(path))

    def pull(self, alone: bool = False) -> None:
        """Make the mirror equal to the store: settings, records, results, encoders; what is gone there goes here too.

        alone: whether no other process of this machine works in the mirror. Else what is younger than a minute stays: it may
        be on its way to the store. OSError where the store is away or refuses.
        """
        if self.remote is None:
            return
        # Listed before the store is: what is written meanwhile must not count as missing there.
        mine = list(self._settled(0 if alone else SETTLED_SECONDS))
        entries = list(storage.list_files(self.remote)) if storage.exists(self.remote) else []
        theirs = {unquote(entry.name.removeprefix(self.remote).lstrip("/")): entry for entry in entries}
        kept = _OWN if theirs else _OPEN
        for path in mine:
            inner = path.relative_to(self.path)
            if inner.as_posix() not in theirs and inner.parts[0] not in kept:
                path.unlink(missing_ok=True)
        for name, entry in theirs.items():
            if not _NOT_PULLED & set(name.split("/")[:-1]) and not _is_copy(self.path / name, entry):
                fetched = self.fetch(self.path / name)
                # The store's own time, so that no clock of a machine decides what is newer.
                with suppress(FileNotFoundError):  # removed there a moment ago
                    os.utime(fetched, (entry.modified, entry.modified))

    def _settled(self, seconds: float) -> Iterator[Path]:
        """The mirror's files that are no younger than this; none that another process is about to finish."""
        for path in self.path.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith(".") and time.time() - path.stat().st_mtime >= seconds:
                    yield path

    def fetch(self, path: Path) -> Path:
        """The file of the mirror, as the store has it now, or has it not; itself for a run under a path."""
        if self.remote is not None:
            try:
                storage.download(self.shared_name(path), path)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
        return path

    @contextmanager
    def as_user_errors(self) -> Iterator[None]:
        """For a verb's own process: what the disk or the store refuses is a UserError that names the folder.

        Workers let the OSError pass, as the store may be back when they are started again.
        """
        try:
            yield
        except OSError as error:
            reason = " ".join(str(error.strerror or error).split())[:300]
            raise UserError(
                f"{self}: cannot be read or written ({reason}); check the rights there and the connection, or choose another "
                "folder"
            ) from error

    @property
    def config(self) -> Path:
        """The resolved experiment."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """The videos, as they were indexed."""
        return self.path / "manifest.parquet"

    @property
    def metrics(self) -> Path:
        """Records of training: loss, recall, notes; a JSON line each."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """Starts, faults, resizes and requests; a JSON line each."""
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of the samples that each worker consumed, where the experiment records them."""
        return self.path / "samples"

    @property
    def stop_request(self) -> Path:
        """A file whose presence makes the workers end after a checkpoint."""
        return self.path / "stop"

    @property
    def refused(self) -> Path:
        """Videos that could not be read in training; a JSON line each."""
        return self.path / "refused.jsonl"

    @property
    def features(self) -> Path:
        """Folder of stored features."""
        return self.path / "features"

    @property
    def evaluations(self) -> Path:
        """Folder of results of evaluations."""
        return self.path / "evaluations"

    @property
    def results_csv(self) -> Path:
        """All figures of all evaluations."""
        return self.path / "results.csv"

    @property
    def neighbours(self) -> Path:
        """Neighbours of some queries, for the report."""
        return self.path / "neighbours.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's files."""
        return self.path / "tensorboard"

    @property
    def sinks(self) -> Path:
        """Numbers of the run on tracking servers."""
        return self.path / "sinks.json"

    @property
    def logs(self) -> Path:
        """Folder of Ray's output."""
        return self.path / "logs"

    def encoder(self, name: str) -> Path:
        """The file of the encoder that a stage left, for example RGB-2."""
        return self.path / "encoders" / f"{name}.safetensors"

    def classifier(self, name: str) -> Path:
        """Where a classification's folder holds the classifier on the encoder `name`, for example RGB-2."""
        return self.path / "classifiers" / f"{name}.safetensors"

    def encoders(self) -> list[str]:
        """Names of the encoders that are there."""
        return sorted(path.stem for path in (self.path / "encoders").glob("*.safetensors"))

    def experiment(self, overrides: Sequence[str] = ()) -> Experiment:
        """The run's experiment, with `path=value` overrides applied; UserError where this is no run folder."""
        if not self.config.is_file():
            raise UserError(
                f"{self}: is not a run folder (it has no config.yaml); give a folder that 'vicc train' wrote"
            )
        return load_experiment(self.config, overrides)

    def begun(self) -> Experiment | None:
        """The experiment of the run that the folder holds, as the store has it now; None where none began. Changes nothing."""
        config = self.shared_name(self.config)
        with self.as_user_errors():
            if not storage.exists(config):
                return None
            with storage.local_copy(config) as path:
                return load_experiment(path)

    def read_manifest(self, experiment: Experiment) -> Manifest:
        """The manifest that the experiment names, else the one that the run was started with; UserError without either."""
        if experiment.data.manifest is not None:
            return Manifest.read(experiment.data.manifest)
        with self.as_user_errors():
            self.fetch(self.manifest)
        if self.manifest.is_file():
            return Manifest.read(self.manifest)
        raise UserError(
            "data.manifest: is not set; make one with 'vicc index DIR --out M.parquet' and --set data.manifest=M.parquet"
        )

    def open(
        self,
        experiment: Experiment,
        data_fingerprint: str,
        flow: Mapping[str, Any] | None = None,
        times: str | None = None,
        earlier: str | None = None,
    ) -> bool:
        """Claim the folder for an experiment; True where it resumes a run.

        flow: what decides the flow that is learnt from (`data.identity`); None where there is none. times: of the videos'
        times (`Manifest.times_fingerprint`), where `clip.fps` counts by them. earlier: the fingerprint by which versions before
        would know the same videos (`Manifest.earlier_fingerprint`). UserError where the folder holds a run that would
        learn something else, naming each difference.
        """
        facts = provenance(data_fingerprint, flow, times)
        if self.config.exists():
            self._refuse_another_run(experiment, facts, earlier)
            storage.remove_partials(self.path, UNFINISHED_SECONDS)
            write_text(self.config, dump_experiment(experiment))
            self.push(self.config)
            return True
        self.path.mkdir(parents=True, exist_ok=True)
        # config.yaml comes last: a folder that has one is complete.
        write_text(self.path / "provenance.json", json.dumps(facts, indent=2) + "\n")
        write_text(self.config, dump_experiment(experiment))
        self.push(self.path / "provenance.json", self.config)
        return False

    def keep_manifest(self, manifest: Manifest) -> None:
        """Keep the videos as they are indexed now, for what reads the run later; a resumed run follows moved files."""
        try:
            kept = Manifest.read(self.manifest)
        except UserError:
            kept = None  # none yet, or damaged
        if kept is None or (kept.videos, kept.refused) != (manifest.videos, manifest.refused):
            manifest.write(self.manifest)
            self.push(self.manifest)

    def request_stop(self) -> None:
        """Make the run's workers end after a checkpoint."""
        write_text(self.stop_request, "")
        self.push(self.stop_request)

    def forget_stop(self) -> None:
        """Take an earlier request to stop back: the run is wanted again."""
        self.stop_request.unlink(missing_ok=True)
        if self.remote is not None:
            storage.remove(storage.join(self.remote, self.stop_request.name))

    def stop_requested(self) -> bool:
        """Whether the workers are to end."""
        if self.remote is None:
            return self.stop_request.exists()
        return storage.exists(storage.join(self.remote, self.stop_request.name))

    def provenance(self) -> dict[str, Any]:
        """What made the run; UserError where provenance.json is missing or damaged, as then nobody knows."""
        file = self.path / "provenance.json"
        try:
            loaded = json.loads(file.read_bytes())
            if not isinstance(loaded, dict) or not isinstance(loaded.get("data_fingerprint"), str):
                raise ValueError("its data_fingerprint is missing")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self}: its provenance.json cannot be read ({getattr(error, 'strerror', None) or error}), so it is not known "
                "which videos the run learns from; put the file back, or choose another folder with --set name=..."
            ) from None
        return loaded

    @property
    def order_is_listed(self) -> bool:
        """Whether an earlier version began the run, for which the order of an epoch is a list whatever its length."""
        return self.config.exists() and self.provenance().get("order") is None

    def _refuse_another_run(self, experiment: Experiment, facts: Mapping[str, Any], earlier: str | None) -> None:
        changed, made_of = differences(self.experiment(), experiment), self.provenance()
        if made_of["data_fingerprint"] not in (facts["data_fingerprint"], earlier):
            changed.append("the videos of the manifest are not the same")
        # Runs of earlier versions do not know all of it; what is unknown is no difference.
        for name, what in (
            ("times", "the videos' times, which clip.fps counts by, are not the same"),
            ("pictures", "this version scales and colours pictures by other rules"),
        ):
            if made_of.get(name) is not None and facts[name] is not None and made_of[name] != facts[name]:
                changed.append(what)
        changed += flow_differences(made_of.get("flow"), facts["flow"])
        if changed:
            raise UserError(
                f"{self}: holds a run of another experiment ({'; '.join(changed)}); "
                "choose another folder with --set name=..., or remove this one"
            )


def _is_copy(path: Path, entry: storage.FileEntry) -> bool:
    """Whether a file was fetched from the store as it still is there."""
    if not path.is_file():
        return False
    found = path.stat()
    return found.st_size == entry.bytes and abs(found.st_mtime - entry.modified) < 1e-3


def flow_differences(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> list[str]:
    """How two flows differ, one phrase each; nothing where one is unknown, as of runs of earlier versions."""
    if before is None or now is None:
        return []
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"the flow's {key}: was {before.get(key)}, now {now.get(key)}" for key in keys]


def provenance(
    data_fingerprint: str, flow: Mapping[str, Any] | None = None, times: str | None = None
) -> dict[str, Any]:
    """Versions, commit, data, the rules of its pictures, and flow behind a result."""
    return {
        "data_fingerprint": data_fingerprint,
        "times": times,
        "pictures": RULES,
        "order": "keyed",
        "flow": None if flow is None else dict(flow),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What is installed here of the packages that decide the numbers."""
    packages = ("vicc-ray", "torch", "torchvision", "ray", "numpy", "decord", "av", "opencv-contrib-python-headless")
    return {name: version for name in packages if (version := _version(name))}


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
