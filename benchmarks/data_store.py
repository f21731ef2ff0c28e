"""The packed store's part of `vicc bench data`: how fast it is filled, what it costs in bytes and fidelity, who else reads it.

Legend: B samples a step, T frames a clip, H x W the store's size.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks import Bar
from benchmarks.data_rivals import JPEG_QUALITY, Pictures
from benchmarks.formats_layouts import peak_signal_noise
from vicc_ray import storage
from vicc_ray.cluster.decode_actors import DecodeShares
from vicc_ray.commands.pack import PackOptions, pack_videos
from vicc_ray.config import CHANNELS, Experiment
from vicc_ray.data.decode import read_frames
from vicc_ray.data.flow.algorithms import dequantise, flow_algorithm, flow_between, flow_of_frames, quantise
from vicc_ray.data.flow.codes import CHUNK, row_pictures
from vicc_ray.data.flow.contract import FlowAlgorithm
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.store.entry import ENCODERS, FORMATS, GOP
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import PackedStore
from vicc_ray.training.batches import Batch, Block, TrainingPlan
from vicc_ray.training.schedule import locate

CLIPS_A_VIDEO = 2  # compared with the originals
JPEG_EVERY = 8  # frames of which one is coded as JPEG too, for the bytes


def from_store(plan: TrainingPlan, store: str) -> TrainingPlan:
    """The plan, its clips read from a packed store."""
    clip = plan.experiment.clip.model_copy(update={"source": "store", "store": store})
    return replace(plan, experiment=plan.experiment.model_copy(update={"clip": clip}))


@dataclass(frozen=True)
class Packing:
    """Frames/s of `vicc pack` in an open Ray session, and of a bare loop before and after it."""

    packed: float
    bare: float

    def bar(self) -> Bar:
        """The bar of the packing speed."""
        return Bar("vicc pack / bare decode + flow + encode loop", self.packed / self.bare, 0.8)


def pack(experiment: Experiment, videos: Sequence[VideoRow], folder: str, processes: int) -> Packing:
    """Pack all videos into a folder, between two bare loops that decode, measure flow, encode and drop what they made."""
    frames = sum(row.frames for row in videos)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        bare = partial(_bare, experiment)

        def loop() -> None:
            for _ in pool.map(bare, videos):
                pass

        list(pool.map(bare, videos[:processes]))  # what the processes import
        before = _seconds(loop)
        options = PackOptions(workers=processes)
        size = experiment.clip.decode_size
        packed = _seconds(lambda: pack_videos(Manifest(videos), folder, experiment.flow, size, options))
        after = _seconds(loop)
    return Packing(frames / packed, 2 * frames / (before + after))


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _bare(experiment: Experiment, row: VideoRow) -> int:
    """The bytes of a video's pictures and flow, coded as the store codes them."""
    height, width = experiment.clip.decode_size
    flow = experiment.flow
    algorithm = flow_algorithm(flow.algorithm, flow.weights)
    assert isinstance(algorithm, FlowAlgorithm)
    rgb, gray = _encoder("rgb", height + height % 2, width + width % 2), _encoder("flow", 2 * height, width + width % 2)
    reformat, size = VideoReformatter().reformat, 0
    last: NDArray[np.uint8] | None = None
    for images in row_pictures(row, row.video, (height, width), CHUNK["cpu"], "weave"):
        for image in images:
            picture = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = reformat(VideoFrame.from_ndarray(picture, format="rgb24"), format="yuv420p", interpolation="AREA")
            size += sum(packet.size for packet in rgb.encode(frame))
        joined = images if last is None else np.concatenate([last, images])
        last = images[-1:]
        for codes in quantise(flow_of_frames(algorithm, joined), flow.pixels):
            picture = np.pad(np.concatenate([codes[..., 0], codes[..., 1]]), ((0, 0), (0, width % 2)), mode="edge")
            size += sum(packet.size for packet in gray.encode(VideoFrame.from_ndarray(picture, format="gray")))
    return size + int(sum(packet.size for coder in (rgb, gray) for packet in coder.encode(None)))


def _encoder(stream: Any, height: int, width: int) -> Any:
    context: Any = av.CodecContext.create("libx264", "w")
    context.height, context.width, context.pix_fmt = height, width, FORMATS[stream]
    context.time_base, context.gop_size, context.thread_count = Fraction(1, 25), GOP, 1
    context.options = dict(ENCODERS[stream])
    return context


