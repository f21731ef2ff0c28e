"""`vicc embed` beside a bare loop: RGB clips of 854x480 videos decoded and encoded by S3D, in as many processes on either side.

What is timed is the steady stream: from the first block of vectors to the last one, without the start of Ray or of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks import Bar, Outcome, take_turns
from vicc_ray.archive.embedding import EmbeddingPlan, embed_missing
from vicc_ray.archive.store import ArchiveInfo, Maker, create_archive
from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.cluster.session import ray_session
from vicc_ray.cluster.stream import WINDOWS_A_BLOCK
from vicc_ray.commands.embed import train_settings
from vicc_ray.config import Experiment, make_experiment
from vicc_ray.console import quiet
from vicc_ray.data.manifest import Manifest, VideoRow, probe
from vicc_ray.data.segments import cut_evenly
from vicc_ray.evaluation.model_actors import EncodeWindows
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.encoders import EncoderOnDisk

WIDTH, FULL = 0.25, 1.0
SIZE = (480, 854)  # of the sources: H, W
FILES, FILE_SECONDS, TIMES, RATE = 4, 40, 4, 30  # a film is encoded once and repeated
RAMP = 6  # blocks before the clock: what the pipeline has ready when its last actor has started comes in a burst
PART_SECONDS = 1.1  # one window of 32 frames
LEAST_SHARE = 0.9
# NVIDIA NeMo Curator's nightly gate: 12 clips/s on 128 CPUs and 8 GPUs.
CURATOR = 12 / 128
TIMES_CURATOR = 10
BARE, EMBED = f"bare loop, width {WIDTH}", f"vicc embed, width {WIDTH}"


@dataclass(frozen=True)
class Course:
    """What is embedded, by what, on how many processes."""

    experiment: Experiment
    rows: tuple[VideoRow, ...]
    encoder: EncoderOnDisk
    width: int
    processes: int


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Segments/s; without a manifest, of videos made for the purpose. Rows of a manifest are cut into parts of one window."""
    cores = len(os.sched_getaffinity(0))
    experiment: Experiment = make_experiment({"model": {"backbone": "s3d", "width": WIDTH}}, "bench embed")
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        folder = Path(scratch)
        files = Manifest.read(manifest).videos if manifest else _films(folder)
        rows = tuple(part for file in files for part in cut_evenly(file, PART_SECONDS))
        small = Course(experiment, rows, *_encoder(folder, WIDTH), cores)
        full = Course(experiment, rows[: 16 * WINDOWS_A_BLOCK], *_encoder(folder, FULL), cores)
        with quiet(folder / "ray.log"), ray_session(train_settings(experiment, cores)) as resources:
            contenders = {BARE: lambda: _bare(small), EMBED: lambda: _embedded(small, folder, resources)}
            outcome = Outcome("segments/s", take_turns(contenders, rounds))
            whole = _embedded(full, folder, resources)
    a_core = outcome.median(EMBED) / cores
    outcome.bars = [
        Bar("vicc embed / bare loop", outcome.ratio(EMBED, BARE), LEAST_SHARE),
        Bar("clips/s a core / Curator's 0.094", a_core / CURATOR, TIMES_CURATOR),
    ]
    outcome.facts = {
        "segments": len(rows),
        "processes on either side": cores,
        "clips/s a core": round(a_core, 2),
        "clips/s a core, S3D of full width": round(whole / cores, 2),
        "clip": f"{experiment.clip.frames} frames of {experiment.clip.decode_size}, seen at {experiment.clip.size} px",
    }
    return outcome


def _films(folder: Path) -> list[VideoRow]:
    """Films of a moving texture with the detail and the bytes of real ones."""
    made = []
    for number in range(FILES):
        once, path = folder / f"once{number}.mp4", folder / f"{number}.mp4"
        write_film(once, FILE_SECONDS, seed=number)
        repeat_film(once, path, TIMES)
        made.append(probe(str(path)))
    return made


