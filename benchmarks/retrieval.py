"""Exact search beside faiss's flat index, both with all threads, and what the search holds beside a large gallery."""

from __future__ import annotations

import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Bar, Outcome, take_turns
from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import Source, VideoFeatures, feature_rows, write_features
from vicc_ray.metrics.search import Features, top_k, units

GALLERY, QUERIES, WIDTH, K = 100_000, 2_000, 1024, 50
SHARE_OF_FAISS = 0.7
LARGE_GALLERY, LARGE_QUERIES = 1_000_000, 10_000  # 3.8 GiB of features, read from a Parquet file
MEMORY_GIB = 4.0
PART = 10_000


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Queries/s of the k nearest of ready rows, and the peak of memory of a search through a Parquet file."""
    outcome = _speed(_faiss(), rounds)
    seconds, gib = large_search(LARGE_GALLERY, LARGE_QUERIES)
    outcome.facts["from Parquet, with centring"] = (
        f"{LARGE_GALLERY} x {WIDTH} gallery, {LARGE_QUERIES} queries: {LARGE_QUERIES / seconds:.0f} queries/s"
    )
    if gib is not None:
        outcome.bars.append(Bar("GiB beside the features", gib, MEMORY_GIB, at_least=False))
    return outcome


def _speed(faiss: Any, rounds: int) -> Outcome:
    rng = np.random.default_rng(0)
    gallery, query = _rows(rng, GALLERY), _rows(rng, QUERIES)
    index = faiss.IndexFlatIP(WIDTH)
    index.add(gallery)
    contenders = {
        "faiss IndexFlatIP": lambda: QUERIES / _seconds(lambda: index.search(query, K)),
        "vicc_ray": lambda: QUERIES / _seconds(lambda: top_k(gallery, query, K)),
    }
    outcome = Outcome("queries/s", take_turns(contenders, rounds))
    outcome.bars = [Bar("vicc_ray / faiss", outcome.ratio("vicc_ray", "faiss IndexFlatIP"), SHARE_OF_FAISS)]
    same = float((index.search(query, K)[1] == top_k(gallery, query, K)[0]).mean())
    outcome.facts = {
        "rows": f"{GALLERY} x {WIDTH} gallery, {QUERIES} queries, k = {K}",
        "threads": faiss.omp_get_max_threads(),
        "same neighbours as faiss": f"{same:.6f} (1 but for rounding)",
    }
    return outcome


def large_search(gallery: int, queries: int) -> tuple[float, float | None]:
    """Seconds and growth of memory (GiB; None where the system does not say) of a search in a process of its own.

    Centred and scaled as retrieval does it; a gallery of so many rows lies in a Parquet file and is never held whole.
    """
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as folder:
        file = str(Path(folder) / "features.parquet")
        write_features(file, Source("bench", "", "", {}), _parts(gallery))
        spawn = multiprocessing.get_context("spawn")
        with spawn.Pool(1) as pool:
            found: tuple[float, float | None] = pool.apply(_search_file, (file, queries))
    return found


def _search_file(file: str, queries: int) -> tuple[float, float | None]:
    rng = np.random.default_rng(1)
    query = _rows(rng, queries)
    top_k(query[:K], query[:K], 1)  # libraries and their threads are there before
    before = _memory("VmRSS")
    seconds = _seconds(lambda: top_k(*units(feature_rows(file), query), K))
    after = _memory("VmHWM")
    return seconds, None if before is None or after is None else after - before


def _memory(field: str) -> float | None:
    """GiB that the kernel counts for this process: VmRSS now, VmHWM at the highest; None without such a file."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) / 2**20 if found else None


def _parts(rows: int) -> Iterator[VideoFeatures]:
    rng = np.random.default_rng(0)
    for first in range(0, rows, PART):
        vectors = _rows(rng, min(PART, rows - first))
        count = len(vectors)
        ids = [f"{first + number}" for number in range(count)]
        yield VideoFeatures(ids, [None] * count, [None] * count, ["train"] * count, [1] * count, vectors)


def _rows(rng: np.random.Generator, count: int) -> Features:
    """Random directions: float32 [count, WIDTH], each of length 1."""
    rows = rng.standard_normal((count, WIDTH), dtype=np.float32)
    unit_length: Features = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit_length


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("bench retrieval: faiss is not installed; install faiss-cpu, or vicc-ray[dev]") from error
    return faiss