@dataclass(frozen=True)
class Fidelity:
    """A store beside the originals: bytes of pictures / JPEG's, PSNR of clips in dB, mean error of flow in pixels."""

    share_of_jpeg: float
    mean: float
    worst: float
    flow_error: float
    clips: int

    def bars(self) -> list[Bar]:
        """Its bars."""
        return [
            Bar(f"bytes of stored pictures / JPEG of quality {JPEG_QUALITY}", self.share_of_jpeg, 0.4, at_least=False),
            Bar("PSNR of stored clips, mean, dB", self.mean, 38.0),
            Bar("PSNR of the worst clip, dB", self.worst, 34.0),
            Bar("stored flow: mean error, px", self.flow_error, 0.15, at_least=False),
        ]


def compare(experiment: Experiment, videos: Sequence[VideoRow], folder: str) -> Fidelity:
    """Clips at random places of every video, from the store and from the originals."""
    store, clip, rng = PackedStore.open(folder), experiment.clip, np.random.default_rng(0)
    found, errors, jpeg, frames = list[float](), list[float](), 0, 0
    with closing(EntryReader(store)) as reader:
        for row in videos:
            for _ in range(CLIPS_A_VIDEO):
                start = int(rng.integers(0, max(row.frames - clip.frames, 0) + 1))
                numbers = np.arange(start, min(start + clip.frames, row.frames))
                images = read_frames(row.video, numbers, clip.decode_size, row.decoder)
                found.append(peak_signal_noise(reader.read(row, "rgb", numbers), images))
                codes = reader.read(row, "flow", numbers[:-1])
                field = flow_between(images, experiment.flow.algorithm)
                errors.append(float(np.abs(dequantise(codes, experiment.flow.pixels) - field).mean()))
                jpeg += sum(_jpeg(image) for image in images[::JPEG_EVERY])
                frames += len(images[::JPEG_EVERY])
    index = store.index("rgb")
    share = float(index.bytes.sum()) / float(index.frames.sum()) / (jpeg / frames)
    return Fidelity(share, float(np.mean(found)), min(found), float(np.mean(errors)), len(found))


def _jpeg(image: NDArray[np.uint8]) -> int:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.tell()


def copy_store(folder: str, target: str) -> None:
    """The same store in another place."""
    for entry in storage.list_files(folder):
        inner = Path(entry.name).relative_to(folder)
        if not inner.name.startswith("_"):
            storage.upload(Path(entry.name), storage.join(target, str(inner)))


class PackedSteps(Dataset[Block]):
    """Our reading of a store behind torch's interface: a global step's block, whole."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan
        self._actor: DecodeShares | None = None

    def __getitem__(self, step: int) -> Block:
        if self._actor is None:
            self._actor = DecodeShares(self.plan, 1, ())
        return self._actor({"unit": np.array([step])})


class OwnPicturedSteps(Dataset[dict[str, Tensor]]):
    """A global step's stored JPEG pictures as arrays, to be augmented as ours are: uint8 [B, 2, T, H, W, 3 or 2]."""

    def __init__(self, plan: TrainingPlan, pictures: Pictures) -> None:
        self.plan, self.pictures = plan, pictures

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rows = range(len(self.plan.epoch_and_videos(step)[1]))
        found: dict[str, Tensor] = {}
        for stream in CHANNELS:
            clips = np.stack(
                [
                    [
                        np.stack([np.asarray(image) for image in self.pictures.read(step, row, number, stream)])
                        for number in (0, 1)
                    ]
                    for row in rows
                ]
            )
            # Flow lies in the pictures as 128, v, u.
            found[stream] = torch.from_numpy(clips if stream == "rgb" else np.ascontiguousarray(clips[..., :0:-1]))
        return found


def pictured_batches(plan: TrainingPlan, steps: Iterator[tuple[int, dict[str, Tensor]]]) -> Iterator[Batch]:
    """What `OwnPicturedSteps` gave as the batches that a training step augments."""
    for step, clips in steps:
        stage, _ = locate(plan.stages, step)
        epoch, videos = plan.epoch_and_videos(step)
        samples = [plan.sample(stage, epoch, int(video)) for video in videos]
        yield Batch(
            slots=torch.arange(len(videos)),
            videos=torch.from_numpy(videos.copy()),
            full=np.array([sample.full for sample in samples], bool),
            keys=tuple(sample.keys for sample in samples),
            clips={"rgb": clips["rgb"], "flow": clips["flow"]},
        )
