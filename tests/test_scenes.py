"""Cuts and motion in made videos: found where they are, at the frame they are at, and nowhere else."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from videos import shifted_texture, truncate, write_video

from vicc_ray.data.decode import VideoError
from vicc_ray.data.motion_sets import CLASSES
from vicc_ray.data.scenes import MOST_BACK, FileChanges, changes_of, find_changes, measure_changes, scene_cuts
from vicc_ray.data.synthetic import VideoKey, make_clip

Frames = NDArray[np.uint8]


def scene(seed: int, frames: int, speed: float = 1.0, contrast: float = 0.5) -> Frames:
    """A moving texture of its own colour: uint8 [frames, 48, 64, 3]."""
    colour = np.random.default_rng(seed).uniform(0.2, 1.0, 3)
    texture = shifted_texture(frames, 48, 64, speed, 0.0, seed)
    return np.asarray(60 + contrast * (texture - 60.0) * colour, np.float64).clip(0, 255).astype(np.uint8)


def cuts_of(frames: Frames, min_frames: int = 12) -> list[int]:
    return changes_of(frames, [12]).cuts(min_frames)


def changes(score: list[float]) -> FileChanges:
    nothing = np.zeros(len(score), np.float32)
    return FileChanges(np.array(score, np.float32), nothing, np.full(len(score), -1, np.int32))


def test_cuts_of_a_file_are_the_frames_that_begin_scenes(tmp_path: Path) -> None:
    lengths = [20, 33, 14, 25]
    joined = np.concatenate([scene(i, n) for i, n in enumerate(lengths)])
    path = write_video(tmp_path / "film.mp4", joined, options={"crf": "23"})
    assert scene_cuts(str(path)) == [20, 53, 67]
    assert len(measure_changes(str(path))) == sum(lengths)


def test_synthetic_clips_are_told_apart(tmp_path: Path) -> None:
    """The fastest motion that the project's own data set has, in all its kinds."""
    clips = [make_clip(VideoKey(5, "train", label, 1), 20, 64) for label in CLASSES]
    path = write_video(tmp_path / "joined.mp4", np.concatenate(clips), fps=12, options={"crf": "23"})
    assert scene_cuts(str(path)) == list(range(20, 160, 20))


def test_another_view_of_a_quiet_room_is_a_cut() -> None:
    """The change is of few levels, but nothing else changes at all."""
    first = scene(0, 1, contrast=0.1).repeat(30, axis=0)
    second = scene(1, 1, contrast=0.1).repeat(30, axis=0)
    assert np.abs(first[0].astype(int) - second[0]).mean() < 8
    assert cuts_of(np.concatenate([first, second])) == [30]


def test_one_bright_frame_is_no_cut() -> None:
    film = scene(0, 60)
    assert cuts_of(film) == []
    film[30] = np.minimum(film[30].astype(int) + 110, 255)
    assert cuts_of(film) == []
    film[30:] = np.minimum(film[30:].astype(int) + 110, 255)
    assert cuts_of(film) == [30]


def test_subtitle_is_no_cut() -> None:
    film = scene(0, 60, speed=0.0)
    film[30:, 38:46, 6:58] = 255
    assert cuts_of(film) == []
    film[30:, 6:46, 6:58] = 255
    assert cuts_of(film) == [30]


