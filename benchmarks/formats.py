"""Which format a packed store of decoded clips should have: codecs, each as a file a video and in large shards, read from
the disk and from an object store.

`vicc bench formats --manifest M.parquet` measures on the first videos of a manifest, without one on synthetic videos. All
frames are decoded at the size of training, and what the formats give back is compared with these.
"""

from __future__ import annotations

import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
from PIL import Image

from benchmarks import Outcome, take_turns
from benchmarks.formats_layouts import CODECS, Codec, Files, Shards, folder_bytes, pack, peak_signal_noise
from benchmarks.object_store import ObjectStore, object_store
from vicc_ray import storage
from vicc_ray.data.decode import read_frames
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.pictures import Images
from vicc_ray.data.probing import index
from vicc_ray.data.synthetic import make_dataset
from vicc_ray.errors import UserError

SIZE = (128, 171)
CLIP = 32
VIDEOS = 12
# Of each video's start: all videos are held in memory, to be compared with.
MOST_FRAMES = 600
JPEG_QUALITY = 95
SEED = 0
LAYOUTS: dict[str, Callable[[Codec, str, tuple[int, int]], Files | Shards]] = {"files": Files, "shards": Shards}
PAIR = ", 2 clips"

Reader = Files | Shards


@dataclass
class _Store:
    """One codec in one layout: bytes beside JPEG, dB of the mean and of the worst clip, and who reads it, by place."""

    share_of_jpeg: float
    mean: float
    worst: float
    encode_ms: float
    readers: dict[str, Reader] = field(default_factory=dict)


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Milliseconds to read a random 32-frame clip as RGB; bytes, PSNR and times of two clips and encoding in the details."""
    codecs = [codec for codec in CODECS if codec.lacks() is None]
    lacking = "; ".join(f"{codec.name} (no {what})" for codec in CODECS if (what := codec.lacks()))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vicc-bench-")))
        videos = _videos(Manifest.read(manifest) if manifest else _synthetic(scratch))
        jpeg = _jpeg_bytes(videos)
        served = stack.enter_context(object_store())
        bucket = served.bucket if served else None
        stores: dict[str, _Store] = {}
        for codec in codecs:
            stores |= _stores(codec, videos, jpeg, scratch / "stores" / codec.folder, bucket)
        readers = {f"{name}, {place}": one for name, made in stores.items() for place, one in made.readers.items()}
        turns = {name: _Turn(reader, videos, 1) for name, reader in readers.items()}
        turns |= {name + PAIR: _Turn(reader, videos, 2) for name, reader in readers.items()}
        figures = take_turns(turns, rounds)
        outcome = Outcome("ms a clip", {name: figures[name] for name in readers})
        outcome.details = {
            f"{name}, {place}": _details(made, figures[f"{name}, {place}{PAIR}"])
            for name, made in stores.items()
            for place in made.readers
        }
        outcome.facts = _facts(videos, jpeg, readers, served) | {"skipped": lacking or "nothing"}
    return outcome


def _synthetic(folder: Path) -> Manifest:
    table = make_dataset(folder / "data", train_per_class=1, query_per_class=1, frames=80, size=240, fps=25)
    return index(scan(table))


def _videos(manifest: Manifest) -> list[Images]:
    """All frames of the first videos, uint8 [n, H, W, 3] each."""
    rows = [row for row in manifest.videos if row.frames > CLIP][:VIDEOS]
    if not rows:
        raise UserError(f"the manifest has no usable video of more than {CLIP} frames to measure on")
    return [
        read_frames(row.video, row.first_frame + np.arange(min(row.frames, MOST_FRAMES)), SIZE, row.decoder)
        for row in rows
    ]


def _jpeg_bytes(videos: Sequence[Images]) -> int:
    total = 0
    for image in (image for images in videos for image in images):
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY)
        total += data.tell()
    return total


def _stores(codec: Codec, videos: Sequence[Images], jpeg: int, folder: Path, bucket: str | None) -> dict[str, _Store]:
    """The codec's two layouts below a folder, and in the bucket where there is one: {name: store}."""
    encode_ms = pack(codec, videos, folder)
    size = (videos[0].shape[1], videos[0].shape[2])
    stores = {}
    for layout, reader_of in LAYOUTS.items():
        reader = reader_of(codec, str(folder), size)
        found = _quality(reader, videos)
        made = _Store(folder_bytes(folder / layout) / jpeg, statistics.mean(found), min(found), encode_ms)
        made.readers["disk"] = reader
        if bucket:
            for path in sorted((folder / layout).iterdir()):
                storage.upload(path, storage.join(bucket, codec.folder, layout, path.name))
            made.readers["S3"] = reader_of(codec, storage.join(bucket, codec.folder), size)
            _check_equal(made.readers, videos)
        stores[f"{codec.name}, {layout}"] = made
    return stores


