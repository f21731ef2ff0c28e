"""R(2+1)D networks (Tran et al., "A Closer Look at Spatiotemporal Convolutions", CVPR 2018): 10 and 18 layers.

Shapes: clips x [B, C, T, H, W] -> maps [B, D, t, h, w] with D = 512 at width 1. The 10-layer network is the one of the
published ViCC checkpoints; the 18-layer one is torchvision's `r2plus1d_18`. They differ in more than depth: the stem's
mid channels (83 against 45), a block's second convolution (its own mid channels against the first one's) and the
shortcut (factorised against a single convolution).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vicc_ray.models.layers import scale_channels

_LAYER_WIDTHS = (64, 128, 256, 512)


def mid_channels(in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> int:
    """M of a factorised convolution: floor(kt kh kw cin cout / (kh kw cin + kt cout)), at least 1.

    With M mid channels the 2+1 pair has as many weights as the full 3D kernel (paper, section 3.5).
    """
    kt, kh, kw = kernel
    return max(1, kt * kh * kw * in_channels * out_channels // (kh * kw * in_channels + kt * out_channels))


class FactorisedConv3d(nn.Module):
    """A spatial [1,k,k] convolution, batch norm, ReLU and a temporal [k,1,1] convolution; no norm after it."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        (kt, kh, kw), (st, sh, sw) = kernel, stride
        mid = mid_channels(in_channels, out_channels, kernel)
        self.spatial = nn.Conv3d(
            in_channels, mid, (1, kh, kw), stride=(1, sh, sw), padding=(0, kh // 2, kw // 2), bias=False
        )
        self.norm = nn.BatchNorm3d(mid)
        self.temporal = nn.Conv3d(mid, out_channels, (kt, 1, 1), stride=(st, 1, 1), padding=(kt // 2, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, cin, t, h, w] -> [B, cout, ceil(t/st), ceil(h/sh), ceil(w/sw)]."""
        out: Tensor = self.temporal(F.relu(self.norm(self.spatial(x)), inplace=True))
        return out


class FactorisedBlock(nn.Module):
    """Two factorised 3x3x3 convolutions with a residual; the shortcut of a strided block is factorised too."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        strides = (stride, stride, stride)
        self.shortcut: FactorisedConv3d | None = None
        self.shortcut_norm: nn.BatchNorm3d | None = None
        if stride != 1:
            self.shortcut = FactorisedConv3d(in_channels, out_channels, (1, 1, 1), strides)
            self.shortcut_norm = nn.BatchNorm3d(out_channels)
        self.conv1 = FactorisedConv3d(in_channels, out_channels, (3, 3, 3), strides)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = FactorisedConv3d(out_channels, out_channels, (3, 3, 3), (1, 1, 1))
        self.norm2 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, cin, t, h, w] -> [B, cout, t/stride, h/stride, w/stride] (rounded up)."""
        residual = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            residual = self.shortcut_norm(self.shortcut(x))
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(out)) + residual, inplace=True)


class R2Plus1D10(nn.Module):
    """The published 10-layer R(2+1)D: clips [B, C, T, H, W] -> maps [B, feature_dim, T/8, H/16, W/16] (rounded up).

    A 3x7x7 factorised stem of spatial stride 2, then one block for each of the widths 64, 128, 256, 512, stride 2 in
    every axis from the second on. `width` multiplies these; mid channels follow from `mid_channels`.
    """

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        w1, w2, w3, w4 = (scale_channels(channels, width) for channels in _LAYER_WIDTHS)
        self.stem = FactorisedConv3d(in_channels, w1, (3, 7, 7), (1, 2, 2))
        self.stem_norm = nn.BatchNorm3d(w1)
        self.layer1 = FactorisedBlock(w1, w1, stride=1)
        self.layer2 = FactorisedBlock(w1, w2, stride=2)
        self.layer3 = FactorisedBlock(w2, w3, stride=2)
        self.layer4 = FactorisedBlock(w3, w4, stride=2)
        self.feature_dim = w4

    def forward(self, x: Tensor) -> Tensor:
        """Clips [B, C, T, H, W] -> maps [B, feature_dim, t, h, w]."""
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        out: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return out

    def parts(self) -> list[nn.Module]:
        """What clips go through, one after the other."""
        stem = nn.Sequential(self.stem, self.stem_norm, nn.ReLU(inplace=True))
        return [stem, self.layer1, self.layer2, self.layer3, self.layer4]


class R2Plus1D18(nn.Module):
    """torchvision's `r2plus1d_18` without its classifier, with a width multiplier and 1-3 input channels.

    Made of torchvision's own blocks under torchvision's own names, so at width 1 its weights load as they are.
    Clips [B, C, T, H, W] -> maps [B, feature_dim, T/8, H/16, W/16] (rounded up).
    """

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        widths = [scale_channels(channels, width) for channels in _LAYER_WIDTHS]
        mid = scale_channels(45, width)  # torchvision's constant, not the paper's formula
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, mid, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
            nn.BatchNorm3d(mid),
            nn.ReLU(inplace=True),
            nn.Conv3d(mid, widths[0], (3, 1, 1), padding=(1, 0, 0), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.layer1 = _torchvision_layer(widths[0], widths[0], stride=1)
        self.layer2 = _torchvision_layer(widths[0], widths[1], stride=2)
        self.layer3 = _torchvision_layer(widths[1], widths[2], stride=2)
        self.layer4 = _torchvision_layer(widths[2], widths[3], stride=2)
        self.feature_dim = widths[3]

    def forward(self, x: Tensor) -> Tensor:
        """Clips [B, C, T, H, W] -> maps [B, feature_dim, t, h, w]."""
        out: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return out

    def parts(self) -> list[nn.Module]:
        """What clips go through, one after the other."""
        return [self.stem, self.layer1, self.layer2, self.layer3, self.layer4]


def _torchvision_layer(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Two of torchvision's basic blocks; a strided layer's first one has a 1x1x1 convolution as its shortcut."""
    # Only where it is used: see `models.encoder`.
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D

    shortcut = None
    if stride != 1:
        shortcut = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm3d(out_channels),
        )
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, Conv2Plus1D, stride, shortcut),
        BasicBlock(out_channels, out_channels, Conv2Plus1D),
    )
