"""Two-stream fusion (R+F): similarities summed for retrieval, probabilities averaged for classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vicc_ray.errors import UserError
from vicc_ray.metrics.retrieval import RECALL_AT, Labels, Scores, answerable, check_labels, rank, recall_of, score_rows
from vicc_ray.metrics.search import Centre, Features, Rows, Table, beside, units

PUBLISHED = (1.0, 1.0)
GRID = 21  # weights of the second stream that are tried: 0, 0.1, ..., 2
FIT_QUERIES = 4096  # gallery videos that are queries in a fit; more would not separate the weights of a grid better


def fused(
    gallery: Sequence[Table],
    query: Sequence[Table],
    weights: Sequence[float] | None = None,
    centre: Centre = "gallery",
) -> tuple[Rows, Rows]:
    """Each stream's features [N,d_s], centred and normalised on its own, side by side: [G, sum d_s] and [Q, sum d_s].

    `gallery` and `query` list the streams in one order; centre as in `search.units`. The inner product of a row of each is
    the weighted sum of the streams' cosines (weights of 1 unless given), so that the fused similarity matrix (docs/method.md,
    section 6) never needs to be held whole.
    """
    _check_streams(gallery, query)
    factors = _factors(len(gallery), weights)
    pairs = [units(gallery_rows, query_rows, centre) for gallery_rows, query_rows in zip(gallery, query, strict=True)]
    sides = zip(("gallery", "query"), zip(*pairs, strict=True), strict=True)
    gallery_rows, query_rows = (beside(tables, factors, side) for side, tables in sides)
    return gallery_rows, query_rows


def _factors(streams: int, weights: Sequence[float] | None) -> list[float]:
    """What each stream's rows are multiplied by: roots of the weights."""
    found = [1.0] * streams if weights is None else [float(weight) for weight in weights]
    if len(found) != streams or min(found) < 0 or not 0 < sum(found) < float("inf"):
        raise ValueError(f"fusion: weights {found} for {streams} streams; give one of at least 0 each, not all 0")
    return [float(np.sqrt(factor)) for factor in found]


def fused_similarities(
    gallery: Sequence[npt.ArrayLike], query: Sequence[npt.ArrayLike], centre: Centre = "gallery"
) -> Features:
    """Sum of the streams' similarity matrices: float32 [Q,G]; arguments as in `fused`."""
    gallery_rows, query_rows = fused(gallery, query, centre=centre)
    return query_rows.whole() @ gallery_rows.whole().T


def fused_recall_at_k(
    gallery: Sequence[Table],
    gallery_labels: Labels,
    query: Sequence[Table],
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    weights: Sequence[float] | None = None,
    centre: Centre = "gallery",
) -> dict[int, float]:
    """R@k of the summed similarities; arguments and errors as in `retrieval.recall_at_k`, with a table a stream."""
    groups = gallery_groups, query_groups
    return dict(fused_score(gallery, gallery_labels, query, query_labels, ks, *groups, False, weights, centre).recall)


def fused_score(
    gallery: Sequence[Table],
    gallery_labels: Labels,
    query: Sequence[Table],
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
    with_precision: bool = True,
    weights: Sequence[float] | None = None,
    centre: Centre = "gallery",
) -> Scores:
    """`retrieval.score` of the summed similarities, with a table a stream."""
    rows = fused(gallery, query, weights, centre)
    return score_rows(*rows, gallery_labels, query_labels, ks, gallery_groups, query_groups, with_precision)


def fit_weights(gallery: Sequence[Table], labels: Labels, groups: Labels | None = None) -> tuple[float, float]:
    """Weights of two streams' similarities, fitted on the gallery (the training split) alone.

    The pair (2 - w, w), w on a grid of `GRID` from 0 to 2, with the highest R@1 when gallery videos are each other's queries
    outside their own group (groups None: all but themselves); of equal ones the nearest to the published (1, 1). Up to
    `FIT_QUERIES` videos are queries, evenly spread; those with no other video of their class are passed over. UserError where
    that leaves none.
    """
    if len(gallery) != 2:
        raise ValueError(f"fusion: {len(gallery)} streams; weights are fitted for two")
    check_labels(labels, labels)
    own = list(range(len(labels))) if groups is None else list(groups)
    places = np.flatnonzero(answerable(labels, labels, own, own))
    if not len(places):
        raise UserError(
            "fusion: weights cannot be fitted: no gallery video has another of its class outside its own group; "
            "use the published weights"
        )
    places = places[np.unique(np.linspace(0, len(places) - 1, FIT_QUERIES).astype(int))]
    query_rows = [labels[number] for number in places], [own[number] for number in places]
    best, chosen = -1.0, PUBLISHED
    for w in sorted(np.linspace(0, 2, GRID).tolist(), key=lambda w: abs(w - 1)):
        pair = round(2 - w, 6), round(w, 6)
        rows, _ = fused(gallery, gallery, pair)
        indices, _ = rank(rows, _taken(rows, places), 1, own, query_rows[1])
        recall = recall_of(indices, labels, query_rows[0], (1,))[1]
        if recall > best:
            best, chosen = recall, pair
    return chosen


def _taken(rows: Rows, places: npt.NDArray[np.integer]) -> Features:
    """The rows at some places (ascending) of a table: float32."""
    start, parts = 0, []
    for block in rows.blocks(1 << 13):
        parts.append(block[places[(places >= start) & (places < start + len(block))] - start])
        start += len(block)
    return np.concatenate(parts).astype(np.float32)


def mean_probabilities(
    streams: Sequence[npt.ArrayLike], weights: Sequence[float] | None = None
) -> npt.NDArray[np.float64]:
    """Mean of the streams' class probabilities, each [N, classes] with rows that sum to 1; weighted where `weights` are given."""
    tables = [np.asarray(stream, dtype=np.float64) for stream in streams]
    for table in tables:
        if table.shape != tables[0].shape or not np.allclose(table.sum(axis=1), 1, atol=1e-3) or table.min() < 0:
            raise ValueError(
                "fusion: each stream must give probabilities [N, classes] of the same shape, rows summing to 1"
            )
    return np.asarray(np.average(tables, axis=0, weights=weights))


def _check_streams(gallery: Sequence[Table], query: Sequence[Table]) -> None:
    if not gallery or len(gallery) != len(query):
        raise ValueError(f"fusion: {len(gallery)} gallery streams for {len(query)} query streams")
