"""Optical flow of many small pictures at once, by Lucas and Kanade's closed form from coarse to fine, on the device that trains.

The method: Lucas and Kanade, "An iterative image registration technique with an application to stereo vision" (IJCAI 1981), in a
pyramid with a warp a level as in Bouguet, "Pyramidal implementation of the Lucas Kanade feature tracker" (2000), damped towards no
motion as in Simoncelli, Adelson and Heeger, "Probability distributions of optical flow" (CVPR 1991). At each pixel of a level the
increment d = (u, v) makes small the mean over a window and the colours of |g . d + I1 - I0|^2, plus a damping times |d|^2:

    d = - (mean of g g^T + damping)^-1  mean of g (I1 - I0),      g = grad (I0 + I1) / 2

I1 being the next picture, warped by the field of the level above. No search and no smoothness between windows: some twenty passes
over small pictures. It is coarser than DIS and needs nothing beside the RGB frames, so that no flow is measured while videos
are decoded, sent or stored.

Legend: N pairs of pictures of C colours, H x W pixels of the input, h x w of a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Raised whenever this file gives other numbers: stored features name it.
RULES = 1
# Pixels of a level's shorter side, at least, where another level lies above it. The finest level has half of the input's side, as
# windows are larger than two pixels: at the whole size it takes twice as long and is hardly nearer to DIS (docs/design.md).
SMALLEST = 12
# Side of a window, in pixels of the level; `_window_sums` is written for 7.
WINDOW = 7
# Beside the mean squared gradient along an axis, of pictures in 0..1: at 0.045 a pixel, half of the motion is found.
DAMPING = 0.002


def lucas_kanade(pictures: Tensor, following: Tensor) -> Tensor:
    """Flow from each picture to the one that follows it: two float [N, C, H, W] of colours in 0..1 -> float [N, 2, H, W].

    The field is (u, v) in pixels of the input, along x and y. Any constant may be added to a colour of both pictures.
    """
    height, width = pictures.shape[-2:]
    levels = [(_halved(pictures), _halved(following))]
    while min(levels[-1][0].shape[-2:]) >= 2 * SMALLEST:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    field = _increment(*levels[-1])
    for here, then in reversed(levels[:-1]):
        field = _finer(field, here.shape[-2:])
        field = field + _increment(here, _warped(then, field))
    return _finer(field, (height, width))


def _halved(pictures: Tensor) -> Tensor:
    """[N, C, h, w] -> the means of 2 x 2 pixels; a last odd row or column is left out."""
    return F.interpolate(pictures, scale_factor=0.5, mode="bilinear", align_corners=False)


def _increment(here: Tensor, then: Tensor) -> Tensor:
    """The closed form: two [N, C, h, w] -> [N, 2, h, w]. A window that lies partly outside has less to say against the damping."""
    mean = F.pad((here + then) / 2, (1, 1, 1, 1), mode="replicate")
    x = (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2
    y = (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2
    t = then - here
    products = torch.stack([(a * b).sum(dim=1) for a, b in ((x, x), (y, y), (x, y), (x, t), (y, t))])
    xx, yy, xy, xt, yt = _window_sums(products).unbind()
    damping = DAMPING * here.shape[1] * WINDOW**2
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    return torch.stack([xy * yt - yy * xt, xy * xt - xx * yt], dim=1) / determinant[:, None]


def _window_sums(values: Tensor) -> Tensor:
    """[5, N, h, w] -> the sum over the window around each pixel, where beyond the border is 0; same shape.

    Of 7 neighbours as 4 + 2 + 1: sums of shifted pictures take a quarter of the time of `avg_pool2d` on a CPU.
    """
    padded = F.pad(values, (WINDOW // 2,) * 4)
    for axis in (-1, -2):
        length = values.shape[axis]
        two = padded.narrow(axis, 0, length + 5) + padded.narrow(axis, 1, length + 5)
        four = two.narrow(axis, 0, length) + two.narrow(axis, 2, length)
        padded = four.add_(two.narrow(axis, 4, length)).add_(padded.narrow(axis, 6, length))
    return padded


def _finer(field: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The field [N, 2, h, w] of a level of pixels twice as large -> [N, 2, *shape], in the pixels there."""
    large = 2 * F.interpolate(field, scale_factor=2, mode="bilinear", align_corners=False)
    odd = (0, shape[1] - large.shape[-1], 0, shape[0] - large.shape[-2])
    return F.pad(large, odd, mode="replicate") if any(odd) else large


def _warped(pictures: Tensor, field: Tensor) -> Tensor:
    """[N, C, h, w], each read where the field [N, 2, h, w] points to, bilinear; beyond the border its last pixels."""
    height, width = pictures.shape[-2:]
    x = torch.arange(width, device=field.device) + field[:, 0]
    y = torch.arange(height, device=field.device)[:, None] + field[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
