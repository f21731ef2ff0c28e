"""duplicates.py against all pairs in float64; its blocks are made small so that there are many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from vicc_ray.errors import UserError
from vicc_ray.metrics import duplicates
from vicc_ray.metrics.duplicates import duplicate_groups, duplicate_pairs
from vicc_ray.metrics.search import Rows, as_rows


@pytest.fixture(params=["default blocks", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr(duplicates, "BLOCK", 48)
        monkeypatch.setattr(duplicates, "TILE", 20)
        monkeypatch.setattr(duplicates, "HELD_VALUES", 30_000)
        monkeypatch.setattr(duplicates, "CHUNK_VALUES", 700)
        monkeypatch.setattr(duplicates, "SAMPLE", 200)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both, whatever the processor would take."""
    monkeypatch.setattr(duplicates, "_precision", lambda: request.param)


def features(seed: int, n: int = 611, d: int = 160, copies: int = 80) -> np.ndarray:
    """32 strong directions, noise, and copies at every distance; lengths are those of no unit."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, 32)) @ rng.normal(size=(32, d)) + rng.normal(size=(n, d))
    source, target = rng.integers(0, n // 2, copies), rng.choice(np.arange(n // 2, n), copies, replace=False)
    table[target] = table[source] + rng.uniform(0, 5, (copies, 1)) * rng.normal(size=(copies, d))
    return np.asarray(table * rng.uniform(0.1, 10, (n, 1)), dtype=np.float32)


def cosines(table: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
    """float64 [n,n] of the definition; NaN for rows of 0."""
    rows = table.astype(np.float64) - (0 if mean is None else mean.astype(np.float64))
    with np.errstate(invalid="ignore"):
        rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.asarray(rows @ rows.T)


def check(table: np.ndarray, above: float, mean: np.ndarray | None = None) -> int:
    """Same pairs and similarities as all pairs; how many. No similarity may be as close to `above` as rounding."""
    all_pairs = np.triu(np.nan_to_num(cosines(table, mean)), k=1)
    assert np.abs(all_pairs - above).min() > 1e-7
    pairs, similarity = duplicate_pairs(as_rows(table, "table"), above, mean)
    assert pairs.dtype == np.int64 and similarity.dtype == np.float32
    assert pairs.tolist() == np.argwhere(all_pairs >= above).tolist()
    assert similarity == pytest.approx(all_pairs[pairs[:, 0], pairs[:, 1]], abs=3e-7)
    return len(pairs)


@pytest.mark.usefixtures("blocks", "precision")
@pytest.mark.parametrize("above", [0.3, 0.8, 0.9501, 0.999])
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_are_those_of_all_pairs(above: float, seed: int) -> None:
    assert check(features(seed), above) > 0


@pytest.mark.usefixtures("blocks", "precision")
@pytest.mark.parametrize("k", [4, 32, 64])
def test_a_sketch_of_any_size_loses_nothing(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "SKETCHES", (k,))
    monkeypatch.setattr(duplicates, "PAIR", 1e-9)  # so that a sketch seems cheaper than whole rows
    table = features(2)
    basis = duplicates._directions(duplicates._sample(as_rows(table, "table"), 100, None), 0.9)
    assert basis is not None and basis.shape == (160, k - 1)
    assert check(table, 0.9) > 0


@pytest.mark.usefixtures("precision")
def test_the_bound_of_sketches_is_just_wide_enough() -> None:
    """What a sketch leaves out can be all that two rows share, or be opposite: both ends of Cauchy and Schwarz."""
    basis = torch.eye(40, dtype=torch.float64)[:, :3]
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(size=(300, 3)), np.zeros((300, 37))
    outside[:, 5] = rng.normal(size=300)
    table = np.concatenate([inside, outside], axis=1).astype(np.float32)
    units = duplicates._unit(table, None)[0]
    same, sketches = units.double() @ units.double().T, duplicates._sketched(units, basis)
    products = sketches.sketches.double() @ sketches.sketches.double().T
    slack = 2 * sketches.error + sketches.error**2 + 1e-7
    assert (products + slack >= same).all()
    agree = torch.from_numpy(np.outer(outside[:, 5], outside[:, 5]) > 0)
    assert (products - same)[agree].abs().max() <= slack  # no wider than it has to be
    assert (products - same)[~agree].max() > 0.5


@pytest.mark.parametrize("least", [-0.5, -0.001, 0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_product_that_reaches_a_bound_is_passed_over(least: float, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(features(11, n=200, d=40)).to(dtype)
    rows /= rows.square().sum(dim=1, keepdim=True).sqrt()
    reached = {tuple(place) for place in (rows.double() @ rows.double().T >= least + 0.001).nonzero().tolist()}
    row, column = duplicates._reaching(rows, rows, least)
    assert reached and reached <= set(zip(row.tolist(), column.tolist(), strict=True))


@pytest.mark.usefixtures("blocks")
def test_few_values_a_row_and_many_pairs() -> None:
    """Most pairs of 5 values reach 0.2: tiles are sifted by whole products."""
    rng = np.random.default_rng(4)
    assert check(rng.normal(size=(300, 5)).astype(np.float32) + np.float32(0.5), 0.20001) > 10_000


@pytest.mark.usefixtures("blocks", "precision")
def test_ties_at_the_bound_are_pairs() -> None:
    """3-4-5 triangles: the similarity is 0.6 or 0.8, as near as float32 can be; and copies have 1, of any length."""
    table = np.zeros((200, 70), dtype=np.float32)
    table[7, 0], table[150, [0, 1]], table[199, 1] = 1, (3, 4), 5
    pairs, similarity = duplicate_pairs(as_rows(table, "table"), 0.6)
    assert pairs.tolist() == [[7, 150], [150, 199]]
    assert similarity.tolist() == [np.float32(0.6), np.float32(0.8)]
    assert duplicate_pairs(as_rows(table, "table"), 0.8)[0].tolist() == [[150, 199]]
    assert not len(duplicate_pairs(as_rows(table, "table"), float(np.nextafter(np.float32(0.8), np.float32(1))))[0])


@pytest.mark.usefixtures("blocks", "precision")
def test_copies_of_any_length_have_a_similarity_of_1() -> None:
    table = features(5, copies=0)
    table[600], table[400], table[401] = np.float32(2.0**-70) * table[3], 3 * table[3], -table[3]
    pairs, similarity = duplicate_pairs(as_rows(table, "table"), 1.0)
    assert pairs.tolist() == [[3, 400], [3, 600], [400, 600]]
    assert similarity.tolist() == [1, 1, 1]


def test_a_pair_has_the_same_similarity_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    table = features(6)
    order = np.random.default_rng(6).permutation(len(table))
    monkeypatch.setattr(duplicates, "CHUNK_VALUES", 1500)
    pairs, similarity = duplicate_pairs(as_rows(table, "table"), 0.5)
    moved, again = duplicate_pairs(as_rows(table[order], "table"), 0.5)
    back = {tuple(sorted(order[pair].tolist())): float(value) for pair, value in zip(moved, again, strict=True)}
    assert back == {tuple(pair.tolist()): float(value) for pair, value in zip(pairs, similarity, strict=True)}
    assert len(pairs) > 80


@pytest.mark.usefixtures("blocks")
def test_rows_of_0_are_similar_to_nothing() -> None:
    table = features(7)
    table[[0, 5, 300, 610]] = 0
    assert check(table, 0.9) > 0
    assert not len(duplicate_pairs(as_rows(np.zeros((9, 4), np.float32), "table"), 0.5)[0])


@pytest.mark.usefixtures("blocks")
def test_the_mean_is_subtracted_first() -> None:
    table = features(8) + np.float32(20)
    mean = table.mean(axis=0)
    table[[10, 20]] = mean  # 0 once it is subtracted
    assert 0 < check(table, 0.9, mean) < len(duplicate_pairs(as_rows(table, "table"), 0.9)[0])
    with pytest.raises(ValueError, match="160 finite values"):
        duplicate_pairs(as_rows(table, "table"), 0.9, mean[:5])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    table = features(9)
    table[[3, 17], 2] = value
    with pytest.raises(UserError, match="2 of 611 rows hold NaN or infinite"):
        duplicate_pairs(as_rows(table, "table"), 0.9)


@pytest.mark.parametrize("above", [0, -0.5, 1.01, np.nan])
def test_a_bound_that_no_cosine_or_every_one_reaches_is_refused(above: float) -> None:
    with pytest.raises(UserError, match="more than 0 and at most 1"):
        duplicate_pairs(as_rows(features(9), "table"), above)


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.ones((21, 3), dtype=np.float32)
    monkeypatch.setattr(duplicates, "LIMIT", 210)
    assert len(duplicate_pairs(as_rows(table, "table"), 0.9)[0]) == 210
    monkeypatch.setattr(duplicates, "LIMIT", 209)
    with pytest.raises(UserError, match="raise --above"):
        duplicate_pairs(as_rows(table, "table"), 0.9)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tables_of_hardly_any_rows(n: int) -> None:
    pairs, similarity = duplicate_pairs(Rows(n, 3, lambda size: iter([np.ones((n, 3))] if n else [])), 0.9)
    assert pairs.tolist() == [[0, 1]] * (n == 2) and similarity.tolist() == [1] * (n == 2)
    assert pairs.shape == (n // 2, 2) and pairs.dtype == np.int64 and similarity.dtype == np.float32


def test_what_is_held_and_read_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """611 rows of 160 values in passes of 192 rows: one reading for the directions, 4 for the pairs, 48 rows a time."""
    monkeypatch.setattr(duplicates, "BLOCK", 48)
    monkeypatch.setattr(duplicates, "HELD_VALUES", 160 * 200)
    table, asked, tensors = features(10), list[int](), list[tuple[int, ...]]()
    similarity = duplicates._similarity

    def read(size: int) -> Iterator[np.ndarray]:
        asked.append(size)
        yield from (table[start : start + size] for start in range(0, len(table), size))

    def watched(held: duplicates._Units, block: duplicates._Units, *pairs: torch.Tensor) -> torch.Tensor:
        tensors.append((held.rows.untyped_storage().nbytes(), len(block.rows)))
        return similarity(held, block, *pairs)

    monkeypatch.setattr(duplicates, "_similarity", watched)
    duplicate_pairs(Rows(len(table), table.shape[1], read), 0.9)
    assert asked == [48] * 5
    assert tensors and max(tensors)[0] == 4 * 160 * 192 and max(rows for _, rows in tensors) <= 48


def test_wide_rows_come_in_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_VALUES", 160 * 30)
    asked, table = list[int](), features(10)

    def read(size: int) -> Iterator[np.ndarray]:
        asked.append(size)
        yield table

    duplicate_pairs(Rows(len(table), table.shape[1], read), 0.9)
    assert asked == [30, 30]


def test_groups_chain() -> None:
    pairs = np.array([[0, 9], [2, 4], [3, 7], [4, 8], [8, 11]])  # 2-4-8-11: 2 and 11 are no pair
    groups = duplicate_groups(pairs, 12)
    assert [group.tolist() for group in groups] == [[0, 9], [2, 4, 8, 11], [3, 7]]
    assert all(group.dtype == np.int64 for group in groups)


def test_groups_are_in_the_order_of_their_first_rows() -> None:
    pairs = np.array([[5, 90], [1, 90], [2, 3], [0, 3], [7, 8]])
    assert [group.tolist() for group in duplicate_groups(pairs, 91)] == [[0, 2, 3], [1, 5, 90], [7, 8]]


def test_groups_of_no_pairs_and_of_rows_that_are_not_there() -> None:
    assert duplicate_groups(np.empty((0, 2), dtype=np.int64), 5) == []
    with pytest.raises(ValueError, match="there are 5 rows"):
        duplicate_groups(np.array([[1, 5]]), 5)