@pytest.mark.parametrize("held", [1, 2, 3, 4])
def test_pictures_shown_several_times_are_no_cuts(held: int) -> None:
    """As in drawn films; the motion is fast enough to be a cut if the repetitions were what it is compared with."""
    film = scene(0, 60 // held, speed=4.0, contrast=0.9).repeat(held, axis=0)
    assert np.max(changes_of(film, [12]).score) > 2
    assert cuts_of(film) == []
    assert cuts_of(np.concatenate([film, scene(1, 15, speed=4.0, contrast=0.9).repeat(held, axis=0)])) == [len(film)]


def test_fade_is_no_cut() -> None:
    film = scene(0, 60, speed=0.0)
    assert cuts_of((film * np.linspace(1, 0, 60)[:, None, None, None]).astype(np.uint8)) == []


def test_min_frames_keeps_the_clearer_of_two_cuts() -> None:
    score = [0.0] * 60
    score[20], score[26], score[50] = 12.0, 30.0, 5.0
    assert changes(score).cuts(min_frames=6) == [20, 26, 50]
    assert changes(score).cuts(min_frames=7) == [26, 50]
    assert changes(score).cuts(min_frames=25) == [26]


def test_cut_stands_out_from_both_its_level_and_its_neighbours() -> None:
    score = [0.0] + [4.0] * 59
    score[30] = 13.0
    assert changes(score).cuts() == [30]
    assert changes(score).cuts(ratio=3.5) == []
    assert changes(score).cuts(least=14.0) == []


def test_motion_is_the_share_that_moved_within_half_a_second(tmp_path: Path) -> None:
    """A quarter of the picture turns bright once a second, and dark again half a second later."""
    film = np.full((100, 48, 64, 3), 40, np.uint8)
    for i in range(100):
        if i % 24 < 12:
            film[i, :24, :32] = 200
    found = measure_changes(str(write_video(tmp_path / "blinks.mp4", film, fps=24)))
    assert found.earlier.tolist() == [-1] * 12 + list(range(88))
    assert found.moved[12:] == pytest.approx(0.25, abs=0.02)
    assert found.motion(0, 100) == pytest.approx(0.25, abs=0.02)


def test_still_scene_after_a_cut_has_no_motion(tmp_path: Path) -> None:
    """Its first half second differs from the other scene, which is no motion."""
    film = np.concatenate([scene(0, 40, speed=3.0, contrast=0.9), scene(1, 1).repeat(40, axis=0)])
    found = measure_changes(str(write_video(tmp_path / "film.mp4", film)))
    assert found.cuts() == [40]
    assert found.moved[41] > 0.3
    assert found.motion(40, 40) < 0.01
    assert found.motion(0, 40) > 0.3
    # Of so few frames none has its comparison inside: better called moving than still.
    assert found.motion(40, 5) > 0.3


def test_camera_noise_is_no_motion() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (40, 48, 64, 3))
    assert changes_of((120 + noise).clip(0, 255).astype(np.uint8), [12]).motion(0, 40) < 0.001


def test_half_a_second_is_counted_by_time_stamps(tmp_path: Path) -> None:
    """Ten pictures a second, then fifty."""
    stamps = [100 * i for i in range(20)] + [1920 + 20 * i for i in range(60)]
    path = write_video(tmp_path / "variable.mkv", scene(0, 80), stamps=stamps)
    back = np.arange(80) - measure_changes(str(path)).earlier
    assert back[5:20].tolist() == [5] * 15
    assert back[-20:].tolist() == [25] * 20


def test_stated_rate_serves_where_there_are_no_stamps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", scene(0, 40), fps=25)
    found = measure_changes(str(path))
    assert len(found) == 40
    assert found.earlier[20] == 7


@pytest.mark.parametrize(("back", "kept"), [(12, 13), (10**6, MOST_BACK + 1)])
def test_only_half_a_second_of_pictures_is_kept(back: int, kept: int) -> None:
    """However far back it is said to lie; a grey picture has 3,072 bytes, a frame's numbers have 12."""
    pictures = (np.full((48, 64, 3), i % 250, np.uint8) for i in range(2000))
    tracemalloc.start()
    try:
        found = changes_of(pictures, [back])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 2000
    assert found.earlier[-1] == 2000 - kept
    assert kept * 3072 < most < kept * 3300 + 400_000


def test_asked_frames_are_measured_or_the_reason_is_said(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", scene(0, 50))
    whole = measure_changes(str(path))
    part = measure_changes(str(path), 20)
    assert len(part) == 20
    assert np.array_equal(part.moved, whole.moved[:20])
    with pytest.raises(VideoError, match="after 50 of 51 frames"):
        measure_changes(str(path), 51)
    with pytest.raises(VideoError):
        measure_changes(str(truncate(path, 0.6)), 50)


@pytest.mark.parametrize(("first", "frames"), [(-1, 5), (0, 0), (8, 3)])
def test_motion_of_frames_that_are_not_there_is_refused(first: int, frames: int) -> None:
    with pytest.raises(ValueError, match="not all in a file of 10 frames"):
        changes([0.0] * 10).motion(first, frames)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_shortest_films(frames: int) -> None:
    film = scene(0, frames)
    found = changes_of(film, [12])
    assert len(found) == len(found.moved) == len(found.earlier) == frames
    assert found.score[0] == 0
    assert found.cuts() == []
    film[-1] = 255
    assert cv2.norm(film[0], film[-1]) > 0 or frames == 1
    assert changes_of(film, [12]).cuts() == ([frames - 1] if frames > 1 else [])


def test_what_a_manifest_keeps_does_not_take_a_cut_for_motion(tmp_path: Path) -> None:
    """Two seconds of a moving scene, then two of a still one: its first half second differs from the other scene."""
    film = np.concatenate([scene(0, 50, speed=3.0, contrast=0.9), scene(1, 1).repeat(50, axis=0)])
    found = find_changes(str(write_video(tmp_path / "film.mp4", film)))
    assert found.cuts == (50,) and len(found.moved) == 4
    assert min(found.moved[:2]) > 0.2 and max(found.moved[2:]) < 0.01
    assert found.motion(0, 2) > 0.2 and found.motion(2, 4) < 0.01
