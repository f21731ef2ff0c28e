"""Sets of motions that videos are made of: classes that differ in how things move, and in nothing that a single frame shows.

`plain` (of the quickstart): a scene is drawn without knowing the class, and the class only chooses which one of its parameters
moves from frame 0 on. Frame 0 is therefore the same for every class, and because start position and orientation are uniform,
and the pulse's phase is uniform and also sets the still classes' scale, every later single frame has one distribution for all
classes too. Speeds are root-mean-square equal over the classes. Each class maps to itself under a horizontal flip.

`relations`: two things move among others that stand still, before a camera that pans and shakes, at speeds and frame rates
that differ from video to video. A class is a kind of motion and what the second thing does while the first one moves; each of
the two alone says the kind at most. `far`: one thing that covers 2 to 5 % of the picture moves on a ground that a panning camera
passes over, beside things of its size that stand still. In both, frame 0 is the same for every class, positions are uniform,
and a flip changes no class.

Letters: T frames, S sprites. Lengths are in pixels of a 64-pixel frame, times in frames, as in `drawing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vicc_ray.data.drawing import (
    REFERENCE_SIZE,
    Float,
    Frames,
    Sprite,
    Trajectory,
    draw_frames,
    draw_texture,
    spread_centres,
)

CLASSES = ("bounce", "sway", "orbit", "fall", "rise", "glide", "pulse", "spin")
"""Vertical and horizontal oscillation, circles (either way round), steady travel down, up and sideways (either way),
breathing, and steady turning on the spot (either way round)."""

SPEED = (2.0, 2.6)
PERIOD = (7.0, 9.0)
CAMERA_SPEED = 0.3


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


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; the class is no argument, so nothing here can depend on it."""
    centres = spread_centres(rng, count=int(rng.integers(3, 5)))
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
    camera = np.arange(frames, dtype=np.float32)[:, None] * np.asarray(scene.camera, dtype=np.float32)
    path = trajectory(scene, label, frames)
    return draw_frames(scene.ground, scene.sprites, [path] * len(scene.sprites), camera, size)


@dataclass(frozen=True)
class MotionSet:
    """Classes of motion and how a video of one is drawn.

    Attributes:
        classes: labels.
        draw: (generator, label, frames, size) -> uint8 RGB [T, H, W, 3]; T is `frames` times the rate.
        rates: frame rates of videos, as multiples of the set's; each video has one of them.
    """

    classes: tuple[str, ...]
    draw: Callable[[np.random.Generator, str, int, int, float], Frames]
    rates: tuple[float, ...] = (1.0,)


def _plain(rng: np.random.Generator, label: str, frames: int, size: int, rate: float) -> Frames:
    return render(draw_scene(rng), label, frames, size)


KINDS = ("line", "swing", "circle")
RELATIONS = ("with", "against", "across", "double")
"""What the second thing does: the same; the opposite; the same turned by a right angle (either way), or round the other way; the
same along twice as fast."""


def relation_paths(
    label: str, times: Float, speed: float, period: float, phase: float, heading: float, sense: int
) -> tuple[Float, Float]:
    """Where the two things of a class have moved to since frame 0, [T, 2] each, at `times` [T] in frames of rate 1.

    Both together have the root-mean-square speed `speed` (px a frame), whatever the class.
    """
    kind, relation = label.split("-")
    first = _kind_path(kind, times, speed, period, phase, sense)
    if relation == "with":
        second = first
    elif relation == "against":
        second = -first
    elif relation == "across" and kind == "circle":
        second = first * np.array([1, -1], np.float32)
    elif relation == "across":
        second = first @ _turn(sense * math.pi / 2)
    elif kind == "line":
        first = first * math.sqrt(2 / 5)
        second = 2 * first
    else:
        second = _kind_path(kind, times, speed, period / 2, phase, sense)
    turned = _turn(heading)
    return (first @ turned).astype(np.float32), (second @ turned).astype(np.float32)


def _kind_path(kind: str, times: Float, speed: float, period: float, phase: float, sense: int) -> Float:
    """Along x, [T, 2] from 0 on."""
    omega = 2 * math.pi / period
    angles = phase + omega * times
    if kind == "line":
        x, y = speed * times, 0 * times
    elif kind == "swing":
        x, y = math.sqrt(2) * speed / omega * np.sin(angles), 0 * times
    else:
        x, y = speed / omega * np.cos(angles), sense * speed / omega * np.sin(angles)
    path = np.stack([x, y], axis=-1)
    return np.asarray(path - path[0], dtype=np.float32)


