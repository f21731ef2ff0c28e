"""Optical flow between consecutive frames, and its uint8 form.

`dis`, `farneback`, `tvl1` (OpenCV), `tvl1_torch` (PyTorch) and `raft` (a network) look at pictures; `motion_vectors` are
read from the video file.

Shapes: n fields between n + 1 frames; H rows, W columns. A field is float32 [H, W, 2] = (u, v) in pixels of these
frames: what is at (x, y) in the first is at (x + u, y + v) in the second; u is positive to the right, v downwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.flow import motion_vectors, raft, tvl1
from vicc_ray.data.pictures import RULES, Interlaced
from vicc_ray.errors import UserError

Field = NDArray[np.float32]
Gray = NDArray[np.uint8]

# One pixel value of a quantised field is 2 * BOUND / 255 = 0.157 px, the published recipe's.
BOUND = 20.0


# Two gray frames [H, W] -> the field between them. OpenCV's stubs know no "make the output yourself", hence Any.
Between = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Algorithm:
    """How OpenCV makes a field: `parameters` hold every number that decides it, `build` makes a function of two frames.

    The function is kept for a clip, as it holds the algorithm's buffers.
    """

    parameters: dict[str, Any]
    build: Callable[[dict[str, Any]], Between]


def flow_between(
    frames: NDArray[np.uint8], algorithm: str = "dis", weights: str | None = None, device: str = "cpu"
) -> Field:
    """Flow from each frame to the next: uint8 RGB [n + 1, H, W, 3] -> float32 [n, H, W, 2], (u, v) in pixels.

    `weights` (a file, only for `raft`) and `device` ("cpu", "cuda", only for `raft` and `tvl1_torch`). OpenCV's and
    `tvl1_torch` on the CPU run on one thread. Raises `UserError` for an unknown algorithm, weights that are not RAFT's or
    a device that is not there, `ValueError` for frames of another shape or type and for `motion_vectors`, which come from
    the file: `vicc_ray.data.flow.motion_vectors`.
    """
    _check_name(algorithm)
    if algorithm == MOTION_VECTORS:
        raise ValueError("motion_vectors are read from the video file, not from pictures")
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) < 1:
        raise ValueError(f"frames must be uint8 [n + 1, H, W, 3]; they are {frames.dtype} {list(frames.shape)}")
    if algorithm == RAFT:
        return raft.raft_flow(frames, _weights_of_raft(weights), device)
    if algorithm == TVL1_TORCH:
        return tvl1.tvl1_flow(frames, device)
    chosen = OPENCV[algorithm]
    cv2.setNumThreads(1)
    height, width = frames.shape[1:3]
    flow = np.empty((len(frames) - 1, height, width, 2), np.float32)
    if len(flow):
        between = chosen.build(chosen.parameters)
        gray: list[Any] = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        for i in range(len(flow)):
            flow[i] = between(gray[i], gray[i + 1])
    return flow


def fingerprint(algorithm: str, weights: str | None = None, interlaced: Interlaced = "weave") -> str:
    """All that decides the algorithm's numbers, as one line of JSON: its name, parameters and library's version, and how
    pictures are made (`interlaced` among it) where it compares pictures.

    For `raft` the file `weights` is read and its hash is among them; `UserError` where it is missing or not RAFT's.
    """
    _check_name(algorithm)
    if algorithm == RAFT:
        decides = raft.identity(_weights_of_raft(weights))
    elif algorithm == TVL1_TORCH:
        decides = tvl1.identity()
    elif algorithm == MOTION_VECTORS:
        decides = motion_vectors.identity()
    else:
        decides = {"opencv": cv2.__version__, **OPENCV[algorithm].parameters}
    if algorithm != MOTION_VECTORS:
        decides |= {"pictures": RULES, "interlaced": interlaced}
    return json.dumps({"algorithm": algorithm, **decides}, sort_keys=True)


def quantise(field: Field, bound: float = BOUND) -> NDArray[np.uint8]:
    """round((clip(f, -bound, bound) + bound) * 255 / (2 bound)): float32 pixels -> uint8 of the same shape."""
    clipped = np.clip(field, -bound, bound)
    values: NDArray[np.uint8] = np.rint((clipped + bound) * (255.0 / (2.0 * bound))).astype(np.uint8)
    return values


def dequantise(values: NDArray[np.uint8], bound: float = BOUND) -> Field:
    """The inverse of `quantise` up to bound / 255 pixels: uint8 -> float32 pixels of the same shape."""
    return values.astype(np.float32) * np.float32(2.0 * bound / 255.0) - np.float32(bound)


def _check_name(algorithm: str) -> None:
    if algorithm not in ALGORITHMS:
        raise UserError(f"flow algorithm '{algorithm}' is not known; allowed: {', '.join(ALGORITHMS)}")


def _weights_of_raft(weights: str | None) -> str:
    if not weights:
        raise UserError("flow.weights: is not set; algorithm raft needs a file with torchvision's RAFT weights")
    return weights


def _build_dis(parameters: dict[str, Any]) -> Between:
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    for name, value in parameters.items():
        getattr(flow, f"set{name}")(value)

    def between(first: Gray, second: Gray) -> Any:
        # With a side under 16 pixels OpenCV's DIS reads outside of its buffers and ends the process.
        height, width = first.shape
        rim = (max(0, 16 - height), max(0, 16 - width))
        if any(rim):
            first, second = (np.pad(g, ((0, rim[0]), (0, rim[1])), "edge") for g in (first, second))
        return flow.calc(first, second, None)[:height, :width]

    return between


def _build_farneback(parameters: dict[str, Any]) -> Between:
    farneback: Any = cv2.calcOpticalFlowFarneback
    return lambda first, second: farneback(first, second, None, **parameters)


def _build_tvl1(parameters: dict[str, Any]) -> Between:
    flow: Any = cv2.optflow.DualTVL1OpticalFlow.create(**parameters)
    return lambda first, second: flow.calc(first, second, None)


# DIS: OpenCV's medium preset, but with its fast preset's stride (4 for 3) and 2 refinements for 5: 0.025 px away from it on
# average, a sixth of a step of the 8-bit code, in two thirds of its time. Farneback: the values of OpenCV's documentation.
# TV-L1: OpenCV's defaults, the published recipe's. All are written out, so that another OpenCV's other defaults change
# neither the flow nor its fingerprint.
OPENCV: dict[str, Algorithm] = {
    "dis": Algorithm(
        {
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
        },
        _build_dis,
    ),
    "farneback": Algorithm(
        {
            "pyr_scale": 0.5,
            "levels": 3,
            "winsize": 15,
            "iterations": 3,
            "poly_n": 5,
            "poly_sigma": 1.2,
            "flags": 0,
        },
        _build_farneback,
    ),
    "tvl1": Algorithm(
        {
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
        },
        _build_tvl1,
    ),
}
MOTION_VECTORS = "motion_vectors"
RAFT = "raft"
TVL1_TORCH = "tvl1_torch"
TORCH = (RAFT, TVL1_TORCH)
ALGORITHMS = (*sorted(OPENCV), TVL1_TORCH, MOTION_VECTORS, RAFT)
