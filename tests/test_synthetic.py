"""The embedded motion data set: seeded, resumable, real H.264, and told apart by motion alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import decord
import numpy as np
import pytest
from numpy.typing import NDArray

from vicc_ray.data import synthetic
from vicc_ray.data.motion_sets import CLASSES, draw_scene, render, trajectory
from vicc_ray.data.synthetic import VideoKey, make_clip, make_dataset
from vicc_ray.errors import UserError

SMALL: dict[str, Any] = {"train_per_class": 1, "query_per_class": 1, "frames": 6, "size": 32}
FRAMES, SIZE = 13, 64
TRAIN, QUERY = 12, 8

Array = NDArray[np.float64]


def clips(split: str, count: int) -> NDArray[np.uint8]:
    """Uncompressed clips [len(CLASSES) * count, T, H, W, 3], class by class."""
    keys = [VideoKey(3, split, label, number) for label in CLASSES for number in range(count)]
    return np.stack([make_clip(key, FRAMES, SIZE) for key in keys])


@pytest.fixture(scope="module")
def gallery() -> NDArray[np.uint8]:
    return clips("train", TRAIN)


@pytest.fixture(scope="module")
def queries() -> NDArray[np.uint8]:
    return clips("query", QUERY)


def dense_flow(videos: NDArray[np.uint8]) -> NDArray[np.float32]:
    """DIS flow [N, T - 1, H, W, 2] in px."""
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grays = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video] for video in videos]
    return np.stack([[dis.calc(a, b, None) for a, b in pairwise(g)] for g in grays])


def flow_features(flow: NDArray[np.float32]) -> Array:
    """Share of motion in 16 directions, and how much the flow spreads and turns: [N, 18]."""
    u, v = flow[..., 0], flow[..., 1]
    speed, direction = np.hypot(u, v), (np.arctan2(v, u) * 8 / np.pi + 16).astype(int) % 16
    shares = np.stack(
        [np.bincount(d.ravel(), s.ravel(), 16).astype(float) for d, s in zip(direction, speed, strict=True)]
    )
    shares = shares / shares.sum(axis=1, keepdims=True)
    ux, uy = np.gradient(u, axis=3), np.gradient(u, axis=2)
    vx, vy = np.gradient(v, axis=3), np.gradient(v, axis=2)
    spread, turn = (np.median(np.abs(x), axis=(1, 2, 3)) for x in (ux + vy, vx - uy))
    return np.concatenate([np.sqrt(shares), 3 * np.stack([spread, turn], axis=1)], axis=1)


def recall_at_1(gallery: NDArray[np.generic], queries: NDArray[np.generic]) -> Array:
    """Each class's share of right nearest neighbours, cosine after centring each side; rows stand class by class."""
    sides = [side.reshape(len(side), -1).astype(float) for side in (gallery, queries)]
    sides = [side - side.mean(axis=0) for side in sides]
    sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    nearest = (sides[1] @ sides[0].T).argmax(axis=1)
    right = nearest // TRAIN == np.arange(len(nearest)) // QUERY
    return np.asarray(right.reshape(len(CLASSES), QUERY).mean(axis=1))


