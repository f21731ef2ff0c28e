"""Protocols over a run: which encoders, which splits, which tables. Nearest-neighbour retrieval so far."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vicc_ray.config import Experiment
from vicc_ray.data.flow_store import check_stored
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pipeline import list_windows
from vicc_ray.errors import UserError
from vicc_ray.evaluate.features import FeatureTable, extract_features
from vicc_ray.evaluate.fusion import fused_recall_at_k
from vicc_ray.evaluate.retrieval import chance, check_labels, neighbours, recall_at_k
from vicc_ray.progress import Counter
from vicc_ray.records import write_text
from vicc_ray.resources import ResourcePlan
from vicc_ray.run_folder import RunFolder

RANDOM = "random"  # the row of an untrained encoder
FUSED = "R+F"
NEIGHBOURS_SHOWN = 5


@dataclass(frozen=True)
class Retrieval:
    """What nearest-neighbour retrieval gives."""

    chance: float
    seconds: float
    rows: list[dict[str, Any]]  # {"name": "RGB-2", "R@1": ...}
    neighbours: dict[str, list[dict[str, Any]]]
    refused: tuple[tuple[str, str], ...]
    gallery: int
    query: int

    def write(self, folder: RunFolder, seconds: float | None = None) -> None:
        """results.json and neighbours.json of the run's folder."""
        results = {
            "chance": self.chance,
            "seconds": round(self.seconds if seconds is None else seconds, 1),
            "rows": self.rows,
            "gallery": self.gallery,
            "query": self.query,
            "refused": [{"video": video, "reason": reason} for video, reason in self.refused],
        }
        write_text(folder.neighbours, json.dumps(self.neighbours) + "\n")
        write_text(folder.results, json.dumps(results, indent=2) + "\n")


def finished_encoders(folder: RunFolder) -> dict[str, str]:
    """Row name -> encoder name of what a run can be judged by, in the order of the table; UserError where nothing is."""
    there = folder.encoders()
    names = {RANDOM: "RGB-0"} | {name: name for name in _in_order(there) if not name.endswith("-0")}
    found = {row: name for row, name in names.items() if name in there}
    if not found:
        raise UserError(f"{folder.path}: has no finished stage to evaluate; run 'vicc train' first")
    return found


def _in_order(names: Sequence[str]) -> list[str]:
    # RGB-1, Flow-1, RGB-2-cycle1, ..., RGB-2, Flow-2: by level, earlier cycles first, RGB before flow.
    return sorted(
        names, key=lambda name: (name.split("-")[1], "cycle" not in name, name.split("-")[2:], name.startswith("Flow"))
    )


def retrieve(folder: RunFolder, experiment: Experiment, manifest: Manifest, resources: ResourcePlan) -> Retrieval:
    """Retrieval of every encoder of a run and of R+F; an open Ray session is needed."""
    started = time.monotonic()
    if experiment.data.gallery_split == experiment.data.query_split:
        raise UserError(
            f"data.query_split: '{experiment.data.query_split}' is the gallery's split too; a query would find itself"
        )
    gallery, query = manifest.select(experiment.data.gallery_split), manifest.select(experiment.data.query_split)
    check_labels([row.label for row in gallery], [row.label for row in query])
    check_stored(experiment.flow, experiment.clip.decode_size, [*gallery, *query])
    rows = finished_encoders(folder)
    count = len(list_windows([*gallery, *query], experiment.clip, experiment.evaluate.windows))
    with Counter("evaluating windows", count) as counter:
        files = {row: folder.encoder(name) for row, name in rows.items()}
        table = extract_features(files, [*gallery, *query], experiment, resources, on_progress=counter.advance)
    return _rank(table, {row.video for row in query}, experiment, time.monotonic() - started)


def _rank(table: FeatureTable, asked: set[str], experiment: Experiment, seconds: float) -> Retrieval:
    cut = sum(row.video not in asked for row in table.videos)
    gallery, query = table.videos[:cut], table.videos[cut:]
    labels = [row.label for row in gallery], [row.label for row in query]
    ks = tuple(k for k in experiment.evaluate.ks if k <= len(gallery))
    if not ks:
        raise UserError(f"evaluate.ks: every k is larger than the gallery of {len(gallery)} videos")
    results = []
    for name, features in table.features.items():
        recall = recall_at_k(features[:cut], labels[0], features[cut:], labels[1], ks=ks)
        results.append(_row(name, recall))
    pair = _newest_pair(table)
    if pair:
        streams = [table.features[name] for name in pair]
        sides = [stream[:cut] for stream in streams], [stream[cut:] for stream in streams]
        results.append(_row(FUSED, fused_recall_at_k(sides[0], labels[0], sides[1], labels[1], ks=ks)))
    return Retrieval(
        chance=chance(*labels),
        seconds=seconds,
        rows=results,
        neighbours=_neighbours(table, cut, experiment),
        refused=table.refused,
        gallery=len(gallery),
        query=len(query),
    )


def _row(name: str, recall: dict[int, float]) -> dict[str, Any]:
    return {"name": name} | {f"R@{k}": round(value, 6) for k, value in recall.items()}


def _newest_pair(table: FeatureTable) -> tuple[str, str] | None:
    for level in ("2", "1"):
        if {f"RGB-{level}", f"Flow-{level}"} <= set(table.features):
            return f"RGB-{level}", f"Flow-{level}"
    return None


def _neighbours(table: FeatureTable, cut: int, experiment: Experiment) -> dict[str, list[dict[str, Any]]]:
    """The nearest gallery videos of a few queries, evenly spread, before and after the cross-stream stage."""
    gallery, query = table.videos[:cut], table.videos[cut:]
    count = min(experiment.evaluate.neighbours, len(query))
    if not count:
        return {}
    # Sorted by label, so that the chosen queries show as many classes as they can.
    by_label = sorted(range(len(query)), key=lambda number: (str(query[number].label), number))
    chosen = [by_label[int(place)] for place in np.linspace(0, len(query) - 1, count)]
    shown: dict[str, list[dict[str, Any]]] = {}
    for name in ("RGB-1", "RGB-2"):
        if name not in table.features:
            continue
        features = table.features[name]
        found, values = neighbours(features[:cut], features[cut:], min(NEIGHBOURS_SHOWN, cut))
        shown[name] = [
            {
                "query": _card(query[number]),
                "neighbours": [
                    _card(gallery[int(place)]) | {"similarity": round(float(value), 4)}
                    for place, value in zip(found[number], values[number], strict=True)
                ],
            }
            for number in chosen
        ]
    return shown


def _card(row: VideoRow) -> dict[str, Any]:
    return {"video": row.video, "label": row.label}
