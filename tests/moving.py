"""A texture that moves by a known amount, for tests and measurements of optical flow."""

from __future__ import annotations

import cv2
import numpy as np


def moving_texture(frames: int = 5, height: int = 96, width: int = 128) -> np.ndarray:
    """uint8 RGB [T, H, W, 3]: a smooth random texture that moves by (1.5, 1) pixels a frame."""
    noise = np.random.default_rng(0).random((height + 60, width + 60), dtype=np.float32)
    texture = cv2.GaussianBlur(noise, (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    matrices = [np.float32([[1, 0, -20 + 1.5 * t], [0, 1, -20 + t]]) for t in range(frames)]  # type: ignore[arg-type]
    moved = [cv2.warpAffine(texture, matrix, (width, height), flags=cv2.INTER_CUBIC) for matrix in matrices]
    return np.stack([np.repeat(np.clip(frame, 0, 255).astype(np.uint8)[..., None], 3, axis=2) for frame in moved])
