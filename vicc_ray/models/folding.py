"""Batch norm folded into the convolutions before it, for encoders that do not learn.

In eval mode batch norm is y = (x - mean) * gamma / sqrt(var + eps) + beta, a fixed scale and shift of each channel. After a
convolution it is another convolution: weights times the scale, and a bias. One pass over the maps less a layer.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vicc_ray.models.encoder import Encoder


@torch.no_grad()
def fold_batch_norm(encoder: Encoder) -> Encoder:
    """A copy of the encoder in eval mode, without gradient, whose convolutions have taken their batch norms in.

    Equal to the encoder in eval mode up to float rounding. A batch norm that does not follow a convolution stays. The
    copy's state has other names than the encoder's: it is for use, not for saving.
    """
    folded = copy.deepcopy(encoder).eval().requires_grad_(False)
    if not any(isinstance(module, _BatchNorm) for module in folded.modules()):
        return folded
    names = {module: name for name, module in folded.named_modules()}
    for norm, convolution in _pairs(folded):
        _fold_(convolution, norm)
        folded.set_submodule(names[norm], nn.Identity())
    return folded


def _pairs(encoder: Encoder) -> list[tuple[_BatchNorm, nn.Conv3d]]:
    """Every batch norm that takes a convolution's output as it is, found by watching one small clip pass."""
    made: dict[int, tuple[Tensor, nn.Conv3d]] = {}  # the outputs are held, or another tensor might take their id
    pairs: list[tuple[_BatchNorm, nn.Conv3d]] = []

    def leaves(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        made[id(output)] = (output, module)

    def enters(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        if id(inputs[0]) in made:
            pairs.append((module, made[id(inputs[0])][1]))

    hooks = [m.register_forward_hook(leaves) for m in encoder.modules() if isinstance(m, nn.Conv3d)]
    hooks += [m.register_forward_pre_hook(enters) for m in encoder.modules() if isinstance(m, _BatchNorm)]
    encoder(encoder.smallest_clip())
    for hook in hooks:
        hook.remove()
    return pairs


def _fold_(convolution: nn.Conv3d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    # In double precision, so that nothing is rounded but the result.
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.double()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    if convolution.bias is not None:
        shift += convolution.bias.double() * scale
    weight = convolution.weight
    weight.copy_(weight.double() * scale.view(-1, 1, 1, 1, 1))
    convolution.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=False)
