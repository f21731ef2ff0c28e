"""Optical flow between consecutive frames, and its uint8 form.

`dis`, `dis_compensated`, `farneback`, `tvl1` (OpenCV), `tvl1_torch` (PyTorch) and `raft` (a network) compare pictures;
`motion_vectors` are read from the video file. Each is a class behind `data.flow.contract`.

Shapes: n fields between n + 1 frames; H rows, W columns. A field is float32 [H, W, 2] = (u, v) in pixels of these
frames: what is at (x, y) in the first is at (x + u, y + v) in the second; u is positive to the right, v downwards.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import Decoder
from vicc_ray.data.flow import motion_vectors, raft, tvl1
from vicc_ray.data.flow.contract import Field, FileFlowAlgorithm, FlowAlgorithm
from vicc_ray.data.pictures import RULES, Interlaced
from vicc_ray.errors import UserError
from vicc_ray.extensions import FLOW_ALGORITHMS

Gray = NDArray[np.uint8]

# One pixel value of a quantised field is 2 * BOUND / 255 = 0.157 px, the published recipe's.
BOUND = 20.0


NO_OPTIONS: Mapping[str, Any] = {}


def flow_between(
    frames: NDArray[np.uint8],
    algorithm: str = "dis",
    weights: str | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] = NO_OPTIONS,
) -> Field:
    """Flow from each frame to the next: uint8 RGB [n + 1, H, W, 3] -> float32 [n, H, W, 2], (u, v) in pixels.

    `weights` (a file, only for `raft`) and `device` ("cpu", "cuda", only for `raft` and `tvl1_torch`). OpenCV's and
    `tvl1_torch` on the CPU run on one thread. Raises `UserError` for an unknown algorithm, weights that are not RAFT's or
    a device that is not there, `ValueError` for frames of another shape or type and for `motion_vectors`, which come from
    the file: `vicc_ray.data.flow.motion_vectors`.
    """
    made = flow_algorithm(algorithm, weights, device, options)
    if not isinstance(made, FlowAlgorithm):
        raise ValueError(f"{algorithm} are read from the video file, not from pictures")
    return flow_of_frames(made, frames)


def flow_of_frames(algorithm: FlowAlgorithm, frames: NDArray[np.uint8]) -> Field:
    """uint8 [n + 1, H, W, 3] -> float32 [n, H, W, 2] by an algorithm that is made already; ValueError where it is not so."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 1:
        raise ValueError(f"frames must be uint8 [n + 1, H, W, 3]; they are {frames.dtype} {list(frames.shape)}")
    shape = (len(frames) - 1, *frames.shape[1:3], 2)
    fields = algorithm.fields(frames) if shape[0] else np.empty(shape, np.float32)
    if fields.shape != shape or fields.dtype != np.float32:
        kind = type(algorithm).__name__
        raise ValueError(f"{kind} gave {fields.dtype} {list(fields.shape)}, not float32 {list(shape)}")
    return fields


def flow_algorithm(
    name: str, weights: str | None = None, device: str = "cpu", options: Mapping[str, Any] = NO_OPTIONS
) -> FlowAlgorithm | FileFlowAlgorithm:
    """An algorithm by name, ready to use; UserError where it is unknown, or `weights`, `device` or `options` are wrong."""
    kind = FLOW_ALGORITHMS.load(name, "flow.algorithm")
    made: FlowAlgorithm | FileFlowAlgorithm = kind(weights, device, options)
    if not isinstance(made, FlowAlgorithm | FileFlowAlgorithm):
        raise UserError(f"flow.algorithm: {name} has no fields(frames) or fields_of_file(...); see docs/extending.md")
    return made


def uses_torch(name: str) -> bool:
    """Whether an algorithm needs PyTorch, which takes more memory and may use a GPU."""
    return bool(getattr(FLOW_ALGORITHMS.load(name, "flow.algorithm"), "uses_torch", False))


