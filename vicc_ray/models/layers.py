"""Parts of the backbones that are our own, and how wide they are.

Shapes: maps [B, D, t, h, w].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scale_channels(channels: int, width: float) -> int:
    """`channels` times the width multiplier, rounded to the nearest whole number and never below 1."""
    return max(1, int(channels * width + 0.5))


@torch.no_grad()
def subtract_mean_over_time_(module: nn.Module, share: float) -> int:
    """Make the first floor(share * cout) filters of every convolution over time respond to change alone; returns how many.

    Of these filters w [n, cin, kt, kh, kw] of a convolution, kt > 1, the mean over kt is taken off, so that what stands still
    gives 0, and they are scaled so that the sum of squares over all n is as before. Grouped convolutions stay as they are: those
    of MViT pool the keys and values of attention.
    """
    changed = 0
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1 and layer.groups == 1:
            filters = layer.weight[: int(share * layer.out_channels)]
            size = filters.norm()
            filters -= filters.mean(dim=2, keepdim=True)
            filters *= size / filters.norm().clamp_min(torch.finfo(filters.dtype).tiny)
            changed += len(filters)
    return changed


class LastPool(nn.Module):
    """Max pooling by 2 in time, height and width that leaves an axis of length 1 as it is.

    Identical to the published 2x2x2 pooling wherever that is defined; clips of 2-4 frames (one step in time at this
    depth) pass instead of failing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D, t, h, w] -> [B, D, max(1, t // 2), max(1, h // 2), max(1, w // 2)]."""
        return F.max_pool3d(x, [min(2, int(size)) for size in x.shape[2:]])


class ShortClipConv3d(nn.Conv3d):
    """A temporal [k,1,1] convolution that pads by hand where the clip is no longer than the kernel.

    The same numbers, but not the same kernel: with 5-7 frames, 16 or more channels and stride 2, torch 2.15's CPU
    backward (oneDNN, AVX-512) of the implicitly padded stem convolution gives wrong gradients or corrupts the heap.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, cin, t, h, w] -> [B, cout, ceil(t / stride), h, w]."""
        if int(input.shape[2]) > self.kernel_size[0]:
            return super().forward(input)
        padded = F.pad(input, (0, 0, 0, 0, int(self.padding[0]), int(self.padding[0])))
        return F.conv3d(padded, self.weight, self.bias, stride=self.stride)
