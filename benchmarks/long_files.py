"""A clip in the middle of a two-hour file beside one in the middle of a ten-second file of the same encoding."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.embed import repeat_film, write_film
from vicc_ray.config import ClipConfig, FlowConfig
from vicc_ray.data.manifest import VideoRow, probe
from vicc_ray.data.samples import read_clips
from vicc_ray.data.segments import cut_evenly

SHORT_SECONDS, LONG_SECONDS = 10, 7200
CLIPS = 12  # a round
LONG, SHORT, WALKED = (
    "clip in a two-hour file",
    "clip in a ten-second file",
    "clip in a two-hour file, without its frame table",
)


def compare_lengths(rounds: int, scratch: Path) -> dict[str, list[float]]:
    """Seconds a clip of 32 RGB frames, medians of each round, in turn; the long file is the short one 720 times."""
    short, long = scratch / "short.mp4", scratch / "long.mp4"
    write_film(short, SHORT_SECONDS)
    repeat_film(short, long, LONG_SECONDS // SHORT_SECONDS)
    one = probe(str(short))
    parts = cut_evenly(probe(str(long)), SHORT_SECONDS)
    middle = parts[len(parts) // 2]
    # The same without what the manifest knows: the file is walked for each clip by a process that has not seen it.
    walked = replace(middle, frame_table="")
    figures: dict[str, list[float]] = {LONG: [], SHORT: [], WALKED: []}
    for number in range(rounds):
        for name, row in ((LONG, middle), (SHORT, one), (WALKED, walked)):
            figures[name].append(_seconds(row, CLIPS if row is not walked else 2, number))
    return figures


def _seconds(row: VideoRow, clips: int, seed: int) -> float:
    clip, flow = ClipConfig(), FlowConfig()
    rng = np.random.default_rng(seed)
    times = []
    for start in rng.integers(row.frames // 3, 2 * row.frames // 3, clips).tolist():
        began = time.perf_counter()
        read_clips(row, [int(start)], ("rgb",), clip, flow)
        times.append(time.perf_counter() - began)
        _forget()
    return statistics.median(times)


def _forget() -> None:
    """Let no timeline be remembered, as a decode actor meets many files between two clips of one."""
    from vicc_ray.data import decode, frame_table

    decode._timeline.cache_clear()
    frame_table.decode_table.cache_clear()
