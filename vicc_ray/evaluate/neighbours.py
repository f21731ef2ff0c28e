"""Nearest-neighbour retrieval over a run: which encoders, which sides, which tables (docs/method.md, section 6).

`exact` compares the mean over all windows of a video on both sides, both centred by the gallery's mean. `reference` is the
test as it was published: gallery videos have one window at a random place, and windows of both sides a random colour jitter,
both drawn from the seed and the video; each side is centred by its own mean.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.config import Experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluate.features import extract_features
from vicc_ray.evaluate.joined import Joined
from vicc_ray.evaluate.results import Evaluation, identified, write
from vicc_ray.evaluate.stored import FeatureFile, Side
from vicc_ray.metrics.fusion import fit_weights, fused_score
from vicc_ray.metrics.retrieval import Scores, chance, check_groups, check_labels, rank, score
from vicc_ray.metrics.search import Centre, Features, Table, units
from vicc_ray.runs.encoders import open_encoders
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import write_text

FUSED = "R+F"
NEIGHBOURS_SHOWN = 5
FEW = 100  # videos whose mean is off by a tenth of what they differ by

Neighbours = dict[str, list[dict[str, Any]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Retrieval:
    """What nearest-neighbour retrieval gives: the figures, and for the report the neighbours of a few queries."""

    evaluation: Evaluation
    neighbours: Neighbours

    def write(self, folder: RunFolder) -> None:
        """Into the run's folder: the evaluation, and neighbours.json, where the newest retrieval stays."""
        write_text(folder.neighbours, json.dumps(self.neighbours) + "\n")
        folder.push(folder.neighbours)
        write(folder, self.evaluation)


@dataclass(frozen=True)
class Asked:
    """The videos of one side that every encoder has features of, in one order."""

    ids: list[str]
    labels: list[str]
    groups: list[str | None]


@dataclass(frozen=True)
class Question:
    """Who is asked about what: both sides, their groups (None: a query may find every gallery video), the ks."""

    gallery: Asked
    query: Asked
    groups: tuple[list[str], list[str]] | tuple[None, None]
    ks: tuple[int, ...]
    centre: Centre
    notes: tuple[str, ...]


def sides_of(experiment: Experiment, manifest: Manifest) -> tuple[Side, Side]:
    """Gallery and query, one and the same `Side` where their features are the same.

    UserError for an empty split, unlabelled videos, and queries that have nothing to find; seen before anything runs.
    """
    data, settings = experiment.data, experiment.evaluate
    gallery, query = manifest.select(data.gallery_split), manifest.select(data.query_split)
    question(
        Asked([row.video for row in gallery], _labels(gallery), [row.group for row in gallery]),
        Asked([row.video for row in query], _labels(query), [row.group for row in query]),
        experiment,
        manifest.dataset,
    )
    if settings.retrieval == "reference":
        return Side(tuple(gallery), "random", jitter=True), Side(tuple(query), settings.windows, jitter=True)
    searched = Side(tuple(gallery), settings.windows)
    return searched, searched if data.gallery_split == data.query_split else Side(tuple(query), settings.windows)


def _labels(rows: Sequence[Any]) -> list[Any]:
    return [row.label for row in rows]


def question(gallery: Asked, query: Asked, experiment: Experiment, dataset: str | None) -> Question:
    """Groups and ks of an evaluation, with a note on each choice that was not asked for.

    UserError for an empty side, unlabelled videos, a class that cannot be found, and ks that are all beyond the gallery.
    """
    check_labels(gallery.labels, query.labels)
    groups, notes = _groups(gallery, query, experiment.evaluate.exclude_groups, dataset)
    check_groups(gallery.labels, query.labels, *groups)
    room = len(gallery.ids)
    if groups[0] is not None and groups[1] is not None:
        own = Counter(groups[0])
        room -= max(own[group] for group in groups[1])
    asked = experiment.evaluate.ks
    ks = tuple(k for k in asked if k <= room)
    beyond = ", ".join(str(k) for k in asked if k > room)
    if not ks:
        raise UserError(f"evaluate.ks: every k ({beyond}) is larger than the gallery of {room} videos that a query has")
    if beyond:
        notes.append(f"R@k is left out for k = {beyond}: a query has {room} gallery videos")
    centre: Centre = "own" if experiment.evaluate.retrieval == "reference" else "gallery"
    if centre == "own":
        notes += _means_of_own(gallery, query)
    return Question(gallery, query, groups, ks, centre, tuple(notes))


