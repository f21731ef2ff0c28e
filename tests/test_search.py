"""search.py against full sorts and loops that follow the definition; its blocks are made small so that there are many."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import retrieval as bench
from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import Source, write_features
from vicc_ray.metrics import search
from vicc_ray.metrics.search import Rows, as_rows, average_precision, beside, top_k, units


@pytest.fixture(params=["default blocks", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr(search, "GALLERY_BLOCK", 37)
        monkeypatch.setattr(search, "PRECISION_BLOCK", 37)
        monkeypatch.setattr(search, "TILE", 4)
        monkeypatch.setattr(search, "BLOCK_VALUES", 37 * 9)
        monkeypatch.setattr(search, "CHUNK_VALUES", 300)


def tables(seed: int = 0, gallery: int = 203, query: int = 51, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features whose inner products are small whole numbers: no rounding, and many ties."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-2, 3, (gallery, d)).astype(np.float32),
        rng.integers(-2, 3, (query, d)).astype(np.float32),
    )


def codes(seed: int, gallery: int, query: int, many: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, many, gallery), rng.integers(0, many, query)


def ranking_twin(g: np.ndarray, q: np.ndarray, g_groups=None, q_groups=None) -> list[list[int]]:  # type: ignore[no-untyped-def]
    """All candidates of each query, the best first, equal ones in gallery order."""
    return [
        sorted(
            (j for j in range(len(g)) if g_groups is None or g_groups[j] != q_groups[i]),
            key=lambda j, row=row: (-float(np.dot(row, g[j])), j),  # type: ignore[misc]
        )
        for i, row in enumerate(q)
    ]


def precision_twin(ranking: list[list[int]], g_labels: np.ndarray, q_labels: np.ndarray) -> list[float]:
    result = []
    for row, label in zip(ranking, q_labels, strict=True):
        right, precisions = 0, []
        for place, j in enumerate(row, start=1):
            if g_labels[j] == label:
                right += 1
                precisions.append(right / place)
        result.append(sum(precisions) / len(precisions) if precisions else float("nan"))
    return result


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 3, 36, 38, 100, 203])
@pytest.mark.parametrize("grouped", [False, True])
def test_top_k_is_the_start_of_the_full_sort(k: int, grouped: bool) -> None:
    g, q = tables()
    groups = codes(1, len(g), len(q), 9) if grouped else (None, None)
    indices, values = top_k(g, q, k, *groups)
    for i, want in enumerate(ranking_twin(g, q, *groups)):
        found = want[:k]
        assert indices[i].tolist() == found + [-1] * (k - len(found))
        assert values[i].tolist() == [float(g[j] @ q[i]) for j in found] + [-np.inf] * (k - len(found))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("order", ["rising", "falling", "all equal"])
def test_top_k_in_the_worst_orders(order: str) -> None:
    """A rising gallery replaces everything in every block; an even one is full of ties."""
    steps = {"rising": np.arange(300), "falling": -np.arange(300), "all equal": np.zeros(300)}[order]
    g, q = steps[:, None].astype(np.float32), np.ones((3, 1), dtype=np.float32)
    want = list(range(300))[::-1] if order == "rising" else list(range(300))
    assert top_k(g, q, 7)[0].tolist() == [want[:7]] * 3


@pytest.mark.parametrize("size", [1, 5, 64, 211])
def test_equal_rows_stay_in_gallery_order_wherever_they_stand(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real-valued features: a product that rounded differently at the edge of a block would break the tie."""
    monkeypatch.setattr(search, "GALLERY_BLOCK", size)
    rng = np.random.default_rng(0)
    g = np.repeat(rng.normal(size=(1, 129)), 211, axis=0)
    indices, values = top_k(g, rng.normal(size=(3, 129)), 211)
    assert (indices == np.arange(211)).all() and (values == values[:, :1]).all()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("classes", [2, 20, 150])
def test_average_precision_is_that_of_the_full_ranking(classes: int, grouped: bool) -> None:
    g, q = tables()
    labels = codes(2, len(g), len(q), classes)
    groups = codes(3, len(g), len(q), 9) if grouped else (None, None)
    got = average_precision(g, q, *labels, *groups)
    want = precision_twin(ranking_twin(g, q, *groups), *labels)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.isnan(want).any() == (classes == 150)


def test_average_precision_of_a_perfect_and_of_the_worst_ranking() -> None:
    g = np.array([[3.0], [2.0], [-2.0], [-3.0]])
    assert average_precision(g, [[1.0]], np.array([7, 7, 8, 8]), np.array([7])) == [1.0]
    assert average_precision(g, [[1.0]], np.array([7, 7, 8, 8]), np.array([8])) == [(1 / 3 + 2 / 4) / 2]


def test_average_precision_of_real_values_keeps_the_order_of_floats() -> None:
    rng = np.random.default_rng(5)
    g, q = rng.normal(size=(300, 1)) * 10.0 ** rng.integers(-30, 5, (300, 1)), np.array([[1.0], [-1.0]])
    g[:4] = [[0.0], [-0.0], [1e-40], [-1e-40]]
    g = g.astype(np.float32).astype(np.float64)
    labels = codes(6, 300, 2, 3)
    want = precision_twin(ranking_twin(g, q), *labels)
    np.testing.assert_allclose(average_precision(g, q, *labels), want, rtol=1e-12)


