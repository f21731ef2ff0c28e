"""Copies and other takes told apart by their pictures."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from videos import shifted_texture, write_video

from vicc_ray.archive.pictures import RATE, SIZE, Signature, check_pairs, show_the_same, small_pictures

Frames = NDArray[np.uint8]


def take(seed: int, frames: int = 90, room: int = 0) -> Frames:
    """A bright square that wanders through the same room: uint8 [frames, 120, 214, 3]; `seed` is of its way."""
    film = np.repeat(shifted_texture(1, 120, 214, 0, 0, seed=room) // 2, frames, axis=0)
    rng = np.random.default_rng(seed)
    way = np.cumsum(cv2.GaussianBlur(rng.normal(size=(frames, 2)) * 4, (1, 15), 0), axis=0)
    y, x = way[:, 0] + 50, way[:, 1] + 100
    for picture, top, left in zip(film, y.clip(5, 85), x.clip(5, 180), strict=True):
        picture[int(top) : int(top) + 30, int(left) : int(left) + 30] = 220
    return film


def signature(folder: Path, name: str, frames: Frames, **options: object) -> Signature:
    path = write_video(folder / f"{name}.mp4", frames, fps=30, **options)  # type: ignore[arg-type]
    return Signature.of(small_pictures(str(path)))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Signature:
    return signature(tmp_path_factory.mktemp("original"), "a", take(1))


def test_copies_show_the_same(tmp_path: Path, original: Signature) -> None:
    film = take(1)
    small = np.stack([cv2.resize(picture, (112, 64), interpolation=cv2.INTER_AREA) for picture in film])
    copies = {
        "encoded again": signature(tmp_path, "encoded", film, options={"crf": "36"}),
        "scaled": signature(tmp_path, "scaled", small),
        "trimmed": signature(tmp_path, "trimmed", film[13:77]),
        "cropped": signature(tmp_path, "cropped", np.ascontiguousarray(film[:, 4:-4, 6:-6])),
    }
    for name, copy in copies.items():
        assert show_the_same(original, copy), name
        assert show_the_same(copy, original), name


def test_other_takes_of_the_scene_do_not(tmp_path: Path, original: Signature) -> None:
    for seed in (2, 3, 4):
        assert not show_the_same(original, signature(tmp_path, f"take{seed}", take(seed)))
    assert not show_the_same(original, signature(tmp_path, "backwards", take(1)[::-1].copy()))
    assert not show_the_same(original, signature(tmp_path, "room", take(1, room=5)))


def test_still_pictures_are_compared_as_they_are(tmp_path: Path) -> None:
    still = np.repeat(take(1, 1), 40, axis=0)
    other = np.repeat(take(9, 1, room=1), 40, axis=0)
    moved = still.copy()
    moved[:, 40:80, 20:60] = 200
    first = signature(tmp_path, "a", still)
    assert show_the_same(first, signature(tmp_path, "b", still, options={"crf": "30"}))
    assert not show_the_same(first, signature(tmp_path, "c", other))
    assert not show_the_same(first, signature(tmp_path, "d", moved))


def test_pictures_come_at_an_even_rate(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", take(1), fps=30))
    assert small_pictures(path).shape == (int(89 / 30 * RATE) + 1, *SIZE)
    assert small_pictures(f"{path}@1-2").shape == (8, *SIZE)
    np.testing.assert_array_equal(small_pictures(f"{path}@1-2")[0], small_pictures(path)[8])


def test_rows_that_cannot_be_read_confirm_nothing(tmp_path: Path) -> None:
    names = [str(write_video(tmp_path / f"{name}.mp4", take(1, 40), fps=30)) for name in "ab"]
    names.append(str(tmp_path / "gone.mp4"))
    kept, failed = check_pairs(np.array([[0, 1], [0, 2], [1, 2]]), names.__getitem__, workers=1)
    assert kept.tolist() == [True, False, False]
    assert list(failed) == [2] and "no such file" in failed[2]
