"""The encoders of a run, opened once: name, file, stream and the hash of what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from vicc_ray import storage
from vicc_ray.config import STREAMS, Experiment, Stream, make_experiment, stream_titled
from vicc_ray.errors import UserError
from vicc_ray.models.encoder_file import EncoderFile, stream_of
from vicc_ray.models.weight_file import check_whole
from vicc_ray.runs.folder import RunFolder

RANDOM = "random"  # the row of an untrained encoder


@dataclass(frozen=True)
class EncoderOnDisk:
    """An encoder's file: its own name (RGB-2), where it lies, what it was trained on, and the hash of its bytes.

    `path` is on this machine, `shared_name` the path or URI by which the cluster's nodes read it.
    """

    name: str
    path: Path
    shared_name: str
    stream: Stream
    hash: str


def open_encoder(folder: RunFolder, name: str) -> EncoderOnDisk:
    """Open a run's encoder; UserError where it is damaged or holds another stream than its name says."""
    path = folder.encoder(name)
    stream = stream_of(path)
    check_whole(path)
    named = stream_titled(name.split("-")[0])
    if named is not None and named != stream:
        raise UserError(
            f"{path}: is named {name} but holds an encoder of the {stream} stream; give it a name that begins with "
            f"{STREAMS[stream].title}-, or put the right file there"
        )
    return EncoderOnDisk(name, path, folder.shared_name(path), stream, file_hash(str(path)))


def open_encoders(folder: RunFolder) -> dict[str, EncoderOnDisk]:
    """The run's encoders by row name; UserError for none, and for a file that is broken or of another stream."""
    return {row: open_encoder(folder, name) for row, name in finished_encoders(folder).items()}


def encoder_settings(file: EncoderFile, name: str) -> Experiment:
    """The settings that an encoder was trained under; the published ones with its network where the file does not say."""
    settings = file.meta.get("experiment", {})
    if not settings:
        spec = file.spec
        settings = {"model": {"backbone": spec.backbone, "width": spec.width, "embedding_dim": spec.embedding_dim}}
    # Its videos are other ones than those that it learnt from, which are all that a store of that run has.
    for section in ("clip", "flow"):
        settings = settings | {section: dict(settings.get(section, {})) | {"source": "stream"}}
    return make_experiment(settings, name)


def file_hash(path: str) -> str:
    """blake2b-128 (hex) of a file's bytes, by path or URI."""
    digest = blake2b(digest_size=16)
    with storage.local_copy(path) as name, open(name, "rb") as file:
        while chunk := file.read(storage.CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def finished_encoders(folder: RunFolder) -> dict[str, str]:
    """Row name -> encoder name of what a run can be judged by, in the order of the table; UserError where nothing is."""
    there = folder.encoders()
    names = {RANDOM: "RGB-0"} | {name: name for name in _in_order(there) if not name.endswith("-0")}
    found = {row: name for row, name in names.items() if name in there}
    if not found:
        raise UserError(f"{folder}: has no finished stage to evaluate; run 'vicc train' first")
    return found


def _in_order(names: Sequence[str]) -> list[str]:
    # RGB-1, Flow-1, RGB-2-cycle1, ..., RGB-2, Flow-2: by level, earlier cycles first, RGB before motion.
    def place(name: str) -> tuple[str, bool, list[str], bool]:
        level, *rest = name.split("-")[1:] or ["~"]
        return level, "cycle" not in name, rest, not name.startswith(STREAMS["rgb"].title)

    return sorted(names, key=place)
