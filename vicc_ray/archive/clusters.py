"""What an archive is made of: clusters of its rows, by the prototypes that its encoder learnt or by k-means, and a map.

Prototypes are the method's own clusters: K directions in the space of embeddings, to which training assigned each clip. Vectors
are read in blocks, twice for k-means; what is kept of each row is its cluster and how central it is.

Legend: n rows, d values of a vector, D values of an embedding, K clusters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.library import BLOCK, Library
from vicc_ray.archive.page import Card, Page, Strip, clock
from vicc_ray.errors import UserError
from vicc_ray.metrics.nearest import unit_rows
from vicc_ray.report.charts import Chart
from vicc_ray.report.plots import figure_json, plain

By = Literal["prototypes", "kmeans"]
CENTRAL = 6  # rows shown of a cluster
MAPPED = 3000  # rows on the map at most, evenly spread: a projection of more takes minutes
LEAST_MAPPED = 5
MAP_HEIGHT = 620
MOST_KMEANS = 50  # clusters, where their number is not given
NO_CLUSTERS = "an encoder without prototypes (of an import, or of another objective)"


@dataclass(frozen=True)
class Cluster:
    """number: of the prototype or centre. size: rows. central: numbers of the most central rows. labels: counts, the most first."""

    number: int
    size: int
    central: tuple[int, ...]
    labels: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Clusters:
    """by: prototypes or kmeans. of: int64 [n], the cluster of each row. found: the clusters that have rows, the largest first.

    count: K, with those that have no row.
    """

    by: By
    count: int
    of: NDArray[np.int64]
    found: tuple[Cluster, ...]


def find_clusters(library: Library, by: By = "prototypes", count: int | None = None) -> Clusters:
    """The clusters of the rows; `count` is that of k-means (None: by the number of rows). UserError where there can be none."""
    if by == "prototypes":
        if count is not None:
            raise UserError("--count: prototypes are as many as the encoder learnt; it goes with --by kmeans")
        total, scored = _by_prototypes(library)
    else:
        total, scored = _by_kmeans(library, count)
    parts = list(scored)
    of = np.concatenate([numbers for numbers, _ in parts])
    score = np.concatenate([values for _, values in parts])
    labels = library.table["label"].to_pylist()
    found = [_cluster(number, np.flatnonzero(of == number), score, labels) for number in np.unique(of).tolist()]
    return Clusters(by, total, of, tuple(sorted(found, key=lambda one: (-one.size, one.number))))


def _cluster(number: int, rows: NDArray[np.int64], score: NDArray[np.float32], labels: list[str | None]) -> Cluster:
    central = rows[np.argsort(-score[rows], kind="stable")[:CENTRAL]]
    names = Counter(label for row in rows.tolist() if (label := labels[row]) is not None)
    return Cluster(number, len(rows), tuple(central.tolist()), tuple(names.most_common(3)))


Scored = Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]


def _by_prototypes(library: Library) -> tuple[int, Scored]:
    """The nearest prototype of each row's embedding and its cosine; of several encoders the first decides."""
    import torch
    from torch.nn.functional import normalize

    from vicc_ray.models.encoder_file import load_encoder

    archive, maker = library.archives[0], library.info.encoders[0]
    with storage.local_copy(archive.encoder_file(maker.name)) as path:
        file = load_encoder(Path(path))
    if not file.prototypes:
        raise UserError(f"--by prototypes: {archive.folder} was made by {NO_CLUSTERS}; use --by kmeans")
    encoder, prototypes = file.build(), normalize(file.prototypes[0].float(), dim=1)
    span = library.info.spans[0]

    def scored() -> Scored:
        with torch.inference_mode():
            for block in library.blocks():
                z = encoder.embed(torch.from_numpy(np.ascontiguousarray(block[:, span])))
                best = (z @ prototypes.T).max(dim=1)
                yield best.indices.numpy(), best.values.numpy()

    return len(prototypes), scored()


def _by_kmeans(library: Library, count: int | None) -> tuple[int, Scored]:
    """scikit-learn's mini-batch k-means over the rows as they are compared; central is near to the centre."""
    from sklearn.cluster import MiniBatchKMeans

    total = count or max(min(MOST_KMEANS, int(math.sqrt(len(library) / 2))), 1)
    if total > len(library):
        raise UserError(f"--count {total}: the archive has {len(library)} rows, and a cluster has one at least")
    model = MiniBatchKMeans(total, random_state=0, batch_size=BLOCK, n_init=3)
    if len(library) <= BLOCK:
        model.fit(_units(library, np.concatenate(list(library.blocks()))))
    else:
        for block in _at_least(library.blocks(), total):
            model.partial_fit(_units(library, block))

    def scored() -> Scored:
        for block in library.blocks():
            distances = model.transform(_units(library, block))
            numbers = distances.argmin(axis=1)
            yield numbers, -distances[np.arange(len(block)), numbers]

    return total, scored()


