"""A backbone: a small 3D network with group norm, whose width grows with `model.width`."""

from __future__ import annotations

from torch import Tensor, nn


class Small3D(nn.Module):
    """Clips float [B, C, T, H, W] -> maps [B, feature_dim, T, H/4, W/4]."""

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        channels = 4 * max(1, round(8 * width))
        self.feature_dim = channels
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, channels, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(4, channels),
            nn.ReLU(),
            nn.Conv3d(channels, channels, 3, stride=(1, 2, 2), padding=1),
            nn.GroupNorm(4, channels),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.body(x)
        return maps
