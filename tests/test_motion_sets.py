"""The harder sets of made videos: told apart by what moves how, by nothing else."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import av
import numpy as np
import pytest

from vicc_ray.data import motion_sets
from vicc_ray.data.drawing import Float
from vicc_ray.data.motion_sets import KINDS, MOTION_SETS, RELATIONS, far_path, relation_paths
from vicc_ray.data.synthetic import Settings, VideoKey, make_clip, make_dataset
from vicc_ray.errors import UserError

HARDER = ("relations", "far")


def test_the_quickstart_s_set_is_what_it_was() -> None:
    """Folders of earlier versions go on being taken: their fingerprint, as it was before there were other sets."""
    assert (
        Settings(50, 20, 16, 64, 12, 0).fingerprint()
        == "e2287fafb7fe6c8f4e61b5ce9d3ad48dd58103a914a73d68a276227b5348afef"
    )
    assert VideoKey(0, "train", "fall", 4).rng().random() == np.random.default_rng([0, 0, 3, 4]).random()


@pytest.mark.parametrize("name", HARDER)
def test_frame_0_is_the_same_for_every_class_and_later_ones_are_not(name: str) -> None:
    one = MOTION_SETS[name]
    drawn = [one.draw(np.random.default_rng(5), label, 6, 32, 1.0) for label in one.classes]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0][0], other[0])
        assert not np.array_equal(drawn[0][5], other[5])
    assert len({clip.tobytes() for clip in drawn}) == len(one.classes)


def _rms(*paths: Float) -> float:
    return float(np.sqrt(np.mean([np.sum(np.diff(path, axis=0) ** 2, axis=1) for path in paths])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_is_what_it_is_called(kind: str, relation: str) -> None:
    times = (np.arange(801) / 10).astype(np.float32)
    first, second = relation_paths(f"{kind}-{relation}", times, 2.0, 8.0, 1.0, 0.7, -1)
    assert not first[0].any() and not second[0].any()
    assert 10 * _rms(first, second) == pytest.approx(2.0, rel=0.01), "every class has the same speed"
    if relation == "with":
        np.testing.assert_allclose(second, first)
    elif relation == "against":
        np.testing.assert_allclose(second, -first)
    elif relation == "across" and kind == "circle":
        # The other way round: the area that a step sweeps has the other sign.
        steps = [np.diff(path, axis=0).T for path in (first, second)]
        areas = [x[:-1] * y[1:] - y[:-1] * x[1:] for x, y in steps]
        assert (areas[0] < 0).all() and (areas[1] > 0).all()
    elif relation == "across":
        np.testing.assert_allclose(np.sum(first * second, axis=1), 0, atol=1e-3)
        np.testing.assert_allclose(np.hypot(*first.T), np.hypot(*second.T), rtol=1e-4, atol=1e-5)
    elif kind == "line":
        np.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    else:
        spectra = [np.abs(np.fft.rfft(path[:800, 0])) for path in (first, second)]
        assert [int(one[1:].argmax()) + 1 for one in spectra] == [10, 20], "80 frames are 10 periods of 8, or 20 of 4"


@pytest.mark.parametrize("label", MOTION_SETS["far"].classes)
def test_the_small_thing_has_one_speed(label: str) -> None:
    path = far_path(label, 801, 2.0, 40.0, 1.0, 1)
    assert not path[0].any()
    assert _rms(path) == pytest.approx(2.0, rel=0.02)
    if label == "dart":
        still = np.isclose(np.diff(path[:, 0]), 0, atol=1e-3)
        assert 0.45 < still.mean() < 0.55 and (np.diff(path[:, 0]) > -1e-3).all()


def test_the_small_thing_covers_2_to_5_percent() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:640, :640] / 10 - 32
    for share in (0.02, 0.05):
        for _ in range(10):
            sprite = motion_sets._sprite(rng, np.zeros(2, np.float32), math.sqrt(share) * 64, unit=True)
            (a, b), p = sprite.half_axes, sprite.power
            assert float(((np.abs(x / a) ** p + np.abs(y / b) ** p) <= 1).mean()) == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("name", HARDER)
def test_single_frames_say_nothing_of_the_class(name: str) -> None:
    labels = MOTION_SETS[name].classes
    counts = {"train": 8, "query": 5}
    sides = []
    for split, count in counts.items():
        clips = [
            make_clip(VideoKey(3, split, label, number, name), 9, 32) for label in labels for number in range(count)
        ]
        rows = np.stack([clip[8].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3)).ravel() for clip in clips])
        rows = rows - rows.mean(axis=0)
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    nearest = (sides[1] @ sides[0].T).argmax(axis=1)
    recall = (nearest // counts["train"] == np.arange(len(nearest)) // counts["query"]).mean()
    chance = 1 / len(labels)
    assert recall < chance + 3.5 * np.sqrt(chance * (1 - chance) / len(nearest))


def test_frame_rates_and_lengths_differ(tmp_path: Path) -> None:
    table = make_dataset(
        tmp_path, train_per_class=1, query_per_class=0, frames=8, size=32, motions="relations", workers=1
    )
    found = set()
    for row in csv.DictReader(table.open(newline="")):
        with av.open(str(tmp_path / row["video"])) as container:
            frames = sum(1 for _ in container.decode(video=0))
            found.add((float(container.streams.video[0].average_rate or 0), frames))
    assert found == {(12.0, 8), (15.0, 10), (18.0, 12)}, "as long a time in every video"
    with pytest.raises(UserError, match="made with motions = relations, but plain is requested"):
        make_dataset(tmp_path, train_per_class=1, query_per_class=0, frames=8, size=32, workers=1)
    with pytest.raises(UserError, match="motions is cars; there are plain, relations, far"):
        make_dataset(tmp_path / "cars", motions="cars")


def test_a_higher_rate_shows_the_same_motion_in_smaller_steps() -> None:
    one, more = (
        MOTION_SETS["relations"].draw(np.random.default_rng(9), "line-with", 8, 64, rate) for rate in (1.0, 1.5)
    )
    assert len(more) == 12
    np.testing.assert_array_equal(one[:8:2], more[::3])
