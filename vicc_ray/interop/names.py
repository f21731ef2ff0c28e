"""Names of the published checkpoints against ours, as explicit tables; nothing is matched by order or by shape.

A published `state_dict` (docs/method.md, section 7), with P = encoder_q or second (the frozen encoder of cross-stream files):
    P.0.*  backbone          P.2.{weight,bias}, P.4.{weight,bias}  projection, as 1x1x1 convolutions
    prototypes.weight        K x D (ViCC only)       queue*, encoder_k.*, sampler.*  CoCLR's own training state
"""

from __future__ import annotations

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# One convolution with its norm, and a spatial + temporal pair: published name -> ours, inside one S3D layer.
_S3D_PLAIN = {"conv": "0", "bn": "1"}
_S3D_PAIR = {"conv1": "0.0", "conv2": "1.0", "bn1": "0.1", "bn2": "1.1"}
# The units of an Inception cell: published place -> (our place, its table).
_S3D_CELL = {
    "branch0.0": ("branch0", _S3D_PLAIN),
    "branch1.0": ("branch1.0", _S3D_PLAIN),
    "branch1.1": ("branch1.1", _S3D_PAIR),
    "branch2.0": ("branch2.0", _S3D_PLAIN),
    "branch2.1": ("branch2.1", _S3D_PAIR),
    "branch3.1": ("branch3.1", _S3D_PLAIN),
}
# S3D registers every layer twice: under its own name and under a block and an index (pools take the other indices).
_S3D_BLOCKS = {
    "block1": {"0": "Conv_1a"},
    "block2": {"1": "Conv_2b", "2": "Conv_2c"},
    "block3": {"1": "Mixed_3b", "2": "Mixed_3c"},
    "block4": {"1": "Mixed_4b", "2": "Mixed_4c", "3": "Mixed_4d", "4": "Mixed_4e", "5": "Mixed_4f"},
    "block5": {"1": "Mixed_5b", "2": "Mixed_5c"},
}
_R21D_STEM = {
    "conv1.spatial_conv": "stem.spatial",
    "conv1.bn": "stem.norm",
    "conv1.temporal_conv": "stem.temporal",
    "bn1": "stem_norm",
}
_R21D_SHORTCUT = {
    "downsampleconv.spatial_conv": "shortcut.spatial",
    "downsampleconv.bn": "shortcut.norm",
    "downsampleconv.temporal_conv": "shortcut.temporal",
    "downsamplebn": "shortcut_norm",
}
_R21D_BLOCK = {
    "conv1.spatial_conv": "conv1.spatial",
    "conv1.bn": "conv1.norm",
    "conv1.temporal_conv": "conv1.temporal",
    "bn1": "norm1",
    "conv2.spatial_conv": "conv2.spatial",
    "conv2.bn": "conv2.norm",
    "conv2.temporal_conv": "conv2.temporal",
    "bn2": "norm2",
}
_PROJECTION = {
    "2.weight": "projection.0.weight",
    "2.bias": "projection.0.bias",
    "4.weight": "projection.2.weight",
    "4.bias": "projection.2.bias",
}
# Linear layers here, 1x1x1 convolutions in the files: [out, in] against [out, in, 1, 1, 1].
MATRICES = ("projection.0.weight", "projection.2.weight")


def _leaves(published: str, ours: str) -> dict[str, str]:
    """One convolution or norm with its tensors; which of the two it is stands in the published name."""
    is_norm = "bn" in published.rsplit(".", 1)[-1]
    return {f"{published}.{leaf}": f"{ours}.{leaf}" for leaf in (_NORM if is_norm else ("weight",))}


def _s3d_layer(published: str, name: str) -> dict[str, str]:
    """The tensors of the S3D layer `name` where the file has it under `published`."""
    ours = name.lower()
    if name.startswith("Mixed"):
        units = {
            f"{published}.{place}": (f"{ours}.{our_place}", table) for place, (our_place, table) in _S3D_CELL.items()
        }
    else:
        units = {published: (ours, _S3D_PLAIN if name == "Conv_2b" else _S3D_PAIR)}
    names: dict[str, str] = {}
    for place, (our_place, table) in units.items():
        for unit, our_unit in table.items():
            names |= _leaves(f"{place}.{unit}", f"{our_place}.{our_unit}")
    return names


def _s3d_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for block, layers in _S3D_BLOCKS.items():
        for layer in layers.values():
            names |= _s3d_layer(layer, layer)
        for index, layer in layers.items():
            names |= _s3d_layer(f"{block}.{index}", layer)
    return names


def _r2plus1d_10_names() -> dict[str, str]:
    names: dict[str, str] = {}
    for published, ours in _R21D_STEM.items():
        names |= _leaves(published, ours)
    for layer in (1, 2, 3, 4):
        for published, ours in ((_R21D_SHORTCUT if layer > 1 else {}) | _R21D_BLOCK).items():
            names |= _leaves(f"conv{layer + 1}.block1.{published}", f"layer{layer}.{ours}")
    return names


# backbone -> {published name inside P.0: name inside our backbone}; several published names may share one of ours.
BACKBONE_NAMES: dict[str, dict[str, str]] = {"s3d": _s3d_names(), "r2plus1d_10": _r2plus1d_10_names()}


def published_names(backbone: str) -> dict[str, str]:
    """{published name after P.: name in the state of our Encoder}, doubled names included, in the file's order."""
    inside = {f"0.{published}": f"backbone.{ours}" for published, ours in BACKBONE_NAMES[backbone].items()}
    return inside | _PROJECTION