def _at_least(blocks: Iterator[NDArray[np.float32]], rows: int) -> Iterator[NDArray[np.float32]]:
    """Blocks joined until they have so many rows; what is left at the end goes with the last."""
    held: list[NDArray[np.float32]] = []
    for block in blocks:
        held.append(block)
        if sum(map(len, held)) >= rows:
            yield np.concatenate(held)
            held = []


def _units(library: Library, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return unit_rows(rows, library.mean, library.info.spans).astype(np.float32)


def map_of(library: Library, clusters: Clusters) -> Chart | None:
    """A map on which rows that are alike lie together (t-SNE of scikit-learn), to be hovered; None for a handful of rows."""
    import plotly.graph_objects as graph

    chosen = np.unique(np.linspace(0, len(library) - 1, min(MAPPED, len(library))).astype(np.int64))
    if len(chosen) < LEAST_MAPPED:
        return None
    points = _projected(_rows(library, chosen))
    figure = graph.Figure()
    table = library.table.take(chosen)
    texts = [
        f"{plain(row['id'].rsplit('/', 1)[-1])}<br>{plain(row['label'] or 'no label')}" for row in table.to_pylist()
    ]
    of = clusters.of[chosen]
    for cluster in clusters.found:
        mine = np.flatnonzero(of == cluster.number)
        if not len(mine):
            continue
        figure.add_scatter(
            x=points[mine, 0].round(3).tolist(),
            y=points[mine, 1].round(3).tolist(),
            mode="markers",
            name=f"{cluster.number}",
            text=[f"cluster {cluster.number}<br>{texts[place]}" for place in mine.tolist()],
            hoverinfo="text",
            marker={"size": 7, "opacity": 0.8},
        )
    for axis in (figure.update_xaxes, figure.update_yaxes):
        axis(visible=False)
    figure.update_layout(showlegend=len(clusters.found) <= 20)
    part = f"{len(chosen)} of {len(library)} rows, evenly spread; " if len(chosen) < len(library) else ""
    return Chart(
        "Map", f"{part}rows that are alike lie together (t-SNE); point at one", figure_json(figure, MAP_HEIGHT)
    )


def _rows(library: Library, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
    """The chosen rows (numbers ascending) as they are compared."""
    parts, first = [], 0
    for block in library.blocks():
        low, high = np.searchsorted(chosen, (first, first + len(block))).tolist()
        if high > low:
            parts.append(_units(library, block[chosen[low:high] - first]))
        first += len(block)
    return np.concatenate(parts)


def _projected(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [n, 2]."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    short = PCA(min(50, *rows.shape), random_state=0).fit_transform(rows)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    points: NDArray[np.float32] = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(short)
    return points


def clusters_json(library: Library, clusters: Clusters) -> dict[str, Any]:
    """The clusters as JSON takes them."""
    return {
        "by": clusters.by,
        "count": clusters.count,
        "rows": len(library),
        "clusters": [
            {
                "number": one.number,
                "size": one.size,
                "labels": dict(one.labels),
                "central": [library.record(row)["id"] for row in one.central],
            }
            for one in clusters.found
        ],
    }


def clusters_page(library: Library, clusters: Clusters) -> Page:
    """Each cluster with its most central rows, the largest first, and the map."""
    what = "prototypes" if clusters.by == "prototypes" else "centres of k-means"
    strips = []
    for one in clusters.found:
        labels = ", ".join(f"{label} {count}" for label, count in one.labels)
        share = f"{one.size} rows, {one.size / len(library):.1%}" + (f" ({labels})" if labels else "")
        cards = [_card(library.record(row)) for row in one.central]
        strips.append(Strip(f"Cluster {one.number}", share, cards))
    facts = [
        ("archive", ", ".join(archive.folder for archive in library.archives)),
        ("vectors", library.info.describe()),
        ("rows", str(len(library))),
        ("clusters", f"{len(clusters.found)} of {clusters.count} {what} have rows"),
    ]
    text = "The most central rows of each cluster come first."
    return Page("clusters", "What the archive is made of", text, facts, strips, map_of(library, clusters))


def _card(row: dict[str, Any]) -> Card:
    return Card(row["id"], row["video"], clock(row["start"], row["end"]), row["label"] or "")
