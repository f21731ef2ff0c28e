"""`vicc import`: published checkpoints into a run's folder."""

from __future__ import annotations

from pathlib import Path

from vicc_ray.config import Experiment, Stream, make_experiment
from vicc_ray.console import console
from vicc_ray.errors import UserError
from vicc_ray.interop import import_published
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.folder import RunFolder


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
        console.print(f"{folder.encoder(name)}: {encoder.stream} encoder {encoder.spec.backbone}")
    for line in result.taken:
        console.print(f"taken: {line}")
    for line in result.left:
        console.print(f"left: {line}")
    return folder


def _experiment(encoder: EncoderFile, out: Path) -> Experiment:
    """The settings under which an imported encoder is evaluated: the published ones, with its own network."""
    spec = encoder.spec
    model = {"backbone": spec.backbone, "width": spec.width, "embedding_dim": spec.embedding_dim}
    tree = {"name": out.absolute().name, "runs": str(out.absolute().parent), "model": model}
    return make_experiment(tree, str(out))