def write_film(path: Path, seconds: int, seed: int = 0, size: tuple[int, int] = SIZE, rate: int = RATE) -> None:
    """H.264 of `size` (height, width) at `rate` pictures a second, of a texture that moves, with a little noise."""
    rng = np.random.default_rng(seed)
    height, width = size
    import cv2

    texture = cv2.GaussianBlur(rng.integers(0, 256, (height + 240, width + 240, 3), np.uint8), (0, 0), 3)
    texture = cv2.normalize(texture, np.empty(0), 0, 255, cv2.NORM_MINMAX)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "26", "preset": "veryfast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for frame in range(seconds * rate):
            y, x = (int(120 + 100 * wave(frame / 45)) for wave in (np.sin, np.cos))
            picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def repeat_film(source: Path, target: Path, times: int) -> None:
    """The packets of a file again and again, as one file: nothing is encoded."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [
            (bytes(p), p.pts, p.dts, p.is_keyframe, p.duration) for p in container.demux(stream) if p.pts is not None
        ]
        length = max(pts + duration for _, pts, _, _, duration in packets) - min(pts for _, pts, *_ in packets)
        with av.open(str(target), "w") as output:
            copy = output.add_stream_from_template(stream)
            for number in range(times):
                for data, pts, dts, key, duration in packets:
                    packet = av.Packet(data)
                    packet.pts, packet.dts, packet.is_keyframe = pts + number * length, dts + number * length, key
                    packet.duration, packet.stream, packet.time_base = duration, copy, stream.time_base
                    output.mux(packet)


def _encoder(folder: Path, width: float) -> tuple[EncoderOnDisk, int]:
    """An untrained S3D on disk, and how many features it gives."""
    path = folder / f"s3d-{width}.safetensors"
    encoder = build_encoder("s3d", width=width)
    save_encoder(path, EncoderFile(encoder.spec, "rgb", encoder.state_dict()))
    return EncoderOnDisk("RGB-2", path, str(path), "rgb", "0" * 32), encoder.feature_dim


def _embedded(course: Course, folder: Path, resources: ResourcePlan) -> float:
    """Segments/s of `vicc embed`'s own pipeline, from its first block on."""
    maker = Maker("RGB-2", course.encoder.hash, "rgb", course.width)
    out = Path(tempfile.mkdtemp(dir=folder))
    archive = create_archive(str(out), ArchiveInfo((maker,), {}, {}))
    windows = list_windows(course.rows, course.experiment.clip, "centre")
    plan = EmbeddingPlan(course.rows, np.zeros(len(course.rows), bool), windows)
    times: list[tuple[float, int]] = []
    embed_missing(
        archive,
        plan,
        [course.encoder],
        course.experiment,
        resources,
        lambda count: times.append((time.perf_counter(), count)),
    )
    return _rate(times)


def _rate(times: Sequence[tuple[float, int]]) -> float:
    """Windows a second after the first blocks."""
    return sum(count for _, count in times[RAMP + 1 :]) / (times[-1][0] - times[RAMP][0])


def _bare(course: Course) -> float:
    """Segments/s of processes that decode a block and encode it, in turn, without Ray."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    workers = [
        context.Process(target=_work, args=(course, number, queue), daemon=True) for number in range(course.processes)
    ]
    for worker in workers:
        worker.start()
    times = sorted(queue.get() for _ in _blocks(course))
    for worker in workers:
        worker.join()
    return _rate(times)


def _blocks(course: Course) -> Iterator[int]:
    yield from range(-(-len(course.rows) // WINDOWS_A_BLOCK))


def _work(course: Course, number: int, queue: Any) -> None:
    torch.set_num_threads(1)
    windows = list_windows(course.rows, course.experiment.clip, "centre")
    decode = DecodeWindows(course.rows, windows, WINDOWS_A_BLOCK, course.experiment, ("rgb",))
    decode.reader = _Here(course.experiment)  # type: ignore[assignment]  # no process of its own
    encode = EncodeWindows({"RGB-2": str(course.encoder.path)}, course.experiment, use_gpu=False, threads=1)
    for block in list(_blocks(course))[number :: course.processes]:
        found = encode(decode({"unit": np.array([block])}))
        queue.put((time.perf_counter(), len(found["video"])))


class _Here:
    """Reads clips in this process."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def read_all(self, requests: Any, into: Any = None) -> Any:
        from vicc_ray.data.reader import read_here

        return read_here(self.experiment, requests, into)