def _quality(reader: Reader, videos: Sequence[Images]) -> list[float]:
    """PSNR of each whole clip of every video."""
    return [
        peak_signal_noise(reader.read(video, np.arange(start, start + CLIP)), images[start : start + CLIP])
        for video, images in enumerate(videos)
        for start in range(0, len(images) - CLIP + 1, CLIP)
    ]


def _check_equal(readers: Mapping[str, Reader], videos: Sequence[Images]) -> None:
    """RuntimeError where a place gives another clip than the first one does."""
    for video, images in enumerate(videos):
        frames = np.arange(len(images) - CLIP, len(images))
        first, *others = (reader.read(video, frames) for reader in readers.values())
        if not all(np.array_equal(first, other) for other in others):
            raise RuntimeError(f"video {video}: {' and '.join(readers)} do not give the same frames")


class _Turn:
    """Milliseconds a video to read random clips, `clips` of each video in one go; the same ones for all readers."""

    def __init__(self, reader: Reader, videos: Sequence[Images], clips: int) -> None:
        self.reader, self.clips = reader, clips
        self.lengths = [len(images) for images in videos]
        self.rng = np.random.default_rng(SEED)

    def __call__(self) -> float:
        draws = [self.rng.integers(0, length - CLIP + 1, self.clips) for length in self.lengths]
        wanted = [np.unique(starts[:, None] + np.arange(CLIP)) for starts in draws]
        started = time.perf_counter()
        for video, frames in enumerate(wanted):
            self.reader.read(video, frames)
        return (time.perf_counter() - started) * 1000 / len(wanted)


def _details(store: _Store, pairs: Sequence[float]) -> dict[str, float]:
    return {
        "2 clips, ms": statistics.median(pairs),
        "bytes / JPEG": store.share_of_jpeg,
        "PSNR, dB": store.mean,
        "worst clip, dB": store.worst,
        "encode, ms a frame": store.encode_ms,
    }


def _facts(
    videos: Sequence[Images], jpeg: int, readers: Mapping[str, Reader], served: ObjectStore | None
) -> dict[str, str]:
    frames = sum(len(images) for images in videos)
    files = {reader.codec.name: reader.decoder() for reader in readers.values() if isinstance(reader, Files)}
    facts = {
        "videos": f"{len(videos)}, {frames} frames at {SIZE[0]} x {SIZE[1]}, {CLIP} a clip, one thread decodes",
        f"JPEG of quality {JPEG_QUALITY}": f"{jpeg / frames:.0f} bytes a frame",
        "PyAV": f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}; decoders of files: {json.dumps(files)}",
    }
    if served is None:
        return facts | {"S3": "not measured, as moto is not installed (it comes with the extra 'dev')"}
    # moto reads the whole object for each range of it, so that large objects pay for what a real store does not do.
    floors = [f"{name.partition(', shards')[0]} {_floor(reader)}" for name, reader in _remote_shards(readers)]
    return facts | {"S3": f"{served.server}; 1 byte of a shard: {'; '.join(floors)}"}


def _remote_shards(readers: Mapping[str, Reader]) -> Iterator[tuple[str, Shards]]:
    for name, reader in readers.items():
        if isinstance(reader, Shards) and storage.is_uri(reader.folder):
            yield name, reader


def _floor(reader: Shards) -> str:
    """What a range of one byte costs, which is the server's share of a clip."""
    times = []
    for _ in range(9):
        started = time.perf_counter()
        reader.bytes(0, 0, 1)
        times.append((time.perf_counter() - started) * 1000)
    size = max(entry.starts[-1] for entry in reader.entries if entry.shard == 0)
    return f"{statistics.median(times):.1f} ms ({size / 1e6:.1f} MB)"
