"""Which videos are gone through together for which encoders, and what becomes of the features of their windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.rows import Rows
from vicc_ray.evaluation.feature_store import (
    FeaturePatch,
    FeatureWriter,
    VideoFeatures,
    completing_features,
    writing_features,
)
from vicc_ray.evaluation.means import Block, VideoMeans, video_means
from vicc_ray.evaluation.stored import FeatureFile, Side
from vicc_ray.runs.encoders import EncoderOnDisk

PART = 4096  # videos whose features are held before they are written


@dataclass(frozen=True)
class Pass:
    """One pass over videos: each of the encoders takes each of the sides, whose windows all get a jitter or none."""

    encoders: tuple[EncoderOnDisk, ...]
    sides: tuple[Side, ...]
    files: tuple[FeatureFile, ...]

    def decoded(self, experiment: Experiment) -> tuple[Decoded, ...]:
        """The clips that the encoders need."""
        return experiment.decoded_at_test(encoder.stream for encoder in self.encoders)

    @property
    def videos(self) -> Rows:
        """Of all sides, one after another."""
        return Rows.chain([side.videos for side in self.sides])

    def windows(self, experiment: Experiment) -> NDArray[np.int64]:
        """(video number, first frame) of all, int64 [W, 2], in order."""
        listed: list[NDArray[np.int64]] = []
        first = 0
        for side in self.sides:
            found = list_windows(side.videos, experiment.clip, side.windows, experiment.seed)
            listed.append(found + np.array([first, 0]))
            first += len(side.videos)
        return np.concatenate(listed)


def passes(files: Sequence[FeatureFile]) -> list[Pass]:
    """As few passes as make all the files: sides that lack the same encoders are gone through together."""
    lacking: dict[Side, list[FeatureFile]] = {}
    for file in files:
        lacking.setdefault(file.wanted, []).append(file)
    together: dict[tuple[bool, tuple[EncoderOnDisk, ...]], list[Side]] = {}
    for side, wanted in lacking.items():
        together.setdefault((side.jitter, tuple(file.encoder for file in wanted)), []).append(side)
    return [
        Pass(encoders, tuple(sides), tuple(file for side in sides for file in lacking[side]))
        for (_, encoders), sides in together.items()
    ]


def write_means(part: Pass, blocks: Iterable[Block]) -> None:
    """Fill the files of a pass from its windows' features, in order; no file appears where one of them cannot."""
    names = [encoder.name for encoder in part.encoders]
    means = video_means(blocks, names)
    with ExitStack() as stack:
        writers = [stack.enter_context(_writing(file)) for file in part.files]
        of_side = {
            side: [
                (file.encoder.name, writer)
                for file, writer in zip(part.files, writers, strict=True)
                if file.wanted == side
            ]
            for side in part.sides
        }
        first = 0
        for side in part.sides:
            last = first + len(side.videos)
            held: list[VideoMeans] = []
            for number in range(first, last):
                found = next(means, None)
                if found is None or found.number != number:
                    raise RuntimeError(f"video {number} of {last} gave no windows")
                held.append(found)
                if len(held) == PART or number == last - 1:
                    _write_part(side.videos[held[0].number - first : number + 1 - first], held, of_side[side])
                    held = []
            first = last


def _writing(file: FeatureFile) -> AbstractContextManager[FeatureWriter | FeaturePatch]:
    if file.again is None:
        return writing_features(str(file.path), file.source)
    return completing_features(str(file.path), file.source, [row.id for row in file.side.videos])


def _write_part(
    rows: Sequence[VideoRow], means: Sequence[VideoMeans], writers: Sequence[tuple[str, FeatureWriter | FeaturePatch]]
) -> None:
    good = [(row, mean) for row, mean in zip(rows, means, strict=True) if not mean.refused]
    for row, mean in zip(rows, means, strict=True):
        for _, writer in writers:
            if mean.refused:
                writer.refuse(row.id, mean.refused)
    for name, writer in writers if good else ():
        writer.add(
            VideoFeatures(
                ids=[row.id for row, _ in good],
                labels=[row.label for row, _ in good],
                groups=[row.group for row, _ in good],
                splits=[row.split for row, _ in good],
                windows=[mean.windows for _, mean in good],
                vectors=np.stack([mean.vectors[name] for _, mean in good]),
            )
        )
