"""A run's encoders with classifiers on top: learnt on the training loop, or fitted to stored features, then tested."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.cluster.launch import run_task
from vicc_ray.cluster.progress import Counter
from vicc_ray.config import Duration, Experiment, flatten, is_free
from vicc_ray.data.identity import flow_identity
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pictures import RULES
from vicc_ray.data.refusals import check_share
from vicc_ray.errors import UserError
from vicc_ray.evaluation.joined import Joined
from vicc_ray.evaluation.neighbours import fused_name, newest_pair
from vicc_ray.evaluation.predictions import classify_videos
from vicc_ray.evaluation.probe import fit_probe
from vicc_ray.evaluation.protocols import EvaluationTask, crop_setting
from vicc_ray.evaluation.results import Evaluation
from vicc_ray.evaluation.stored import Side
from vicc_ray.metrics.accuracy import accuracy, class_numbers, fit_mean_weights
from vicc_ray.metrics.folds import grouped_folds
from vicc_ray.metrics.fusion import PUBLISHED, mean_probabilities
from vicc_ray.models.classifier import ClassifierProtocol
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.classification import Classification, rare_classes, training_classes
from vicc_ray.training.classification_step import settings_of

HELD_OUT = "held-out"  # split of training videos that weights are fitted on

Tables = dict[str, NDArray[np.float32]]


class _Classifiers(ABC):
    """Top-1, top-5, mean class accuracy and confusion of a run's encoders and of both streams together: `EvaluationProtocol`.

    Learnt on `data.gallery_split`, tested on `data.query_split`. UserError for unlabelled videos, a single class, test videos
    of classes that were not learnt, and where both splits are one.
    """

    name: ClassVar[str]

    def __init__(self, task: EvaluationTask) -> None:
        data = task.experiment.data
        learnt = data.model_copy(update={"train_split": data.gallery_split})
        self.task = task
        self.experiment = task.experiment.model_copy(update={"data": learnt})
        self.classes = training_classes(self.experiment, task.manifest)
        self.test = task.manifest.select(data.query_split)
        class_numbers([row.label for row in self.test], self.classes)
        if data.gallery_split == data.query_split:
            raise UserError(
                f"data.query_split: '{data.query_split}' is what the classifier learns from too; choose another with --test-on"
            )

    def evaluate(self) -> Evaluation:
        """Learn or fit the classifiers, and test them."""
        notes: list[str] = []
        found = self._predictions(notes)
        rows: list[dict[str, Any]] = []
        per_class, confusion = {}, {}
        for name, table in found.tables.items():
            one = accuracy(table, found.labels, found.classes)
            rows.append({"name": name} | {key: round(value, 6) for key, value in one.figures.items()})
            per_class[name] = one.classes
            confusion[name] = {"labels": list(found.classes), "counts": one.confusion}
        return self.task.result(
            self.name,
            rows,
            train=found.learnt_from,
            test=len(found.labels),
            chance=max(Tally(found.labels).values()) / len(found.labels),
            settings=self._settings(),
            classes=per_class,
            confusion=confusion,
            refused=found.refused,
            notes=tuple(notes),
        )

    def _settings(self) -> dict[str, Any]:
        """What else decides the numbers."""
        settings = self.experiment.evaluate.model_dump(mode="json", include={"windows", "fusion"})
        return settings | crop_setting(self.experiment)

    @abstractmethod
    def _predictions(self, notes: list[str]) -> _Found:
        """Learn or fit the classifiers and apply them to the test videos; `notes` takes lines for the result."""


class Probe(_Classifiers):
    """A multinomial logistic regression on the stored features of every encoder."""

    title: ClassVar[str] = "Linear fit on stored features"
    name: ClassVar[str] = "probe"

    def _predictions(self, notes: list[str]) -> _Found:
        return _probe(self.task, self.experiment, self.test, notes)


class _Learnt(_Classifiers):
    """Classifiers that are learnt on the training loop, on the newest encoder of each stream; a stopped one is resumed."""

    name: ClassVar[ClassifierProtocol]

    def _settings(self) -> dict[str, Any]:
        settings = settings_of(self.experiment, self.name).model_dump(mode="json")
        return super()._settings() | {"crops": self.experiment.evaluate.crops} | settings

    def _predictions(self, notes: list[str]) -> _Found:
        encoders = self.task.encoders
        pair = newest_pair(encoders) or tuple(encoders)[-1:]
        return _learn(self.task, self.experiment, self.name, {name: encoders[name] for name in pair}, notes)


class Linear(_Learnt):
    """A linear layer on each frozen encoder, learnt by SGD."""

    title: ClassVar[str] = "Linear probe"
    name: ClassVar[ClassifierProtocol] = "linear"


class Finetune(_Learnt):
    """A linear layer on each encoder, which learns too."""

    title: ClassVar[str] = "Finetuning"
    name: ClassVar[ClassifierProtocol] = "finetune"


@dataclass(frozen=True)
class _Found:
    """What classifiers say of n test videos.

    Args:
        tables: row of the result -> probabilities float32 [n, C].
        labels: true classes of the n videos.
        classes: C names, the columns.
        refused: (video, reason) of what could not be read.
        learnt_from: number of training videos.
    """

    tables: Tables
    labels: list[str]
    classes: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    learnt_from: int


def _learn(
    of: EvaluationTask,
    experiment: Experiment,
    protocol: ClassifierProtocol,
    encoders: Mapping[str, EncoderOnDisk],
    notes: list[str],
) -> _Found:
    """Train the classifiers in a folder of their own, then classify every crop of every window of the test videos.

    For fitted weights of the streams a part of the training videos is kept out of the training and classified too.
    """
    manifest = of.manifest
    fits = experiment.evaluate.fusion == "fitted" and len(encoders) == 2
    if fits:
        manifest = _with_held_out(manifest, experiment.data.train_split)
    task = Classification(protocol, encoders, training_classes(experiment, manifest))
    target = _own_folder(of.folder, experiment, manifest, of.data, protocol, encoders)
    inner = experiment.model_copy(
        update={
            "name": target[1],
            "runs": target[0],
            "evaluate": experiment.evaluate.model_copy(update={"monitor_every": Duration(0, "epochs")}),
        }
    )
    own = RunFolder.at(inner.run_folder)
    plan = task.plan(inner, manifest)
    if rare := rare_classes(plan):
        notes.append(f"{len(rare)} classes have one training video only: {', '.join(rare[:5])}")
    resources = of.ray.resources()
    run_task(task, inner, manifest, own, of.ray.address, of.ray.verbose)
    held = manifest.select(HELD_OUT) if fits else []
    videos = [*held, *manifest.select(experiment.data.query_split)]
    windows = len(list_windows(videos, experiment.clip, experiment.evaluate.windows))
    with Counter("testing windows", windows) as counter:
        shown = classify_videos(
            {name: own.shared_name(own.classifier(name)) for name in encoders},
            videos,
            experiment,
            resources,
            counter.advance,
        )
    _check_refused(shown.refused, videos, experiment)
    kept = {row.id for row in held}
    fitted_on = np.array([row.id in kept for row in shown.videos])
    labels = np.array([str(row.label) for row in shown.videos])
    tables = {name: table[~fitted_on] for name, table in shown.probabilities.items()}
    if len(tables) == 2:
        weights = PUBLISHED
        if fitted_on.any():
            known = [table[fitted_on] for table in shown.probabilities.values()]
            weights = fit_mean_weights(known, labels[fitted_on].tolist(), shown.classes)
            notes.append(_weights_note(weights))
        tables[_fused(tables)] = mean_probabilities(list(tables.values()), weights).astype(np.float32)
    return _Found(tables, labels[~fitted_on].tolist(), shown.classes, shown.refused, len(plan.videos))


def _check_refused(refused: Sequence[tuple[str, str]], videos: Sequence[VideoRow], experiment: Experiment) -> None:
    what = f"videos to classify (split {experiment.data.query_split}, and those kept out of training) could not be read"
    check_share(
        len(refused), refused, len(videos), experiment.data.max_refused, what, "bring them back and evaluate again"
    )


def _with_held_out(manifest: Manifest, split: str) -> Manifest:
    """The manifest with about a fifth of a split's labelled videos in a split of their own, whole groups each."""
    rows = [row for row in manifest.select(split) if row.label is not None]
    part = {int(place) for place in grouped_folds([str(row.label) for row in rows], [row.group for row in rows], 5)[0]}
    learnt = {row.label for place, row in enumerate(rows) if place not in part}
    held = {row.id for place, row in enumerate(rows) if place in part and row.label in learnt}
    if not held:
        raise UserError(
            f"evaluate.fusion: fitted: the {len(rows)} videos of split '{split}' are too few to keep some out; use published"
        )
    moved = [replace(row, split=HELD_OUT) if row.id in held else row for row in manifest.videos]
    return Manifest(moved, manifest.dataset, manifest.fold)


