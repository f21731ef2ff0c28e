"""Nearest-neighbour retrieval over a run: of every encoder and of both streams together (docs/method.md, section 6).

`exact` compares the mean over all windows of a video on both sides, both centred by the gallery's mean. `reference` is the
test as it was published: gallery videos have one window at a random place, and windows of both sides a random colour jitter,
both drawn from the seed and the video; each side is centred by its own mean.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from vicc_ray.config import STREAMS, Experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.evaluation.joined import Joined
from vicc_ray.evaluation.protocols import EvaluationTask, crop_setting
from vicc_ray.evaluation.results import Evaluation
from vicc_ray.evaluation.stored import FeatureFile, Side
from vicc_ray.metrics.fusion import fit_weights, fused_score
from vicc_ray.metrics.retrieval import Scores, chance, check_groups, check_labels, rank, score
from vicc_ray.metrics.search import Centre, Features, Table, units
from vicc_ray.runs.records import write_text

NEIGHBOURS_SHOWN = 5
FEW = 100  # videos whose mean is off by a tenth of what they differ by

Neighbours = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class LabelledVideos:
    """The videos of one side that every encoder has features of, in one order."""

    ids: list[str]
    labels: list[str]
    groups: list[str | None]


@dataclass(frozen=True)
class RetrievalProblem:
    """Both sides of a retrieval, their groups (None: a query may find every gallery video), the ks and the centring."""

    gallery: LabelledVideos
    query: LabelledVideos
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
    retrieval_problem(
        LabelledVideos([row.id for row in gallery], _labels(gallery), [row.group for row in gallery]),
        LabelledVideos([row.id for row in query], _labels(query), [row.group for row in query]),
        experiment,
        manifest.dataset,
    )
    if settings.retrieval == "reference":
        return Side(gallery, "random", jitter=True), Side(query, settings.windows, jitter=True)
    side = Side(gallery, settings.windows)
    return side, side if data.gallery_split == data.query_split else Side(query, settings.windows)


def _labels(rows: Sequence[Any]) -> list[Any]:
    return [row.label for row in rows]


def retrieval_problem(
    gallery: LabelledVideos, query: LabelledVideos, experiment: Experiment, dataset: str | None
) -> RetrievalProblem:
    """Groups and ks of an evaluation, with a note on each choice that was not configured.

    UserError for an empty side, unlabelled videos, a class that cannot be found, and ks that are all beyond the gallery.
    """
    check_labels(gallery.labels, query.labels)
    groups, notes = _groups(gallery, query, experiment.evaluate.exclude_groups, dataset)
    check_groups(gallery.labels, query.labels, *groups)
    room = len(gallery.ids)
    if groups[0] is not None and groups[1] is not None:
        own = Counter(groups[0])
        room -= max(own[group] for group in groups[1])
    configured = experiment.evaluate.ks
    ks = tuple(k for k in configured if k <= room)
    beyond = ", ".join(str(k) for k in configured if k > room)
    if not ks:
        raise UserError(f"evaluate.ks: every k ({beyond}) is larger than the gallery of {room} videos that a query has")
    if beyond:
        notes.append(f"R@k is left out for k = {beyond}: a query has {room} gallery videos")
    centre: Centre = "own" if experiment.evaluate.retrieval == "reference" else "gallery"
    if centre == "own":
        notes += _means_of_own(gallery, query)
    return RetrievalProblem(gallery, query, groups, ks, centre, tuple(notes))


def _means_of_own(gallery: LabelledVideos, query: LabelledVideos) -> list[str]:
    """Notes on sides whose own mean is a poor estimate of what all videos have in common; UserError where it is what separates
    them.

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
    gallery: LabelledVideos, query: LabelledVideos, exclude: bool, dataset: str | None
) -> tuple[tuple[list[str], list[str]] | tuple[None, None], list[str]]:
    """What a query passes over, and a note on it."""
    if exclude:
        grouped = any(group is not None for group in gallery.groups)
        note = "a query passes over gallery videos of its own group"
        without = "a query passes over itself only: no gallery video has a group"
        return (_own(gallery, dataset), _own(query, dataset)), [note if grouped else without]
    both = len(set(gallery.ids) & set(query.ids))
    if not both:
        return (None, None), []
    return (gallery.ids, query.ids), [f"{both} videos are on both sides: a query passes over itself"]


def _own(side: LabelledVideos, dataset: str | None) -> list[str]:
    """The group of each video; without one the video itself. UCF101 numbers its groups anew in each class."""
    within = dataset == "ucf101"
    return [
        f"video {video}" if group is None else f"group {label if within else ''} {group}"
        for video, label, group in zip(side.ids, side.labels, side.groups, strict=True)
    ]


class Retrieval:
    """Retrieval of every encoder of a run and of R+F: `EvaluationProtocol`."""

    title: ClassVar[str] = "Nearest-neighbour retrieval"

    def __init__(self, task: EvaluationTask) -> None:
        self.task = task
        self.sides = sides_of(task.experiment, task.manifest)

    def evaluate(self) -> Evaluation:
        """Judge the encoders; the neighbours of a few queries go into the run's folder too, where the newest ones stay."""
        gallery, query = self.sides
        files = self.task.feature_files([gallery] if query is gallery else [gallery, query])
        evaluation, neighbours = score_features(self.task, files)
        folder = self.task.folder
        write_text(folder.neighbours, json.dumps(neighbours) + "\n")
        folder.push(folder.neighbours)
        return evaluation


