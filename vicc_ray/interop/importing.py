"""A published ViCC or CoCLR checkpoint as our encoder files, complete or refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vicc_ray.config import Stream
from vicc_ray.errors import UserError
from vicc_ray.interop.names import BACKBONE_NAMES, MATRICES, published_names
from vicc_ray.interop.reader import plain_state_dict, read_checkpoint
from vicc_ray.models.encoder import EncoderSpec, empty_encoder
from vicc_ray.models.encoder_file import EncoderFile, check_stream
from vicc_ray.models.weight_file import first_few, mismatch, readable_file


@dataclass(frozen=True)
class ImportResult:
    """What a published file held: encoders by name, and lines that say what was taken and what was left."""

    encoders: dict[str, EncoderFile]
    taken: list[str]
    left: list[str]


def import_published(path: Path | str, stream: Stream) -> ImportResult:
    """Reads a ViCC (single- or cross-stream) or CoCLR checkpoint; writes nothing.

    `stream` is that of the learning encoder: the file does not say. A cross-stream file gives two encoders, the
    learning one and the frozen one of the other stream. The architecture is found by the names. UserError, in one line,
    for a file that cannot be read as plain weights and for anything missing, unexpected, of another shape or type, not
    finite, or different between the two copies that S3D files hold of each tensor.
    """
    check_stream(stream)
    path = readable_file(path)
    content = read_checkpoint(path)
    state = plain_state_dict(content, path)
    backbone = _backbone_of(state, path)
    spec = _spec_of(content, backbone, path)
    from_coclr = "prototypes.weight" not in state and any(name.startswith("queue") for name in state)
    cross = any(name.startswith("second.") for name in state)
    left_state = [name for name in state if from_coclr and name.startswith(("queue", "encoder_k.", "sampler."))]

    expected = _expected(spec, "encoder_q") | (_expected(spec, "second") if cross else {})
    if not from_coclr:
        heads = state.get("prototypes.weight")
        rows = heads.shape[0] if heads is not None and heads.ndim == 2 and heads.shape[0] else 1
        expected["prototypes.weight"] = (rows, spec.embedding_dim)
    wanted = {name: tensor for name, tensor in state.items() if name not in left_state}
    wrong = mismatch(expected, wanted)
    if wrong:
        raise UserError(f"{path} is not a whole published {backbone} checkpoint: {wrong}")
    _check_values(wanted, path)

    label = {"rgb": "RGB", "flow": "Flow"}
    other: Stream = "flow" if stream == "rgb" else "rgb"
    kind = "CoCLR" if from_coclr else f"ViCC {'cross' if cross else 'single'}-stream"
    origin = {"imported_from": path.name, "sha256": _sha256(path), "kind": kind}
    name = f"{label[stream]}-CoCLR" if from_coclr else f"{label[stream]}-{2 if cross else 1}"
    prototypes = [] if from_coclr else [wanted["prototypes.weight"].float().clone()]
    encoders = {name: _encoder_file(wanted, "encoder_q", spec, stream, prototypes, {"name": name, **origin}, path)}
    taken = [f"encoder_q.*: {_count(wanted, 'encoder_q.')} tensors -> {name}, the {stream} {backbone} encoder"]
    if prototypes:
        taken.append(f"prototypes.weight: {prototypes[0].shape[0]} prototypes -> {name}")
    if cross:
        guide = f"{label[other]}-guide"
        encoders[guide] = _encoder_file(wanted, "second", spec, other, [], {"name": guide, **origin}, path)
        taken.append(f"second.*: {_count(wanted, 'second.')} tensors -> {guide}, the frozen {other} {backbone} encoder")
    return ImportResult(encoders, taken, _left_lines(content, left_state))


def _backbone_of(state: Mapping[str, Tensor], path: Path) -> str:
    """The known architecture that shares most names with the file; UserError if none shares half of its own."""
    shares = {
        backbone: sum(f"encoder_q.0.{name}" in state for name in names) / len(names)
        for backbone, names in BACKBONE_NAMES.items()
    }
    best = max(shares, key=lambda backbone: shares[backbone])
    if shares[best] < 0.5:
        raise UserError(
            f"{path} holds another architecture: {len(state)} tensors ({first_few(list(state))}); "
            f"known: ViCC and CoCLR files with encoder_q.0.* of {', '.join(BACKBONE_NAMES)}"
        )
    return best


def _spec_of(content: dict[str, Any], backbone: str, path: Path) -> EncoderSpec:
    """The published sizes, or those that `export_published` wrote beside a network of other sizes."""
    sizes = content.get("encoder_spec")
    if sizes is None:
        return EncoderSpec(backbone)
    if not isinstance(sizes, dict) or sizes.get("backbone") != backbone:
        raise UserError(f"{path}: encoder_spec {sizes!r} does not describe the {backbone} in the file")
    try:
        return EncoderSpec(**sizes)
    except (TypeError, UserError) as error:
        raise UserError(f"{path}: encoder_spec is damaged ({error})") from None


def _expected(spec: EncoderSpec, prefix: str) -> dict[str, tuple[int, ...]]:
    """{published name: shape} of one encoder; the projection's matrices are 1x1x1 convolutions there."""
    ours = {name: tuple(tensor.shape) for name, tensor in empty_encoder(spec).state_dict().items()}
    return {
        f"{prefix}.{published}": ours[name] + ((1, 1, 1) if name in MATRICES else ())
        for published, name in published_names(spec.backbone).items()
    }