def _means_of_own(gallery: Asked, query: Asked) -> list[str]:
    """Notes on sides whose own mean tells little of what all videos have in common; UserError where it is what tells them apart.

    The mean of Q videos is off by about 1/sqrt(Q) of what they differ by, and that of one class is the class itself.
    """
    classes = len(set(gallery.labels))
    notes = []
    for name, side in (("gallery", gallery), ("queries", query)):
        own = len(set(side.labels))
        here = f"the {name} ({len(side.ids)} videos of {own} of {classes} classes)"
        advice = "evaluate.retrieval: exact centres both sides by the gallery"
        if len(side.ids) < 2 or (own < 2 and classes > 1):
            raise UserError(
                f"evaluate.retrieval: reference centres each side by its own mean, as published, and of {here} that is what "
                f"there is to find; {advice}"
            )
        if len(side.ids) < FEW or own < classes:
            notes.append(
                f"each side is centred by its own mean, as published, of which {here} give a poor one; {advice}"
            )
    return notes


def _groups(
    gallery: Asked, query: Asked, exclude: bool, dataset: str | None
) -> tuple[tuple[list[str], list[str]] | tuple[None, None], list[str]]:
    """What a query passes over, and a note on it."""
    if exclude:
        told = any(group is not None for group in gallery.groups)
        note = "a query passes over gallery videos of its own group"
        without = "a query passes over itself only: no gallery video has a group"
        return (_own(gallery, dataset), _own(query, dataset)), [note if told else without]
    both = len(set(gallery.ids) & set(query.ids))
    if not both:
        return (None, None), []
    return (gallery.ids, query.ids), [f"{both} videos are on both sides: a query passes over itself"]


def _own(side: Asked, dataset: str | None) -> list[str]:
    """The group of each video; without one the video itself. UCF101 numbers its groups anew in each class."""
    within = dataset == "ucf101"
    return [
        f"video {video}" if group is None else f"group {label if within else ''} {group}"
        for video, label, group in zip(side.ids, side.labels, side.groups, strict=True)
    ]


def retrieve(
    folder: RunFolder,
    experiment: Experiment,
    manifest: Manifest,
    resources: Callable[[], ResourcePlan],
    data: str,
    say: Say,
) -> Retrieval:
    """Retrieval of every encoder of a run and of R+F.

    `resources` opens a Ray session, or tells of an open one; it is called where features have to be made. `data` names
    the data set; `say` takes lines for the reader while it runs.
    """
    started = time.monotonic()
    gallery, query = sides_of(experiment, manifest)
    sides = [gallery] if query is gallery else [gallery, query]
    files = extract_features(folder, data, open_encoders(folder), sides, experiment, resources, say)
    found = judge(experiment, manifest, data, files, started)
    return replace(found, evaluation=identified(found.evaluation, folder, experiment, manifest))


