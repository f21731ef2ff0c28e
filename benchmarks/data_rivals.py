"""What the data stream is measured against: a bare loop, a torch DataLoader, and JPEG pictures augmented one by one.

Every contender delivers the same global steps of the same plan and is timed by `pace`. Written anew from torch,
torchvision and PIL. Legend: B samples a step, T frames a clip, S side of the network's input.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from vicc_ray.config import CHANNELS, Stream
from vicc_ray.data.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentSettings, ClipParameters, draw
from vicc_ray.training.batches import Block, TrainingPlan, decode_share
from vicc_ray.training.schedule import locate

JPEG_QUALITY = 95

_JITTER = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)


def pace(deliveries: Iterable[int], lead: int, counted: int) -> float:
    """Samples/s between the delivery that completes `lead` samples and the one that completes `counted` more.

    What comes before and after is taken but not timed, so that the clock runs only while every process is at work.
    ValueError where fewer samples come.
    """
    arrived, start, end = 0, (0.0, 0), (0.0, 0)
    for samples in deliveries:
        arrived += samples
        now = (time.perf_counter(), arrived)
        if not start[1] and arrived >= lead:
            start = now
        elif start[1] and not end[1] and arrived >= start[1] + counted:
            end = now
    if not end[1]:
        raise ValueError(f"{arrived} samples came; the clock needs {lead} before it and {counted} more")
    return (end[1] - start[1]) / (end[0] - start[0])


class BareLoop:
    """Processes that decode and measure flow, and drop what they made: no transport, the floor. A context manager."""

    def __init__(self, plan: TrainingPlan, processes: int) -> None:
        self.batch = plan.stages[-1].global_batch
        self.pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_hold, initargs=(plan,))

    def __enter__(self) -> BareLoop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def steps(self, steps: Sequence[int]) -> Iterator[int]:
        """Global steps, each by the next free process: yields the samples of each as it is done."""
        for done in as_completed([self.pool.submit(_decode_and_drop, step) for step in steps]):
            done.result()
            yield self.batch


_held: list[TrainingPlan] = []  # the plan of a bare loop's process, sent once


def _hold(plan: TrainingPlan) -> None:
    _held[:] = [plan]


def _decode_and_drop(step: int) -> None:
    decode_share(_held[0], step, 0, 1)


class DecodedSteps(Dataset[Block]):
    """Our decode and flow behind torch's interface: a global step's block, whole."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan = plan

    def __getitem__(self, step: int) -> Block:
        return decode_share(self.plan, step, 0, 1)


