"""A flow algorithm: the shift of whole blocks between two frames, by phase correlation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray


class BlockMatching:
    """One displacement a block; `flow.options`: `block` (pixels, default 16)."""

    uses_torch: ClassVar[bool] = False

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        self.block = int(options.get("block", 16))

    def fields(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        gray = frames.mean(axis=3).astype(np.float32)
        out = np.zeros((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
        for number, (first, second) in enumerate(pairwise(gray)):
            for top in range(0, first.shape[0], self.block):
                for left in range(0, first.shape[1], self.block):
                    window = np.s_[top : top + self.block, left : left + self.block]
                    (u, v), _ = cv2.phaseCorrelate(first[window], second[window])
                    out[number][window] = (u, v)
        return out

    def identity(self) -> dict[str, Any]:
        return {"opencv": cv2.__version__}