def _check_values(state: Mapping[str, Tensor], path: Path) -> None:
    """UserError unless counters are whole numbers and all else is finite floating point."""
    types = [
        f"{name} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in state.items()
        if tensor.is_floating_point() == name.endswith("num_batches_tracked") or tensor.is_complex()
    ]
    if types:
        raise UserError(f"{path}: {len(types)} tensors have another type than expected ({first_few(types)})")
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise UserError(f"{path}: {len(broken)} tensors hold NaN or infinity ({first_few(broken)})")


def _encoder_file(
    state: Mapping[str, Tensor],
    prefix: str,
    spec: EncoderSpec,
    stream: Stream,
    prototypes: list[Tensor],
    meta: dict[str, Any],
    path: Path,
) -> EncoderFile:
    """The encoder under `prefix` with our names; UserError where two names of one tensor hold different values."""
    taken: dict[str, tuple[str, Tensor]] = {}
    differing = []
    for published, ours in published_names(spec.backbone).items():
        name = f"{prefix}.{published}"
        first, tensor = taken.setdefault(ours, (name, state[name]))
        if not torch.equal(tensor, state[name]):
            differing.append(f"{first} and {name}")
    if differing:
        raise UserError(f"{path}: {len(differing)} tensors differ between their two names ({first_few(differing)})")
    shapes = empty_encoder(spec).state_dict()
    weights = {
        name: taken[name][1].reshape(like.shape).to(like.dtype, copy=True) for name, like in shapes.items()
    }  # fmt: skip
    return EncoderFile(spec=spec, stream=stream, state_dict=weights, prototypes=prototypes, meta=meta)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in state)


def _left_lines(content: dict[str, Any], left_state: list[str]) -> list[str]:
    """One line for each thing in the file that was not taken."""
    lines = []
    for name, value in content.items():
        if name not in ("state_dict", "encoder_spec"):
            number = f" = {value}" if isinstance(value, int | float) else ""
            lines.append(f"{name}{number}: training state, not needed for the weights")
    groups: dict[str, int] = {}
    for name in left_state:
        group = name.split(".")[0] + (".*" if "." in name else "")
        groups[group] = groups.get(group, 0) + 1
    lines += [f"{group}: {count} tensors of CoCLR's own training state" for group, count in groups.items()]
    return lines


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