def _fused(tables: Tables) -> str:
    first, second = tables
    return fused_name((first, second))


def _weights_note(weights: tuple[float, float]) -> str:
    return f"R+F: weights {weights[0]:g} : {weights[1]:g}, fitted on training videos that were kept out of the training"


def _probe(of: EvaluationTask, experiment: Experiment, test_videos: Sequence[VideoRow], notes: list[str]) -> _Found:
    """Fit on stored features, those that retrieval stores; all encoders on the videos that each of them has."""
    windows = experiment.evaluate.windows
    labelled = [row for row in of.manifest.select(experiment.data.train_split) if row.label is not None]
    files = of.feature_files([Side(labelled, windows), Side(test_videos, windows)])
    train = Joined({name: str(sides[0].path) for name, sides in files.items()})
    test = Joined({name: str(sides[1].path) for name, sides in files.items()})
    probes = {name: fit_probe(train.features(name)) for name in files}
    tables: Tables = {name: probe.probabilities(test.features(name).vectors) for name, probe in probes.items()}
    pair = newest_pair(of.encoders)
    if pair:
        weights = PUBLISHED
        held = [probes[name] for name in pair]
        if experiment.evaluate.fusion == "fitted" and len(held[0].held_rows):
            right = [train.labels[row] for row in held[0].held_rows]  # both streams hold out the same rows of one table
            weights = fit_mean_weights([probe.held_out for probe in held], right, held[0].classes)
            notes.append(_weights_note(weights))
        tables[fused_name(pair)] = mean_probabilities([tables[name] for name in pair], weights).astype(np.float32)
    refused = tuple((dict(train.refused) | dict(test.refused)).items())
    known = next(iter(probes.values())).classes  # the same of all, as they learn from the same rows
    return _Found(tables, [str(label) for label in test.labels], known, refused, len(train.ids))


def _own_folder(
    folder: RunFolder,
    experiment: Experiment,
    manifest: Manifest,
    data: str,
    protocol: str,
    encoders: Mapping[str, EncoderOnDisk],
) -> tuple[str, str]:
    """Where these classifiers are learnt: another folder for every change of what decides them, so nothing is refused.

    The settings are those that a resumed run has to have in common with the run that it resumes, and the protocol's own.
    """
    settings = flatten(experiment.model_dump(mode="json"))
    needs_flow = any(encoder.stream == "flow" for encoder in encoders.values())
    decides = {
        "encoders": {name: encoder.hash for name, encoder in encoders.items()},
        "data": manifest.fingerprint(),
        "times": manifest.times_fingerprint() if experiment.clip.fps else None,
        "pictures": RULES,
        "flow": flow_identity(experiment) if needs_flow else None,
        "settings": {
            key: value for key, value in settings.items() if not is_free(key) or key.startswith(f"{protocol}.")
        },
    }
    digest = blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=4).hexdigest()
    return storage.join(str(folder), "classifiers"), f"{protocol}-{data}-{digest}"
