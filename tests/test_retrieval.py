"""retrieval.py and fusion.py against loops that follow the definition."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest

from vicc_ray.errors import UserError
from vicc_ray.metrics import fusion, search
from vicc_ray.metrics.fusion import (
    GRID,
    fit_weights,
    fused_recall_at_k,
    fused_score,
    fused_similarities,
    mean_probabilities,
)
from vicc_ray.metrics.retrieval import MOST_CLASSES, chance, neighbours, recall_at_k, score, similarities


def tables(seed: int = 0, gallery: int = 40, query: int = 23, d: int = 7, offset: float = 3.0):  # type: ignore[no-untyped-def]
    """Features with a different mean on each side, string labels of 4 classes, groups of the rows."""
    rng = np.random.default_rng(seed)
    g, q = rng.normal(size=(gallery, d)) + offset, 2 * rng.normal(size=(query, d)) - offset
    names = np.array(["a", "b", "c", "d"])
    return (
        g,
        names[np.arange(gallery) % 4].tolist(),
        q,
        names[rng.integers(0, 4, query)].tolist(),
        rng.integers(0, 6, gallery).tolist(),
        rng.integers(0, 6, query).tolist(),
    )


def cosine_twin(gallery: np.ndarray, query: np.ndarray, centre: str = "gallery") -> list[list[float]]:
    def mean(rows: np.ndarray) -> np.ndarray:
        return np.asarray(sum(rows) / len(rows))

    g = [row - mean(gallery) for row in gallery]
    q = [row - mean(gallery if centre == "gallery" else query) for row in query]
    return [[float(a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))) for b in g] for a in q]


def recall_twin(  # type: ignore[no-untyped-def]
    similarity: Sequence[Sequence[float]], g_labels, q_labels, k: int, g_groups=None, q_groups=None
) -> float:
    right = 0
    for i, row in enumerate(similarity):
        allowed = [j for j in range(len(row)) if g_groups is None or g_groups[j] != q_groups[i]]
        nearest = sorted(allowed, key=lambda j: -row[j])[:k]
        right += any(g_labels[j] == q_labels[i] for j in nearest)
    return right / len(similarity)


def test_similarities_equal_the_definition() -> None:
    g, _, q, *_ = tables()
    np.testing.assert_allclose(similarities(g, q), cosine_twin(g, q), atol=1e-6)
    np.testing.assert_allclose(similarities(g, q, "own"), cosine_twin(g, q, "own"), atol=1e-6)


@pytest.mark.parametrize("copies", [[7], [0, 8, 16, 24, 32], list(range(8)), list(range(160))])
def test_a_copy_of_a_gallery_video_finds_it_whoever_else_asks(copies: list[int]) -> None:
    """One query, five of one class, one of each class, all: their number and their classes change no neighbour."""
    rng = np.random.default_rng(2)
    labels = (np.arange(160) % 8).tolist()
    g = 5 + rng.normal(size=(8, 32))[labels] + rng.normal(size=(160, 32))
    nearest, similarity = neighbours(g, g[copies], 3)
    assert nearest[:, 0].tolist() == copies and similarity[:, 0] == pytest.approx(1, abs=1e-6)
    own = [labels[number] for number in copies]
    assert recall_at_k(g, labels, g[copies], own, (1,)) == {1: 1.0}
    assert fused_recall_at_k([g, g + 1], labels, [g[copies], g[copies] + 1], own, (1,)) == {1: 1.0}
    np.testing.assert_array_equal(nearest, neighbours(g, g, 3)[0][copies])


def test_the_published_centring_depends_on_who_else_asks() -> None:
    g, labels, *_ = tables()
    assert recall_at_k(g, labels, g, labels, (1,), centre="own") == {1: 1.0}
    assert (similarities(g, g[:1], "own") == 0).all()  # a query alone is its own mean


@pytest.mark.parametrize("block", [2048, 7])
def test_recall_equals_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "GALLERY_BLOCK", block)
    g, g_labels, q, q_labels, *_ = tables()
    got = recall_at_k(g, g_labels, q, q_labels, ks=(1, 3, 10, 40))
    want = {k: recall_twin(cosine_twin(g, q), g_labels, q_labels, k) for k in (1, 3, 10, 40)}
    assert got == pytest.approx(want)
    assert got[1] < got[3] < got[10] <= got[40] == 1


@pytest.mark.parametrize("block", [2048, 7])
def test_recall_passes_over_the_querys_own_group(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "GALLERY_BLOCK", block)
    g, g_labels, q, q_labels, g_groups, q_groups = tables()
    got = recall_at_k(g, g_labels, q, q_labels, (1, 2, 5), g_groups, q_groups)
    twin = cosine_twin(g, q)
    assert got == pytest.approx({k: recall_twin(twin, g_labels, q_labels, k, g_groups, q_groups) for k in (1, 2, 5)})
    assert got != recall_at_k(g, g_labels, q, q_labels, (1, 2, 5))


def test_leave_one_out_finds_no_query_itself() -> None:
    g, labels, *_ = tables()
    own = list(range(len(g)))
    indices, values = neighbours(g, g, 1)
    assert (indices[:, 0] == own).all() and values == pytest.approx(1, abs=1e-5)
    indices, _ = neighbours(g, g, 3, own, own)
    assert (indices != np.array(own)[:, None]).all()
    assert recall_at_k(g, labels, g, labels, (1,))[1] == 1 > recall_at_k(g, labels, g, labels, (1,), own, own)[1]


def test_neighbours_come_nearest_first() -> None:
    g, _, q, *_ = tables()
    indices, values = neighbours(g, q, 6)
    twin = np.array(cosine_twin(g, q))
    np.testing.assert_array_equal(indices, np.argsort(-twin, axis=1)[:, :6])
    np.testing.assert_allclose(values, -np.sort(-twin, axis=1)[:, :6], atol=1e-6)


def test_features_that_are_all_one_are_no_error() -> None:
    """A collapsed encoder: no direction is left after centring; similarity 0, no NaN."""
    assert (similarities(np.ones((5, 3)), np.ones((2, 3))) == 0).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_chance_is_the_mean_over_all_rankings(k: int) -> None:
    g_labels, q_labels = ["a", "a", "b", "c", "b", "a"], ["a", "b", "b", "c"]
    wins = [
        any(g_labels[j] == label for j in ranking[:k])
        for ranking in itertools.permutations(range(6))
        for label in q_labels
    ]
    assert chance(g_labels, q_labels, k) == pytest.approx(np.mean(wins))


def test_chance_leaves_out_the_querys_own_group() -> None:
    labels, groups = ["a", "a", "b", "b"], [0, 1, 0, 1]
    # a query "a" of group 0 ranks rows 1 and 3 only: one of them is right
    assert chance(labels, ["a"], 1, groups, [0]) == pytest.approx(0.5)
    assert chance(labels, ["a"], 2, groups, [0]) == 1
    assert chance([*labels, "a"], ["a"], 1, [*groups, 2], [1]) == pytest.approx(2 / 3)


def test_chance_with_balanced_classes_is_one_over_their_number() -> None:
    assert chance(np.arange(400) % 8, np.arange(160) % 8) == pytest.approx(0.125)


def test_fusion_sums_the_two_similarity_matrices() -> None:
    g1, g_labels, q1, q_labels, *_ = tables()
    g2, _, q2, *_ = tables(seed=1, d=4, offset=50.0)
    twin = np.array(cosine_twin(g1, q1)) + np.array(cosine_twin(g2, q2))
    np.testing.assert_allclose(fused_similarities([g1, g2], [q1, q2]), twin, atol=1e-5)
    got = fused_recall_at_k([g1, g2], g_labels, [q1, q2], q_labels, (1, 4))
    assert got == pytest.approx({k: recall_twin(twin.tolist(), g_labels, q_labels, k) for k in (1, 4)})


def test_fusion_averages_probabilities() -> None:
    np.testing.assert_allclose(mean_probabilities([[[0.2, 0.8]], [[0.6, 0.4]]]), [[0.4, 0.6]])
    np.testing.assert_allclose(mean_probabilities([[[0.2, 0.8]], [[0.6, 0.4]]], (1, 3)), [[0.5, 0.5]])
    with pytest.raises(ValueError, match="probabilities"):
        mean_probabilities([[[0.2, 0.8]], [[2.0, 4.0]]])
    with pytest.raises(ValueError, match="streams"):
        fused_similarities([np.ones((2, 2))], [])


def test_users_mistakes_are_told_in_one_line() -> None:
    g, g_labels, q, q_labels, *_ = tables()
    with pytest.raises(UserError, match=r"gallery is empty"):
        recall_at_k(np.empty((0, 7)), [], q, q_labels)
    with pytest.raises(UserError, match=r"query is empty"):
        neighbours(g, np.empty((0, 7)), 1)
    broken = g.copy()
    broken[3, 2], broken[3, 4], broken[9, 0] = np.nan, np.nan, np.inf
    with pytest.raises(UserError, match=r"2 of 40 gallery features"):
        recall_at_k(broken, g_labels, q, q_labels, (1,))
    with pytest.raises(UserError, match=r"k is 50; with 40 gallery videos"):
        recall_at_k(g, g_labels, q, q_labels)
    with pytest.raises(UserError, match=r"k is 0"):
        neighbours(g, q, 0)
    with pytest.raises(UserError, match=r"2 of 23 queries are of 1 classes .*\(z\)"):
        recall_at_k(g, g_labels, q, ["z", "z", *q_labels[2:]], (1,))
    for none in (None, "", float("nan"), -1, np.int64(-1)):
        with pytest.raises(UserError, match=r"1 of 40 gallery videos have no label"):
            recall_at_k(g, [none, *g_labels[1:]], q, q_labels, (1,))
    with pytest.raises(UserError, match=r"23 queries have fewer than k = 1 .* group"):
        neighbours(g, q, 1, [0] * 40, [0] * 23)
    with pytest.raises(ValueError, match="groups"):
        neighbours(g, q, 1, [0] * 40)


def precision_of(similarity: list[list[float]], g_labels, q_labels, g_groups=None, q_groups=None) -> list[float]:  # type: ignore[no-untyped-def]
    result = []
    for i, row in enumerate(similarity):
        allowed = [j for j in range(len(row)) if g_groups is None or g_groups[j] != q_groups[i]]
        ranking = sorted(allowed, key=lambda j, row=row: -row[j])  # type: ignore[misc]
        places = [place for place, j in enumerate(ranking, 1) if g_labels[j] == q_labels[i]]
        result.append(sum(n / place for n, place in enumerate(places, 1)) / len(places))
    return result


@pytest.mark.parametrize("grouped", [False, True])
def test_scores_equal_the_definition_over_all_and_for_each_class(grouped: bool) -> None:
    g, g_labels, q, q_labels, *groups = tables()
    groups = groups if grouped else [None, None]
    scores = score(g, g_labels, q, q_labels, (1, 5), *groups)
    twin = cosine_twin(g, q)
    precisions = precision_of(twin, g_labels, q_labels, *groups)
    assert (scores.gallery, scores.queries) == (40, 23)
    assert scores.recall == pytest.approx({k: recall_twin(twin, g_labels, q_labels, k, *groups) for k in (1, 5)})
    assert scores.mean_average_precision == pytest.approx(np.mean(precisions))
    assert list(scores.classes) == sorted(set(q_labels))
    for name, one in scores.classes.items():
        mine = [i for i, label in enumerate(q_labels) if label == name]
        own = [None if side is None else [side[i] for i in mine] for side in groups[1:]]
        similarity = [twin[i] for i in mine]
        want = recall_twin(similarity, g_labels, [name] * len(mine), 5, groups[0], *own)
        assert one.queries == len(mine) and one.recall[5] == pytest.approx(want)
        assert one.mean_average_precision == pytest.approx(np.mean([precisions[i] for i in mine]))


@pytest.mark.parametrize("grouped", [False, True])
def test_confusion_counts_the_class_of_each_querys_nearest_neighbour(grouped: bool) -> None:
    g, g_labels, q, q_labels, *groups = tables()
    named = {"a": "c", "b": "a", "c": "d", "d": "b"}  # names that come in another order than their rows
    g_labels, q_labels = [named[label] for label in g_labels], [named[label] for label in q_labels]
    g_labels = ["only in the gallery" if label == "d" and row > 20 else label for row, label in enumerate(g_labels)]
    own = groups if grouped else [None, None]
    scores = score(g, g_labels, q, q_labels, (1,), *own)
    assert scores.confusion is not None
    labels = sorted({*g_labels, *q_labels})
    want = [[0] * len(labels) for _ in labels]
    for i, row in enumerate(cosine_twin(g, q)):
        allowed = [j for j in range(len(row)) if not grouped or groups[0][j] != groups[1][i]]
        nearest = max(allowed, key=lambda j, row=row: row[j])  # type: ignore[misc]
        want[labels.index(q_labels[i])][labels.index(g_labels[nearest])] += 1
    assert (scores.confusion.labels, scores.confusion.counts) == (labels, want)
    assert want != [list(column) for column in zip(*want, strict=True)], "rows and columns can be told apart"
    right = sum(scores.confusion.counts[place][place] for place in range(len(labels)))
    assert right / len(q_labels) == pytest.approx(scores.recall[1])


def test_very_many_classes_have_no_confusion_matrix() -> None:
    labels = list(range(MOST_CLASSES + 1))
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    few = score(features[:-1], labels[:-1], features[:5], labels[:5], (1,))
    assert few.confusion is not None and len(few.confusion.labels) == MOST_CLASSES
    many = score(features, labels, features[:5], labels[:5], (1,))
    assert many.confusion is None and "confusion" not in many.to_dict()


def test_scores_become_plain_values() -> None:
    g, g_labels, q, q_labels, *_ = tables()
    found = score(g, g_labels, q, q_labels, (1, 5)).to_dict()
    assert list(found) == ["gallery", "queries", "R@1", "R@5", "mAP", "classes", "confusion"]
    assert list(found["classes"]["a"]) == ["queries", "R@1", "R@5", "mAP"]
    assert json.loads(json.dumps(found)) == found
    assert "mAP" not in score(g, g_labels, q, q_labels, (1,), with_precision=False).to_dict()


def test_queries_that_cannot_be_right_are_refused_by_name() -> None:
    """A class with one clip, or whose clips are all cut from one source video."""
    g, g_labels, *_ = tables()
    own = list(range(40))
    alone = ["rare", *g_labels[1:]]
    pair, source = [*alone[:-1], "rare"], [*own[:-1], 0]
    for ask in (recall_at_k, score):
        with pytest.raises(UserError, match=r"1 of 40 queries, of 1 classes \(rare\), have no gallery video"):
            ask(g, alone, g, alone, (1,), own, own)
        with pytest.raises(UserError, match=r"2 of 40 queries, of 1 classes \(rare\)"):
            ask(g, pair, g, pair, (1,), source, source)
    assert score(g, alone, g, alone, (1,)).recall[1] == 1  # without groups each finds itself


def test_scores_refuse_labels_of_other_rows() -> None:
    g, g_labels, q, q_labels, *_ = tables()
    with pytest.raises(ValueError, match="gallery: 40 rows of features with 39 labels"):
        score(g, g_labels[1:], q, q_labels, (1,))


def test_fused_scores_rank_by_weighted_sums() -> None:
    g1, g_labels, q1, q_labels, *groups = tables()
    g2, _, q2, *_ = tables(seed=1, d=4, offset=50.0)
    first, second = np.array(cosine_twin(g1, q1)), np.array(cosine_twin(g2, q2))
    for weights in (None, (1, 1), (0.5, 1.5), (0, 1)):
        a, b = weights or (1, 1)
        twin = (a * first + b * second).tolist()
        got = fused_score([g1, g2], g_labels, [q1, q2], q_labels, (1, 4), *groups, weights=weights)  # type: ignore[misc]
        assert got.recall == pytest.approx({k: recall_twin(twin, g_labels, q_labels, k, *groups) for k in (1, 4)})
        assert got.mean_average_precision == pytest.approx(np.mean(precision_of(twin, g_labels, q_labels, *groups)))
        again = fused_recall_at_k([g1, g2], g_labels, [q1, q2], q_labels, (1, 4), *groups, weights=weights)  # type: ignore[misc]
        assert again == got.recall
    for weights in ((1,), (0, 0), (1, -1)):  # type: ignore[assignment]
        with pytest.raises(ValueError, match="weights"):
            fused_score([g1, g2], g_labels, [q1, q2], q_labels, (1,), weights=weights)


def test_fitted_weights_are_the_best_of_the_grid_on_the_gallery_alone() -> None:
    rng = np.random.default_rng(0)
    labels = (np.arange(90) % 3).tolist()
    groups = (np.arange(90) // 9).tolist()
    centres = rng.normal(size=(3, 6))
    weak = centres[labels] + 3 * rng.normal(size=(90, 6))
    better = centres[labels] + 1.2 * rng.normal(size=(90, 6))
    first, second = np.array(cosine_twin(weak, weak)), np.array(cosine_twin(better, better))
    for own in (groups, list(range(90))):
        recall = {
            w: recall_twin(((2 - w) * first + w * second).tolist(), labels, labels, 1, own, own)
            for w in np.round(np.linspace(0, 2, GRID), 6).tolist()
        }
        w = min(recall, key=lambda w: (-recall[w], round(abs(w - 1), 6), w))
        assert w != 1
        assert fit_weights([weak, better], labels, groups if own is groups else None) == pytest.approx((2 - w, w))


def test_weights_stay_as_published_where_the_streams_are_one() -> None:
    g, labels, *_ = tables()
    assert fit_weights([g, g], labels) == (1.0, 1.0)


def test_weights_are_fitted_by_a_spread_of_queries_and_refused_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    g, labels, *_ = tables()
    monkeypatch.setattr(fusion, "FIT_QUERIES", 5)
    asked: list[int] = []
    rank = fusion.rank  # type: ignore[attr-defined]
    monkeypatch.setattr(fusion, "rank", lambda g, q, *rest: asked.append(len(q)) or rank(g, q, *rest))  # type: ignore[func-returns-value]
    fit_weights([g, g], ["rare", *labels[1:]])
    assert asked == [5] * GRID
    with pytest.raises(UserError, match="no gallery video has another of its class"):
        fit_weights([g, g], list(range(40)))
    with pytest.raises(ValueError, match="1 streams"):
        fit_weights([g], labels)
