"""Which videos and which frames: a function of the key alone, whole, balanced, inside the video."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicc_ray.data.clips import (
    all_evaluation_starts,
    batch_videos,
    epoch_order,
    evaluation_starts,
    frame_indices,
    frames_at_rate,
    frames_at_stamps,
    grid_points,
    permuted,
    random_start,
    share,
    subset,
    training_sample,
    window_span,
)


def test_an_epoch_visits_every_video_once_but_a_tail_that_moves() -> None:
    tails = []
    for epoch in range(4):
        steps = [batch_videos(3, 0, epoch * 5 + place, 23, 4) for place in range(5)]
        assert {number for number, _ in steps} == {epoch}
        seen = np.concatenate([videos for _, videos in steps])
        assert len(set(seen.tolist())) == 20
        tails.append(frozenset(range(23)) - set(seen.tolist()))
    assert len(set(tails)) > 1


def test_order_depends_on_seed_stage_and_epoch() -> None:
    def first(seed: int, stage: int, step: int) -> list[int]:
        return list(batch_videos(seed, stage, step, 64, 64)[1])

    base = first(0, 0, 0)
    assert base == first(0, 0, 0)
    assert base != first(1, 0, 0)
    assert base != first(0, 1, 0)
    assert base != first(0, 0, 1)


@pytest.mark.parametrize(("rows", "workers"), [(32, 1), (32, 3), (5, 4), (7, 7)])
def test_shares_cover_the_batch_in_order_and_differ_by_at_most_one(rows: int, workers: int) -> None:
    shares = [list(share(rows, rank, workers)) for rank in range(workers)]
    assert [slot for part in shares for slot in part] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_windows_of_a_sample() -> None:
    same = full_when_same = independent = 0
    for video in range(2000):
        plan = training_sample(0, 0, 0, video, 100, clip_frames=16, stride=2)
        last = 100 - window_span(16, 2)
        assert all(0 <= start <= last for start in plan.starts)
        if plan.starts[0] == plan.starts[1] and sum(plan.full) == 1:
            same += 1
            full_when_same += plan.full[0]
        else:
            independent += 1
    # Half share a window; which clip then gets the full chain is even.
    assert 0.45 < same / 2000 < 0.6
    assert 0.44 < full_when_same / same < 0.56
    assert independent


def test_same_windows_only_and_never() -> None:
    always = [training_sample(1, 0, 0, v, 90, clip_frames=8, stride=1, same_window_p=1.0) for v in range(200)]
    assert all(plan.starts[0] == plan.starts[1] and sum(plan.full) == 1 for plan in always)
    never = [training_sample(1, 0, 0, v, 90, clip_frames=8, stride=1, same_window_p=0.0) for v in range(200)]
    assert sum(plan.starts[0] == plan.starts[1] for plan in never) < 20
    chains = np.mean([plan.full for plan in never])
    assert 0.22 < chains < 0.38


def test_a_sample_does_not_depend_on_what_was_drawn_before() -> None:
    first = training_sample(0, 1, 2, 7, 50, clip_frames=8, stride=1)
    for video in range(5):
        training_sample(0, 1, 2, video, 50, clip_frames=8, stride=1)
    assert training_sample(0, 1, 2, 7, 50, clip_frames=8, stride=1) == first
    assert training_sample(0, 1, 3, 7, 50, clip_frames=8, stride=1) != first
    assert first.keys == ((0, 1, 2, 7, 0), (0, 1, 2, 7, 1))


@pytest.mark.parametrize("frames", [1, 2, 11, 12, 13, 40])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_indices_stay_in_the_video_and_short_ones_repeat_the_first_frame(frames: int, stride: int) -> None:
    plan = training_sample(0, 0, 0, 0, frames, clip_frames=12, stride=stride)
    for start in plan.starts:
        indices = frame_indices(start, 12, stride, frames)
        assert len(indices) == 12
        assert indices.min() >= 0
        assert indices.max() < frames
        if frames < window_span(12, stride):
            assert indices[0] == 0
            assert indices[-1] == frames - 1
        else:
            assert (np.diff(indices) == stride).all()


def test_evaluation_windows() -> None:
    assert evaluation_starts(20, 12, 1, "all") == [0, 5, 8]
    assert evaluation_starts(22, 12, 1, "all") == [0, 5, 10]
    assert evaluation_starts(22, 12, 1, "centre") == [5]
    assert evaluation_starts(12, 12, 1, "all") == [0]
    assert evaluation_starts(5, 12, 1, "all") == [-7]
    assert evaluation_starts(64, 32, 1, "all") == [0, 15, 30, 32]  # every T/2 - 1, the last at the end


@given(
    st.lists(st.integers(1, 90), max_size=12),
    st.integers(1, 33),
    st.integers(1, 4),
    st.sampled_from(["all", "centre"]),
)
def test_windows_of_many_videos_are_those_of_each(frames: list[int], clip: int, stride: int, windows: str) -> None:
    owners, starts = all_evaluation_starts(np.array(frames, np.int64), clip, stride, windows)
    one_by_one = [(n, start) for n, own in enumerate(frames) for start in evaluation_starts(own, clip, stride, windows)]
    assert list(zip(owners.tolist(), starts.tolist(), strict=True)) == one_by_one


def test_a_random_window_lies_anywhere_in_the_video_and_is_fixed() -> None:
    starts = [random_start(0, video, 20, 12, 1) for video in range(900)]
    assert {starts.count(start) > 60 for start in range(9)} == {True} and set(starts) == set(range(9))
    assert starts == [random_start(0, video, 20, 12, 1) for video in range(900)]
    assert starts != [random_start(1, video, 20, 12, 1) for video in range(900)]
    assert max(random_start(0, video, 30, 12, 2) for video in range(200)) == 30 - 23
    assert (random_start(0, 5, 12, 12, 1), random_start(0, 5, 5, 12, 1)) == (0, -7)


def test_subset_is_fixed_sorted_and_without_repeats() -> None:
    chosen = subset(0, 100, 20)
    assert len(set(chosen.tolist())) == 20
    assert (np.diff(chosen) > 0).all()
    assert (chosen == subset(0, 100, 20)).all()
    assert (subset(0, 5, 20) == np.arange(5)).all()


# A grid in time ------------------------------------------------------------------------------------------------------


def on_show(times: list[float], moment: float) -> int:
    """The slow twin: the last frame that has come at this moment, a stamp being known to a millisecond and a half."""
    shown = 0
    for number, time in enumerate(times):
        if time <= moment + 1.5e-3:
            shown = number
    return shown


@pytest.mark.parametrize("rate", [1.0, 12.5, 23.976, 25.0, 29.97, 50.0])
@pytest.mark.parametrize("fps", [0.5, 8.0, 12.5, 25.0, 60.0])
def test_frames_of_an_even_video_on_a_grid_in_time(rate: float, fps: float) -> None:
    frames = 75
    points = grid_points(frames / rate, fps)
    assert points == max(int(frames / rate * fps + 1e-6), 1)
    got = frames_at_rate(np.arange(points), fps, rate, frames)
    times = [k / rate for k in range(frames)]
    assert got.tolist() == [on_show(times, i / fps) for i in range(points)]
    assert (got == frames_at_stamps(np.arange(points), fps, np.array(times))).all()
    if (rate / fps).is_integer():
        rounded = np.round(np.array(times), 3)  # as Matroska writes them
        assert (got == frames_at_stamps(np.arange(points), fps, rounded)).all()
        assert (got == np.arange(points) * int(rate / fps)).all()


def test_frames_of_an_uneven_video_on_a_grid_in_time() -> None:
    times = np.cumsum([0.0, 0.02, 0.02, 0.4, 0.035, 1.0, 0.01])
    points = np.arange(40).reshape(4, 10)
    got = frames_at_stamps(points, 20.0, times)
    assert got.shape == (4, 10)
    assert got.ravel().tolist() == [on_show(times.tolist(), i / 20) for i in range(40)]
    assert got[0].tolist() == [0, 2, 2, 2, 2, 2, 2, 2, 2, 3]
    assert set(got.ravel().tolist()) == {0, 2, 3, 4, 6}, "what is shown between two grid points is passed over"


def test_a_video_has_one_picture_at_least() -> None:
    assert grid_points(0.0, 25.0) == 1
    assert grid_points(0.04, 1.0) == 1
    assert grid_points(2.0, 12.5) == 25
    assert frames_at_rate(np.arange(3), 5.0, 0.0, 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 31, 32, 33, 1000])
def test_a_keyed_permutation_has_every_place_once(size: int) -> None:
    for number in range(3):
        assert sorted(permuted(np.arange(size), size, [1, number]).tolist()) == list(range(size))


def test_a_keyed_permutation_has_every_place_once_up_to_ten_thousand() -> None:
    for size in range(1, 10_001):
        found = permuted(np.arange(size), size, [2, size])
        assert np.array_equal(np.bincount(found, minlength=size), np.ones(size, np.int64)), size


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 2**40), st.integers(0, 2**32 - 1), st.integers(1, 500))
def test_any_size_is_permuted_place_by_place(size: int, seed: int, count: int) -> None:
    """Far too many to list: no two places meet, all are inside, and a place does not depend on which others are wanted."""
    places = np.unique(np.random.default_rng(seed).integers(0, size, count))
    found = permuted(places, size, [seed])
    assert len(np.unique(found)) == len(places)
    assert found.min() >= 0
    assert found.max() < size
    assert permuted(places[-1:], size, [seed]).tolist() == found[-1:].tolist()
    assert len(permuted(places[:0], size, [seed])) == 0


def test_a_keyed_permutation_is_as_even_as_a_shuffle() -> None:
    """Where 40 places go over 2,000 keys: every cell as often as chance has it, neighbours included."""
    size, keys = 40, 2000
    orders = np.stack([permuted(np.arange(size), size, [7, number]) for number in range(keys)])
    counts = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    chi_squared = ((counts - keys / size) ** 2 / (keys / size)).sum()
    cells = (size - 1) ** 2
    assert abs(chi_squared - cells) < 6 * (2 * cells) ** 0.5
    gaps = np.bincount((orders[:, 1:] - orders[:, :-1]).ravel() % size, minlength=size)[1:]
    assert abs(gaps / gaps.mean() - 1).max() < 0.15


def test_the_order_of_a_large_epoch_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.data.clips.LISTED", 100)
    steps = [batch_videos(3, 0, step, 101, 10) for step in range(30)]
    assert [epoch for epoch, _ in steps] == [step // 10 for step in range(30)]
    epochs = [np.concatenate([videos for epoch, videos in steps if epoch == number]) for number in range(3)]
    assert all(len(set(videos.tolist())) == 100 and videos.max() < 101 for videos in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    # A run that an earlier version began keeps its order, and so do data sets that are not large.
    listed = np.concatenate([batch_videos(3, 0, step, 101, 10, listed=True)[1] for step in range(10)])
    assert listed.tolist() == epoch_order(3, 0, 0, 101)[:100].tolist()
    assert batch_videos(3, 0, 0, 100, 10)[1].tolist() == epoch_order(3, 0, 0, 100)[:10].tolist()


def test_a_place_of_ten_million_is_drawn_as_fast_as_one_of_few() -> None:
    """Nothing of the length of the data set is made."""
    tracemalloc.start()
    batch_videos(1, 0, 5, 10_000_000, 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
