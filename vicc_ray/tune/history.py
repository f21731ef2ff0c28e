"""The trials of a sweep in Optuna's study, on disk: settings and results. Nothing else decides what is run next.

Optuna's own file journal takes a line that a crash cut short for a sound one and joins the next one to it; this one cuts it
off when it is opened. There is one writer (see `SweepFolder.driven`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from vicc_ray.config import SearchConfig
from vicc_ray.errors import UserError
from vicc_ray.tune.folder import SweepFolder
from vicc_ray.tune.samplers import gp, settled, tpe
from vicc_ray.tune.space import Point, distributions, grid, settings_of

STUDY = "sweep"

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal(BaseJournalBackend):
    """Optuna's log as JSON lines in the sweep's folder, whole lines only, in the store too for a sweep under a URI."""

    def __init__(self, folder: SweepFolder, read_only: bool = False) -> None:
        self.folder, self.path = folder, folder.history
        self.logs: list[dict[str, Any]] = []
        text = self.path.read_bytes() if self.path.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            self.logs.append(_parse(self.path, number, line))
        if whole != text and not read_only:
            os.truncate(self.path, len(whole))

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """The log's entries from a number on."""
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries, all or none; UserError where the disk takes none."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        before = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if self.path.is_file():
                os.truncate(self.path, before)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); make room, then the same command goes on"
            ) from None
        self.logs += logs
        self.folder.push(self.path)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict) or "op_code" not in entry:
            raise ValueError
    except (ValueError, RecursionError):
        raise UserError(
            f"{path}: line {number} is damaged, so the sweep's history cannot be trusted; remove that line if it is "
            "known what it was, or begin another sweep with --set name=...; the trials' own folders are untouched"
        ) from None
    return entry


def open_study(folder: SweepFolder, search: SearchConfig, read_only: bool = False) -> optuna.Study:
    """The sweep's study; UserError where its history cannot be read."""
    journal = Journal(folder, read_only)
    if not journal.logs and read_only:
        return new_study(InMemoryStorage(), search)
    try:
        return new_study(JournalStorage(journal), search)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder.history}: is not a history that Optuna {optuna.__version__} can replay ({type(error).__name__}: {error}); "
            "begin another sweep with --set name=..."
        ) from error


def new_study(storage: BaseStorage, search: SearchConfig) -> optuna.Study:
    """A study of the search's objectives in a storage, the one that is there already if there is one."""
    directions = [StudyDirection.MAXIMIZE if search.mode == "max" else StudyDirection.MINIMIZE]
    directions += [StudyDirection.MINIMIZE] if search.against != "none" else []
    pruner, sampler = optuna.pruners.NopPruner(), RandomSampler()
    # When it is to create what is there already, Optuna writes that into the journal, each time.
    if STUDY in optuna.get_all_study_names(storage):
        study = optuna.load_study(storage=storage, study_name=STUDY, pruner=pruner, sampler=sampler)
    else:
        study = optuna.create_study(
            storage=storage, study_name=STUDY, directions=directions, pruner=pruner, sampler=sampler
        )
    if study.metric_names is None:
        with settled():
            study.set_metric_names([metric_name(search), *([search.against] if search.against != "none" else [])])
    return study


def metric_name(search: SearchConfig) -> str:
    """The metric in words."""
    return search.metric if isinstance(search.metric, str) else "mean of " + ", ".join(search.metric)


def sampler_for(search: SearchConfig, number: int) -> BaseSampler:
    """What proposes trial `number`, seeded by that number: a sweep that was killed goes on as one that was not.

    A sampler that is seeded once a process would propose its first points again after each restart.
    """
    # Neighbouring seeds begin with much the same numbers, so they are mixed first.
    seed = int.from_bytes(blake2b(f"{search.seed}/{number}".encode(), digest_size=4).digest(), "little")
    if search.sampler == "grid":
        with settled():
            return PartialFixedSampler(grid(search)[number], RandomSampler(seed=seed))
    if search.sampler == "random" or number < search.random_starts:
        return RandomSampler(seed=seed)
    if search.sampler == "gp":
        return gp(seed, search.random_starts)
    return tpe(seed, search.random_starts, objectives=1 if search.against == "none" else 2)


def ask(study: optuna.Study, search: SearchConfig) -> Trial:
    """A new trial with all of its settings."""
    study.sampler = _sampler(study, search, len(study.get_trials(deepcopy=False)))
    return _complete(study.ask(), search)


def again(study: optuna.Study, search: SearchConfig, frozen: FrozenTrial) -> Trial:
    """A trial that was running when the driver ended; settings that it lacks are drawn."""
    lacks = not search.space.keys() <= frozen.params.keys()
    study.sampler = _sampler(study, search, frozen.number) if lacks else RandomSampler(seed=0)
    return _complete(Trial(study, frozen._trial_id), search)


def _sampler(study: optuna.Study, search: SearchConfig, number: int) -> BaseSampler:
    """What proposes trial `number` in this study; a proposal from `seen` is worked out at once, and fixed."""
    sampler = sampler_for(search, number)
    as_it_is = search.sampler == "tpe" and search.scheduler != "promotion"
    if as_it_is or search.sampler in ("random", "grid") or isinstance(sampler, RandomSampler):
        return sampler
    copy = seen(study, search, number, ranks=search.sampler == "tpe")
    copy.sampler = sampler
    params = _complete(copy.ask(), search).params
    with settled():
        return PartialFixedSampler(params, RandomSampler(seed=0))


def seen(study: optuna.Study, search: SearchConfig, number: int, ranks: bool = False) -> optuna.Study:
    """The trials below a number as samplers and the page see them: those that were stopped early or are paused have ended.

    Optuna's plots and its Gaussian process take complete trials alone, which early stopping leaves few of, and what is bad is
    what one wants to see. One that was stopped counts with its last measurement: it was among the worst of those that came as
    far, so it need not be told how far that was. TPE itself ranks stopped trials by how far they came, so they stay that. A
    paused trial is running for Optuna, and would count as a bad one however good it is.
    """
    copy = new_study(InMemoryStorage(), search)
    for trial in study.get_trials()[:number]:
        pauses = search.scheduler == "promotion" and not trial.state.is_finished()
        if trial.last_step is not None and (pauses or trial.state == TrialState.PRUNED):
            trial.datetime_complete = trial.datetime_complete or datetime.now()
            trial.state = TrialState.PRUNED
            if not ranks:
                trial.state, trial.value = TrialState.COMPLETE, trial.intermediate_values[trial.last_step]
        copy.add_trial(trial)
    return copy


def _complete(trial: Trial, search: SearchConfig) -> Trial:
    space: dict[str, BaseDistribution] = distributions(search)
    for name, distribution in space.items():
        trial._suggest(name, distribution)
    return trial


def point_of(search: SearchConfig, trial: Trial | FrozenTrial) -> Point:
    """A trial's settings."""
    return settings_of(search, trial.params)


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were begun and not finished."""
    return [trial for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that came to an end, whichever."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def preview(study: optuna.Study, search: SearchConfig, count: int) -> list[tuple[int, Point]]:
    """The next trials as Optuna would propose them now, (number, settings), without taking them."""
    copy = new_study(InMemoryStorage(), search)
    for trial in study.get_trials():
        copy.add_trial(trial)
    return [(trial.number, point_of(search, trial)) for trial in (ask(copy, search) for _ in range(count))]