def colour_histogram(videos: NDArray[np.uint8]) -> Array:
    """Square roots of the shares of 64 colours [N, 64]."""
    codes = (videos // 64).astype(int) @ np.array([16, 4, 1])
    return np.sqrt([np.bincount(code.ravel(), minlength=64) for code in codes])


def decode(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("look", ["first frame", "middle frame", "small frame", "colours", "mean frame"])
def test_appearance_says_nothing_of_the_class(
    look: str, gallery: NDArray[np.uint8], queries: NDArray[np.uint8]
) -> None:
    looks: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
        "first frame": lambda x: x[:, 0],
        "middle frame": lambda x: x[:, FRAMES // 2],
        "small frame": lambda x: x[:, -1].reshape(len(x), 16, 4, 16, 4, 3).mean(axis=(2, 4)),
        "colours": colour_histogram,
        "mean frame": lambda x: x.mean(axis=1),
    }
    chance = 1 / len(CLASSES)
    spread = np.sqrt(chance * (1 - chance) / len(queries))
    assert recall_at_1(looks[look](gallery), looks[look](queries)).mean() < chance + 3.5 * spread


def test_flow_tells_the_classes_apart_and_a_mirror_does_not_confuse_them(
    gallery: NDArray[np.uint8], queries: NDArray[np.uint8]
) -> None:
    features = flow_features(dense_flow(gallery))
    mirrored = np.ascontiguousarray(queries[:, :, :, ::-1])
    for seen in (queries, mirrored):
        recall = recall_at_1(features, flow_features(dense_flow(seen)))
        assert recall.mean() > 0.7
        assert recall.min() > 0.2


def test_frame_0_is_the_same_for_every_class_and_later_ones_are_not() -> None:
    scene = draw_scene(np.random.default_rng(5))
    drawn = [render(scene, label, 4, 32) for label in CLASSES]
    for other in drawn[1:]:
        np.testing.assert_array_equal(drawn[0][0], other[0])
        assert np.abs(drawn[0][3].astype(int) - other[3]).mean() > 2


def test_every_class_has_the_scene_s_speed() -> None:
    scene = draw_scene(np.random.default_rng(6))
    grid = np.linspace(-1, 1, 41)
    x, y = (side[np.hypot(*np.meshgrid(grid, grid)) <= 1] for side in np.meshgrid(grid, grid))
    radius = np.mean([np.sqrt(a * b) for a, b in (sprite.half_axes for sprite in scene.sprites)])
    for label in CLASSES:
        frames = round(100 * scene.period) + 1
        path = trajectory(scene, label, frames)
        # A disc's points, moved one by one: the mean over points and time of the step's square.
        scale = np.exp(path.log_scale - np.mean(path.log_scale)).astype(float)
        cos, sin = scale * np.cos(path.angle), scale * np.sin(path.angle)
        px = radius * (cos[:, None] * x - sin[:, None] * y) + path.shift[:, :1]
        py = radius * (sin[:, None] * x + cos[:, None] * y) + path.shift[:, 1:]
        speed = np.sqrt(np.mean(np.diff(px, axis=0) ** 2 + np.diff(py, axis=0) ** 2))
        assert speed == pytest.approx(scene.speed, rel=0.12), label


def test_a_pixel_is_what_a_loop_over_sprites_says() -> None:
    scene = draw_scene(np.random.default_rng(7))
    image = render(scene, "pulse", 3, 64)
    path = trajectory(scene, "pulse", 3)

    def texel(texture: NDArray[np.float32], x: float, y: float) -> Array:
        x0, y0 = int(np.floor(x)), int(np.floor(y))
        corners = [(dx, dy, abs(1 - dx - x + x0) * abs(1 - dy - y + y0)) for dx in (0, 1) for dy in (0, 1)]
        return sum((w * texture[(y0 + dy) % 64, (x0 + dx) % 64] for dx, dy, w in corners), np.zeros(3))

    rng, t = np.random.default_rng(0), 2
    for row, column in rng.integers(0, 64, size=(200, 2)):
        x, y = column + 0.5 - t * scene.camera[0], row + 0.5 - t * scene.camera[1]
        colour = texel(scene.ground, x, y)
        for sprite in scene.sprites:
            dx, dy = ((d + 32) % 64 - 32 for d in (x - sprite.centre[0], y - sprite.centre[1]))
            cos, sin = np.cos(sprite.angle), np.sin(sprite.angle)
            qx, qy = (q / np.exp(path.log_scale[t]) for q in (cos * dx + sin * dy, cos * dy - sin * dx))
            (a, b), p = sprite.half_axes, sprite.power
            level = (abs(qx / a) ** p + abs(qy / b) ** p) ** (1 / p)
            mask = min(1, max(0, (1 - level) * np.sqrt(a * b) + 0.5))
            colour = (1 - mask) * colour + mask * texel(sprite.texture, qx, qy)
        # OpenCV's bilinear weights have 5 bits.
        np.testing.assert_allclose(image[t, row, column], colour, atol=6)


def test_a_video_is_a_function_of_its_key() -> None:
    key = VideoKey(0, "train", "fall", 4)
    clip = make_clip(key, 5, 32)
    make_clip(VideoKey(0, "query", "fall", 4), 5, 32)
    np.testing.assert_array_equal(clip, make_clip(key, 5, 32))
    np.testing.assert_array_equal(clip[:3], make_clip(key, 3, 32))
    for other in (("query", "fall", 4, 0), ("train", "rise", 4, 0), ("train", "fall", 5, 0), ("train", "fall", 4, 1)):
        split, label, number, seed = other
        assert np.abs(clip[0].astype(int) - make_clip(VideoKey(seed, split, label, number), 5, 32)[0]).mean() > 5


def test_the_set_is_the_same_for_any_worker_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "VIDEOS_WORTH_A_PROCESS", 4)
    make_dataset(tmp_path / "one", workers=1, **SMALL)
    make_dataset(tmp_path / "two", workers=2, **SMALL)
    make_dataset(tmp_path / "seed", workers=1, seed=1, **SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    name = VideoKey(0, "train", "sway", 1).path
    assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "seed" / name).read_bytes()


def test_the_set_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Of 400 such files a third differed while the encoder read what lay beside the picture; in processes of its own."""
    digests = []
    for name in ("a", "b"):
        make_dataset(tmp_path / name, train_per_class=25, query_per_class=1, frames=16, seed=0, workers=2)
        digests.append(
            {p.relative_to(tmp_path / name): sha256(p.read_bytes()).digest() for p in (tmp_path / name).rglob("*.mp4")}
        )
    assert len(digests[0]) == 8 * 26
    assert digests[0] == digests[1]


def test_files_are_h264_that_both_decoders_read(tmp_path: Path) -> None:
    table = make_dataset(tmp_path, **{**SMALL, "frames": 13}, fps=12)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(CLASSES)
    assert {row["label"] for row in rows} == set(CLASSES)
    assert len({row["group"] for row in rows}) == len(rows)
    assert {(row["split"], row["video"].split("/")[0]) for row in rows} == {("train", "train"), ("query", "query")}
    for row in rows:
        path = tmp_path / row["video"]
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            assert stream.codec_context.name == "h264"
            assert (stream.codec_context.pix_fmt, float(stream.average_rate or 0)) == ("yuv420p", 12)
        assert sum(packet.is_keyframe for packet in packets) == 3
        reader = decord.VideoReader(str(path))
        assert len(reader) == len(decode(path)) == 13
        np.testing.assert_allclose(reader.get_batch([12]).asnumpy()[0].astype(int), decode(path)[12], atol=6)


def test_compression_keeps_the_pictures(tmp_path: Path) -> None:
    clip = make_clip(VideoKey(0, "train", "orbit", 1), 8, 64)
    synthetic.write_mp4(tmp_path / "a.mp4", clip, fps=12)
    luma = [frames.astype(float) @ np.array([0.299, 0.587, 0.114]) for frames in (clip, decode(tmp_path / "a.mp4"))]
    assert np.abs(luma[0] - luma[1]).mean() < 4


def test_a_second_call_does_nothing_and_a_lost_file_is_made_again(tmp_path: Path) -> None:
    make_dataset(tmp_path, **SMALL)
    before, lost = contents(tmp_path), tmp_path / VideoKey(0, "query", "pulse", 1).path
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_dataset(tmp_path, **SMALL)
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    lost.unlink()
    make_dataset(tmp_path, **SMALL)
    assert contents(tmp_path) == before


def test_an_interrupted_set_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "whole", **SMALL)
    real = synthetic.write_mp4
    written: list[Path] = []

    def failing(path: Path, clip: NDArray[np.uint8], fps: int) -> None:
        if len(written) == 5:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_bytes(b"half")
            raise KeyboardInterrupt
        real(path, clip, fps)
        written.append(path)

    monkeypatch.setattr(synthetic, "write_mp4", failing)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path / "cut", **SMALL)
    assert not (tmp_path / "cut" / "dataset.json").exists()
    stamp = written[0].stat().st_mtime_ns
    monkeypatch.setattr(synthetic, "write_mp4", real)
    make_dataset(tmp_path / "cut", **SMALL)
    assert written[0].stat().st_mtime_ns == stamp
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_the_record_names_the_settings(tmp_path: Path) -> None:
    make_dataset(tmp_path, **SMALL)
    record = json.loads((tmp_path / "dataset.json").read_text())
    assert record["settings"] == {**SMALL, "fps": 12, "seed": 0}
    assert record["fingerprint"] == synthetic.Settings(fps=12, seed=0, **SMALL).fingerprint()
    assert record["fingerprint"] != synthetic.Settings(fps=12, seed=1, **SMALL).fingerprint()


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", **SMALL)
    with pytest.raises(UserError, match="seed = 0, but 1 is requested"):
        make_dataset(tmp_path / "set", seed=1, **SMALL)
    with pytest.raises(UserError, match="size is 33; it must be even"):
        make_dataset(tmp_path / "odd", **{**SMALL, "size": 33})
    with pytest.raises(UserError, match="frames is 1; it must be at least 2"):
        make_dataset(tmp_path / "odd", **{**SMALL, "frames": 1})
    with pytest.raises(UserError, match="workers is 0"):
        make_dataset(tmp_path / "odd", workers=0, **SMALL)
    assert not (tmp_path / "odd").exists()
    (tmp_path / "mine" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="no synthetic data set"):
        make_dataset(tmp_path / "mine", **SMALL)
    (tmp_path / "set" / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="delete the folder"):
        make_dataset(tmp_path / "set", **SMALL)