def fingerprint(
    algorithm: str,
    weights: str | None = None,
    interlaced: Interlaced = "weave",
    options: Mapping[str, Any] = NO_OPTIONS,
) -> str:
    """All that decides the algorithm's numbers, as one line of JSON: its name, parameters and library's version, and how
    pictures are made (`interlaced` among it) where it compares pictures.

    For `raft` the file `weights` is read and its hash is among them; `UserError` where it is missing or not RAFT's.
    """
    made = flow_algorithm(algorithm, weights, options=options)
    decides = dict(made.identity())
    if isinstance(made, FlowAlgorithm):
        decides |= {"pictures": RULES, "interlaced": interlaced}
    if options:
        decides["options"] = dict(options)
    return json.dumps({"algorithm": algorithm, **decides}, sort_keys=True)


def quantise(field: Field, bound: float = BOUND) -> NDArray[np.uint8]:
    """round((clip(f, -bound, bound) + bound) * 255 / (2 bound)): float32 pixels -> uint8 of the same shape."""
    clipped = np.clip(field, -bound, bound)
    values: NDArray[np.uint8] = np.rint((clipped + bound) * (255.0 / (2.0 * bound))).astype(np.uint8)
    return values


def dequantise(values: NDArray[np.uint8], bound: float = BOUND) -> Field:
    """The inverse of `quantise` up to bound / 255 pixels: uint8 -> float32 pixels of the same shape."""
    return values.astype(np.float32) * np.float32(2.0 * bound / 255.0) - np.float32(bound)


class _OpenCV:
    """An algorithm of OpenCV; `parameters` hold every number that decides its fields."""

    uses_torch: ClassVar[bool] = False
    parameters: ClassVar[dict[str, Any]]

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        pass

    def fields(self, frames: NDArray[np.uint8]) -> Field:
        """As `FlowAlgorithm`; on one thread."""
        cv2.setNumThreads(1)
        gray: list[Any] = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        self._prepare()
        flow = np.empty((len(frames) - 1, *frames.shape[1:3], 2), np.float32)
        for i in range(len(flow)):
            flow[i] = self._between(gray[i], gray[i + 1])
        return flow

    def identity(self) -> dict[str, Any]:
        """OpenCV's version and the parameters."""
        return {"opencv": cv2.__version__, **self.parameters}

    def _prepare(self) -> None:
        """Make OpenCV's object, whose buffers hold for the frames of one call."""

    @abstractmethod
    def _between(self, first: Gray, second: Gray) -> Any:
        """The field [H, W, 2] between two gray frames [H, W]."""


# DIS: OpenCV's medium preset, but with its fast preset's stride (4 for 3) and 2 refinements for 5: 0.025 px away from it on
# average, a sixth of a step of the 8-bit code, in two thirds of its time. Farneback: the values of OpenCV's documentation.
# TV-L1: OpenCV's defaults, the published recipe's. All are written out, so that another OpenCV's other defaults change
# neither the flow nor its fingerprint.
class Dis(_OpenCV):
    """Dense inverse search (Kroeger et al., ECCV 2016)."""

    parameters: ClassVar[dict[str, Any]] = {
        "FinestScale": 1,
        "PatchSize": 8,
        "PatchStride": 4,
        "GradientDescentIterations": 25,
        "UseMeanNormalization": True,
        "UseSpatialPropagation": True,
        "VariationalRefinementIterations": 2,
        "VariationalRefinementAlpha": 20.0,
        "VariationalRefinementDelta": 5.0,
        "VariationalRefinementGamma": 10.0,
    }

    def _prepare(self) -> None:
        # OpenCV's stubs know no "make the output yourself", hence Any.
        self.flow: Any = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
        for name, value in self.parameters.items():
            getattr(self.flow, f"set{name}")(value)

    def _between(self, first: Gray, second: Gray) -> Any:
        # With a side under 16 pixels OpenCV's DIS reads outside of its buffers and ends the process.
        height, width = first.shape
        rim = (max(0, 16 - height), max(0, 16 - width))
        if any(rim):
            first, second = (np.pad(g, ((0, rim[0]), (0, rim[1])), "edge") for g in (first, second))
        return self.flow.calc(first, second, None)[:height, :width]


