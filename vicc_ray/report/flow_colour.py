"""Optical flow as colour: hue is the direction, saturation the magnitude up to a limit (Baker et al.'s wheel, torchvision's)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import flow_to_image

# Limits in pixels a frame that a reader can count with; below the first, the steps of 8-bit flow would look like motion.
LIMITS = (1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0)


def colour_flow(flow: Tensor, limit: float) -> NDArray[np.uint8]:
    """(u, v) in pixels, float [n,2,H,W] -> uint8 RGB [n,H,W,3]; no motion is white, `limit` and above full colour."""
    if flow.dim() != 4 or flow.shape[1] != 2 or not flow.is_floating_point():
        raise ValueError(f"flow: expected float [n,2,H,W], got {flow.dtype} {list(flow.shape)}")
    if limit <= 0:
        raise ValueError(f"limit: {limit} pixels; it must be above 0")
    magnitude = flow.square().sum(dim=1, keepdim=True).sqrt()
    shortened = flow * (limit / magnitude.clamp_min(limit))
    # torchvision scales by the largest vector of what it is given; one more field whose vectors are `limit` long fixes it.
    yardstick = torch.zeros_like(flow[:1]) if len(flow) else flow.new_zeros((1, *flow.shape[1:]))
    yardstick[:, 0] = limit
    pictures = flow_to_image(torch.cat([shortened, yardstick]))[:-1]
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())


def readable_limit(magnitudes: Tensor, share: float = 0.995) -> float:
    """The smallest of LIMITS that at least `share` of the magnitudes (pixels, any shape) stay within; the last where none is."""
    if not magnitudes.numel():
        return LIMITS[0]
    # A strided tenth of a million is as good as all, and `torch.quantile` takes no more than 16 million.
    values = magnitudes.flatten()
    reached = float(values[:: max(1, values.numel() // 100_000)].float().quantile(share))
    return next((limit for limit in LIMITS if limit >= reached), LIMITS[-1])


def colour_wheel(side: int) -> NDArray[np.uint8]:
    """The legend: uint8 [side,side,3]; a point's colour is that of the motion from the centre to it, white outside."""
    at = torch.linspace(-1, 1, side)
    v, u = torch.meshgrid(at, at, indexing="ij")
    inside = (u.square() + v.square() <= 1).float()
    wheel: NDArray[np.uint8] = colour_flow((torch.stack([u, v]) * inside)[None], 1.0)[0]
    return wheel