class Loader:
    """A torch DataLoader over global steps whose processes live on from one turn to the next."""

    def __init__(self, dataset: Dataset[Any], processes: int) -> None:
        self._steps: list[int] = []
        # Spawned, as Ray's threads in this process do not survive a fork.
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._steps,
            num_workers=processes,
            multiprocessing_context="spawn",
            persistent_workers=True,
        )

    def steps(self, steps: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """(step, what the dataset made of it as tensors) in order."""
        self._steps[:] = steps
        yield from zip(steps, self._loader, strict=True)


@dataclass(frozen=True)
class Pictures:
    """JPEG files end to end in one file. `places`: (step, row, clip, stream) -> T pairs of offset and bytes."""

    path: str
    places: dict[tuple[int, int, int, Stream], list[tuple[int, int]]]

    @property
    def bytes(self) -> int:
        """Of all pictures."""
        return sum(size for clip in self.places.values() for _, size in clip)

    def read(self, step: int, row: int, clip: int, stream: Stream) -> list[Image.Image]:
        """The clip's T pictures as RGB."""
        with open(self.path, "rb") as file:
            pictures = []
            for offset, size in self.places[step, row, clip, stream]:
                file.seek(offset)
                pictures.append(Image.open(io.BytesIO(file.read(size))).convert("RGB"))
        return pictures


def write_pictures(path: Path, bare: BareLoop, steps: Sequence[int], size: tuple[int, int]) -> Pictures:
    """Store the clips of these global steps as published data sets are: JPEG frames and JPEG flow, `size` is (H, W).

    Flow is the plan's own, enlarged, as only the cost of reading it counts here; its channels are 128, v, u. Videos
    that cannot be read become black. The processes of the bare loop do the work.
    """
    places: dict[tuple[int, int, int, Stream], list[tuple[int, int]]] = {}
    offset = 0
    with path.open("wb") as file:
        for step, clips in zip(steps, bare.pool.map(partial(_encode_step, size=size), steps), strict=True):
            for (row, number, stream), pictures in clips.items():
                for data in pictures:
                    places.setdefault((step, row, number, stream), []).append((offset, len(data)))
                    offset += file.write(data)
    return Pictures(str(path), places)


def rgb_only(plan: TrainingPlan, decode_size: tuple[int, int]) -> TrainingPlan:
    """The plan with the same samples without flow, decoded at another size."""
    clip = plan.experiment.clip.model_copy(update={"decode_size": decode_size})
    stages = tuple(replace(stage, guide=None, stream="rgb") for stage in plan.stages)
    return replace(plan, experiment=plan.experiment.model_copy(update={"clip": clip}), stages=stages)


def _encode_step(step: int, size: tuple[int, int]) -> dict[tuple[int, int, Stream], list[bytes]]:
    clips: dict[Stream, NDArray[np.uint8]] = {
        "rgb": decode_share(rgb_only(_held[0], size), step, 0, 1)["rgb"],
        "flow": decode_share(_held[0], step, 0, 1)["flow"],
    }
    return {
        (row, number, stream): [_encode(frame, size) for frame in clip]
        for stream in CHANNELS
        for row, pair in enumerate(clips[stream])
        for number, clip in enumerate(pair)
    }


def _encode(frame: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """uint8 [h, w, 3] of RGB, or [h, w, 2] of flow (u, v), as a JPEG file of `size` (H, W)."""
    if frame.shape[-1] == 2:
        frame = np.stack([np.full_like(frame[..., 0], 128), frame[..., 1], frame[..., 0]], axis=-1)
    data = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(frame)).resize(size[::-1], Image.Resampling.BILINEAR)
    picture.save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()


class PicturedSteps(Dataset[dict[Stream, Tensor]]):
    """The published way: a global step's pictures read, decoded and augmented one by one with PIL.

    Clips, crops and draws are those of the plan, so that the work is the same; flow gets crop and flip only.
    """

    def __init__(self, plan: TrainingPlan, pictures: Pictures, settings: AugmentSettings) -> None:
        self.plan, self.pictures, self.settings = plan, pictures, settings

    def __getitem__(self, step: int) -> dict[Stream, Tensor]:
        """float32 [B, 2, 3, T, S, S] of each stream, normalised."""
        stage, _ = locate(self.plan.stages, step)
        epoch, videos = self.plan.epoch_and_videos(step)
        samples: dict[Stream, list[Tensor]] = {stream: [] for stream in CHANNELS}
        for row, video in enumerate(videos):
            plan = self.plan.sample(stage, epoch, int(video))
            params = draw(self.settings, plan.keys, plan.full)
            for stream in CHANNELS:
                clips = [self.pictures.read(step, row, number, stream) for number in (0, 1)]
                views = [
                    augment_pictures(clip, params, number, self.settings.size, coloured=stream == "rgb")
                    for number, clip in enumerate(clips)
                ]
                samples[stream].append(torch.stack(views))
        return {stream: torch.stack(rows) for stream, rows in samples.items()}


def augment_pictures(
    frames: Sequence[Image.Image], params: ClipParameters, row: int, size: int, coloured: bool
) -> Tensor:
    """One clip, frame by frame: crop, flip, the colour chain where `coloured`, normalised float32 [3, T, size, size].

    The draw of clip `row` of `params`, for all frames alike.
    """
    top, left, height, width = params.boxes(frames[0].height, frames[0].width)[row].tolist()
    views = []
    for frame in frames:
        view = F.resized_crop(frame, top, left, height, width, [size, size])
        if params.flip[row]:
            view = F.hflip(view)
        if coloured:
            view = _colour(view, params, row)
        views.append(F.normalize(F.to_tensor(view), IMAGENET_MEAN, IMAGENET_STD))
    return torch.stack(views, dim=1)


def _colour(view: Image.Image, params: ClipParameters, row: int) -> Image.Image:
    if params.jitter[row]:
        for op in params.order[row]:
            view = _JITTER[op](view, float(params.factors[row, op]))
    if params.gray[row]:
        view = Image.merge("RGB", [view.getchannel(int(params.gray_channel[row]))] * 3)
    if params.blur[row]:
        view = view.filter(ImageFilter.GaussianBlur(float(params.sigma[row])))
    return view
