"""Clips that recall in training is measured on, kept on a node's disk for the next start and the next trial of a sweep.

Decoding them is most of the start of a trial of minutes: 18 s for 400 small videos on two cores. They lie below the folder of
the node's Ray session, so another cluster knows nothing of them. No Ray.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from vicc_ray.cluster.decode_actors import video_key
from vicc_ray.config import Decoded, Experiment
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.samples import Clips
from vicc_ray.runs.folder import versions

FOLDER = "vicc_ray_clips"
# On one node. What was used longest ago makes room; more than this is not kept at all.
MOST_BYTES = 1 << 30


class KeptClips:
    """The centre clips of videos, as an experiment decodes them.

    Args:
        session: the folder of this node's Ray session; None: nothing is kept.
        experiment: decides what a clip is.
        streams: of each clip.
        total: bytes of all clips that will be kept.
    """

    def __init__(self, session: Path | None, experiment: Experiment, streams: Sequence[Decoded], total: int) -> None:
        facts = {
            "clip": experiment.clip.model_dump(mode="json"),
            "flow": experiment.flow.model_dump(mode="json"),
            "interlaced": experiment.data.interlaced,
            "streams": list(streams),
            "versions": versions(),
        }
        name = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.streams = tuple(streams)
        self.folder = session / FOLDER / name if session and total <= MOST_BYTES else None
        if self.folder is not None:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                os.utime(self.folder)
                _make_room(self.folder, MOST_BYTES - total)

    def read(self, video: VideoRow) -> Clips | None:
        """The clip of a video, uint8 [1, T, H, W, 3] of rgb and [1, T, H, W, 2] of flow; None where none is kept."""
        if self.folder is None:
            return None
        try:
            with np.load(self._file(video), allow_pickle=False) as kept:
                return {stream: kept[stream] for stream in self.streams}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or cut short with its node
            return None

    def keep(self, video: VideoRow, clips: Clips) -> None:
        """Keep the clip of a video; where that fails (a full disk), the next start decodes it again."""
        if self.folder is None:
            return
        file = self._file(video)
        unfinished = file.with_suffix(f".{os.getpid()}")
        try:
            with unfinished.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **{str(stream): clips[stream] for stream in self.streams})
            unfinished.replace(file)
        except OSError:
            with suppress(OSError):
                unfinished.unlink()

    def _file(self, video: VideoRow) -> Path:
        assert self.folder is not None
        return self.folder / f"{video_key(video):016x}.npz"


def forget_clips(session: Path | None) -> None:
    """Remove what a session kept that has ended: Ray leaves its folder, for the logs."""
    if session is not None:
        shutil.rmtree(session / FOLDER, ignore_errors=True)


def _make_room(mine: Path, most: int) -> None:
    """Remove the clips of other experiments, those used longest ago first, until at most so many bytes are left of them."""
    others = sorted((one for one in mine.parent.iterdir() if one != mine), key=lambda one: one.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in one.iterdir()) for one in others]
    left = sum(sizes)
    for one, size in zip(others, sizes, strict=True):
        if left <= most:
            break
        shutil.rmtree(one, ignore_errors=True)
        left -= size
