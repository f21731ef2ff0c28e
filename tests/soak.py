"""Thousands of clips through one reader: what its process and this one hold, by `python tests/soak.py [CLIPS] [VIDEO...]`."""

from __future__ import annotations

import mmap
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from vicc_ray.config import ClipConfig, DataConfig, FlowConfig
from vicc_ray.data.manifest import VideoRow, probe
from vicc_ray.data.reader import ClipReader
from vicc_ray.data.samples import positions


def resident(pid: int | None) -> int:
    """Resident bytes of a process, without what it shares."""
    pages = [int(number) for number in Path(f"/proc/{pid}/statm").read_text().split()[:3]]
    return (pages[1] - pages[2]) * mmap.PAGESIZE


def soak(reader: ClipReader, videos: Sequence[VideoRow], clips: int, seed: int = 0) -> None:
    """Read so many clips of RGB from random places of the videos, each video in turn."""
    rng = np.random.default_rng(seed)
    for number in range(clips):
        video = videos[number % len(videos)]
        last = max(positions(video, reader.clip) - reader.clip.frames, 0)
        reader.read(video, [int(rng.integers(0, last + 1))], ("rgb",))


def main(clips: int, names: Sequence[str]) -> None:
    """Print the memory of both processes after each tenth of the clips."""
    from videos import numbered_frames, write_video

    with tempfile.TemporaryDirectory() as folder:
        paths = names or [str(write_video(Path(folder) / f"{i}.mp4", numbered_frames(40, 120, 160))) for i in range(8)]
        videos = [probe(path) for path in paths]
        clip = ClipConfig(frames=12, decode_size=(64, 64), size=64)
        reader = ClipReader(clip, FlowConfig(), DataConfig())
        started = time.perf_counter()
        for part in range(10):
            soak(reader, videos, clips // 10, part)
            here, there = resident("self"), resident(reader.pid)  # type: ignore[arg-type]
            done = (part + 1) * (clips // 10)
            seconds = time.perf_counter() - started
            print(f"{done} clips, {seconds:.0f} s: child {reader.pid} {there / 1e6:.1f} MB, parent {here / 1e6:.1f} MB")
        reader.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000, sys.argv[2:])
