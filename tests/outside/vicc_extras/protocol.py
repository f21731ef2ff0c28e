"""An evaluation protocol: how well k-means on the features agrees with the labels (purity)."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from sklearn.cluster import KMeans

from vicc_ray.errors import UserError
from vicc_ray.evaluation.protocols import EvaluationTask
from vicc_ray.evaluation.results import Evaluation


class Purity:
    """Share of videos that are of their cluster's most common class; `evaluate.options`: `clusters` (default: one a class)."""

    title: ClassVar[str] = "Purity of clusters"

    def __init__(self, task: EvaluationTask) -> None:
        self.task = task
        self.videos = task.manifest.select(task.experiment.data.query_split)
        if any(row.label is None for row in self.videos):
            raise UserError("purity: needs labelled videos")

    def evaluate(self) -> Evaluation:
        (tables,) = self.task.features(self.videos)
        rows: list[dict[str, Any]] = []
        for name, table in tables.items():
            classes = len(set(table.labels))
            clusters = int(self.task.experiment.evaluate.options.get("clusters", classes))
            found = KMeans(clusters, n_init=4, random_state=self.task.experiment.seed).fit_predict(table.vectors)
            groups = [
                [label for label, cluster in zip(table.labels, found, strict=True) if cluster == one]
                for one in range(clusters)
            ]
            right = sum(max(Counter(group).values(), default=0) for group in groups)
            rows.append({"name": name, "purity": right / len(table.labels)})
        most = max(Counter(table.labels).values()) / len(table.labels)
        return self.task.result("purity", rows, train=0, test=len(table.labels), chance=most)
