"""What one node can say about itself: packages, processors, memory, clock, storage, videos. Runs on the node; no Ray."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vicc_ray import storage
from vicc_ray.config import Experiment, decoded_for
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.reader import ClipReader, make_reader
from vicc_ray.data.samples import positions
from vicc_ray.data.store.checking import store_of
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.errors import UserError
from vicc_ray.machine import cpu_has_matrix_units, usable_cpus
from vicc_ray.runs.folder import versions

GPU_QUESTION = (
    "import torch;"
    "print(*(f'{torch.cuda.get_device_properties(i).total_memory} {torch.cuda.get_device_name(i)}'"
    " for i in range(torch.cuda.device_count()) if torch.ones(1, device=f'cuda:{i}').item() == 1), sep='\\n')"
)
GPU_SECONDS = 60.0


@dataclass(frozen=True)
class Question:
    """What is requested of a node: `folder` takes a file from each node, `videos` are read as the experiment reads them."""

    folder: str | None = None
    experiment: Experiment | None = None
    videos: tuple[VideoRow, ...] = ()
    gpus: bool = False


@dataclass(frozen=True)
class VideoTry:
    """A clip of a video: seconds until it was decoded, or why it could not be (`refused`).

    `sample_seconds`: of a training sample, two clips of both streams, by where they are read: `videos`, and `store` where the
    experiment has a packed one.
    """

    video: str
    seconds: float
    refused: str | None = None
    sample_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeFacts:
    """What was found on a node; sizes in bytes. `error` stands alone where the node gave no answer.

    `cpus`, `gpus`, `object_store`: what Ray allocates there. `cores`: what this process may use, by affinity and cgroup.
    `matrix_units`: whether they have some for bf16, as `machine.cpu_has_matrix_units`.
    `clock`: seconds ahead of the driver's, give or take `clock_error`. `unseen`: nodes whose file in the folder it does not see.
    """

    name: str
    head: bool = False
    error: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: float = 0.0
    object_store: int = 0
    cores: float = 0.0
    matrix_units: bool = False
    memory: int = 0
    memory_free: int = 0
    shm: int = 0
    gpu_memory: tuple[int, ...] = ()
    gpu_error: str | None = None
    clock: float = 0.0
    clock_error: float = 0.0
    storage_error: str | None = None
    unseen: tuple[str, ...] = ()
    store_error: str | None = None
    videos: tuple[VideoTry, ...] = ()


def gather(name: str, question: Question) -> NodeFacts:
    """The facts of the machine that this runs on."""
    import psutil

    memory = psutil.virtual_memory()
    limit = _cgroup_memory()
    total = min(memory.total, limit) if limit else memory.total
    gpu_memory, gpu_error = gpus_here() if question.gpus else ((), None)
    return NodeFacts(
        name=name,
        packages={"python": platform.python_version()} | versions(),
        cores=cores_here(),
        matrix_units=cpu_has_matrix_units(),
        memory=total,
        memory_free=min(memory.available, total),
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        gpu_memory=gpu_memory,
        gpu_error=gpu_error,
        storage_error=leave_file(question.folder, name) if question.folder else None,
        store_error=_store_error(question.experiment),
        videos=tuple(try_videos(question.experiment, question.videos)) if question.experiment else (),
    )


def leave_file(folder: str, name: str) -> str | None:
    """Write a small file of a node's name into the folder and read it back; why that is not possible, or None."""
    file = storage.join(folder, name)
    said = f"{name} {time.time_ns()}".encode()
    try:
        storage.write_bytes(file, said)
        return None if storage.read_bytes(file) == said else f"{file}: read back something else than was written"
    except (OSError, UserError) as error:
        return " ".join(str(error).split())[:300]


def unseen_files(folder: str, names: Sequence[str]) -> tuple[str, ...]:
    """Which of the nodes' files are not to be seen from here."""
    try:
        seen = {entry.name.rsplit("/", 1)[1] for entry in storage.list_files(folder)}
    except (OSError, UserError):
        seen = set()
    return tuple(name for name in names if name not in seen)


def try_videos(experiment: Experiment, videos: Sequence[VideoRow]) -> list[VideoTry]:
    """Decode the middle clip of each video as training would, then a sample of it."""
    clip = experiment.clip
    reader = make_reader(experiment)
    streamed = make_reader(experiment.model_copy(update={"clip": clip.model_copy(update={"source": "stream"})}))
    readers = {"videos": streamed} | ({"store": reader} if clip.source == "store" else {})
    tries = []
    try:
        for video in videos:
            began = time.perf_counter()
            starts = evaluation_starts(positions(video, clip), clip.frames, clip.stride, "centre")
            try:
                reader.read(video, starts, ("rgb",))
                refused = None
            except (VideoError, UserError) as error:
                refused = str(error) or "cannot be read"
            seconds = time.perf_counter() - began
            samples = {} if refused else _sample_seconds(experiment, video, readers)
            tries.append(VideoTry(video.video, seconds, refused, samples))
    finally:
        reader.close()
        streamed.close()
    return tries


def _sample_seconds(
    experiment: Experiment, video: VideoRow, readers: Mapping[str, ClipReader | StoreReader]
) -> dict[str, float]:
    """How long each reader takes for a training sample of a video, its first and its last window; left out where it cannot."""
    clip, streams, found = experiment.clip, decoded_for(experiment.streams), {}
    windows = evaluation_starts(positions(video, clip), clip.frames, clip.stride, "all")
    for name, reader in readers.items():
        # Where the videos lie may be known to the machine that packed them alone.
        with suppress(VideoError, UserError):
            reader.read(video, [windows[0], windows[-1]], streams)  # what is started once
            began = time.perf_counter()
            reader.read(video, [windows[0], windows[-1]], streams)
            found[name] = time.perf_counter() - began
    return found


def gpus_here() -> tuple[tuple[int, ...], str | None]:
    """Memory of each GPU that torch can compute on, or what it had to say; in another process, which leaves no trace."""
    # Ray hides the GPUs from a task that did not reserve one.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        listed = subprocess.run(
            [sys.executable, "-c", GPU_QUESTION], env=environment, capture_output=True, text=True, timeout=GPU_SECONDS
        )
    except subprocess.TimeoutExpired:
        return (), f"torch did not come back from the GPU within {GPU_SECONDS:.0f} s"
    if listed.returncode:
        return (), (listed.stderr.strip().splitlines() or ["torch ended without a word"])[-1][:300]
    return tuple(int(line.split()[0]) for line in listed.stdout.splitlines() if line), None


def cores_here() -> float:
    """CPUs that this process may use: the affinity, or less where a cgroup allows less."""
    cores = float(usable_cpus())
    with_quota = Path("/sys/fs/cgroup/cpu.max")
    if with_quota.is_file():
        quota, period = with_quota.read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _cgroup_memory() -> int | None:
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return None if text == "max" else int(text)


def _store_error(experiment: Experiment | None) -> str | None:
    if experiment is None:
        return None
    try:
        for stream in decoded_for(experiment.streams):
            where = store_of(experiment, stream)
            if where is not None and not storage.exists(where):
                return f"{where} is not there"
    except (OSError, UserError) as error:
        return " ".join(str(error).split())[:300]
    return None
