"""Factorised 3D convolutions and max-pools computed as 2D ones, which libraries do much faster.

In channels-last memory, [B, T, H, W, C], frames are a batch of pictures and a frame's pixels are one long row, both without a copy:
    kernel [1, k, k]   2D over the pictures [B T, C, H, W]
    kernel [k, 1, 1]   2D with kernel [k, 1] over [B, C, T, H W]
    max-pool [k, k, k] over the pictures first, then over time; of equal values the first one in the order t, h, w gets the
                       gradient either way
The same numbers up to rounding, and the same parameters and names: only how they are computed changes.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vicc_ray.config import TrainConfig
from vicc_ray.models.layers import LastPool

Triple = tuple[int, int, int]
Module = TypeVar("Module", bound=nn.Module)


def arrange(module: Module, settings: TrainConfig, device: torch.device) -> Module:
    """An encoder or classifier on its device and as the settings want it computed; its clips are given in `layout_of`."""
    if _is_planar(settings, device):
        planar_(module)
    return module.to(device).to(memory_format=layout_of(settings, device))


def layout_of(settings: TrainConfig, device: torch.device) -> torch.memory_format:
    """The memory layout of clips and maps."""
    channels_last = _is_planar(settings, device) or settings.channels_last
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _is_planar(settings: TrainConfig, device: torch.device) -> bool:
    return device.type == "cpu" if settings.planar == "auto" else settings.planar


def planar_(module: nn.Module) -> nn.Module:
    """Put planar ones in the place of every convolution and max-pool in `module` that can be; returns `module`.

    Parameters are taken over, not copied. Give it maps in `torch.channels_last_3d`; others are copied at every layer.
    """
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Conv3d) and _is_factor(part):
            module.set_submodule(name, PlanarConv3d(part))
        elif isinstance(part, nn.MaxPool3d) and not (part.ceil_mode or part.return_indices):
            module.set_submodule(name, PlanarMaxPool3d(part))
        elif isinstance(part, LastPool):
            module.set_submodule(name, PlanarLastPool())
    return module


class PlanarConv3d(nn.Conv3d):
    """A convolution of kernel [1, k, k] or [k, 1, 1]; made of another one, whose parameters it takes."""

    def __init__(self, other: nn.Conv3d) -> None:
        kernel, stride, padding = _triple(other.kernel_size), _triple(other.stride), _triple(other.padding)
        bias = other.bias is not None
        # On the meta device nothing is drawn or stored for parameters that are replaced.
        super().__init__(other.in_channels, other.out_channels, kernel, stride, padding, bias=bias, device="meta")
        self.weight, self.bias = other.weight, other.bias
        self.kernel, self.strides, self.pads = kernel, stride, padding
        self.train(other.training)

    def forward(self, input: Tensor) -> Tensor:
        """Maps [B, cin, t, h, w] -> [B, cout, t', h', w'] as nn.Conv3d."""
        if not len(input):
            return super().forward(input)  # torch's 2D convolutions take no empty batch of some shapes
        (kt, _, _), (st, sh, sw), (pt, ph, pw) = self.kernel, self.strides, self.pads
        if kt == 1:
            if self.kernel == (1, 1, 1) and (ph, pw) == (0, 0) and self.in_channels % 8 and torch.is_grad_enabled():
                # The pixels that count are picked first: of so few channels, a strided 1 x 1 convolution's gradient wrote beyond
                # its memory on CPUs with AVX2 alone (oneDNN of torch 2.15).
                input, sh, sw = input[..., ::sh, ::sw], 1, 1
            pictures = _pictures(input)
            if sw > 1 and pw and pictures.shape[-1] == 1 and torch.is_autocast_enabled("cpu"):
                # In bf16 the weight gradient over pictures of one column was what lay in memory (oneDNN of torch 2.15).
                pictures, ph, pw = _padded(pictures, ph, pw), 0, 0
            x = F.conv2d(pictures, self.weight.squeeze(2), self.bias, (sh, sw), (ph, pw))
            return _unfold_time(x, len(input))
        b, c, t, h, w = input.shape
        x = input.reshape(b, c, t, h * w)
        if st > 1 and t <= kt:
            # Clips no longer than a strided kernel are padded by hand: see `models.layers.ShortClipConv3d`.
            x, pt = _padded(x, pt, 0), 0
        out = F.conv2d(x, self.weight.squeeze(4), self.bias, (st, 1), (pt, 0))
        return out.view(b, out.shape[1], out.shape[2], h, w)


class PlanarMaxPool3d(nn.Module):
    """Max-pooling first over the pictures, then over time; made of nn.MaxPool3d."""

    def __init__(self, other: nn.MaxPool3d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (_triple(v) for v in (other.kernel_size, other.stride, other.padding))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D, t, h, w] -> [B, D, t', h', w'] as nn.MaxPool3d."""
        return _pool(x, self.kernel, self.stride, self.padding)


class PlanarLastPool(nn.Module):
    """As `models.layers.LastPool`."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D, t, h, w] -> [B, D, max(1, t // 2), max(1, h // 2), max(1, w // 2)]."""
        t, h, w = (min(2, int(size)) for size in x.shape[2:])
        return _pool(x, (t, h, w), (t, h, w), (0, 0, 0))


def _padded(pictures: Tensor, ph: int, pw: int) -> Tensor:
    """[N, C, h, w] -> [N, C, h + 2 ph, w + 2 pw] with zeros, channels-last."""
    return F.pad(pictures, (pw, pw, ph, ph)).contiguous(memory_format=torch.channels_last)


def _is_factor(conv: nn.Conv3d) -> bool:
    """Whether it sees one frame at a time, or one pixel, each once and zero-padded."""
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or conv.groups != 1 or set(conv.dilation) != {1}:
        return False
    (kt, kh, kw), (st, sh, sw), (pt, ph, pw) = _triple(conv.kernel_size), _triple(conv.stride), _triple(conv.padding)
    in_frames = kt == st == 1 and pt == 0
    in_time = kh == kw == sh == sw == 1 and ph == pw == 0
    return in_frames or (in_time and kt > 1)


def _triple(value: object) -> Triple:
    t, h, w = value if isinstance(value, tuple) else (value, value, value)
    return int(t), int(h), int(w)


def _pictures(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]; a view in channels-last memory."""
    b, c, t, h, w = x.shape
    return x.transpose(1, 2).reshape(b * t, c, h, w)


def _unfold_time(pictures: Tensor, clips: int) -> Tensor:
    """[B T, C, H, W] -> [B, C, T, H, W]."""
    return pictures.view(clips, pictures.shape[0] // clips, *pictures.shape[1:]).transpose(1, 2)


def _pool(x: Tensor, kernel: Triple, stride: Triple, padding: Triple) -> Tensor:
    if not len(x):
        return F.max_pool3d(x, kernel, stride, padding)
    b, t = x.shape[0], x.shape[2]
    if max(kernel[1:]) > 1 or max(stride[1:]) > 1:
        x = _unfold_time(F.max_pool2d(_pictures(x), kernel[1:], stride[1:], padding[1:]), b)
    if kernel[0] > 1 or stride[0] > 1:
        d, h, w = x.shape[1], x.shape[3], x.shape[4]
        rows = F.max_pool2d(x.reshape(b, d, t, h * w), (kernel[0], 1), (stride[0], 1), (padding[0], 0))
        x = rows.view(b, d, rows.shape[2], h, w)
    return x
