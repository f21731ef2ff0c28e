"""Nearest-neighbour retrieval: centred, L2-normalised features, cosine, R@k, mAP and confusion (docs/method.md, section 6).

G gallery rows, Q query rows, d feature size, k neighbours, C classes. Labels and groups are one hashable value a row. A table of
features is an array or `search.Rows`, which may be read from a file; the search itself is in `search`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vicc_ray.errors import UserError
from vicc_ray.metrics.search import Centre, Features, Indices, Rows, Table, as_rows, average_precision, top_k, units

Labels = Sequence[Hashable] | npt.NDArray[np.generic]

RECALL_AT = (1, 5, 10, 20, 50)
MOST_CLASSES = 500  # of a confusion matrix, which holds the square of their number for each encoder


@dataclass(frozen=True)
class ClassScore:
    """One class: its queries, their R@k and their mean average precision (None where it was not requested)."""

    queries: int
    recall: Mapping[int, float]
    mean_average_precision: float | None


@dataclass(frozen=True)
class Confusion:
    """Class of a query against class of its nearest neighbour.

    Args:
        labels: the C classes of both sides, in the order of their names.
        counts: numbers of queries [C][C]; rows are the query's class, columns that of its nearest gallery video.
    """

    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Scores:
    """What a ranking is worth: means over all queries, and class by class in the order of their names.

    confusion: None for more than `MOST_CLASSES` classes.
    """

    gallery: int
    queries: int
    recall: Mapping[int, float]
    mean_average_precision: float | None
    classes: Mapping[str, ClassScore]
    confusion: Confusion | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: {"gallery", "queries", "R@1", ..., "mAP", "classes": {name: {"queries", "R@1", ...}},
        "confusion": {"labels": [C], "counts": [C][C]}}; without "mAP" and "confusion" where they were not worked out.
        """
        classes = {name: {"queries": one.queries} | _figures(one) for name, one in self.classes.items()}
        confusion = {} if self.confusion is None else {"confusion": asdict(self.confusion)}
        return {"gallery": self.gallery, "queries": self.queries} | _figures(self) | {"classes": classes} | confusion


def _figures(scores: Scores | ClassScore) -> dict[str, Any]:
    figures: dict[str, Any] = {f"R@{k}": value for k, value in scores.recall.items()}
    if scores.mean_average_precision is not None:
        figures["mAP"] = scores.mean_average_precision
    return figures


def score(
    gallery: Table,
    gallery_labels: Labels,
    query: Table,
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    with_precision: bool = True,
    centre: Centre = "gallery",
) -> Scores:
    """R@k, mAP, both for each class, and confusion; arguments and errors as in `recall_at_k`.

    mAP ranks the whole gallery and goes through it twice more (`search.average_precision`); `with_precision` False
    spares that.
    """
    sides = units(gallery, query, centre)
    return score_rows(*sides, gallery_labels, query_labels, ks, gallery_groups, query_groups, with_precision)


def score_rows(
    gallery: Table,
    query: Table,
    gallery_labels: Labels,
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    with_precision: bool = True,
) -> Scores:
    """As `score`, on rows as they are (of `unit`, or of `fusion.fused`)."""
    check_labels(gallery_labels, query_labels)
    check_groups(gallery_labels, query_labels, gallery_groups, query_groups)
    rows, queries = as_rows(gallery, "gallery"), as_rows(query, "query")
    _check_rows(rows, gallery_labels, "gallery")
    _check_rows(queries, query_labels, "query")
    indices, _ = rank(rows, queries, max(ks), gallery_groups, query_groups)
    codes = _codes(list(gallery_labels), list(query_labels))
    hits = {k: _hits(indices, *codes, k) for k in ks}
    precision = None
    if with_precision:
        groups = _group_codes(gallery_groups, query_groups, rows.count, queries.count) or (None, None)
        precision = average_precision(rows, queries, *codes, *groups)
    classes = _class_scores(codes[1], query_labels, hits, precision)
    confusion = _confusion(codes[0][indices[:, 0]], codes[1], [*gallery_labels, *query_labels], np.concatenate(codes))
    recall = {k: float(hit.mean()) for k, hit in hits.items()}
    mean = None if precision is None else float(precision.mean())
    return Scores(rows.count, queries.count, recall, mean, classes, confusion)


