"""Encoders: a backbone, global average pooling and the projection of the method, built by name (`extensions.BACKBONES`).

Shapes: B clips, C channels, T frames, H x W pixels, d = feature_dim, D = embedding_dim.
    x [B, C, T, H, W] -> backbone -> [B, d, t, h, w] -> mean -> features [B, d]
    features -> linear(d, d) -> ReLU -> linear(d, D) -> L2 norm -> z [B, D]     (ViCC, section 3; docs/method.md, sections 1 and 7)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vicc_ray.errors import UserError
from vicc_ray.extensions import BACKBONES

logger = logging.getLogger(__name__)


# One frame has no motion, and below 16 pixels the networks' strides (16 and 32) leave nothing but padding.
MIN_FRAMES = 2
MIN_PIXELS = 16


# Layers whose weights `build_encoder` draws itself; a backbone with any other kind is initialised by its own constructor.
_PLAIN = (nn.Conv3d, nn.Linear, nn.BatchNorm3d)


class Backbone(Protocol):
    """A network from clips to maps: a `torch.nn.Module` class, made as `Backbone(in_channels, width)`.

    One of your own is named in the experiment (`model.backbone: package.module:Name`) or given by an installed package (entry
    points `vicc_ray.backbones`); see docs/extending.md. Its constructor draws the first weights from torch's global random state,
    which is seeded around it. Randomness in its forward pass (dropout) is not part of a checkpoint.

    Attributes:
        feature_dim: d.
        clip: (frames, height, width) where it takes clips of one size only; may be left out.
    """

    feature_dim: int

    def forward(self, x: Tensor) -> Tensor:
        """Clips float [B, C, T, H, W] -> maps [B, feature_dim, t, h, w], B >= 1."""
        ...

    def parts(self) -> list[nn.Module]:
        """Modules that clips go through one after the other, for `train.recompute`; may be left out."""
        ...


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is built from; refuses with UserError what no encoder can be built from."""

    backbone: str
    in_channels: int = 3
    width: float = 1.0
    embedding_dim: int = 128

    def __post_init__(self) -> None:
        BACKBONES.check(self.backbone, "backbone")
        if not (isinstance(self.in_channels, int) and 1 <= self.in_channels <= 3):
            raise UserError(f"in_channels must be 1, 2 or 3, not {self.in_channels!r}")
        if not (isinstance(self.width, int | float) and math.isfinite(self.width) and 0 < self.width <= 16):
            raise UserError(f"width must be a number above 0 and at most 16, not {self.width!r}")
        if not (isinstance(self.embedding_dim, int) and self.embedding_dim >= 1):
            raise UserError(f"embedding_dim must be a whole number of at least 1, not {self.embedding_dim!r}")


