"""`vicc import` and `vicc export`: published checkpoints into a run's folder, a run's encoders out of it."""

from __future__ import annotations

from pathlib import Path

from vicc_ray.config import Experiment, Stream, make_experiment
from vicc_ray.console import console
from vicc_ray.errors import UserError
from vicc_ray.interop import FORMATS, export, import_published
from vicc_ray.run_folder import RunFolder
from vicc_ray.weights import EncoderFile, load_encoder, save_encoder

SUFFIXES = {"safetensors": ".safetensors", "torchscript": ".torchscript.pt", "onnx": ".onnx", "published": ".pth.tar"}


def import_checkpoint(file: Path, stream: Stream, out: Path) -> RunFolder:
    """Read a published file into the run folder `out`, which is made or, for the other stream's file, added to.

    Nothing is written unless the whole file is right. UserError for a file that is not, for an encoder that is there
    already, and for a folder of another network.
    """
    result = import_published(file, stream)
    folder = RunFolder(out)
    taken = [name for name in result.encoders if name in folder.encoders()]
    if taken:
        raise UserError(f"{out}: has {', '.join(taken)} already; choose another folder with --out")
    folder.open(_experiment(next(iter(result.encoders.values())), out), "imported")
    for name, encoder in result.encoders.items():
        save_encoder(folder.encoder(name), encoder)
        console.print(f"{folder.encoder(name)}: {encoder.stream} encoder {encoder.spec.backbone}", markup=False)
    for line in result.taken:
        console.print(f"taken: {line}", markup=False)
    for line in result.left:
        console.print(f"left: {line}", markup=False)
    return folder


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


def _experiment(encoder: EncoderFile, out: Path) -> Experiment:
    """The settings under which an imported encoder is evaluated: the published ones, with its own network."""
    spec = encoder.spec
    model = {"backbone": spec.backbone, "width": spec.width, "embedding_dim": spec.embedding_dim}
    tree = {"name": out.absolute().name, "runs": str(out.absolute().parent), "model": model}
    return make_experiment(tree, str(out))
