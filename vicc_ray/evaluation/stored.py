"""Which features an evaluation needs, from what each is made, and which of them are stored already. Pure but for files.

RUN/features/ENCODER-DATA-KEY8.parquet     one encoder, one side of an evaluation; KEY8 begins the hash of all that a
                                           feature depends on, so that a change of anything makes another file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from vicc_ray.config import Experiment
from vicc_ray.data.flow import lucas_kanade
from vicc_ray.data.identity import flow_identity, pictures_identity
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.pictures import RULES
from vicc_ray.data.rows import WALK, Rows
from vicc_ray.errors import UserError
from vicc_ray.evaluation.feature_store import Source, read_refused, read_source
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder

JITTER_P = 0.3  # of the published test (docs/method.md, section 6)

Setting = str | int | float | bool | None


@dataclass(frozen=True, eq=False)
class Side:
    """Videos whose features are needed, and which windows are taken. Equal to itself only: there may be a million videos.

    windows: all, centre, or random (one, at a place drawn from the experiment's seed and the video). jitter: whether
    windows get a random colour jitter, as in the published test.
    """

    videos: Sequence[VideoRow]
    windows: Literal["all", "centre", "random"]
    jitter: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Of contents, labels, splits, groups, order, of times, which `clip.fps` counts by, and of paths: 32 hex digits."""
        rows = Rows.of(self.videos)
        digest = blake2b(Manifest(rows).fingerprint().encode(), digest_size=16)
        for start in range(0, len(rows), WALK):
            part = rows[start : start + WALK]
            times = zip(*(part.numbers(name).tolist() for name in ("duration_seconds", "fps")), strict=True)
            named = zip(part.ids().to_pylist(), times, strict=True)
            digest.update("".join(f"\0{name}{own!r}" for name, own in named).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of one encoder for one side are stored, or will be.

    `again`: the videos of the side that could not be read when the file was made, of a file that is there.
    """

    path: Path
    encoder: EncoderOnDisk
    side: Side
    source: Source
    again: Side | None = None

    @property
    def wanted(self) -> Side:
        """What is to be encoded for the file."""
        return self.again or self.side


def feature_file(
    folder: RunFolder, data: str, encoder: EncoderOnDisk, side: Side, experiment: Experiment
) -> FeatureFile:
    """The file of an encoder's features of a side; `data` names the data set in the file's name."""
    source = source_of(encoder, side, experiment)
    return FeatureFile(folder.features / f"{encoder.name}-{data}-{source.key[:8]}.parquet", encoder, side, source)


def source_of(encoder: EncoderOnDisk, side: Side, experiment: Experiment) -> Source:
    """All that a side's features of an encoder depend on; flow settings count where it takes flow, or its crops follow it."""
    clip, augment = experiment.clip, experiment.augment
    random = side.windows == "random" or side.jitter
    protocol: dict[str, Setting] = {
        "frames": clip.frames,
        "stride": clip.stride,
        "fps": clip.fps,
        "decode_size": "x".join(map(str, clip.decode_size)),
        "size": clip.size,
        "decoder": experiment.data.decoder,
        "interlaced": experiment.data.interlaced,
        "pictures": RULES,
        "windows": side.windows,
        "jitter": " ".join(f"{value:g}" for value in (*augment.jitter, JITTER_P)) if side.jitter else None,
        "seed": experiment.seed if random else None,
    }
    if encoder.stream == "flow":
        protocol["style"] = augment.style
    if encoder.stream == "lucas_kanade":
        protocol["lucas_kanade"] = lucas_kanade.RULES
    if "flow" in experiment.decoded_at_test([encoder.stream]):
        protocol["flow"] = json.dumps(flow_identity(experiment), sort_keys=True)
    if experiment.evaluate.motion_crop:
        protocol |= {"motion_crop": experiment.evaluate.motion_crop, "motion": clip.motion}
    packed = pictures_identity(experiment)
    if packed is not None:
        protocol["packed"] = json.dumps(packed, sort_keys=True)
    return Source(encoder.name, encoder.hash, side.fingerprint, protocol)


def missing(
    folder: RunFolder, files: Mapping[str, Sequence[FeatureFile]], say: Callable[[str], None]
) -> list[FeatureFile]:
    """Those of the files (by the row's name) that are to be made, or to be completed by videos that could not be read.

    `say` takes a line for the reader on each: which are used as they are stored.
    """
    absent = []
    parts: dict[tuple[Side, frozenset[str]], Side] = {}
    for row, wanted in files.items():
        for file in wanted:
            if not _there(folder, file, say):
                absent.append(file)
            elif lost := frozenset(video for video, _ in read_refused(str(file.path))):
                part = parts.setdefault((file.side, lost), _part(file.side, lost))
                say(f"features of {row} lack {len(lost)} videos that could not be read; these are tried again")
                absent.append(replace(file, again=part))
        if not any(file.encoder == wanted[0].encoder for file in absent):
            say(f"features of {row} as they were stored")
    return absent


def _part(side: Side, videos: frozenset[str]) -> Side:
    rows = Rows.of(side.videos)
    return replace(side, videos=rows.where(pc.is_in(rows.ids(), value_set=pa.array(videos, pa.string()))))


def _there(folder: RunFolder, file: FeatureFile, say: Callable[[str], None]) -> bool:
    if not file.path.is_file() and not folder.fetch(file.path).is_file():
        return False
    try:
        if read_source(str(file.path), whole=True).key == file.source.key:
            return True
        say(f"{file.path}: holds other features; made again")
    except UserError as error:
        say(f"{error}; made again")
    return False