class CompensatedDis(Dis):
    """DIS beyond the camera's own motion: each field without its median over the frame, of u and of v.

    For things that are small in the picture of a camera that pans. What a median is not (zoom, rotation) stays.
    """

    def fields(self, frames: NDArray[np.uint8]) -> Field:
        """As `FlowAlgorithm`; on one thread."""
        flow = super().fields(frames)
        moved: Field = flow - np.median(flow, axis=(1, 2), keepdims=True)
        return moved

    def identity(self) -> dict[str, Any]:
        """OpenCV's version and the parameters."""
        return {**super().identity(), "camera": "median"}


class Farneback(_OpenCV):
    """Polynomial expansion (Farneback, SCIA 2003)."""

    parameters: ClassVar[dict[str, Any]] = {
        "pyr_scale": 0.5,
        "levels": 3,
        "winsize": 15,
        "iterations": 3,
        "poly_n": 5,
        "poly_sigma": 1.2,
        "flags": 0,
    }

    def _between(self, first: Gray, second: Gray) -> Any:
        farneback: Any = cv2.calcOpticalFlowFarneback
        return farneback(first, second, None, **self.parameters)


class TVL1(_OpenCV):
    """Duality-based TV-L1 (Zach et al., DAGM 2007)."""

    parameters: ClassVar[dict[str, Any]] = {
        "tau": 0.25,
        "lambda_": 0.15,
        "theta": 0.3,
        "nscales": 5,
        "warps": 5,
        "epsilon": 0.01,
        "innnerIterations": 30,  # OpenCV's spelling
        "outerIterations": 10,
        "scaleStep": 0.8,
        "gamma": 0.0,
        "medianFiltering": 5,
        "useInitialFlow": False,
    }

    def _prepare(self) -> None:
        self.flow: Any = cv2.optflow.DualTVL1OpticalFlow.create(**self.parameters)

    def _between(self, first: Gray, second: Gray) -> Any:
        return self.flow.calc(first, second, None)


class TorchTVL1:
    """The same TV-L1 in PyTorch (`data.flow.tvl1`)."""

    uses_torch: ClassVar[bool] = True

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        self.device = device

    def fields(self, frames: NDArray[np.uint8]) -> Field:
        """As `FlowAlgorithm`."""
        return tvl1.tvl1_flow(frames, self.device)

    def identity(self) -> dict[str, Any]:
        """PyTorch's version and the parameters."""
        return tvl1.identity()


class Raft:
    """RAFT (Teed and Deng, ECCV 2020), torchvision's networks with weights from a file."""

    uses_torch: ClassVar[bool] = True

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        if not weights:
            raise UserError("flow.weights: is not set; algorithm raft needs a file with torchvision's RAFT weights")
        self.weights, self.device = weights, device

    def fields(self, frames: NDArray[np.uint8]) -> Field:
        """As `FlowAlgorithm`."""
        return raft.raft_flow(frames, self.weights, self.device)

    def identity(self) -> dict[str, Any]:
        """Versions and the hash of the weights."""
        return raft.identity(self.weights)


class MotionVectors:
    """The codec's own motion vectors (`data.flow.motion_vectors`): `FileFlowAlgorithm`."""

    uses_torch: ClassVar[bool] = False

    def __init__(self, weights: str | None, device: str, options: Mapping[str, Any]) -> None:
        pass

    def fields_of_file(self, path: str, frames: NDArray[np.int64], size: tuple[int, int], decoder: Decoder) -> Field:
        """As `FileFlowAlgorithm`."""
        return motion_vectors.motion_vector_fields(path, frames, size, decoder)

    def iterate_file(self, path: str, size: tuple[int, int], decoder: Decoder) -> Iterator[Field]:
        """As `FileFlowAlgorithm`."""
        return motion_vectors.iterate_motion_vectors(path, size, decoder)

    def identity(self) -> dict[str, Any]:
        """FFmpeg's version and the rules."""
        return motion_vectors.identity()
