"""Readers of clips side by side, each in a process of its own with one thread: this project's, and other libraries'.

PyAV and decord as training calls them (`read_frames`); decord2 (a fork of decord, installed under its name), torchcodec
and OpenCV as their documentation says. A reader that is not installed, or not usable here, is named and left out.
With a manifest each is compared, frame by frame, with a plain loop over the decoded pictures of its files.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import Bar, Outcome
from vicc_ray.data.decode import Timeline, VideoError, decode_from, open_video, read_frames, read_timeline
from vicc_ray.data.frame_table import decode_table
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.pictures import to_image
from vicc_ray.data.rows import VideoRow

SIZE = (128, 171)  # H, W: `clip.decode_size`
FRAMES, STRIDE, RATE, SECONDS = 16, 2, 30, 10
FILMS = {"852x480": (480, 852), "1920x1080": (1080, 1920), "96x64, for memory": (64, 96)}
CLIPS = 12  # a round and film
MANY = 10_000  # clips, after which memory is seen
WARM_UP = 200  # clips before it counts
# Mean difference of a picture at `SIZE` from the right one (grey levels) above which another frame was meant or the
# picture stands the wrong way; readers scale differently, so none is exact.
WRONG = 6.0

Images = NDArray[np.uint8]
Read = Callable[[str, NDArray[np.int64]], Images]


def _pyav(path: str, frames: NDArray[np.int64]) -> Images:
    return read_frames(path, frames, SIZE, "pyav")


def _pyav_table(path: str, frames: NDArray[np.int64]) -> Images:
    return read_frames(path, frames, SIZE, "pyav", timeline=_table(path))


def _project_decord(path: str, frames: NDArray[np.int64]) -> Images:
    return read_frames(path, frames, SIZE, "decord")


def _decord2(path: str, frames: NDArray[np.int64]) -> Images:
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), width=SIZE[1], height=SIZE[0], num_threads=1)
    images: Images = reader.get_batch(frames.tolist()).asnumpy()
    return images


def _torchcodec(path: str, frames: NDArray[np.int64]) -> Images:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, transforms=[Resize(SIZE)])
    images: Images = decoder.get_frames_at(indices=frames.tolist()).data.numpy()
    return images


def _opencv(path: str, frames: NDArray[np.int64]) -> Images:
    import cv2

    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    capture.set(cv2.CAP_PROP_POS_FRAMES, int(frames[0]))
    images = []
    for number in range(int(frames[0]), int(frames[-1]) + 1):
        if not capture.grab():
            raise VideoError(f"no frame {number}")
        if number in frames:
            picture = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            images.append(cv2.resize(picture, SIZE[::-1], interpolation=cv2.INTER_LINEAR))
    return np.stack(images).astype(np.uint8)


# Name -> (how it reads, the package that it needs).
READERS: dict[str, tuple[Read, str]] = {
    "PyAV": (_pyav, "av"),
    "PyAV, frame table known": (_pyav_table, "av"),
    "decord": (_project_decord, "decord"),
    "decord2": (_decord2, "decord2"),
    "torchcodec": (_torchcodec, "torchcodec"),
    "OpenCV": (_opencv, "opencv-contrib-python-headless"),
}
_tables: dict[str, Timeline] = {}


def _table(path: str) -> Timeline:
    if path not in _tables:
        with open_video(path) as (container, stream):
            _tables[path] = read_timeline(container, stream)
    return _tables[path]


def measure(rounds: int, manifest: str | None) -> Outcome:
    """Milliseconds of CPU time a clip of 16 frames (stride 2) at 128x171, by film and reader; memory that 10,000 clips take."""
    videos = list(Manifest.read(manifest).videos) if manifest else []
    with tempfile.TemporaryDirectory() as scratch, _processes() as readers:
        films = {name: _film(Path(scratch) / f"{name.split(',')[0]}.mp4", *size) for name, size in FILMS.items()}
        *timed, small = films
        outcome = Outcome("CPU ms a clip", {f"{film}: {reader}": [] for film in timed for reader in readers})
        outcome.facts["not here"] = ", ".join(name for name in READERS if name not in readers) or "none"
        for number in range(rounds):
            for film in timed:
                for reader, process in readers.items():
                    seconds = process.submit(_time, reader, films[film], number, CLIPS).result()
                    outcome.figures[f"{film}: {reader}"].append(1000 * seconds)
        for reader, process in readers.items():
            facts = [
                f"memory grew by {process.submit(_growth, reader, films[small]).result() / 1e6:.1f} MB in {MANY} clips"
            ]
            if videos:
                wrong = [row.video for row in videos if not process.submit(_right, reader, row).result()]
                facts.append(f"right frames of {len(videos) - len(wrong)} of {len(videos)} files")
                facts += [f"wrong or refused: {', '.join(sorted(Path(name).name for name in wrong))}"] if wrong else []
            outcome.facts[reader] = "; ".join(facts)
    ours = [outcome.median(f"{film}: PyAV, frame table known") for film in timed]
    best = [min(outcome.median(name) for name in outcome.figures if name.startswith(film)) for film in timed]
    outcome.bars = [
        Bar(f"PyAV beside the fastest, {film}", mine / fastest, 1.25, at_least=False)
        for film, mine, fastest in zip(timed, ours, best, strict=True)
    ]
    return outcome


@contextmanager
def _processes() -> Iterator[dict[str, ProcessPoolExecutor]]:
    """A process for each reader that works here."""
    pools: dict[str, ProcessPoolExecutor] = {}
    try:
        for name, (_, package) in READERS.items():
            if _version(package) is None or (package == "decord" and _version("decord2")):
                continue  # both are imported as decord
            pools[name] = ProcessPoolExecutor(1, get_context("spawn"))
            if not pools[name].submit(_works, name).result():
                pools.pop(name).shutdown()
        yield pools
    finally:
        for pool in pools.values():
            pool.shutdown()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _works(reader: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        film = _film(Path(folder) / "film.mp4", 64, 96, seconds=1)
        try:
            return READERS[reader][0](film, np.arange(4)).shape == (4, *SIZE, 3)
        except (ImportError, OSError, RuntimeError):
            return False


def _film(path: Path, height: int, width: int, seconds: int = SECONDS) -> str:
    """H.264 with B-frames and a key a second or two, of a texture that moves."""
    import cv2

    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (height + 240, width + 240, 3), np.uint8), (0, 0), 3)
    texture = cv2.normalize(texture, np.empty(0), 0, 255, cv2.NORM_MINMAX)
    options = {"crf": "24", "preset": "veryfast", "threads": "1", "x264-params": "keyint=48:scenecut=0"}
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, RATE)
        for frame in range(seconds * RATE):
            y, x = (int(120 + 100 * wave(frame / 45)) for wave in (np.sin, np.cos))
            picture = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


def _clip(start: int, frames: int) -> NDArray[np.int64]:
    return np.minimum(start + STRIDE * np.arange(FRAMES), frames - 1)


def _time(reader: str, path: str, seed: int, clips: int) -> float:
    """Seconds of CPU time a clip, mean over clips at random places: what other programs on the machine do matters less."""
    read, frames = READERS[reader][0], SECONDS * RATE
    starts = np.random.default_rng(seed).integers(0, frames - STRIDE * FRAMES, clips + 1)
    _forget()
    read(path, _clip(int(starts[0]), frames))
    began = time.process_time()
    for start in starts[1:]:
        _forget()
        read(path, _clip(int(start), frames))
    return (time.process_time() - began) / clips


def _forget() -> None:
    """Let no timeline be remembered, as a decode actor meets many files between two clips of one."""
    from vicc_ray.data import decode

    decode._timeline.cache_clear()


def _growth(reader: str, path: str) -> int:
    """Bytes by which the process grew over `MANY` clips."""
    read, process = READERS[reader][0], psutil.Process()
    before = 0
    for number in range(WARM_UP + MANY):
        if number == WARM_UP:
            before = process.memory_info().rss
        read(path, np.arange(number % 64, number % 64 + 4))
    return int(process.memory_info().rss - before)


def _right(reader: str, row: VideoRow) -> bool:
    """Whether the reader gives each frame of a file that a plain loop gives, all at once and from places in it."""
    read = _table_reader(row) if reader == "PyAV, frame table known" else READERS[reader][0]
    with open_video(row.video) as (container, stream):
        timeline = read_timeline(container, stream)
    wanted = np.stack([to_image(frame, SIZE) for frame in decode_from(row.video, timeline, 0)]).astype(np.int16)
    rng = np.random.default_rng(len(wanted))
    places = [rng.integers(0, len(wanted)) for _ in range(6)]
    sets = [np.arange(len(wanted)), *(np.minimum(place + np.arange(5), len(wanted) - 1) for place in places)]
    for frames in sets:
        try:
            got = read(row.video, np.unique(frames))
        except Exception:
            return False
        if got.shape != wanted[np.unique(frames)].shape:
            return False
        for picture, frame in zip(got, np.unique(frames), strict=True):
            distances = np.abs(wanted - picture).mean((1, 2, 3))
            if distances[frame] > WRONG or distances[frame] > distances.min() + 0.3:
                return False
    return True


def _table_reader(row: VideoRow) -> Read:
    """What training does with a row: by its frame table where it has one."""
    timeline = decode_table(row.frame_table) if row.frame_table else None
    decoder = row.decoder if row.decoder != "decord" else "pyav"
    return lambda path, frames: read_frames(path, frames, SIZE, decoder, timeline=timeline)
