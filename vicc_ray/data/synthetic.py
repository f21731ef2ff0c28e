"""The embedded motion data set: small H.264 videos of 8 classes that differ in motion only.

A video is a scene (textured sprites on a textured ground) and a motion. The scene is drawn without knowing the class,
and the class only chooses which one of the scene's parameters moves from frame 0 on. Frame 0 is therefore the same for
every class, and because start position and orientation are uniform, and the pulse's phase is uniform and also sets the
still classes' scale, every later single frame has one distribution for all classes too. Speeds are root-mean-square
equal over the classes. Each class maps to itself under a horizontal flip.

The plane is a torus: what leaves the frame on one side comes back on the other. A sprite that a pulse makes wider than
the plane is cut at its seam, in every class alike.

Letters: T frames, H = W = size, S sprites, N texture side. Lengths are in pixels of a 64-pixel frame and are scaled to
`size`; x points right, y points down; times are in frames.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.errors import UserError

CLASSES = ("bounce", "sway", "orbit", "fall", "rise", "glide", "pulse", "spin")
"""Vertical and horizontal oscillation, circles (either way round), steady travel down, up and sideways (either way),
breathing, and steady turning on the spot (either way round)."""

SPLITS = ("train", "query")

RECIPE = 1
"""Raised whenever the pixels for the same settings change, so that an old folder is not taken for a new one."""

FINISHED = "dataset.json"
STARTED = "unfinished.json"
VIDEOS_WORTH_A_PROCESS = 50

REFERENCE_SIZE = 64
TEXTURE_SIDE = 64
SPEED = (2.0, 2.6)
PERIOD = (7.0, 9.0)
CAMERA_SPEED = 0.3

Float = NDArray[np.float32]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What the pixels depend on; `dataset.json` keeps it."""

    train_per_class: int
    query_per_class: int
    frames: int
    size: int
    fps: int
    seed: int

    def check(self) -> None:
        """Raise `UserError` naming the first value that no data set can have."""
        lowest = {"train_per_class": 1, "query_per_class": 0, "frames": 2, "size": 16, "fps": 1, "seed": 0}
        for name, value in asdict(self).items():
            if value < lowest[name]:
                raise UserError(f"synthetic data: {name} is {value}; it must be at least {lowest[name]}")
        if self.size % 2:
            raise UserError(f"synthetic data: size is {self.size}; it must be even (4:2:0 video)")

    def fingerprint(self) -> str:
        """SHA-256 over the settings and the recipe's number, in hexadecimal."""
        text = json.dumps({"recipe": RECIPE, "classes": CLASSES, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def videos(self) -> Iterator[VideoKey]:
        """Every video of the set, training videos first."""
        for split, count in zip(SPLITS, (self.train_per_class, self.query_per_class), strict=True):
            for label in CLASSES:
                for number in range(1, count + 1):
                    yield VideoKey(self.seed, split, label, number)


@dataclass(frozen=True)
class VideoKey:
    """One video's name in the set; its pixels are a function of this and of frame count and size."""

    seed: int
    split: str
    label: str
    number: int

    @property
    def path(self) -> str:
        """Relative POSIX path, UCF101's manner of naming: every video is a group of its own."""
        return f"{self.split}/{self.label}/v_{self.label}_g{self.number:02d}_c01.mp4"

    @property
    def group(self) -> str:
        """Name of the source scene, which no other video of either split shares."""
        return f"{self.split}_{self.label}_g{self.number:02d}"

    def rng(self) -> np.random.Generator:
        """The video's own generator, independent of every other video's."""
        return np.random.default_rng([self.seed, SPLITS.index(self.split), CLASSES.index(self.label), self.number])


@dataclass(frozen=True)
class Sprite:
    """A textured superellipse: |x/a|^p + |y/b|^p <= 1 in its own turned frame."""

    centre: tuple[float, float]
    half_axes: tuple[float, float]
    power: float
    angle: float
    texture: Float  # [N, N, 3], 0..255, periodic


@dataclass(frozen=True)
class Scene:
    """Everything about a video but its class."""

    ground: Float  # [N, N, 3], 0..255, periodic
    sprites: tuple[Sprite, ...]
    camera: tuple[float, float]  # px per frame
    period: float  # frames
    phase: float  # radians
    speed: float  # root-mean-square px per frame of a sprite's points
    sense: int  # +1 or -1: which way round, which side


@dataclass(frozen=True)
class Trajectory:
    """How every sprite of a scene moves: shift [T, 2] in px and angle [T] in radians since frame 0, log_scale [T]."""

    shift: Float
    angle: Float
    log_scale: Float


def draw_texture(rng: np.random.Generator, contrast: float) -> Float:
    """Draw a periodic texture [N, N, 3] in 0..255 that optical flow can follow in both directions.

    `contrast` is the distance in brightness of its two colours, 0..1; hue and pattern are free.
    """
    axis = np.arange(TEXTURE_SIDE) / TEXTURE_SIDE
    y, x = np.meshgrid(axis, axis, indexing="ij")
    kind = int(rng.integers(4))
    if kind == 0:
        k = rng.integers(3, 7, size=2)
        field = np.sin(2 * np.pi * k[0] * x + 7 * rng.random()) * np.sin(2 * np.pi * k[1] * y + 7 * rng.random())
        field = 4 * field
    else:
        field = _band_noise(rng, *((2.0, 4.0), (4.0, 7.0), (3.0, 8.0))[kind - 1])
        field = (field, 3 * field, 4 * (0.6 - np.abs(field)))[kind - 1]
    mix = 1 / (1 + np.exp(-field))
    low = rng.uniform(0.05, 0.95 - contrast)
    colours = np.stack([_colour(rng, low), _colour(rng, low + contrast)])
    image = colours[0] + mix[..., None] * (colours[1] - colours[0]) + 0.06 * _band_noise(rng, 6.0, 12.0)[..., None]
    return np.asarray(255 * np.clip(image, 0, 1), dtype=np.float32)


def _band_noise(rng: np.random.Generator, low: float, high: float) -> NDArray[np.float64]:
    """Draw periodic noise [N, N] of unit variance with `low` to `high` cycles per N pixels."""
    frequency = np.fft.fftfreq(TEXTURE_SIDE, 1 / TEXTURE_SIDE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    spectrum = np.fft.fft2(rng.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))) * ((radius >= low) & (radius <= high))
    noise = np.fft.ifft2(spectrum).real
    return np.asarray(noise / noise.std())


def _colour(rng: np.random.Generator, brightness: float) -> NDArray[np.float64]:
    """Draw a colour [3] in 0..1 whose mean is `brightness`, as saturated as that leaves room for."""
    offset = rng.standard_normal(3)
    offset -= offset.mean()
    room = np.where(offset > 0, 1 - brightness, brightness) / np.abs(offset)
    return np.asarray(brightness + offset * room.min() * rng.uniform(0.3, 1.0))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; the class is no argument, so nothing here can depend on it."""
    centres = _spread_centres(rng, count=int(rng.integers(3, 5)))
    sprites = []
    for centre in centres:
        radius, aspect = rng.uniform(14, 18), rng.uniform(0.85, 1.18)
        sprites.append(
            Sprite(
                centre=(float(centre[0]), float(centre[1])),
                half_axes=(radius * math.sqrt(aspect), radius / math.sqrt(aspect)),
                power=rng.uniform(2, 6),
                angle=rng.uniform(0, 2 * math.pi),
                texture=draw_texture(rng, contrast=rng.uniform(0.45, 0.7)),
            )
        )
    heading, camera_speed = rng.uniform(0, 2 * math.pi), CAMERA_SPEED * math.sqrt(rng.random())
    return Scene(
        ground=draw_texture(rng, contrast=rng.uniform(0.15, 0.4)),
        sprites=tuple(sprites),
        camera=(camera_speed * math.cos(heading), camera_speed * math.sin(heading)),
        period=rng.uniform(*PERIOD),
        phase=rng.uniform(0, 2 * math.pi),
        speed=rng.uniform(*SPEED),
        sense=int(rng.choice((-1, 1))),
    )


def _spread_centres(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw [count, 2] points on the torus, each the farthest of 8 candidates from those before it."""
    points = rng.uniform(0, REFERENCE_SIZE, size=(1, 2))
    while len(points) < count:
        candidates = rng.uniform(0, REFERENCE_SIZE, size=(8, 2))
        gap = np.hypot(*np.moveaxis(_wrap(candidates[:, None] - points[None]), -1, 0))
        points = np.concatenate([points, candidates[gap.min(axis=1).argmax()][None]])
    return points


def _wrap(delta: NDArray[Any]) -> NDArray[Any]:
    """Shortest equal of a displacement on the torus, in [-32, 32)."""
    # Several times faster than np.mod, which is the larger part of the work otherwise.
    return np.asarray(delta - REFERENCE_SIZE * np.floor(delta / REFERENCE_SIZE + 0.5))


def trajectory(scene: Scene, label: str, frames: int) -> Trajectory:
    """Let the parameter that `label` names move, and keep the others where frame 0 has them.

    Every class has the scene's root-mean-square speed: a sine of amplitude a moves at a w / sqrt(2), and a point of a
    disc of radius R lies R / sqrt(2) from the centre.
    """
    omega = 2 * math.pi / scene.period
    angles = scene.phase + omega * np.arange(frames)
    sine, cosine = np.sin(angles), np.cos(angles)
    reach = math.sqrt(2) * scene.speed / omega
    radius = float(np.mean([math.sqrt(a * b) for a, b in (s.half_axes for s in scene.sprites)]))
    swing = reach * math.sqrt(2) / radius
    still, steady = np.zeros(frames), scene.speed * np.arange(frames)
    shifts = {
        "bounce": (still, reach * sine),
        "sway": (reach * sine, still),
        "orbit": (reach * cosine / math.sqrt(2), scene.sense * reach * sine / math.sqrt(2)),
        "fall": (still, steady),
        "rise": (still, -steady),
        "glide": (scene.sense * steady, still),
    }
    x, y = shifts.get(label, (still, still))
    return Trajectory(
        shift=np.stack([x - x[0], y - y[0]], axis=-1).astype(np.float32),
        angle=(steady * scene.sense * math.sqrt(2) / radius if label == "spin" else still).astype(np.float32),
        log_scale=(swing * (sine if label == "pulse" else sine[:1].repeat(frames))).astype(np.float32),
    )


def render(scene: Scene, label: str, frames: int, size: int) -> Frames:
    """Draw the scene moving as `label`: uint8 RGB [T, H, W, 3]."""
    path = trajectory(scene, label, frames)
    axis = ((np.arange(size) + 0.5) * (REFERENCE_SIZE / size)).astype(np.float32)
    camera = np.arange(frames, dtype=np.float32)[:, None] * np.asarray(scene.camera, dtype=np.float32)
    x = np.broadcast_to(axis[None, None, :] - camera[:, 0, None, None], (frames, size, size))
    y = np.broadcast_to(axis[None, :, None] - camera[:, 1, None, None], (frames, size, size))
    image = _sample(scene.ground, x, y)
    for sprite in scene.sprites:
        qx, qy = _sprite_coordinates(sprite, path, x, y)
        mask = _mask(sprite, qx, qy, softness=REFERENCE_SIZE / size)[..., None]
        image += mask * (_sample(sprite.texture, qx, qy) - image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _sprite_coordinates(sprite: Sprite, path: Trajectory, x: Float, y: Float) -> tuple[Float, Float]:
    """Where each pixel [T, H, W] lies in the sprite's own frame: shift, turn and scale undone."""
    dx = _wrap(x - (path.shift[:, 0] + np.float32(sprite.centre[0]))[:, None, None])
    dy = _wrap(y - (path.shift[:, 1] + np.float32(sprite.centre[1]))[:, None, None])
    shrink = np.exp(-path.log_scale)
    cos = (shrink * np.cos(path.angle + np.float32(sprite.angle)))[:, None, None]
    sin = (shrink * np.sin(path.angle + np.float32(sprite.angle)))[:, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _mask(sprite: Sprite, qx: Float, qy: Float, softness: float) -> Float:
    """Coverage [T, H, W] in 0..1 with an edge about `softness` px wide."""
    a, b = sprite.half_axes
    level = (np.abs(qx / a) ** sprite.power + np.abs(qy / b) ** sprite.power) ** (1 / sprite.power)
    mask = np.clip((1 - level) * (math.sqrt(a * b) / softness) + 0.5, 0, 1)
    return np.asarray(mask, dtype=np.float32)


def _sample(texture: Float, x: Float, y: Float) -> Float:
    """Bilinear look-up of a periodic texture [N, N, 3] at x, y [T, H, W] -> [T, H, W, 3]."""
    rows = (-1, x.shape[-1])
    columns, lines = ((q - TEXTURE_SIDE * np.floor(q / TEXTURE_SIDE)).reshape(rows) for q in (x, y))
    values = cv2.remap(texture, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(values, dtype=np.float32).reshape(*x.shape, 3)


def make_clip(key: VideoKey, frames: int, size: int) -> Frames:
    """Draw one video of the set before compression: uint8 RGB [T, H, W, 3]."""
    return render(draw_scene(key.rng()), key.label, frames, size)


def write_mp4(path: Path, clip: Frames, fps: int) -> None:
    """Encode uint8 RGB [T, H, W, 3] as H.264 (yuv420p, a key frame every 6), whole or not at all.

    One thread and no time stamp of the writing, so that the same build of the encoder writes the same bytes.
    """
    part = path.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(part), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "h264", rate=fps, options={"crf": "20", "preset": "veryfast", "threads": "1", "sc_threshold": "0"}
        )
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 6
        stream.codec_context.time_base = Fraction(1, fps)
        for image in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)


def make_dataset(
    folder: Path,
    *,
    train_per_class: int = 50,
    query_per_class: int = 20,
    frames: int = 20,
    size: int = 64,
    fps: int = 12,
    seed: int = 0,
    workers: int = 2,
) -> Path:
    """Make the data set under `folder` and return the path of its `videos.csv`.

    Writes `{split}/{class}/v_{class}_gNN_c01.mp4`, then `videos.csv` (video, label, split, group; paths relative to
    `folder`), then `dataset.json`. A whole set of the same settings is left as it is, an interrupted one is finished.
    `workers` processes share the work and change no pixel.

    Raises `UserError` for an impossible setting and for a folder that holds something else.
    """
    settings = Settings(train_per_class, query_per_class, frames, size, fps, seed)
    settings.check()
    if workers < 1:
        raise UserError(f"synthetic data: workers is {workers}; it must be at least 1")
    folder = Path(folder)
    finished = _claim(folder, settings)
    table = folder / "videos.csv"
    missing = [key for key in settings.videos() if not (folder / key.path).is_file()]
    if finished and not missing and table.is_file():
        return table
    _write_videos(folder, missing, settings, workers)
    _write_csv(table, settings)
    _write_json(folder / FINISHED, settings)
    (folder / STARTED).unlink(missing_ok=True)
    return table


def _claim(folder: Path, settings: Settings) -> bool:
    """Say whether `folder` holds a finished set of these settings; mark it as begun where it holds none."""
    marks = [folder / name for name in (FINISHED, STARTED) if (folder / name).is_file()]
    for mark in marks:
        _check_mark(mark, settings)
    if not marks:
        taken = [name for name in (*SPLITS, "videos.csv") if (folder / name).exists()]
        if taken:
            raise UserError(
                f"{folder}: holds {taken[0]!r} but no {FINISHED}, so it is no synthetic data set; choose another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / STARTED, settings)
    return (folder / FINISHED).is_file()


def _check_mark(mark: Path, settings: Settings) -> None:
    """Raise `UserError` unless the settings in the JSON file `mark` are these, naming the first that differs."""
    try:
        found = json.loads(mark.read_text())
        recorded, fingerprint = dict(found["settings"]), found["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{mark}: no record of a synthetic data set ({error}); delete the folder and run again"
        ) from error
    for name, wanted in asdict(settings).items():
        if recorded.get(name) != wanted:
            raise UserError(
                f"{mark}: the set was made with {name} = {recorded.get(name)}, but {wanted} is requested; "
                "choose another folder or delete this one"
            )
    if fingerprint != settings.fingerprint():
        raise UserError(f"{mark}: the set was made by another version of vicc_ray; delete the folder and run again")


def _write_json(path: Path, settings: Settings) -> None:
    """Record the settings and their fingerprint, whole or not at all."""
    record = {"settings": asdict(settings), "classes": CLASSES, "recipe": RECIPE, "fingerprint": settings.fingerprint()}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(path)


def _write_csv(path: Path, settings: Settings) -> None:
    """Write the table that `vicc index` reads, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "label", "split", "group"))
        writer.writerows((key.path, key.label, key.split, key.group) for key in settings.videos())
    part.replace(path)


def _write_videos(folder: Path, keys: list[VideoKey], settings: Settings, workers: int) -> None:
    """Draw and encode the videos, in this process or, where that pays, in several."""
    workers = min(workers, len(keys) // VIDEOS_WORTH_A_PROCESS)
    if workers < 2:
        for key in keys:
            _write_video(folder, key, settings)
        return
    # Spawned, not forked: the caller may hold threads (torch, Ray, OpenCV) that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        jobs = [pool.submit(_write_video, folder, key, settings) for key in keys]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_video(folder: Path, key: VideoKey, settings: Settings) -> None:
    write_mp4(folder / key.path, make_clip(key, settings.frames, settings.size), settings.fps)
