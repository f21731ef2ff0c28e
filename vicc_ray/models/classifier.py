"""Classifiers: a pretrained encoder's pooled feature, and a head that gives one score a class.

Shapes: B clips, d = feature_dim, C classes.
    linear    features [B, d] -> L2 norm -> batch norm -> (dropout) -> linear -> logits [B, C]
    finetune  features [B, d] ->                          dropout   -> linear -> logits [B, C]     (docs/method.md, section 6)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vicc_ray.models.encoder import Encoder, EncoderSpec, blank_encoder, empty_encoder

ClassifierProtocol = Literal["linear", "finetune"]
PROTOCOLS: tuple[ClassifierProtocol, ...] = get_args(ClassifierProtocol)

# Standard deviation of the linear layer's first weights: all classes are about as likely at the start.
_INITIAL_STD = 0.01


class Head(nn.Module):
    """From pooled features to logits. Batch norm, where there is one, needs two rows to learn from.

    Args:
        features: d.
        classes: C.
        normalises: the linear probe's L2 norm and batch norm come first.
    """

    def __init__(self, features: int, classes: int, normalises: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features) if normalises else None
        self.linear = nn.Linear(features, classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features [B, d] -> logits [B, C], float32 also under autocast. `mask`: what `dropout_mask` gave, in training."""
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(self.linear.weight.dtype)
            if self.norm is not None:
                x = self.norm(F.normalize(x, dim=1))
            logits: Tensor = self.linear(x if mask is None else x * mask)
            return logits


class Classifier(nn.Module):
    """An encoder with a head on its pooled feature. Attributes: `encoder`, `head`; the projection is not used."""

    def __init__(self, encoder: Encoder, protocol: ClassifierProtocol, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = Head(encoder.feature_dim, classes, normalises=protocol == "linear")

    def forward(self, x: Tensor) -> Tensor:
        """Clips x float [B, 3, T, h, w] -> logits float32 [B, C], without dropout; UserError as `Encoder.features`."""
        logits: Tensor = self.head(self.encoder.features(x))
        return logits


def build_classifier(encoder: Encoder, protocol: ClassifierProtocol, classes: int, seed: int) -> Classifier:
    """A classifier on an encoder, in training mode, with a fresh head: normal weights of deviation 0.01, zero bias.

    `seed` fixes the head, the same in every process; global random state is neither read nor changed.
    """
    classifier = _with_blank_head(encoder, protocol, classes)
    if classifier.head.norm is not None:
        classifier.head.norm.reset_parameters()
    generator = torch.Generator().manual_seed(seed)
    nn.init.normal_(classifier.head.linear.weight, std=_INITIAL_STD, generator=generator)
    nn.init.zeros_(classifier.head.linear.bias)
    return classifier.train()


def empty_classifier(spec: EncoderSpec, protocol: ClassifierProtocol, classes: int) -> Classifier:
    """The classifier on the meta device: names and shapes without storage, and without drawing any number."""
    with torch.device("meta"):
        return Classifier(empty_encoder(spec), protocol, classes)


def blank_classifier(spec: EncoderSpec, protocol: ClassifierProtocol, classes: int) -> Classifier:
    """The classifier on the CPU, to be given a state; see `blank_encoder`."""
    return _with_blank_head(blank_encoder(spec), protocol, classes)


def _with_blank_head(encoder: Encoder, protocol: ClassifierProtocol, classes: int) -> Classifier:
    with torch.device("meta"):  # no number is drawn from the global state for weights that are set afterwards
        classifier = Classifier(encoder, protocol, classes)
    classifier.head.to_empty(device="cpu")
    return classifier


def dropout_mask(key: Sequence[int], rows: int, features: int, p: float) -> Tensor:
    """What dropout multiplies features with: float32 [rows, features], 0 with probability p, else 1 / (1 - p).

    It depends on `key` (integers >= 0) and the shape alone, on every device; draw it for the global batch and take the
    rows of a worker's slots, and it is the same for any number of workers.
    """
    uniform = np.random.default_rng(list(key)).random((rows, features), dtype=np.float32)
    return torch.from_numpy((uniform >= p).astype(np.float32) / np.float32(1 - p))
