"""A file's frame table as text for a manifest's row: when each picture is shown and where decoding can start.

With it a clip in the middle of a long file is found without walking the file's packets, which takes as long as the file is.
The text is base64 of zlib of whole numbers that repeat where the rate is constant: an hour at a constant rate takes some 100
bytes beside about two a key picture.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vicc_ray.data.decode import Timeline

_VERSION = "1"


def encode_table(timeline: Timeline) -> str:
    """The text of a timeline; empty for one that is not `exact`, whose frames are found by counting only."""
    if not timeline.exact or not len(timeline):
        return ""
    steps = np.diff(timeline.stamps, prepend=0)
    numbers = [np.array([len(timeline)]), np.diff(steps, prepend=0), np.diff(timeline.keys, prepend=0)]
    packed = zlib.compress(np.concatenate(numbers).astype("<i8").tobytes(), 9)
    head = f"{_VERSION} {timeline.time_base!r} {int(timeline.open_gops)}"
    return f"{head} {base64.b64encode(packed).decode('ascii')}"


@lru_cache(maxsize=8)
def decode_table(text: str) -> Timeline | None:
    """The timeline of such a text; None where there is none, or another version wrote it."""
    try:
        version, time_base, open_gops, packed = text.split(" ")
        numbers: NDArray[np.int64] = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i8").astype(np.int64)
        base = float(time_base)
    except (ValueError, zlib.error, binascii.Error):
        return None
    if version != _VERSION or not len(numbers) or not 0 < numbers[0] < len(numbers) or base <= 0:
        return None
    count = int(numbers[0])
    stamps = numbers[1 : count + 1].cumsum().cumsum()
    return Timeline(stamps, numbers[count + 1 :].cumsum(), True, base, open_gops == "1")
