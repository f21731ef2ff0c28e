"""Encoders: a backbone, global average pooling and the projection of the method, built by name from one registry.

Shapes: B clips, C channels, T frames, H x W pixels, d = feature_dim, D = embedding_dim.
    x [B, C, T, H, W] -> backbone -> [B, d, t, h, w] -> mean -> features [B, d]
    features -> linear(d, d) -> ReLU -> linear(d, D) -> L2 norm -> z [B, D]     (ViCC, section 3; docs/method.md, sections 1 and 7)
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vicc_ray.errors import UserError
from vicc_ray.models.r2plus1d import R2Plus1D10, R2Plus1D18

logger = logging.getLogger(__name__)


def _s3d(in_channels: int, width: float, gating: bool = False) -> nn.Module:
    # torchvision's blocks take longer to import than torch, in every process of a run, so only who wants them pays.
    from vicc_ray.models.s3d import S3D

    return S3D(in_channels, width, gating)


# name -> (in_channels, width) -> a module with `feature_dim` = d that maps clips [B, C, T, H, W] to [B, d, t, h, w].
BACKBONES: dict[str, Callable[[int, float], nn.Module]] = {
    "s3d": _s3d,
    "s3dg": partial(_s3d, gating=True),
    "r2plus1d_10": R2Plus1D10,
    "r2plus1d_18": R2Plus1D18,
}

# One frame has no motion, and below 16 pixels the networks' strides (16 and 32) leave nothing but padding to look at.
MIN_FRAMES = 2
MIN_PIXELS = 16


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from; refuses with UserError what no encoder can be built from."""

    backbone: str
    in_channels: int = 3
    width: float = 1.0
    embedding_dim: int = 128

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            near = difflib.get_close_matches(str(self.backbone), BACKBONES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"unknown backbone {self.backbone!r}{hint}; known: {', '.join(BACKBONES)}")
        if not (isinstance(self.in_channels, int) and 1 <= self.in_channels <= 3):
            raise UserError(f"in_channels must be 1, 2 or 3, not {self.in_channels!r}")
        if not (isinstance(self.width, int | float) and math.isfinite(self.width) and 0 < self.width <= 16):
            raise UserError(f"width must be a number above 0 and at most 16, not {self.width!r}")
        if not (isinstance(self.embedding_dim, int) and self.embedding_dim >= 1):
            raise UserError(f"embedding_dim must be a whole number of at least 1, not {self.embedding_dim!r}")


