"""Optical flow by RAFT (Teed and Deng, ECCV 2020), torchvision's networks with weights from a file.

Legend: n pairs of frames, H rows, W columns. torch is imported on first use: a decode actor that needs no RAFT stays small.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vicc_ray.errors import UserError
from vicc_ray.storage import local_copy

if TYPE_CHECKING:
    import torch

NETWORKS = ("raft_small", "raft_large")
UPDATES = 12  # torchvision's default and what its published accuracies were measured with
MULTIPLE = 8  # the networks work at an eighth of the picture,
SMALLEST = 128  # where four levels of correlation need 16 pixels a side
PAIRS = 8  # run at a time: raft_large holds about 40 MB for each of 128 x 171 pixels


def raft_flow(frames: NDArray[np.uint8], weights: str, device: str = "cpu") -> NDArray[np.float32]:
    """Flow from each frame to the next: uint8 RGB [n + 1, H, W, 3] -> float32 [n, H, W, 2], (u, v) in pixels.

    Frames with a side under 128 pixels are enlarged first, others only padded to a multiple of 8. `weights` is a path or
    URI of a state dict (.pth, .pt, .safetensors); its keys show whether it is raft_small or raft_large. Raises
    `UserError` where it is missing or another network's, or where there is no such device.
    """
    import torch

    network = _network(weights, device)[1]
    flow = np.empty((max(len(frames) - 1, 0), *frames.shape[1:3], 2), np.float32)
    with torch.inference_mode():
        for start in range(0, len(flow), PAIRS):
            chunk = torch.tensor(frames[start : start + PAIRS + 1]).to(device).permute(0, 3, 1, 2)  # [b + 1, 3, H, W]
            field = _run(network, chunk)  # [b, 2, H, W]
            flow[start : start + len(field)] = field.permute(0, 2, 3, 1).cpu().numpy()
    return flow


def identity(weights: str) -> dict[str, Any]:
    """What decides RAFT's numbers: the network, its weights' hash, and the libraries' versions."""
    import torch
    import torchvision

    return {
        "network": _network(weights, "cpu")[0],
        "weights": _hash(weights),
        "updates": UPDATES,
        "torch": torch.__version__.split("+")[0],
        "torchvision": torchvision.__version__.split("+")[0],
    }


def _run(network: Any, frames: torch.Tensor) -> torch.Tensor:
    """uint8 [b + 1, 3, H, W] -> float32 [b, 2, H, W]: to the size and range that RAFT wants, and back."""
    from torch.nn.functional import interpolate, pad

    height, width = frames.shape[-2:]
    larger = max(1.0, SMALLEST / min(height, width))
    inner = (round(height * larger), round(width * larger))
    pictures = frames.float() / 127.5 - 1.0
    if larger > 1.0:
        pictures = interpolate(pictures, inner, mode="bilinear", align_corners=False)
    rim = (-inner[1] % MULTIPLE, -inner[0] % MULTIPLE)
    pictures = pad(pictures, (0, rim[0], 0, rim[1]), mode="replicate")
    field: torch.Tensor = network(pictures[:-1], pictures[1:], num_flow_updates=UPDATES)[-1]
    field = field[..., : inner[0], : inner[1]]
    if larger > 1.0:
        field = interpolate(field, (height, width), mode="bilinear", align_corners=False)
        field = field * field.new_tensor([width / inner[1], height / inner[0]])[:, None, None]
    return field


@lru_cache(maxsize=2)
def _network(weights: str, device: str) -> tuple[str, Any]:
    """(name, network in evaluation mode on the device) for a weights file."""
    import torch
    from torchvision.models import optical_flow

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device}: this machine has no CUDA device; RAFT runs on cpu too, more slowly")
    state = _state(weights)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name in NETWORKS:
        # On the meta device nothing is initialised, so nothing is drawn from the global generator.
        with torch.device("meta"):
            network = getattr(optical_flow, name)(weights=None)
        if {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes:
            network.load_state_dict(state, assign=True)
            return name, network.requires_grad_(False).eval().to(device)
    raise UserError(
        f"flow.weights {weights}: holds {len(shapes)} tensors that are neither torchvision's raft_small nor raft_large; "
        "save the state dict of one of these"
    )


def _state(weights: str) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load_file

    problem = f"flow.weights {weights}: cannot be read as a file of tensors (.pth, .pt or .safetensors)"
    try:
        with local_copy(weights) as path:
            safe = path.endswith(".safetensors")
            state: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"flow.weights {weights}: no such file") from error
    except Exception as error:  # the two readers raise a dozen kinds for a file that is not theirs
        raise UserError(problem) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(problem)
    return state


@lru_cache(maxsize=2)
def _hash(weights: str) -> str:
    digest = blake2b(digest_size=16)
    with local_copy(weights) as path, open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()