def _class_scores(
    codes: Indices,
    labels: Labels,
    hits: Mapping[int, npt.NDArray[np.bool_]],
    precision: npt.NDArray[np.floating] | None,
) -> dict[str, ClassScore]:
    """The figures of each class of the queries, from their hits and average precisions, each [Q]."""
    classes = {}
    names = {int(code): str(label) for code, label in zip(codes, labels, strict=True)}
    for code, name in sorted(names.items(), key=lambda item: item[1]):
        mine = codes == code
        recall = {k: float(hit[mine].mean()) for k, hit in hits.items()}
        classes[name] = ClassScore(
            int(mine.sum()), recall, None if precision is None else float(precision[mine].mean())
        )
    return classes


def _confusion(nearest: Indices, query: Indices, labels: Sequence[Hashable], codes: Indices) -> Confusion | None:
    """The matrix of the codes of the nearest rows and of the queries, each [Q]; labels and codes are of all rows."""
    names = {int(code): str(label) for code, label in zip(codes, labels, strict=True)}
    if len(names) > MOST_CLASSES:
        return None
    order = sorted(names, key=lambda code: names[code])
    places = np.argsort(order)  # codes are 0 to C - 1
    flat = places[query] * len(order) + places[nearest]
    counts = np.bincount(flat, minlength=len(order) ** 2).reshape(len(order), len(order))
    return Confusion([names[code] for code in order], counts.tolist())


def recall_at_k(
    gallery: Table,
    gallery_labels: Labels,
    query: Table,
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    centre: Centre = "gallery",
) -> dict[int, float]:
    """Share of queries with their own class among the k nearest gallery rows: {k: recall in 0..1}.

    gallery: [G,d]; query: [Q,d]; centre: as in `search.units`. With groups (both or neither), gallery rows of the query's
    own group are passed over: clips cut from one source video, or the query itself.
    Raises UserError for an empty side, features that are not finite, an unlabelled row, queries whose class the gallery
    lacks (or has in the query's own group only), and a k beyond the gallery.
    """
    check_labels(gallery_labels, query_labels)
    check_groups(gallery_labels, query_labels, gallery_groups, query_groups)
    indices, _ = neighbours(gallery, query, max(ks), gallery_groups, query_groups, centre)
    return recall_of(indices, gallery_labels, query_labels, ks)


def neighbours(
    gallery: Table,
    query: Table,
    k: int,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    centre: Centre = "gallery",
) -> tuple[Indices, Features]:
    """The k nearest gallery rows of each query, nearest first: (int64 [Q,k], cosine similarities float32 [Q,k])."""
    return rank(*units(gallery, query, centre), k, gallery_groups, query_groups)


def similarities(gallery: npt.ArrayLike, query: npt.ArrayLike, centre: Centre = "gallery") -> Features:
    """Cosine of every centred query with every centred gallery row: float32 [Q,G]; centre as in `search.units`."""
    rows, queries = units(gallery, query, centre)
    return queries.whole() @ rows.whole().T