class Encoder(nn.Module):
    """A backbone with its projection.

    Attributes:
        spec: what it was made from; `feature_dim` is d, `embedding_dim` is D.
        clip: (frames, height, width) where it takes clips of one size only, else None.
        plain: whether the backbone is made of convolutions, linear layers and batch norms only.
        takes_no_clips: whether an empty batch goes through the backbone as it is.

    Make one with `build_encoder`, which also draws the weights; this constructor leaves torch's own initialisation.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = _backbone(spec)
        self.feature_dim: int = int(self.backbone.feature_dim)  # type: ignore[arg-type]
        self.clip: tuple[int, int, int] | None = getattr(self.backbone, "clip", None)
        self.plain = _is_plain(self.backbone)
        self.takes_no_clips = self.plain or any(isinstance(module, _BatchNorm) for module in self.backbone.modules())
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
        if not self.takes_no_clips and not len(x):
            # Attention reshapes and takes no empty batch; one clip gives the graph to every parameter, and no gradient.
            return self.features(x.new_zeros(1, *x.shape[1:]), backbone)[:0]
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
        """What clips go through in the backbone, one after the other; UserError where it does not say."""
        parts: Callable[[], list[nn.Module]] | None = getattr(self.backbone, "parts", None)
        if parts is None:
            raise UserError(
                f"train.recompute: backbone {self.spec.backbone} has no parts(); set train.recompute: false"
            )
        return parts()

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
        if self.clip is not None and tuple(x.shape[2:]) != self.clip:
            raise UserError(f"{self.spec.backbone}: {_fixed(self.clip)}, but {came} came")
        if x.shape[2] < MIN_FRAMES or x.shape[3] < MIN_PIXELS or x.shape[4] < MIN_PIXELS:
            raise UserError(
                f"clips of {came} are too small for {self.spec.backbone}: "
                f"at least {MIN_FRAMES} frames of {MIN_PIXELS}x{MIN_PIXELS} pixels are needed"
            )

    def smallest_clip(self) -> Tensor:
        """One clip of zeros [1, C, T, H, W] of the smallest size that the encoder takes, on its device."""
        size = self.clip or (MIN_FRAMES, MIN_PIXELS, MIN_PIXELS)
        return next(self.parameters()).new_zeros(1, self.spec.in_channels, *size)


def check_clip_size(spec: EncoderSpec, frames: int, size: int) -> None:
    """UserError where an encoder takes clips of one size only, and `clip.frames` and `clip.size` are another one."""
    fixed = empty_encoder(spec).clip
    if fixed is not None and fixed != (frames, size, size):
        raise UserError(
            f"model.backbone: {spec.backbone}: {_fixed(fixed)}, but clip.frames is {frames} and clip.size {size}; set clip.frames: "
            f"{fixed[0]} and clip.size: {fixed[1]}"
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

    `backbone` is a name of `extensions.BACKBONES`; `width` multiplies every channel count; `seed` fixes the weights, so that every
    process that gives the same arguments holds identical ones (None takes a new seed from the system). Global random
    state is neither read nor changed. Initialisation: convolutions Kaiming normal by fan-out for ReLU (as torchvision's
    video ResNets), linear layers Kaiming normal by fan-in for ReLU, biases zero, batch norm weight 1 and bias 0. A backbone
    with other layers (transformers) keeps what its own constructor draws under this seed. UserError for an unknown name or an
    impossible value.
    """
    spec = EncoderSpec(backbone, in_channels, width, embedding_dim)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    encoder = blank_encoder(spec, generator.initial_seed())
    _initialise(encoder if encoder.plain else encoder.projection, generator)
    return encoder


def blank_encoder(spec: EncoderSpec, seed: int = 0) -> Encoder:
    """The encoder of `spec` on the CPU in training mode, to be initialised or to be given a state.

    Of a plain one all memory is as it comes. Of another one nothing is left undefined, also what a state does not hold: its
    constructor runs for real, under torch's random state seeded with `seed`, which is afterwards as before.
    """
    encoder = empty_encoder(spec)
    if encoder.plain:
        return encoder.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(spec)


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


def _backbone(spec: EncoderSpec) -> nn.Module:
    make = BACKBONES.load(spec.backbone, "model.backbone")
    try:
        backbone: Any = make(spec.in_channels, spec.width)
    except TypeError as error:
        raise UserError(
            f"model.backbone: {spec.backbone} cannot be made from (in_channels, width): {error}; see docs/extending.md"
        ) from error
    if not isinstance(backbone, nn.Module) or not isinstance(getattr(backbone, "feature_dim", None), int):
        raise UserError(
            f"model.backbone: {spec.backbone} gives {type(backbone).__name__}, not a torch.nn.Module with an int "
            "`feature_dim`; see docs/extending.md"
        )
    made: nn.Module = backbone
    return made


def _is_plain(module: nn.Module) -> bool:
    """Whether every parameter and buffer is one of a layer that `_initialise` knows."""
    own = [m for m in module.modules() if m._parameters or m._buffers]
    return all(isinstance(m, _PLAIN) for m in own)


def _fixed(clip: tuple[int, int, int]) -> str:
    return f"takes clips of {clip[0]} frames of {clip[1]}x{clip[2]} pixels only"


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.BatchNorm3d):
            layer.reset_parameters()
        if isinstance(layer, (nn.Conv3d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _at_least_float32(x: Tensor) -> Tensor:
    """Autocast's bfloat16 and float16 as float32; float64 stays (the slow twins of the tests use it)."""
    return x if x.dtype == torch.float64 else x.float()
