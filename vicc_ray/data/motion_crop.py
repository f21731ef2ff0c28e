"""Crops at test that follow what moves: one square a window, the same for all of its frames and streams, chosen without chance.

Legend: B windows, T frames, H x W decode size, C channels; s side of the crop; h x w = every fourth pixel of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vicc_ray.config import Decoded
from vicc_ray.data.augment import motion_energy

EVERY = 4  # pixels from one place of `motion_energy` to the next


def motion_crops(clips: Mapping[Decoded, Tensor], share: float) -> dict[Decoded, Tensor]:
    """The squares of decoded clips where things move: uint8 [B,T,H,W,C] each -> uint8 [B,T,s,s,C]; of share 0 the clips.

    `share`: of the frame's shorter side that the side s is. The energy of motion is that by which training follows
    (`data.augment.motion_energy`): of flow beyond the frame's median, which is a panning camera's, where flow is among the clips;
    else of frame differences. Flow keeps its unit, decoded pixels: who resizes the crop scales it by its zoom.
    """
    if not share:
        return dict(clips)
    frames = next(iter(clips.values()))
    height, width = frames.shape[2:4]
    side = max(round(share * min(height, width)), 1)
    corners = crop_corners(clips, side).tolist() if len(frames) else []
    return {name: _cropped(clip, corners, side) for name, clip in clips.items()}


def crop_corners(clips: Mapping[Decoded, Tensor], side: int) -> Tensor:
    """Top and left of each window's crop of `side` pixels: int64 [B,2] on the CPU.

    Of all places in whole pixels the one with the most energy, each point of which counts less the further it is from the crop's
    middle, down to 0 at its border along either axis: so that what moves lies in the middle. Among equals the one nearest to the
    frame's middle: a window without motion is seen there. Energies and weights are whole numbers, whose sums are exact in float64
    as far as 2^53: a window's crop depends on nothing but the window, on any device.
    """
    frames = next(iter(clips.values()))
    height, width = frames.shape[2:4]
    steps = frames.shape[1] - (0 if "flow" in clips else 1)
    energy = (motion_energy(clips).double() * steps).round()  # [B,h,w], the sum over time
    y, x = (_weights(length, side, energy.device) for length in (height, width))
    score = torch.einsum("py,byx,qx->bpq", y, energy, x)
    away = _from_middle(height - side, energy.device)[:, None] + _from_middle(width - side, energy.device)
    # One number for each place, so that there is one smallest.
    order = away * away.numel() + torch.arange(away.numel(), device=away.device).view_as(away)
    best = score == score.amax(dim=(1, 2), keepdim=True)
    chosen = torch.where(best, order, order.max() + 1).flatten(1).argmin(dim=1).cpu()
    columns = width - side + 1
    return torch.stack([chosen // columns, chosen % columns], dim=1)


def _weights(length: int, side: int, device: torch.device) -> Tensor:
    """How much each sampled pixel of an axis counts in each crop along it: whole numbers 0..s, float64 [length - s + 1, n]."""
    begins = torch.arange(length - side + 1, device=device)[:, None]
    pixels = torch.arange(0, length, EVERY, device=device)
    return (side - (2 * (pixels - begins) + 1 - side).abs()).clamp_min(0).double()


def _from_middle(room: int, device: torch.device) -> Tensor:
    """Twice the distance of each place along an axis from the middle one, int64 [room + 1]."""
    return (2 * torch.arange(room + 1, device=device) - room).abs()


def _cropped(clip: Tensor, corners: list[list[int]], side: int) -> Tensor:
    """uint8 [B,T,H,W,C] -> [B,T,s,s,C]."""
    if not corners:
        return clip[:, :, :side, :side]
    rows = zip(clip, corners, strict=True)
    return torch.stack([row[:, top : top + side, left : left + side] for row, (top, left) in rows])