def rank(
    gallery: Table,
    query: Table,
    k: int,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> tuple[Indices, Features]:
    """The k gallery rows with the largest inner products with each query row; as `neighbours`, on rows as they are."""
    rows, queries = as_rows(gallery, "gallery"), as_rows(query, "query")
    if not 1 <= k <= rows.count:
        raise UserError(f"retrieval: k is {k}; with {rows.count} gallery videos it must be 1 to {rows.count}")
    groups = _group_codes(gallery_groups, query_groups, rows.count, queries.count) or (None, None)
    indices, values = top_k(rows, queries, k, *groups)
    short = int((indices < 0).any(axis=1).sum())
    if short:
        raise UserError(f"retrieval: {short} queries have fewer than k = {k} gallery videos outside their own group")
    return indices, values


def recall_of(
    indices: Indices, gallery_labels: Labels, query_labels: Labels, ks: Sequence[int] = RECALL_AT
) -> dict[int, float]:
    """R@k of ranked neighbours (int [Q, >= max(ks)], nearest first): {k: share of queries with a hit among k}."""
    if min(ks) < 1 or max(ks) > indices.shape[1]:
        raise UserError(
            f"retrieval: ks are {tuple(ks)}; with {indices.shape[1]} ranked neighbours each must be 1 to that"
        )
    codes = _codes(list(gallery_labels), list(query_labels))
    return {k: float(_hits(indices, *codes, k).mean()) for k in ks}


def _hits(indices: Indices, gallery: Indices, query: Indices, k: int) -> npt.NDArray[np.bool_]:
    """Whether each query's class is among its k nearest: bool [Q]."""
    hits: npt.NDArray[np.bool_] = (gallery[indices[:, :k]] == query[:, None]).any(axis=1)
    return hits


def chance(
    gallery_labels: Labels,
    query_labels: Labels,
    k: int = 1,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> float:
    """Expected R@k of a random ranking of the gallery: mean over queries of 1 - C(G - n, k) / C(G, k).

    n of the query's G candidates share its class; with groups, its own group is no candidate.
    """
    check_labels(gallery_labels, query_labels)
    size = len(gallery_labels)
    if not 1 <= k <= size:
        raise UserError(f"retrieval: k is {k}; with {size} gallery videos it must be 1 to {size}")
    gallery, query = _codes(list(gallery_labels), list(query_labels))
    groups = _group_codes(gallery_groups, query_groups, size, len(query_labels))
    same = Counter(gallery.tolist())
    gallery_group, query_group = groups if groups is not None else (np.full(size, -1), np.full(len(query), -2))
    in_group = Counter(gallery_group.tolist())
    in_both = Counter(zip(gallery.tolist(), gallery_group.tolist(), strict=True))
    total = 0.0
    for label, group in zip(query.tolist(), query_group.tolist(), strict=True):
        candidates, right = size - in_group[group], same[label] - in_both[label, group]
        if k > candidates:
            raise UserError(f"retrieval: a query has fewer than k = {k} gallery videos outside its own group")
        total += 1 - float(np.prod([max(0, candidates - right - i) / (candidates - i) for i in range(k)]))
    return total / len(query)


def check_labels(gallery_labels: Labels, query_labels: Labels) -> None:
    """Raises UserError for an empty side, an unlabelled row (None, "", NaN, negative) or a class only queries have."""
    for side, labels in (("gallery", gallery_labels), ("query", query_labels)):
        if not len(labels):
            raise UserError(f"retrieval: the {side} is empty; give it at least one video")
        missing = sum(_unlabelled(label) for label in labels)
        if missing:
            raise UserError(
                f"retrieval: {missing} of {len(labels)} {side} videos have no label; recall needs one for each"
            )
    known = set(gallery_labels)
    absent = [label for label in query_labels if label not in known]
    if absent:
        names = sorted({str(label) for label in absent})
        raise UserError(
            f"retrieval: {len(absent)} of {len(query_labels)} queries are of {len(names)} classes that the gallery "
            f"lacks ({_listed(names)}) and could never be found; leave them out or add such videos to the gallery"
        )


def check_groups(
    gallery_labels: Labels, query_labels: Labels, gallery_groups: Labels | None, query_groups: Labels | None
) -> None:
    """Raises UserError where queries have all gallery videos of their class in their own group; fine without groups."""
    right = answerable(gallery_labels, query_labels, gallery_groups, query_groups)
    if right.all():
        return
    names = sorted({str(label) for label, fine in zip(query_labels, right, strict=True) if not fine})
    raise UserError(
        f"retrieval: {int((~right).sum())} of {len(right)} queries, of {len(names)} classes ({_listed(names)}), have no "
        "gallery video of their class outside their own group and could never be found; leave them out or add such videos"
    )


def answerable(
    gallery_labels: Labels, query_labels: Labels, gallery_groups: Labels | None, query_groups: Labels | None
) -> npt.NDArray[np.bool_]:
    """Whether the gallery holds a video of the query's class, and outside its group where there are groups: bool [Q]."""
    gallery, query = _codes(list(gallery_labels), list(query_labels))
    right = Counter(gallery.tolist())
    groups = _group_codes(gallery_groups, query_groups, len(gallery), len(query))
    if groups is None:
        return np.array([right[label] > 0 for label in query.tolist()])
    own = Counter(zip(gallery.tolist(), groups[0].tolist(), strict=True))
    return np.array([right[pair[0]] > own[pair] for pair in zip(query.tolist(), groups[1].tolist(), strict=True)])


def _check_rows(rows: Rows, labels: Labels, side: str) -> None:
    if rows.count != len(labels):
        raise ValueError(f"{side}: {rows.count} rows of features with {len(labels)} labels")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _unlabelled(label: object) -> bool:
    if label is None or label == "" or label != label:
        return True
    return isinstance(label, (int, float, np.number)) and float(label) < 0


def _codes(gallery: list[Hashable], query: list[Hashable]) -> tuple[Indices, Indices]:
    """Whole numbers in place of values of any kind, equal where the values are equal."""
    code: dict[Hashable, int] = {}
    both = np.array([code.setdefault(value, len(code)) for value in gallery + query], dtype=np.int64)
    return both[: len(gallery)], both[len(gallery) :]


def _group_codes(
    gallery: Labels | None, query: Labels | None, gallery_size: int, query_size: int
) -> tuple[Indices, Indices] | None:
    if gallery is None and query is None:
        return None
    if gallery is None or query is None or len(gallery) != gallery_size or len(query) != query_size:
        raise ValueError("groups: give one for each gallery row and each query row, or none at all")
    return _codes(list(gallery), list(query))