def judge(
    experiment: Experiment,
    manifest: Manifest,
    data: str,
    files: Mapping[str, Sequence[FeatureFile]],
    started: float,
) -> Retrieval:
    """The figures of stored features: for each row its gallery's and its query's file (one where they are the same)."""
    searched = Joined({row: str(sides[0].path) for row, sides in files.items()})
    asked = Joined({row: str(sides[-1].path) for row, sides in files.items()})
    pose = question(_asked(searched), _asked(asked), experiment, manifest.dataset)
    settings = experiment.evaluate
    rows: list[dict[str, Any]] = []
    classes: dict[str, Any] = {}
    for row in files:
        scores = _score(pose, searched.table(row), asked.table(row))
        rows.append(_row(row, scores))
        classes[row] = scores.to_dict()["classes"]
    pair = newest_pair(files)
    if pair:
        streams = [searched.table(name) for name in pair], [asked.table(name) for name in pair]
        fitted = fit_weights(streams[0], pose.gallery.labels, pose.groups[0]) if settings.fusion == "fitted" else None
        scores = _fused(pose, *streams, fitted)
        rows.append(_row(FUSED, scores) | ({"weights": list(fitted)} if fitted else {}))
        classes[FUSED] = scores.to_dict()["classes"]
    evaluation = Evaluation(
        protocol="reference" if settings.retrieval == "reference" else "retrieval",
        run=experiment.name,
        seed=experiment.seed,
        data=data,
        fold=manifest.fold,
        train_on=experiment.data.gallery_split,
        test_on=experiment.data.query_split,
        train=len(pose.gallery.ids),
        test=len(pose.query.ids),
        rows=rows,
        chance=round(chance(pose.gallery.labels, pose.query.labels, 1, *pose.groups), 6),
        seconds=round(time.monotonic() - started, 1),
        settings=settings.model_dump(mode="json", include={"windows", "fusion", "exclude_groups"})
        | {"centre": pose.centre},
        classes=classes,
        refused=tuple(dict.fromkeys([*searched.refused, *asked.refused])),
        scale=experiment.scale,
        notes=pose.notes,
    )
    return Retrieval(evaluation, _neighbours(pose, searched, asked, settings.neighbours))


def _asked(side: Joined) -> Asked:
    return Asked(side.ids, cast(list[str], side.labels), side.groups)  # `question` refuses videos without a label


def _score(pose: Question, gallery: Table, query: Table) -> Scores:
    labels, groups = (pose.gallery.labels, pose.query.labels), pose.groups
    return score(gallery, labels[0], query, labels[1], pose.ks, groups[0], groups[1], centre=pose.centre)


def _fused(
    pose: Question, gallery: Sequence[Table], query: Sequence[Table], weights: tuple[float, float] | None
) -> Scores:
    labels, groups = (pose.gallery.labels, pose.query.labels), pose.groups
    return fused_score(
        gallery, labels[0], query, labels[1], pose.ks, groups[0], groups[1], weights=weights, centre=pose.centre
    )


def _row(name: str, scores: Scores) -> dict[str, Any]:
    figures = scores.to_dict()
    return {"name": name} | {
        key: round(value, 6) for key, value in figures.items() if key.startswith("R@") or key == "mAP"
    }


def newest_pair(rows: Mapping[str, Any]) -> tuple[str, str] | None:
    """The newest encoders of both streams among the names, if there are any."""
    for level in ("2", "1"):
        if f"RGB-{level}" in rows and f"Flow-{level}" in rows:
            return f"RGB-{level}", f"Flow-{level}"
    return None


def _neighbours(pose: Question, gallery: Joined, query: Joined, most: int) -> Neighbours:
    """The nearest gallery videos of a few queries, evenly spread, before and after the cross-stream stage."""
    count = min(most, len(pose.query.ids))
    if not count:
        return {}
    # Sorted by label, so that the chosen queries show as many classes as they can.
    by_label = sorted(range(len(pose.query.ids)), key=lambda number: (pose.query.labels[number], number))
    chosen = np.array([by_label[int(place)] for place in np.linspace(0, len(by_label) - 1, count)])
    own = (None, None) if pose.groups[1] is None else (pose.groups[0], [pose.groups[1][i] for i in chosen])
    shown: Neighbours = {}
    for row in ("RGB-1", "RGB-2"):
        if row not in gallery.files:
            continue
        searched, asked = units(gallery.table(row), query.table(row), pose.centre)
        asking: Features = asked.whole()[chosen]
        nearest = min(NEIGHBOURS_SHOWN, max(pose.ks))
        places, values = rank(searched, asking, nearest, *own)
        shown[row] = [
            {
                "query": _card(pose.query, int(number)),
                "neighbours": [
                    _card(pose.gallery, int(place)) | {"similarity": round(float(value), 4)}
                    for place, value in zip(places[i], values[i], strict=True)
                ],
            }
            for i, number in enumerate(chosen)
        ]
    return shown


def _card(side: Asked, number: int) -> dict[str, Any]:
    return {"video": side.ids[number], "label": side.labels[number]}