class Encoder(nn.Module):
    """A backbone with its projection. Attributes: `spec`, `feature_dim` (d), `embedding_dim` (D).

    Make one with `build_encoder`, which also draws the weights; this constructor leaves torch's own initialisation.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = BACKBONES[spec.backbone](spec.in_channels, spec.width)
        self.feature_dim: int = int(self.backbone.feature_dim)  # type: ignore[arg-type]
        self.embedding_dim: int = spec.embedding_dim
        self.projection = nn.Sequential(
            nn.Linear(self.feature_dim, self.feature_dim), nn.ReLU(), nn.Linear(self.feature_dim, self.embedding_dim)
        )

    def features(self, x: Tensor, backbone: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Clips x float [B, C, T, H, W] -> pooled backbone output [B, feature_dim], float32 also under autocast.

        These, not the embeddings, are what retrieval and linear probes use. B may be 0. UserError where x has another
        layout than the encoder's, is smaller than 2 frames or 16 pixels, or is one clip so small that batch norm in
        training mode would see a single value per channel. `backbone`: another way to compute the same (compiled, say).
        """
        # Under torch.jit.trace sizes are tensors, and whoever traces has checked the clips.
        if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            self.check_clips(x)
        try:
            maps = self.backbone(x) if backbone is None else backbone(x)
        except ValueError as error:
            if self.training and x.shape[0] == 1 and "more than 1 value per channel" in str(error):
                shape = "x".join(str(size) for size in x.shape[2:])
                raise UserError(
                    f"one clip of {shape} gives batch norm a single value per channel to learn from: "
                    "give each worker at least 2 clips, or larger clips"
                ) from None
            raise
        return _at_least_float32(maps).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor, backbone: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Clips x float [B, C, T, H, W] -> embeddings z [B, D] of length 1, float32 also under autocast."""
        return self.embed(self.features(x, backbone))

    def parts(self) -> list[nn.Module]:
        """What clips go through in the backbone, one after the other."""
        parts: list[nn.Module] = self.backbone.parts()  # type: ignore[operator]
        return parts

    def embed(self, features: Tensor) -> Tensor:
        """Pooled features [B, feature_dim] -> embeddings z [B, D] of length 1 (a zero vector stays zero)."""
        return F.normalize(_at_least_float32(self.projection(features)), dim=1)

    def check_clips(self, x: Tensor) -> None:
        """UserError unless this encoder can take clips of the layout and size of x (float [B, C, T, H, W])."""
        came = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        if x.ndim != 5 or x.shape[1] != self.spec.in_channels or not x.is_floating_point():
            raise UserError(
                f"{self.spec.backbone} takes float clips [B, {self.spec.in_channels}, T, H, W], but {came} came"
            )
        if x.shape[2] < MIN_FRAMES or x.shape[3] < MIN_PIXELS or x.shape[4] < MIN_PIXELS:
            raise UserError(
                f"clips of {came} are too small for {self.spec.backbone}: "
                f"at least {MIN_FRAMES} frames of {MIN_PIXELS}x{MIN_PIXELS} pixels are needed"
            )


def build_encoder(
    backbone: str,
    *,
    in_channels: int = 3,
    width: float = 1.0,
    embedding_dim: int = 128,
    seed: int | None = 0,
) -> Encoder:
    """An encoder by name, in training mode on the CPU, with freshly drawn weights.

    `backbone` is a key of BACKBONES; `width` multiplies every channel count; `seed` fixes the weights, so that every
    process that gives the same arguments holds identical ones (None takes a new seed from the system). Global random
    state is neither read nor changed. Initialisation: convolutions Kaiming normal by fan-out for ReLU (as torchvision's
    video ResNets), linear layers Kaiming normal by fan-in for ReLU with zero bias, batch norm weight 1 and bias 0.
    UserError for an unknown name or an impossible value.
    """
    encoder = empty_encoder(EncoderSpec(backbone, in_channels, width, embedding_dim)).to_empty(device="cpu")
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    _initialise(encoder, generator)
    return encoder


def empty_encoder(spec: EncoderSpec) -> Encoder:
    """The encoder of `spec` on the meta device: names and shapes without storage, and without drawing any number."""
    with torch.device("meta"):
        return Encoder(spec)


def convert_batch_norm(encoder: Encoder, mode: Literal["local", "sync"], device: torch.device | str) -> Encoder:
    """Chooses whose statistics batch norm uses in training; call it before wrapping for data parallelism.

    "local": each worker's own rows. "sync": all workers' rows, through torch's SyncBatchNorm, which exists on CUDA
    only; on any other device the encoder stays local (per-worker statistics) and a warning says so. Names and shapes of
    the state do not change. Returns the encoder. UserError for another mode.
    """
    if mode not in ("local", "sync"):
        raise UserError(f"batch norm mode {mode!r} is unknown; allowed: local, sync")
    if mode == "local":
        return encoder
    if torch.device(device).type != "cuda":
        logger.warning("SyncBatchNorm needs CUDA; on %s batch norm uses each worker's own statistics", device)
        return encoder
    converted: Encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)  # type: ignore[no-untyped-call]
    return converted


def _initialise(encoder: Encoder, generator: torch.Generator) -> None:
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm3d):
            module.reset_parameters()


def _at_least_float32(x: Tensor) -> Tensor:
    """Autocast's bfloat16 and float16 as float32; float64 stays (the slow twins of the tests use it)."""
    return x if x.dtype == torch.float64 else x.float()
