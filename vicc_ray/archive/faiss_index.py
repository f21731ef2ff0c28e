"""A faiss index of an archive, for archives that are too large to go through for each query; with its recall measured.

ARCHIVE/_index/index.faiss   inverted lists (ivf) or a graph (hnsw) of the rows as they are compared
               index.json    which parts it holds, and how often it finds what the exact search finds
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vicc_ray import storage
from vicc_ray.archive.library import Library, Numbers, PassedOver, nearest_exact
from vicc_ray.archive.store import Archive
from vicc_ray.errors import UserError
from vicc_ray.metrics.nearest import unit_rows

Kind = Literal["ivf", "hnsw"]
SAMPLE = 100  # queries that recall is measured with
RECALL_AT = 10
GOOD = 0.95  # recall from which on no more lists are searched
TRAINED_ON = 64  # rows a list, at most, that its centre is learnt from
HNSW_LINKS = 32
MORE = 64  # rows beside k that are found first, some of which a query may pass over


def build_index(library: Library, kind: Kind) -> float:
    """Build the index of one archive and keep it in its folder; its recall at 10 against the exact search (0 to 1)."""
    archive = _single(library)
    faiss = _faiss()
    width = library.info.width
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    else:
        lists = max(min(int(4 * math.sqrt(len(library))), len(library) // TRAINED_ON), 1)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(_sample(library, lists * TRAINED_ON))
    for block in library.blocks():
        index.add(_units(library, block))
    recall = _tuned(library, index, kind)
    with tempfile.TemporaryDirectory(prefix="vicc-index-") as folder:
        file = Path(folder, "index.faiss")
        faiss.write_index(index, str(file))
        storage.upload(file, storage.join(archive.folder, "_index", "index.faiss"))
    facts = {"kind": kind, "parts": _parts(archive), "centred": library.centred, "recall": recall}
    storage.write_bytes(storage.join(archive.folder, "_index", "index.json"), json.dumps(facts).encode())
    return recall


def search_index(
    library: Library, vectors: NDArray[np.float32], k: int, over: Sequence[PassedOver]
) -> list[tuple[Numbers, NDArray[np.float64]]]:
    """The rows that the index finds for each query of vectors float32 [q, d], with their similarities.

    UserError where the index is not up to date.
    """
    archive = _single(library)
    facts = _facts(archive)
    if facts["parts"] != _parts(archive) or facts["centred"] != library.centred:
        raise UserError(
            f"{archive.folder}: its index is of other rows than the archive has now; build it again with 'vicc search "
            f"{archive.folder} --index {facts['kind']}'"
        )
    with storage.local_copy(storage.join(archive.folder, "_index", "index.faiss")) as path:
        index = _faiss().read_index(path)
    values, rows = index.search(_units(library, vectors), min(k + MORE, len(library)))
    found = []
    for number in range(len(vectors)):
        keep = rows[number] >= 0
        keep[keep] &= ~over[number](rows[number][keep])
        found.append((rows[number][keep][:k].astype(np.int64), values[number][keep][:k].astype(np.float64)))
    return found


def has_index(library: Library) -> bool:
    """Whether the archive has an index."""
    return storage.exists(storage.join(library.archives[0].folder, "_index", "index.json"))


def _tuned(library: Library, index: Any, kind: Kind) -> float:
    """Search more lists (a wider graph) until recall is good; that recall."""
    numbers = np.linspace(0, len(library) - 1, min(SAMPLE, len(library))).astype(int)
    queries = np.stack([library.vector(int(number)) for number in numbers])
    k = min(RECALL_AT, len(library))

    def nobody(rows: Numbers) -> NDArray[np.bool_]:
        return np.zeros(len(rows), bool)

    exact = [set(rows.tolist()) for rows, _ in nearest_exact(library, queries, k, [nobody] * len(queries))]
    recall, effort = 0.0, 8
    while recall < GOOD and effort <= 1024:
        if kind == "hnsw":
            index.hnsw.efSearch = effort * 8
        else:
            index.nprobe = min(effort, index.nlist)
        _, rows = index.search(_units(library, queries), k)
        hits = sum(len(right & set(found.tolist())) for right, found in zip(exact, rows, strict=True))
        recall = hits / sum(map(len, exact))
        effort *= 2
    return recall


def _sample(library: Library, most: int) -> NDArray[np.float32]:
    """Numbers from all over the archive as they are compared, at most so many."""
    step = max(len(library) // most, 1)
    parts, first = [], 0
    for block in library.blocks():
        parts.append(_units(library, block[(-first) % step :: step]))
        first += len(block)
    return np.concatenate(parts)[:most]


def _units(library: Library, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return unit_rows(rows, library.mean, library.info.spans).astype(np.float32)


def _single(library: Library) -> Archive:
    if len(library.archives) > 1:
        raise UserError("--index: an index is of one archive; leave --also out, or search exactly")
    return library.archives[0]


def _facts(archive: Archive) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(storage.read_bytes(storage.join(archive.folder, "_index", "index.json")))
    except (FileNotFoundError, ValueError):
        raise UserError(f"{archive.folder}: has no index; build one with --index ivf or --index hnsw") from None
    return facts


def _parts(archive: Archive) -> list[list[Any]]:
    return [[part.name, part.rows] for part in archive.parts]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("--index: needs faiss; install it with: pip install 'vicc-ray[faiss]'") from error
    return faiss