def score_features(task: EvaluationTask, files: Mapping[str, Sequence[FeatureFile]]) -> tuple[Evaluation, Neighbours]:
    """The figures of stored features: for each row its gallery's and its query's file (one where they are the same)."""
    gallery = Joined({row: str(sides[0].path) for row, sides in files.items()})
    query = Joined({row: str(sides[-1].path) for row, sides in files.items()})
    settings = task.experiment.evaluate
    problem = retrieval_problem(_videos(gallery), _videos(query), task.experiment, task.manifest.dataset)
    found = {row: _score(problem, gallery.table(row), query.table(row)) for row in files}
    weights: dict[str, tuple[float, float]] = {}
    pair = newest_pair(files)
    if pair:
        streams = [gallery.table(name) for name in pair], [query.table(name) for name in pair]
        if settings.fusion == "fitted":
            weights[fused_name(pair)] = fit_weights(streams[0], problem.gallery.labels, problem.groups[0])
        found[fused_name(pair)] = _fused(problem, *streams, weights.get(fused_name(pair)))
    rows = [
        _row(name, one) | ({"weights": list(weights[name])} if name in weights else {}) for name, one in found.items()
    ]
    plain = {name: one.to_dict() for name, one in found.items()}
    evaluation = task.result(
        "reference" if settings.retrieval == "reference" else "retrieval",
        rows,
        train=len(problem.gallery.ids),
        test=len(problem.query.ids),
        chance=round(chance(problem.gallery.labels, problem.query.labels, 1, *problem.groups), 6),
        settings=settings.model_dump(mode="json", include={"windows", "fusion", "exclude_groups"})
        | {"centre": problem.centre}
        | crop_setting(task.experiment),
        classes={name: one["classes"] for name, one in plain.items()},
        confusion={name: one["confusion"] for name, one in plain.items() if "confusion" in one},
        refused=tuple(dict.fromkeys([*gallery.refused, *query.refused])),
        notes=problem.notes,
    )
    return evaluation, _neighbours(problem, gallery, query, settings.neighbours)


def _videos(side: Joined) -> LabelledVideos:
    return LabelledVideos(
        side.ids, cast(list[str], side.labels), side.groups
    )  # `retrieval_problem` refuses videos without a label


def _score(problem: RetrievalProblem, gallery: Table, query: Table) -> Scores:
    labels, groups = (problem.gallery.labels, problem.query.labels), problem.groups
    return score(gallery, labels[0], query, labels[1], problem.ks, groups[0], groups[1], centre=problem.centre)


def _fused(
    problem: RetrievalProblem, gallery: Sequence[Table], query: Sequence[Table], weights: tuple[float, float] | None
) -> Scores:
    labels, groups = (problem.gallery.labels, problem.query.labels), problem.groups
    return fused_score(
        gallery, labels[0], query, labels[1], problem.ks, groups[0], groups[1], weights=weights, centre=problem.centre
    )


def _row(name: str, scores: Scores) -> dict[str, Any]:
    figures = scores.to_dict()
    return {"name": name} | {
        key: round(value, 6) for key, value in figures.items() if key.startswith("R@") or key == "mAP"
    }


def newest_pair(rows: Iterable[str]) -> tuple[str, str] | None:
    """The newest encoders of RGB and of a motion stream among the names, if there are any."""
    names = set(rows)
    for level in ("2", "1"):
        for motion in (kind.title for kind in STREAMS.values() if kind.motion):
            if {f"RGB-{level}", f"{motion}-{level}"} <= names:
                return f"RGB-{level}", f"{motion}-{level}"
    return None


def fused_name(pair: tuple[str, str]) -> str:
    """The name of the row of both streams together: R+F of RGB and flow, R+D of RGB and differences."""
    return "+".join(name[0] for name in pair)


def _neighbours(problem: RetrievalProblem, gallery: Joined, query: Joined, most: int) -> Neighbours:
    """The nearest gallery videos of a few queries, evenly spread, before and after the cross-stream stage."""
    count = min(most, len(problem.query.ids))
    if not count:
        return {}
    # Sorted by label, so that the chosen queries show as many classes as they can.
    by_label = sorted(range(len(problem.query.ids)), key=lambda number: (problem.query.labels[number], number))
    chosen = np.array([by_label[int(place)] for place in np.linspace(0, len(by_label) - 1, count)])
    own = (None, None) if problem.groups[1] is None else (problem.groups[0], [problem.groups[1][i] for i in chosen])
    shown: Neighbours = {}
    for row in ("RGB-1", "RGB-2"):
        if row not in gallery.files:
            continue
        gallery_units, query_units = units(gallery.table(row), query.table(row), problem.centre)
        vectors: Features = query_units.whole()[chosen]
        nearest = min(NEIGHBOURS_SHOWN, max(problem.ks))
        places, values = rank(gallery_units, vectors, nearest, *own)
        shown[row] = [
            {
                "query": _card(problem.query, int(number)),
                "neighbours": [
                    _card(problem.gallery, int(place)) | {"similarity": round(float(value), 4)}
                    for place, value in zip(places[i], values[i], strict=True)
                ],
            }
            for i, number in enumerate(chosen)
        ]
    return shown


def _card(side: LabelledVideos, number: int) -> dict[str, Any]:
    return {"video": side.ids[number], "label": side.labels[number]}
