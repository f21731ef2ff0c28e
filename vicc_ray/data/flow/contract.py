"""What a flow algorithm is: motion between consecutive frames, from pictures or from the video file.

One of your own is a class with one of these interfaces, named in the experiment (`flow.algorithm: package.module:Name`) or given by
an installed package (entry points `vicc_ray.flow_algorithms`). See docs/extending.md.

Shapes: n fields, each from a frame to the video's next one; H x W decoded pixels. A field is float32 [H, W, 2] = (u, v) in
pixels of these frames: what is at (x, y) in the first is at (x + u, y + v) in the second; u is positive to the right, v downwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import Decoder

Field = NDArray[np.float32]


@runtime_checkable
class FlowAlgorithm(Protocol):
    """Flow between pictures.

    Attributes:
        uses_torch: whether it needs PyTorch, so that its process may take more memory, and may use a GPU (`vicc flow --gpu`).
    """

    uses_torch: ClassVar[bool]

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        """From `flow.weights` (a file's path or URI), "cpu" or "cuda", and `flow.options`; UserError where one is wrong."""
        ...

    def fields(self, frames: NDArray[np.uint8]) -> Field:
        """RGB frames uint8 [n + 1, H, W, 3] -> float32 [n, H, W, 2]; a field does not depend on the others' frames.

        It runs in a process a CPU, so on one thread. Any exception refuses the video.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """All that decides its numbers but pictures and `flow.options`: parameters, hash of the weights, versions. Plain values."""
        ...


@runtime_checkable
class FileFlowAlgorithm(Protocol):
    """Motion that is in the video file already: nothing is decoded for it."""

    uses_torch: ClassVar[bool]

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        """As of `FlowAlgorithm`."""
        ...

    def fields_of_file(self, path: str, frames: NDArray[np.int64], size: tuple[int, int], decoder: Decoder) -> Field:
        """float32 [n, H, W, 2] of the fields that lead from these frames [n], ascending, at decode size (H, W)."""
        ...

    def iterate_file(self, path: str, size: tuple[int, int], decoder: Decoder) -> Iterator[Field]:
        """The fields [H, W, 2] of the whole file in order."""
        ...

    def identity(self) -> dict[str, Any]:
        """As of `FlowAlgorithm`."""
        ...
