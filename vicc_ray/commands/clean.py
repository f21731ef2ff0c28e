"""`vicc clean`: what of a run can go because nothing needs it any more, and what that frees; removed only where that is wished.

Never taken: settings, records, encoders, results, neighbours, pages, exports, classifiers, and what a resumed run goes on from.
What is made again from these and from the videos (stored features) goes only where it is named.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from vicc_ray import storage
from vicc_ray.commands.status import is_at_work
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import read_source
from vicc_ray.runs.checkpoint import CheckpointInfo
from vicc_ray.runs.disk import files_of, readable_bytes, total
from vicc_ray.runs.encoders import file_hash
from vicc_ray.runs.folder import UNFINISHED_SECONDS, RunFolder
from vicc_ray.training.driver import is_held
from vicc_ray.training.schedule import make_stages

Files = Mapping[str, storage.FileEntry]
CONFIG, SWEEP = "config.yaml", "sweep.yaml"


@dataclass(frozen=True)
class Removal:
    """Files of one kind that can go: which part of which run, why, and the files."""

    run: str
    part: str
    why: str
    files: tuple[storage.FileEntry, ...]

    @property
    def bytes(self) -> int:
        """What their removal frees."""
        return total(self.files)


def plan_removals(where: str, features: bool = False) -> list[Removal]:
    """What can go of a run and the runs inside it (classifiers, a sweep's trials); UserError for no run and one at work.

    `features`: stored features too, which the next evaluation makes again from the videos.
    """
    top = RunFolder.at(where)
    with top.as_user_errors():
        files = files_of(top)
    runs = sorted(name.removesuffix(CONFIG).rstrip("/") for name in files if name.split("/")[-1] == CONFIG)
    if not runs and SWEEP not in files:
        raise UserError(
            f"{top}: is neither a run's folder nor a sweep's; give one that 'vicc train' or 'vicc tune' made"
        )
    found: list[Removal] = []
    _refuse_held(top)
    for name in runs:
        run = _inside(top, name)
        _refuse_held(run)
        if is_at_work(run):
            raise UserError(
                f"{run}: was written to a moment ago, so something is at work on it; clean it when that has ended"
            )
        prefix = f"{name}/" if name else ""
        inner = {key.removeprefix(prefix): entry for key, entry in files.items() if key.startswith(prefix)}
        parent = _inside(top, name.rpartition("classifiers/")[0].rstrip("/")) if "classifiers/" in name else None
        found += _removals(run, inner, parent, features)
    found += _of_this_machine(top, files)
    return [one for one in found if one.files]


def remove(removals: Sequence[Removal]) -> None:
    """Remove the files; a checkpoint's marker goes before its state. UserError where the disk or the store refuses."""
    for removal in removals:
        for entry in sorted(removal.files, key=lambda entry: not entry.name.endswith("complete.json")):
            try:
                storage.remove(entry.name)
            except OSError as error:
                raise UserError(f"{entry.name}: cannot be removed ({' '.join(str(error).split())[:200]})") from error
        for folder in {entry.name.rpartition("/")[0] for entry in removal.files if not storage.is_uri(entry.name)}:
            with suppress(OSError):  # it holds something that stays
                os.rmdir(folder)


def print_removals(removals: Sequence[Removal], removed: bool) -> None:
    """A line a kind, then the sum and what to do."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "what", "files", "frees", "why"):
        table.add_column(column, overflow="fold")
    for one in removals:
        table.add_row(one.run, one.part, str(len(one.files)), readable_bytes(one.bytes), one.why)
    if removals:
        console.print(table)
    freed = readable_bytes(sum(one.bytes for one in removals))
    if not removals:
        console.print("nothing to remove: a resume, a result or a report needs all that is there")
    elif removed:
        console.print(f"{freed} freed")
    else:
        console.print(f"{freed} would be freed; nothing was removed: --yes does it")


def removals_json(removals: Sequence[Removal], removed: bool) -> dict[str, Any]:
    """All of it, for a program."""
    rows = [
        {
            "run": one.run,
            "part": one.part,
            "why": one.why,
            "bytes": one.bytes,
            "files": [file.name for file in one.files],
        }
        for one in removals
    ]
    return {"removed": removed, "bytes": sum(one.bytes for one in removals), "removals": rows}


def _inside(top: RunFolder, name: str) -> RunFolder:
    run = RunFolder.at(storage.join(str(top), name)) if name else top
    with run.as_user_errors():
        run.pull()
    return run


def _refuse_held(run: RunFolder) -> None:
    if is_held(run):
        raise UserError(f"{run}: another process is at work in it; clean it when that has ended")


def _removals(run: RunFolder, files: Files, parent: RunFolder | None, features: bool) -> Iterator[Removal]:
    """`parent`: the run whose encoders the classifiers of this one are on."""
    name, done = str(run), _is_finished(run) if parent is None else _is_classified(run, parent)
    yield Removal(name, "checkpoints", *_checkpoints(run, files, done))
    logs = tuple(entry for key, entry in files.items() if key.startswith("logs/"))
    if done:
        yield Removal(name, "logs", "the run is finished", logs)
    yield from _features(run, files, features)


def _checkpoints(run: RunFolder, files: Files, done: bool) -> tuple[str, tuple[storage.FileEntry, ...]]:
    """All of a finished run's; else those beyond what training itself keeps, and halves of some that were never whole."""
    there = {key: entry for key, entry in files.items() if key.startswith("checkpoints/")}
    if done:
        return "every stage is finished, so nothing goes on from one", tuple(there.values())
    needed = {info.step for info in _needed(run.checkpoints.listing(), run.experiment().train.keep_checkpoints)}
    kept = {f"checkpoints/step-{step:09d}" for step in needed}
    late = time.time() - UNFINISHED_SECONDS
    old = tuple(one for key, one in there.items() if key.rpartition("/")[0] not in kept and one.modified < late)
    return "older than those that a resume goes on from, or never finished", old if kept else ()


def _needed(whole: Sequence[CheckpointInfo], keep: int) -> list[CheckpointInfo]:
    """The newest, and the best of the newest one's stage, as training keeps them (`CheckpointStore.prune`)."""
    rated = [info for info in whole if info.recall is not None and info.stage == whole[0].stage]
    best = [max(rated, key=lambda info: (info.recall or 0.0, info.step))] if rated else []
    return [*whole[:keep], *best]


def _is_finished(run: RunFolder) -> bool:
    """Whether every stage's result is there; False where that cannot be known."""
    try:
        experiment = run.experiment()
        videos = len(Manifest.read(run.manifest).select(experiment.data.train_split))
        stages = make_stages(experiment, videos)
    except UserError:  # no manifest, as of imported runs
        return False
    return all(run.encoder(name).is_file() for stage in stages for name in stage.leaves)


def _is_classified(run: RunFolder, parent: RunFolder) -> bool:
    """Whether there is a classifier on every encoder of the run that was evaluated."""
    wanted = [name for name in parent.encoders() if not name.endswith("-0")]
    return bool(wanted) and all(run.classifier(name).is_file() for name in wanted)


def _features(run: RunFolder, files: Files, wished: bool) -> Iterator[Removal]:
    there = {key: entry for key, entry in files.items() if key.startswith("features/") and key.endswith(".parquet")}
    current = {file_hash(str(run.encoder(name))) for name in run.encoders()}
    stale = {key for key, entry in there.items() if current and _encoder_of(entry.name) not in current}
    why = "of encoders that the run no longer has"
    yield Removal(str(run), "features", why, tuple(there[key] for key in stale))
    if wished:
        why = "the next evaluation makes them again from the videos"
        yield Removal(str(run), "features", why, tuple(entry for key, entry in there.items() if key not in stale))


def _encoder_of(file: str) -> str | None:
    """The hash of the encoder that stored features were made by; None for a damaged file, which no evaluation reads."""
    try:
        return read_source(file).encoder_hash
    except UserError:
        return None


def _of_this_machine(run: RunFolder, stored: Files) -> Iterator[Removal]:
    """What killed processes began and did not finish; of a run under a URI, this machine's copies of what the store has."""
    begun = [_entry(path) for path in storage.partials(run.path, UNFINISHED_SECONDS)]
    yield Removal(str(run), "unfinished files", "a killed process began them", tuple(begun))
    if run.remote is None:
        return
    for mirror in sorted(run.path.parent.parent.glob(f"{run.path.parent.name}*/{run.path.name}")):
        files = {path.relative_to(mirror).as_posix(): _entry(path) for path in mirror.rglob("*") if path.is_file()}
        copies = {name: entry for name, entry in files.items() if name in stored and entry.bytes == stored[name].bytes}
        if not is_held(RunFolder(mirror, run.remote)):
            yield Removal(
                str(run), "copies on this machine", "they are fetched again when needed", tuple(copies.values())
            )


def _entry(path: Path) -> storage.FileEntry:
    found = path.stat()
    return storage.FileEntry(str(path), found.st_size, found.st_mtime)
