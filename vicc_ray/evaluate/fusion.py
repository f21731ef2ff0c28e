"""Two-stream fusion (R+F): similarities summed for retrieval, probabilities averaged for classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vicc_ray.evaluate.retrieval import RECALL_AT, Features, Labels, check_labels, rank, recall_of, unit_rows


def fused_rows(streams: Sequence[npt.ArrayLike], side: str) -> Features:
    """Each stream's features [N,d_s], centred and normalised on its own, side by side: float32 [N, sum d_s].

    The inner product of two such rows is the sum of the streams' cosines, so that the fused similarity matrix
    (method.md, section 6) never needs to be held whole.
    """
    rows = [unit_rows(stream, side) for stream in streams]
    if len({len(stream) for stream in rows}) != 1:
        raise ValueError(
            f"{side}: the streams have {[len(stream) for stream in rows]} rows; they must be the same videos"
        )
    return np.concatenate(rows, axis=1)


def fused_similarities(gallery: Sequence[npt.ArrayLike], query: Sequence[npt.ArrayLike]) -> Features:
    """Sum of the streams' similarity matrices: float32 [Q,G]; `gallery` and `query` list the streams in one order."""
    _check_streams(gallery, query)
    return fused_rows(query, "query") @ fused_rows(gallery, "gallery").T


def fused_recall_at_k(
    gallery: Sequence[npt.ArrayLike],
    gallery_labels: Labels,
    query: Sequence[npt.ArrayLike],
    query_labels: Labels,
    ks: Sequence[int] = RECALL_AT,
    gallery_groups: Labels | None = None,
    query_groups: Labels | None = None,
) -> dict[int, float]:
    """R@k of the summed similarities; arguments and errors as in `retrieval.recall_at_k`, with a table a stream."""
    _check_streams(gallery, query)
    check_labels(gallery_labels, query_labels)
    rows = fused_rows(gallery, "gallery"), fused_rows(query, "query")
    indices, _ = rank(*rows, max(ks), gallery_groups, query_groups)
    return recall_of(indices, gallery_labels, query_labels, ks)


def mean_probabilities(streams: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float64]:
    """Mean of the streams' class probabilities, each [N, classes] with rows that sum to 1."""
    tables = [np.asarray(stream, dtype=np.float64) for stream in streams]
    for table in tables:
        if table.shape != tables[0].shape or not np.allclose(table.sum(axis=1), 1, atol=1e-3) or table.min() < 0:
            raise ValueError(
                "fusion: each stream must give probabilities [N, classes] of the same shape, rows summing to 1"
            )
    return np.asarray(np.mean(tables, axis=0))


def _check_streams(gallery: Sequence[npt.ArrayLike], query: Sequence[npt.ArrayLike]) -> None:
    if not gallery or len(gallery) != len(query):
        raise ValueError(f"fusion: {len(gallery)} gallery streams for {len(query)} query streams")
