"""What made videos are drawn of: textures, sprites that follow paths, a plane that is a torus.

What leaves the frame on one side comes back on the other; a sprite that grows wider than the plane is cut at its seam.

Letters: T frames, H = W = size, N texture side. Lengths are in pixels of a 64-pixel frame and are scaled to `size`; x points
right, y points down; times are in frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

REFERENCE_SIZE = 64
TEXTURE_SIDE = 64

Float = NDArray[np.float32]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Sprite:
    """A textured superellipse: |x/a|^p + |y/b|^p <= 1 in its own turned frame."""

    centre: tuple[float, float]
    half_axes: tuple[float, float]
    power: float
    angle: float
    texture: Float  # [N, N, 3], 0..255, periodic


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


def spread_centres(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
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


def draw_frames(
    ground: Float, sprites: Sequence[Sprite], paths: Sequence[Trajectory], camera: Float, size: int
) -> Frames:
    """Draw sprites that each follow a path, the last on top, seen by a camera that is at [T, 2] (px): uint8 RGB [T, H, W, 3]."""
    frames = len(camera)
    axis = ((np.arange(size) + 0.5) * (REFERENCE_SIZE / size)).astype(np.float32)
    x = np.broadcast_to(axis[None, None, :] - camera[:, 0, None, None], (frames, size, size))
    y = np.broadcast_to(axis[None, :, None] - camera[:, 1, None, None], (frames, size, size))
    image = _sample(ground, x, y)
    for sprite, path in zip(sprites, paths, strict=True):
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
