"""Our encoder files in other people's formats, each written whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vicc_ray.config import without_places
from vicc_ray.errors import UserError
from vicc_ray.interop.names import BACKBONE_NAMES, MATRICES, published_names
from vicc_ray.models.encoder import Encoder, EncoderSpec
from vicc_ray.models.encoder_file import EncoderFile, check_state, facts_of, save_encoder
from vicc_ray.models.weight_file import VERSION, atomic_path


def export_published(encoder_file: EncoderFile, guide: EncoderFile | None, path: Path | str) -> None:
    """Writes the published ViCC format: single-stream, or cross-stream with `guide` as the frozen encoder (`second.*`).

    Every name of the published files is there, doubled ones sharing their tensor; epoch and iteration are 0, best_loss
    is infinite and optimizer empty, for a file of weights has none. A network of other sizes than the published ones
    carries them in a further entry, `encoder_spec`, that `import_published` reads. UserError where the format cannot
    hold the encoder: another backbone, not exactly one prototype head, a guide of the same stream or of another spec.
    """
    spec = encoder_file.spec
    if spec.backbone not in BACKBONE_NAMES:
        raise UserError(f"the published format holds {' or '.join(BACKBONE_NAMES)}, not {spec.backbone}")
    if len(encoder_file.prototypes) != 1:
        raise UserError(
            f"the published format holds one prototype head, but this encoder has {len(encoder_file.prototypes)}"
        )
    state = _published_state(encoder_file, "encoder_q")
    state["prototypes.weight"] = encoder_file.prototypes[0].detach().cpu()
    if guide is not None:
        if guide.spec != spec:
            raise UserError(f"the guide is {guide.spec}, but the published format needs that of the encoder, {spec}")
        if guide.stream == encoder_file.stream:
            raise UserError(f"the guide must be of the other stream, but both are {guide.stream}")
        state |= _published_state(guide, "second")
    content: dict[str, Any] = {
        "epoch": 0,
        "state_dict": state,
        "best_loss": float("inf"),
        "optimizer": {},
        "iteration": 0,
    }
    if spec != EncoderSpec(spec.backbone):
        content["encoder_spec"] = asdict(spec)
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _published_state(encoder_file: EncoderFile, prefix: str) -> dict[str, Tensor]:
    check_state(encoder_file.spec, encoder_file.state_dict)
    ours = {
        name: tensor.detach().cpu().reshape(*tensor.shape, 1, 1, 1) if name in MATRICES else tensor.detach().cpu()
        for name, tensor in encoder_file.state_dict.items()
    }
    return {f"{prefix}.{p}": ours[name] for p, name in published_names(encoder_file.spec.backbone).items()}


class _FeaturesAndEmbedding(nn.Module):
    """What leaves the program: clips [B, C, T, H, W] -> features [B, d] for retrieval and embedding [B, D]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder.features(clips)
        return features, self.encoder.embed(features)


def export_torchscript(encoder_file: EncoderFile, path: Path | str, clip_shape: tuple[int, int, int]) -> None:
    """Writes a traced TorchScript module: clips float [B, C, T, H, W] -> (features [B, d], embedding [B, D]).

    Any B; T, H, W as in `clip_shape`. What `EncoderFile` records is in the archive as `vicc.json`. torch 2.15 calls
    TorchScript deprecated in favour of torch.export, but writes and loads it still.
    """
    module, example = _traceable(encoder_file, clip_shape)
    facts = {"vicc.json": _facts(encoder_file)}
    with warnings.catch_warnings(), torch.no_grad(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore")  # the deprecation, and notes that the clip's sizes become constants
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(temporary), _extra_files=facts)


def export_onnx(encoder_file: EncoderFile, path: Path | str, clip_shape: tuple[int, int, int]) -> None:
    """Writes one ONNX file: input clips float [batch, C, T, H, W] -> outputs features [batch, d], embedding [batch, D].

    Any batch; T, H, W as in `clip_shape`. What `EncoderFile` records is in the model's metadata as `vicc`. Needs the
    packages onnx and onnxscript; UserError without them.
    """
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"ONNX export needs {' and '.join(missing)}: pip install 'vicc-ray[onnx]'")
    module, example = _traceable(encoder_file, clip_shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (example,),
            input_names=["clips"],
            output_names=["features", "embedding"],
            dynamic_shapes={"clips": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # torch returns None for its old exporter only
    program.model.metadata_props["vicc"] = _facts(encoder_file)
    with atomic_path(path) as temporary:
        program.save(str(temporary), external_data=False)


def export_safetensors(encoder_file: EncoderFile, path: Path | str) -> None:
    """Writes this program's own format, which any safetensors reader opens (`models.encoder_file.save_encoder`)."""
    save_encoder(path, encoder_file)


def _traceable(encoder_file: EncoderFile, clip_shape: tuple[int, int, int]) -> tuple[_FeaturesAndEmbedding, Tensor]:
    """The encoder with its two outputs and an example batch of two clips; UserError for clips that it cannot take."""
    encoder = encoder_file.build()
    example = torch.zeros(2, encoder_file.spec.in_channels, *clip_shape)
    encoder.check_clips(example)
    return _FeaturesAndEmbedding(encoder).eval(), example


Writer = Callable[[EncoderFile, Path, tuple[int, int, int], EncoderFile | None], None]
FORMATS: dict[str, Writer] = {
    "safetensors": lambda encoder_file, path, clip_shape, guide: export_safetensors(encoder_file, path),
    "torchscript": lambda encoder_file, path, clip_shape, guide: export_torchscript(encoder_file, path, clip_shape),
    "onnx": lambda encoder_file, path, clip_shape, guide: export_onnx(encoder_file, path, clip_shape),
    "published": lambda encoder_file, path, clip_shape, guide: export_published(encoder_file, guide, path),
}


def export(
    encoder_file: EncoderFile,
    format: str,
    path: Path | str,
    clip_shape: tuple[int, int, int] = (32, 128, 128),
    guide: EncoderFile | None = None,
) -> None:
    """Writes `encoder_file` in one of FORMATS, whole or not at all, without the paths and URIs of the run that made it.

    `clip_shape` (T, H, W) is what torchscript and onnx are traced with; `guide` is the frozen encoder of a cross-stream
    stage, for the published format only. UserError for an unknown format or what the format cannot hold.
    """
    if format not in FORMATS:
        raise UserError(f"export format {format!r} is unknown; allowed: {', '.join(FORMATS)}")
    if guide is not None and format != "published":
        raise UserError(f"a guide goes into the published format only, not into {format}")
    settings = encoder_file.meta.get("experiment")
    if isinstance(settings, dict):
        meta = {**encoder_file.meta, "experiment": without_places(settings)}
        encoder_file = replace(encoder_file, meta=meta)
    FORMATS[format](encoder_file, Path(path), clip_shape, guide)


def _facts(encoder_file: EncoderFile) -> str:
    return json.dumps({"version": VERSION, **facts_of(encoder_file)})
