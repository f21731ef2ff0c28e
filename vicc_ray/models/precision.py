"""Whether an encoder's forward and backward pass run in bfloat16: by the settings, the device, and what is sound there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vicc_ray.machine import cpu_has_matrix_units
from vicc_ray.models.planar import PlanarConv3d

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Autocast:
    """What an encoder is computed in under `torch.autocast`; its weights and what follows it stay float32.

    Attributes:
        bf16: whether in bfloat16, else in float32.
        refused: why it is float32 although the settings name bf16; empty where they got what they name.
    """

    device: torch.device
    bf16: bool
    refused: str = ""

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast, None for none."""
        return torch.bfloat16 if self.bf16 else None

    def __call__(self) -> torch.autocast:
        """A context in which modules are computed so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def autocast_for(precision: Precision, device: torch.device, module: nn.Module) -> Autocast:
    """How `module`, arranged as `models.planar.arrange` does, is computed under `optim.precision`.

    A CPU without matrix units for bfloat16 takes as long for it as for float32, or twice as long (docs/benchmarks.md), so `bf16`
    is not taken there either. Nor where a 3D convolution is not computed as a 2D one: its gradient is not sound on a CPU.
    """
    if precision == "fp32":
        return Autocast(device, False)
    refused = _refusal(device, module)
    return Autocast(device, not refused, refused if precision == "bf16" else "")


def _refusal(device: torch.device, module: nn.Module) -> str:
    """Why a module is not computed in bfloat16; empty where it is."""
    if device.type == "cuda":
        return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "this GPU has no bf16 units"
    if device.type != "cpu":
        return f"it is for GPUs and CPUs, this is {device.type}"
    if not cpu_has_matrix_units():
        return "this CPU has no bf16 matrix units (AMX)"
    if any(_is_unsound(part) for part in module.modules()):
        return "on a CPU it is for factorised backbones with train.planar"
    return ""


def _is_unsound(part: nn.Module) -> bool:
    """Whether it is a convolution whose bfloat16 gradient may be wrong on a CPU: of a padded kernel in 3D.

    Of 1,500 random kernels [1, 1, 1] without padding no gradient was more than 0.5 % off float32's (torch 2.15).
    """
    return isinstance(part, nn.Conv3d) and not isinstance(part, PlanarConv3d) and part.kernel_size != (1, 1, 1)
