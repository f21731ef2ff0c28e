"""TV-L1 in PyTorch beside OpenCV's: how far their fields are apart, and milliseconds for a clip. A part of `vicc bench flow`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks import Bar, Outcome
from vicc_ray.data.flow.algorithms import flow_between
from vicc_ray.data.flow.contract import Field

Images = NDArray[np.uint8]

# Of each clip, at its start: OpenCV takes a quarter of a second a field.
FIELDS = 4
# A pixel moves where OpenCV's field is at least so long.
MOVING = 0.5
# Round the picture, where OpenCV's field leaps by pixels in a scene at rest.
RIM = 4
END_POINT_ERROR = 0.25
GPU_OVER_CORE = 100.0

OPENCV, TORCH, GPU = (
    "flow clip, TV-L1 of OpenCV",
    "flow clip, TV-L1 in PyTorch",
    "flow clip, TV-L1 in PyTorch on the GPU",
)


@dataclass(frozen=True)
class Tvl1Pair:
    """Clips, uint8 RGB [T, H, W, 3] each, and both algorithms' fields of their starts, float32 [n, H, W, 2]."""

    clips: Sequence[Images]
    opencv: Field
    torch: Field

    @classmethod
    def of(cls, clips: Sequence[Images]) -> Tvl1Pair:
        """Measure both."""
        opencv, ours = (
            np.concatenate([flow_between(clip[: FIELDS + 1], algorithm) for clip in clips])
            for algorithm in ("tvl1", "tvl1_torch")
        )
        return cls(clips, opencv, ours)

    def contenders(self) -> dict[str, Callable[[], float]]:
        """Milliseconds for a clip by name: on one CPU core from its first fields, on a GPU (where there is one) from all."""
        import torch

        found = {OPENCV: self._timed("tvl1"), TORCH: self._timed("tvl1_torch")}
        return found | ({GPU: self._on_gpu} if torch.cuda.is_available() else {})

    def bars(self, outcome: Outcome) -> list[Bar]:
        """End-point error on moving pixels; time on a core; time on a GPU."""
        error, moving, _ = self._errors()
        bars = [Bar("TV-L1 in PyTorch / of OpenCV, time on a core", outcome.ratio(TORCH, OPENCV), 1.0, at_least=False)]
        if moving.any():
            name = f"TV-L1 in PyTorch from OpenCV's, end point, px (pixels moving by {MOVING:g})"
            bars.append(Bar(name, float(error[moving].mean()), END_POINT_ERROR, at_least=False))
        if GPU in outcome.figures:
            bars.append(Bar("TV-L1: one core of OpenCV / a GPU, time", outcome.ratio(OPENCV, GPU), GPU_OVER_CORE))
        return bars

    def facts(self) -> dict[str, str]:
        """The error of all pixels, of the moving ones and of the moving ones inside of the picture."""
        error, moving, inside = self._errors()
        parts = {"all pixels": np.ones_like(moving), "moving": moving, f"moving, {RIM} from the rim": moving & inside}
        parts_ = [
            f"{name} {error[part].mean():.3f} px ({part.mean():.1%})" for name, part in parts.items() if part.any()
        ]
        return {f"TV-L1 in PyTorch from OpenCV's, end point, {len(error)} fields": "; ".join(parts_)}

    def _errors(self) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """End-point errors [n, H, W], which pixels move, which are inside of the rim."""
        difference = self.torch - self.opencv
        moving = np.hypot(self.opencv[..., 0], self.opencv[..., 1]) >= MOVING
        inside = np.zeros_like(moving)
        inside[:, RIM:-RIM, RIM:-RIM] = True
        return np.hypot(difference[..., 0], difference[..., 1]), moving, inside

    def _timed(self, algorithm: str) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            for clip in self.clips:
                flow_between(clip[: FIELDS + 1], algorithm)
            fields = FIELDS * len(self.clips)
            return (time.perf_counter() - started) * 1000 / fields * len(self.clips[0])

        return run

    def _on_gpu(self) -> float:
        # One after the other: the fields between two clips are measured, too, and count as any.
        frames = np.concatenate(self.clips)
        started = time.perf_counter()
        fields = len(flow_between(frames, "tvl1_torch", device="cuda"))
        return (time.perf_counter() - started) * 1000 / fields * len(self.clips[0])
