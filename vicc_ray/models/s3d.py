"""S3D and S3D-G: separable 3D Inception (Xie et al., "Rethinking Spatiotemporal Feature Learning", ECCV 2018).

Shapes: clips x [B, C, T, H, W] -> maps [B, D, t, h, w] with D = 1024 at width 1. The building blocks are torchvision's;
its network fixes the channel counts and the number of input channels, so only the assembly is ours. Batch norm is
plain (eps 1e-5, momentum 0.1) as in the published ViCC and CoCLR checkpoints, not torchvision's 1e-3.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops.misc import Conv3dNormActivation

from vicc_ray.models.layers import LastPool, ShortClipConv3d, scale_channels

# Inception cells: name -> (branch 0; branch 1 middle, out; branch 2 middle, out; branch 3) channels at width 1.
_CELLS: dict[str, tuple[int, int, int, int, int, int]] = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}


class SelfGating(nn.Module):
    """Feature gating of S3D-G (paper, section 4.4): y = sigmoid(W mean_{t,h,w}(x) + b) * x, per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, D, t, h, w] -> the same shape."""
        weights = torch.sigmoid(self.gate(x.mean(dim=(2, 3, 4))))  # [B, D]
        return weights[:, :, None, None, None] * x


class S3D(nn.Sequential):
    """S3D's convolutional part, from clips [B, C, T, H, W] to maps [B, feature_dim, ~T/8, ~H/32, ~W/32].

    `width` multiplies every channel count. `gating` appends self-gating to each separable convolution, directly after
    its temporal [k,1,1] part, which is the paper's S3D-G. `feature_dim` is 1024 at width 1.
    """

    def __init__(self, in_channels: int, width: float, gating: bool = False) -> None:
        def wide(channels: int) -> int:
            return scale_channels(channels, width)

        norm = nn.BatchNorm3d
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        stem = TemporalSeparableConv(in_channels, wide(64), 7, 2, 3, norm)
        stem[1][0] = ShortClipConv3d(wide(64), wide(64), (7, 1, 1), stride=(2, 1, 1), padding=(3, 0, 0), bias=False)
        layers["conv_1a"] = stem
        layers["pool_2a"] = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        layers["conv_2b"] = Conv3dNormActivation(wide(64), wide(64), kernel_size=1, stride=1, norm_layer=norm)
        layers["conv_2c"] = TemporalSeparableConv(wide(64), wide(192), 3, 1, 1, norm)
        layers["pool_3a"] = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        channels = wide(192)
        for name, (b0, b1_mid, b1, b2_mid, b2, b3) in _CELLS.items():
            if name == "mixed_4b":
                layers["pool_4a"] = nn.MaxPool3d(kernel_size=3, stride=2, padding=1)
            elif name == "mixed_5b":
                layers["pool_5a"] = LastPool()
            cell = [wide(c) for c in (b0, b1_mid, b1, b2_mid, b2, b3)]
            layers[name] = SepInceptionBlock3D(channels, *cell, norm_layer=norm)
            channels = sum(wide(c) for c in (b0, b1, b2, b3))  # the four branches are concatenated
        super().__init__(layers)
        self.feature_dim = channels
        if gating:
            for module in list(self.modules()):
                if isinstance(module, TemporalSeparableConv):
                    temporal = module[1][0]
                    module.append(SelfGating(temporal.out_channels))

    def parts(self) -> list[nn.Module]:
        """What clips go through, one after the other."""
        return list(self.children())


class S3DG(S3D):
    """S3D with self-gating."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__(in_channels, width, gating=True)
