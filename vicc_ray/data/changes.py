"""What `--cut scenes` and `--still` found in a file, as text for a manifest's row.

The text is base64 of zlib of JSON: the frames with which scenes begin, and how much of the picture moves, for each second.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Changes:
    """cuts: frames with which scenes begin, ascending, the first left out. moved: for each second of the file, from its first
    picture on, the mean share (0 to 1) of the picture that differs from half a second before.
    """

    cuts: tuple[int, ...]
    moved: tuple[float, ...]

    def motion(self, start: float, end: float) -> float:
        """The mean share of the picture that moves from `start` to `end` seconds."""
        seconds = self.moved[int(start) : max(int(np.ceil(end - 1e-6)), int(start) + 1)] or self.moved[-1:]
        return sum(seconds) / len(seconds) if seconds else 0.0

    def encode(self) -> str:
        """The text of a row."""
        text = json.dumps({"cuts": np.diff(self.cuts, prepend=0).tolist(), "moved": [round(m, 4) for m in self.moved]})
        return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def by_second(times: NDArray[np.float64], values: NDArray[np.float32], counted: NDArray[np.bool_]) -> tuple[float, ...]:
    """Means of values [n] of frames at `times` [n] (seconds, ascending), a second each, over those that are `counted` [n].

    A second without any has the mean of all its frames, and one without frames that of the second before.
    """
    seconds = times.astype(np.int64)
    shown, kept = np.bincount(seconds), np.bincount(seconds, weights=counted)
    all_means = np.bincount(seconds, weights=values) / np.maximum(shown, 1)
    means = np.where(kept > 0, np.bincount(seconds, weights=values * counted) / np.maximum(kept, 1), all_means)
    last = np.maximum.accumulate(np.where(shown > 0, np.arange(len(shown)), 0))
    return tuple(float(mean) for mean in means[last])


@lru_cache(maxsize=64)
def decode_changes(text: str) -> Changes | None:
    """What a row's text says; None where it says nothing."""
    try:
        facts = json.loads(zlib.decompress(base64.b64decode(text)))
        cuts = np.cumsum(np.array(facts["cuts"], np.int64)).tolist()
        return Changes(tuple(cuts), tuple(float(value) for value in facts["moved"]))
    except (ValueError, KeyError, TypeError, zlib.error, binascii.Error):
        return None
