"""Nearest-neighbour retrieval: centred, L2-normalised features, cosine, R@k (method.md, section 6).

G gallery rows, Q query rows, d feature size, k neighbours. Labels and groups are one hashable value a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from vicc_ray.errors import UserError

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Labels = Sequence[Hashable] | npt.NDArray[np.generic]

RECALL_AT = (1, 5, 10, 20, 50)
BLOCK_VALUES = 1 << 24  # similarities held at once: 64 MiB of float32, whatever G and Q are


def recall_at_k(
    gallery: npt.ArrayLike,
    gallery_labels: Labels,
    query: npt.ArrayLike,
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> dict[int, float]:
    """Share of queries with their own class among the k nearest gallery rows: {k: recall in 0..1}.

    gallery: [G,d]; query: [Q,d]. With groups (both or neither), gallery rows of the query's own group are passed
    over: clips cut from one source video, or the query itself.
    Raises UserError for an empty side, features that are not finite, an unlabelled row, a query class that the
    gallery lacks, and a k beyond the gallery.
    """
    check_labels(gallery_labels, query_labels)
    indices, _ = neighbours(gallery, query, max(ks), gallery_groups, query_groups)
    return recall_of(indices, gallery_labels, query_labels, ks)


def neighbours(
    gallery: npt.ArrayLike,
    query: npt.ArrayLike,
    k: int,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> tuple[Indices, Features]:
    """The k nearest gallery rows of each query, nearest first: (int64 [Q,k], cosine similarities float32 [Q,k])."""
    return rank(unit_rows(gallery, "gallery"), unit_rows(query, "query"), k, gallery_groups, query_groups)


def similarities(gallery: npt.ArrayLike, query: npt.ArrayLike) -> Features:
    """Cosine of every query with every gallery row, each side centred by its own mean: float32 [Q,G]."""
    return unit_rows(query, "query") @ unit_rows(gallery, "gallery").T


def unit_rows(features: npt.ArrayLike, side: str) -> Features:
    """features [N,d] -> float32 [N,d]: centred by their own mean, each row of length 1 (or 0 if all rows are one).

    `side` names the table in the UserError for an empty one or for values that are not finite.
    """
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"{side}: expected features [N,d], got shape {table.shape}")
    if not len(table):
        raise UserError(f"retrieval: the {side} is empty; give it at least one video")
    broken = int((~np.isfinite(table).all(axis=1)).sum())
    if broken:
        raise UserError(
            f"retrieval: {broken} of {len(table)} {side} features hold NaN or infinite values; "
            "the checkpoint's weights or the videos are broken"
        )
    table = table - table.mean(axis=0)
    unit: Features = (table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return unit


def rank(
    gallery: Features,
    query: Features,
    k: int,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> tuple[Indices, Features]:
    """The k gallery rows with the largest inner products with each query row; as `neighbours`, on rows as they are."""
    if gallery.shape[1] != query.shape[1]:
        raise ValueError(f"gallery features have {gallery.shape[1]} values, query features {query.shape[1]}")
    if not 1 <= k <= len(gallery):
        raise UserError(f"retrieval: k is {k}; with {len(gallery)} gallery videos it must be 1 to {len(gallery)}")
    groups = _group_codes(gallery_groups, query_groups, len(gallery), len(query))
    indices = np.empty((len(query), k), dtype=np.int64)
    values = np.empty((len(query), k), dtype=np.float32)
    block = max(1, BLOCK_VALUES // len(gallery))
    for start in range(0, len(query), block):
        rows = slice(start, start + block)
        similarity = query[rows] @ gallery.T  # [block, G]
        if groups is not None:
            similarity[groups[1][rows, None] == groups[0][None, :]] = -np.inf
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        nearest.sort(axis=1)  # equal similarities in gallery order
        found = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(nearest, order, axis=1)
        values[rows] = np.take_along_axis(found, order, axis=1)
    short = int(np.isneginf(values).any(axis=1).sum())
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
    gallery, query = _codes(list(gallery_labels), list(query_labels))
    hits = gallery[indices] == query[:, None]  # [Q, k]
    return {k: float(hits[:, :k].any(axis=1).mean()) for k in ks}


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
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserError(
            f"retrieval: {len(absent)} of {len(query_labels)} queries are of {len(names)} classes that the gallery "
            f"lacks ({listed}) and could never be found; leave them out or add such videos to the gallery"
        )


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