def pieces(table: np.ndarray, heights: tuple[int, ...]) -> Rows:
    """A table that comes in blocks of uneven heights, whatever is asked."""

    def read(_: int) -> Iterator[np.ndarray]:
        yield from np.split(table, np.cumsum(heights))

    return Rows(*table.shape, read)  # type: ignore[call-arg]


def test_rows_come_in_even_blocks_as_often_as_asked() -> None:
    table = np.arange(60.0).reshape(20, 3)
    rows = pieces(table, (1, 0, 7, 2))
    for size in (1, 4, 6, 20, 100):
        for _ in range(2):
            got = list(rows.blocks(size))
            assert [len(block) for block in got[:-1]] == [size] * (len(got) - 1)
            np.testing.assert_array_equal(np.concatenate(got), table)
    np.testing.assert_array_equal(rows.whole(), table)
    with pytest.raises(ValueError, match="21 rows gave 20"):
        list(Rows(21, 3, rows.open).blocks(4))
    with pytest.raises(ValueError, match="4 values a row"):
        list(Rows(20, 4, rows.open).blocks(4))


def test_a_streamed_gallery_gives_what_one_in_memory_gives() -> None:
    rng = np.random.default_rng(0)
    g, q = rng.normal(size=(100, 6)) + 5, rng.normal(size=(9, 6))
    held, streamed = units(g, q), units(pieces(g, (33, 1, 50)), q)
    np.testing.assert_array_equal(held[0].whole(), streamed[0].whole())
    for a, b in zip(top_k(*held, 5), top_k(*streamed, 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_unit_rows_are_centred_in_double_precision() -> None:
    """Features far from zero lose their digits where the mean is taken in float32."""
    rng = np.random.default_rng(0)
    far = (1e4 + rng.normal(size=(5000, 3))).astype(np.float32)
    table = far.astype(np.float64) - far.astype(np.float64).mean(axis=0)
    want = table / np.linalg.norm(table, axis=1, keepdims=True)
    np.testing.assert_allclose(units(far, far[:1])[0].whole(), want, atol=1e-7)
    np.testing.assert_allclose(units(far, far[:7])[1].whole(), want[:7], atol=1e-7)
    assert all((side.whole() == 0).all() for side in units(np.full((3, 2), 4.0), np.full((1, 2), 4.0)))


def test_tables_side_by_side_sum_their_products() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 3)), rng.normal(size=(30, 5))
    both = beside([as_rows(a, "a"), pieces(b, (11, 4))], (1.0, 0.5), "gallery")
    np.testing.assert_allclose(both.whole(), np.concatenate([a, 0.5 * b], axis=1), rtol=1e-6)
    with pytest.raises(ValueError, match=r"\[30, 29\] rows"):
        beside([as_rows(a, "a"), as_rows(b[:29], "b")], (1.0, 1.0), "gallery")


def test_mistakes_are_refused() -> None:
    g, q = tables()
    for k in (0, 204):
        with pytest.raises(ValueError, match=f"k is {k}; with 203"):
            top_k(g, q, k)
    with pytest.raises(ValueError, match="5 values, query features 4"):
        top_k(g, q[:, :4], 1)
    with pytest.raises(UserError, match="the query is empty"):
        top_k(g, q[:0], 1)
    g[150, 2] = np.nan
    with pytest.raises(UserError, match="gallery features hold NaN"):
        top_k(g, q, 1)
    with pytest.raises(UserError, match="1 of 203 gallery features hold NaN"):
        units(g, q)
    with pytest.raises(UserError, match="1 of 1 query features hold NaN"):
        units(q, g[150:151])
    q[0, 0] = np.inf
    with pytest.raises(UserError, match="query features hold NaN"):
        top_k(tables()[0], q, 1)


def test_read_only_features_are_searched_in_place() -> None:
    g, q = tables()
    want = top_k(g, q, 3)[0]
    g.flags.writeable = False
    np.testing.assert_array_equal(top_k(g, q, 3)[0], want)


def test_keys_order_as_floats_do_and_take_both_zeros_for_one() -> None:
    values = torch.tensor([-np.inf, -3.0, -1e-40, 0.0, 1e-40, 2.0], dtype=torch.float32)
    keys = search._keys(values, torch.zeros(6, dtype=torch.int64)).tolist()
    assert keys == sorted(keys) and len(set(keys)) == 6
    first, second = search._keys(torch.tensor([-0.0, 0.0]), torch.arange(2)).tolist()
    assert first > second


def test_the_bench_measures_both_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"GALLERY": 3000, "QUERIES": 60, "WIDTH": 64, "PART": 700}.items():
        monkeypatch.setattr(bench, name, value)
    outcome = bench._speed(pytest.importorskip("faiss"), 1)
    assert all(figure > 0 for figures in outcome.figures.values() for figure in figures)
    assert float(str(outcome.facts["same neighbours as faiss"]).split()[0]) > 0.99
    file = str(tmp_path / "features.parquet")
    assert write_features(file, Source("bench", "", "", {}), bench._parts(3000)) == 3000
    seconds, gib = bench._search_file(file, 60)
    assert seconds > 0 and (gib is None or 0 <= gib < 8)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"install faiss-cpu, or vicc-ray\[dev\]"):
        bench.measure(1)
