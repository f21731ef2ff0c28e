"""`vicc export`: an encoder of a run in another format."""

from __future__ import annotations

from pathlib import Path

from vicc_ray.errors import UserError
from vicc_ray.interop import FORMATS, export
from vicc_ray.models.encoder_file import EncoderFile, load_encoder
from vicc_ray.runs.folder import RunFolder

SUFFIXES = {"safetensors": ".safetensors", "torchscript": ".torchscript.pt", "onnx": ".onnx", "published": ".pth.tar"}


def export_encoder(run: Path, name: str | None, form: str, out: Path | None) -> Path:
    """Write an encoder of a run in another format; returns the file. UserError where run, name or format is wrong."""
    folder = RunFolder(run)
    experiment = folder.experiment()
    there = folder.encoders()
    chosen = name or next((known for known in ("RGB-2", "RGB-1", *there) if known in there), None)
    if chosen is None or chosen not in there:
        raise UserError(f"{run}: has no encoder {chosen or ''}; it has: {', '.join(there) or 'none, train first'}")
    if form not in FORMATS:
        raise UserError(f"format '{form}' is not known; allowed: {', '.join(FORMATS)}")
    target = out or folder.path / "exports" / f"{chosen}{SUFFIXES[form]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    clip = experiment.clip
    encoder = load_encoder(folder.encoder(chosen))
    export(
        encoder,
        form,
        target,
        (clip.frames, clip.size, clip.size),
        _guide(folder, encoder, chosen) if form == "published" else None,
    )
    return target


def _guide(folder: RunFolder, encoder: EncoderFile, name: str) -> EncoderFile | None:
    """The frozen encoder that a published cross-stream file holds beside the learning one."""
    if not name.endswith("-2"):
        return None
    other = "Flow" if encoder.stream == "rgb" else "RGB"
    # RGB-2 was guided by Flow-1 in a run of one cycle; Flow-2 by RGB-2.
    levels = ("2-cycle1", "1") if encoder.stream == "rgb" else ("2", "1")
    found = next((f"{other}-{level}" for level in (*levels, "guide") if f"{other}-{level}" in folder.encoders()), None)
    return load_encoder(folder.encoder(found)) if found else None