def _turn(angle: float) -> Float:
    """Rows [n, 2] @ this are turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, sin], [-sin, cos]], np.float32)


def _relations(rng: np.random.Generator, label: str, frames: int, size: int, rate: float) -> Frames:
    times = (np.arange(round(frames * rate)) / rate).astype(np.float32)
    sprites = [_sprite(rng, centre, rng.uniform(8.5, 11.5)) for centre in spread_centres(rng, count=4)]
    ground = draw_texture(rng, contrast=rng.uniform(0.15, 0.4))
    camera = _pan(rng, times, 0.9) + _shake(rng, times, 0.8)
    speed, period = math.exp(rng.uniform(math.log(1.2), math.log(3.0))), rng.uniform(7.0, 11.0)
    phase, heading = rng.uniform(0, 2 * math.pi, size=2)
    paths = relation_paths(label, times, speed, period, float(phase), float(heading), int(rng.choice((-1, 1))))
    still = np.zeros((len(times), 2), np.float32)
    return draw_frames(ground, sprites, [_shifted(path) for path in (*paths, still, still)], camera, size)


FAR = ("bounce", "sway", "orbit", "fall", "rise", "glide", "eight", "dart")
SMALL_AREA = (0.02, 0.05)  # share of the picture that the moving thing covers


def far_path(label: str, frames: int, speed: float, period: float, phase: float, sense: int) -> Float:
    """Where the small thing has moved to since frame 0, [T, 2]; of root-mean-square speed `speed` in every class."""
    times = np.arange(frames, dtype=np.float32)
    omega = 2 * math.pi / period
    angles = phase + omega * times
    reach = math.sqrt(2) * speed / omega
    still, steady = 0 * times, speed * times
    # In fits: at rest for half of each period and sqrt(2) times as fast in the other half.
    fits = math.sqrt(2) * speed * np.clip((times + phase / omega) % period - period / 2, 0, None)
    fits = fits + math.sqrt(2) * speed * period / 2 * np.floor((times + phase / omega) / period)
    x, y = {
        "bounce": (still, reach * np.sin(angles)),
        "sway": (reach * np.sin(angles), still),
        "orbit": (reach / math.sqrt(2) * np.cos(angles), sense * reach / math.sqrt(2) * np.sin(angles)),
        "fall": (still, steady),
        "rise": (still, -steady),
        "glide": (sense * steady, still),
        "eight": (reach / math.sqrt(2) * np.sin(angles), reach / math.sqrt(8) * np.sin(2 * angles)),
        "dart": (sense * fits, still),
    }[label]
    path = np.stack([x, y], axis=-1)
    return np.asarray(path - path[0], dtype=np.float32)


def _far(rng: np.random.Generator, label: str, frames: int, size: int, rate: float) -> Frames:
    radii = np.sqrt(rng.uniform(*SMALL_AREA, size=3) * REFERENCE_SIZE**2)
    sprites = [_sprite(rng, at, float(side), unit=True) for at, side in zip(spread_centres(rng, 3), radii, strict=True)]
    ground = draw_texture(rng, contrast=rng.uniform(0.15, 0.4))
    camera = _pan(rng, np.arange(frames, dtype=np.float32), 1.6, least=0.6)
    speed, period, phase = rng.uniform(*SPEED), rng.uniform(*PERIOD), rng.uniform(0, 2 * math.pi)
    path = far_path(label, frames, speed, period, phase, int(rng.choice((-1, 1))))
    still = np.zeros((frames, 2), np.float32)
    return draw_frames(ground, sprites, [_shifted(one) for one in (path, still, still)], camera, size)


def _sprite(rng: np.random.Generator, centre: Float, radius: float, unit: bool = False) -> Sprite:
    """A sprite of this mean half axis; with `unit` one that covers radius^2, whatever its shape."""
    aspect, power = rng.uniform(0.85, 1.18), rng.uniform(2, 6)
    if unit:  # a superellipse of half axes a, b covers 4 a b G(1 + 1/p)^2 / G(1 + 2/p)
        radius *= math.sqrt(math.gamma(1 + 2 / power) / 4) / math.gamma(1 + 1 / power)
    return Sprite(
        centre=(float(centre[0]), float(centre[1])),
        half_axes=(radius * math.sqrt(aspect), radius / math.sqrt(aspect)),
        power=power,
        angle=rng.uniform(0, 2 * math.pi),
        texture=draw_texture(rng, contrast=rng.uniform(0.45, 0.7)),
    )


def _pan(rng: np.random.Generator, times: Float, most: float, least: float = 0.0) -> Float:
    """A steady pan in any direction, [T, 2]."""
    heading, speed = rng.uniform(0, 2 * math.pi), rng.uniform(least, most)
    direction = np.array([math.cos(heading), math.sin(heading)])
    return np.asarray(speed * times[:, None] * direction, dtype=np.float32)


def _shake(rng: np.random.Generator, times: Float, most: float) -> Float:
    """An unsteady hand, [T, 2]."""
    reach, period, phase = rng.uniform(0, most, 2), rng.uniform(6, 14, 2), rng.uniform(0, 2 * math.pi, 2)
    return np.asarray(reach * np.sin(2 * math.pi * times[:, None] / period + phase), dtype=np.float32)


def _shifted(shift: Float) -> Trajectory:
    still = np.zeros(len(shift), np.float32)
    return Trajectory(shift=shift, angle=still, log_scale=still)


MOTION_SETS: Mapping[str, MotionSet] = {
    "plain": MotionSet(CLASSES, _plain),
    "relations": MotionSet(tuple(f"{kind}-{one}" for kind in KINDS for one in RELATIONS), _relations, (1.0, 1.25, 1.5)),
    "far": MotionSet(FAR, _far),
}
