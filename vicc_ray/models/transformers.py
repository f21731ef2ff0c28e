"""Video transformers as backbones: MViTv2-S (Li et al., CVPR 2022) and Swin3D-T (Liu et al., CVPR 2022), torchvision's blocks.

Shapes: clips x [B, C, T, H, W] -> maps [B, d, t, h, w]. Their classifiers are left out. There is no dropout and no stochastic
depth: what is learnt must not depend on how often a run was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MultiscaleBlock, MViT
from torchvision.models.video.swin_transformer import PatchEmbed3d, SwinTransformer3d

# MViTv2-S (paper, table 2, and torchvision's `mvit_v2_s`): blocks of each stage, and the heads of attention in it.
_MVIT_DEPTHS, _MVIT_HEADS = (1, 2, 11, 2), (1, 2, 4, 8)
_SWIN_DEPTHS, _SWIN_HEADS = (2, 2, 6, 2), (3, 6, 12, 24)


class MViTv2S(nn.Module):
    """MViTv2-S: clips of 16 frames of 224x224 pixels, and no others, -> maps [B, feature_dim, 8, 7, 7].

    `width` multiplies the channels of an attention head (96), in steps of 8. `feature_dim` is 768 at width 1. The class token
    takes part in attention and is left out of the maps.
    """

    clip: ClassVar[tuple[int, int, int]] = (16, 224, 224)  # its position parameters fit this size only

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        head = max(8, round(96 * width / 8) * 8)
        frames, height, side = self.clip
        settings = _mvit_blocks(head)
        network = MViT(
            spatial_size=(height, side),
            temporal_size=frames,
            block_setting=settings,
            residual_pool=True,
            residual_with_cls_embed=False,
            rel_pos_embed=True,
            proj_after_attn=True,
        )
        self.tokens = _Tokens(network, in_channels)
        self.blocks = nn.Sequential()
        size = (frames // 2, height // 4, side // 4)
        for block, setting in zip(network.blocks, settings, strict=True):
            self.blocks.append(_Block(block, size))
            size = tuple(length // stride for length, stride in zip(size, setting.stride_q, strict=True))
        self.norm = _Maps(network.norm, size)
        self.feature_dim = settings[-1].output_channels

    def forward(self, x: Tensor) -> Tensor:
        """Clips [B, C, 16, 224, 224] -> maps [B, feature_dim, 8, 7, 7]."""
        maps: Tensor = self.norm(self.blocks(self.tokens(x)))
        return maps

    def parts(self) -> list[nn.Module]:
        """What clips go through, one after the other."""
        return [self.tokens, *self.blocks, self.norm]


class Swin3DT(nn.Module):
    """Swin3D-T: clips of any size -> maps [B, feature_dim, T/2, H/32, W/32] (rounded up).

    `width` multiplies the channels of the first stage (96), in steps of 12. `feature_dim` is 768 at width 1.
    """

    def __init__(self, in_channels: int, width: float) -> None:
        super().__init__()
        channels = max(12, round(96 * width / 12) * 12)

        def patches(patch_size: list[int], embed_dim: int, norm_layer: type[nn.Module]) -> nn.Module:
            embed: nn.Module = PatchEmbed3d(patch_size, in_channels, embed_dim, norm_layer)
            return embed

        network = SwinTransformer3d(
            patch_size=[2, 4, 4],
            embed_dim=channels,
            depths=list(_SWIN_DEPTHS),
            num_heads=list(_SWIN_HEADS),
            window_size=[8, 7, 7],
            stochastic_depth_prob=0.0,
            patch_embed=patches,
        )
        self.patch_embed, self.features = network.patch_embed, network.features
        self.norm = _LastNorm(network.norm)
        self.feature_dim = int(network.num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Clips [B, C, T, H, W] -> maps [B, feature_dim, t, h, w]."""
        maps: Tensor = self.norm(self.features(self.patch_embed(x)))
        return maps

    def parts(self) -> list[nn.Module]:
        """What clips go through, one after the other."""
        return [self.patch_embed, *self.features, self.norm]


class _Tokens(nn.Module):
    """Clips [B, C, T, H, W] -> tokens [B, 1 + t h w, d], the class token first."""

    def __init__(self, network: MViT, in_channels: int) -> None:
        super().__init__()
        first = network.conv_proj
        if in_channels != first.in_channels:
            first = nn.Conv3d(in_channels, first.out_channels, first.kernel_size, first.stride, first.padding)
        self.conv, self.positions = first, network.pos_encoding

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.positions(self.conv(x).flatten(2).transpose(1, 2))
        return tokens


class _Block(nn.Module):
    """Attention over tokens [B, 1 + t h w, d], whose grid and d it may change; `size` is (t, h, w) of those that come."""

    def __init__(self, block: MultiscaleBlock, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.block, self.size = block, size

    def forward(self, tokens: Tensor) -> Tensor:
        tokens, _ = self.block(tokens, self.size)
        return tokens


class _Maps(nn.Module):
    """Tokens [B, 1 + t h w, d] -> normalised maps [B, d, t, h, w] without the class token."""

    def __init__(self, norm: nn.Module, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, tokens: Tensor) -> Tensor:
        normalised: Tensor = self.norm(tokens)
        return normalised[:, 1:].transpose(1, 2).reshape(len(tokens), -1, *self.size)


class _LastNorm(nn.Module):
    """Maps [B, t, h, w, d] -> normalised maps [B, d, t, h, w]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(x)
        return normalised.permute(0, 4, 1, 2, 3)


def _mvit_blocks(head: int) -> list[MSBlockConfig]:
    """The blocks of MViTv2-S for `head` channels a head. Channels double in the last block before the heads do."""
    heads = [count for depth, count in zip(_MVIT_DEPTHS, _MVIT_HEADS, strict=True) for _ in range(depth)]
    blocks: list[MSBlockConfig] = []
    for number, count in enumerate(heads):
        first = number > 0 and heads[number - 1] != count
        blocks.append(
            MSBlockConfig(
                num_heads=count,
                input_channels=head * (heads[number - 1] if first else count),
                output_channels=head * count,
                kernel_q=[3, 3, 3],
                kernel_kv=[3, 3, 3],
                stride_q=_halved(first),
                stride_kv=[1, 8 // count, 8 // count],
            )
        )
    return blocks


def _halved(first: bool) -> Sequence[int]:
    return [1, 2, 2] if first else [1, 1, 1]
