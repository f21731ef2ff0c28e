"""What the network gets: samples drawn, decoded and augmented by the very functions that training uses.

T frames a clip, of which n are shown; H x W decode size; s side of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vicc_ray.config import Decoded, Experiment, Stream
from vicc_ray.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipParameters,
    augmented,
    draw_for,
    lucas_kanade_bound,
    stream_input,
)
from vicc_ray.data.clips import evaluation_starts
from vicc_ray.data.flow.algorithms import dequantise
from vicc_ray.data.manifest import VideoError, VideoRow
from vicc_ray.data.motion_crop import motion_crops
from vicc_ray.data.reader import ClipReader, make_reader
from vicc_ray.data.samples import positions
from vicc_ray.data.store_reader import StoreReader
from vicc_ray.training.batches import Batch, TrainingPlan, decode_share, to_batch
from vicc_ray.training.schedule import Stage
from vicc_ray.training.step import augment_settings

FRAMES = 5  # of a clip that are shown, evenly spaced


@dataclass(frozen=True)
class Frames:
    """Frames of one stream: `picture` uint8 [n,h,w,3] as it is, or `field` float32 [n,2,h,w], (u, v) in its pixels."""

    picture: NDArray[np.uint8] | None = None
    field: Tensor | None = None


@dataclass(frozen=True)
class PreviewClip:
    """One clip of a sample: as decoded and as the network sees it.

    start: frame of the video, or with `clip.fps` point of its grid in time. box: top, left, height, width of the crop.
    """

    start: int
    box: tuple[int, int, int, int]
    flip: bool
    full: bool
    operations: tuple[str, ...]  # of the colour chain, in their order, as they were drawn
    decoded: dict[Decoded, Frames]
    view: dict[Stream, Frames]


@dataclass(frozen=True)
class PreviewWindow:
    """A window as evaluation sees it: the `number`-th of `windows`, counted from 1; `refused` where it cannot be read."""

    start: int
    number: int
    windows: int
    view: dict[Stream, Frames]
    refused: str = ""


@dataclass(frozen=True)
class PreviewSample:
    """A sample of a stage: two clips of a video and an evaluation window of it, or the reason why it cannot be read."""

    video: VideoRow
    clips: tuple[PreviewClip, ...] = ()
    window: PreviewWindow | None = None
    refused: str = ""

    @property
    def same_window(self) -> bool:
        """Whether both clips show the same frames."""
        return len({clip.start for clip in self.clips}) == 1


def strip_frames(frames: int) -> list[int]:
    """The frames of a clip of T that are shown: from the first to the last, evenly spaced."""
    return sorted({round(place) for place in np.linspace(0, frames - 1, FRAMES)})


def preview_stages(plan: TrainingPlan) -> list[Stage]:
    """The first stage that learns with both streams; where there is none, the first one of each stream."""
    both = [stage for stage in plan.stages if stage.guide]
    return both[:1] or [
        next(stage for stage in plan.stages if stage.stream == stream) for stream in plan.experiment.streams
    ]


def preview_samples(plan: TrainingPlan, stage: Stage, samples: int) -> Iterator[PreviewSample]:
    """The first samples of a stage, one after the other in the order in which it trains on them.

    Read as a decode actor reads them, in a process that lives as long as this: no file can end or hang the caller.
    """
    experiment = plan.experiment
    with closing(make_reader(experiment)) as reader:
        yield from _samples(plan, stage, samples, reader)


def _samples(
    plan: TrainingPlan, stage: Stage, samples: int, reader: ClipReader | StoreReader
) -> Iterator[PreviewSample]:
    for number in range(min(samples, stage.samples)):
        step, slot = divmod(number, stage.global_batch)
        step += stage.first_step
        # As many workers as samples: each one's share is one sample, so that only this one is decoded.
        block = decode_share(plan, step, rank=slot, workers=stage.global_batch, read=reader.read_all)
        video = plan.videos[int(block["video"][0])]
        batch, refused = to_batch(plan, step, block)
        if refused:
            yield PreviewSample(video, refused=refused[0][1])
            continue
        epoch, _ = plan.epoch_and_videos(step)
        starts = plan.sample(stage, epoch, int(block["video"][0])).starts
        clips = tuple(_clip(plan.experiment, stage, batch, clip, starts[clip]) for clip in (0, 1))
        yield PreviewSample(video, clips, _window(plan.experiment, video, stage, reader))


def _clip(experiment: Experiment, stage: Stage, batch: Batch, clip: int, start: int) -> PreviewClip:
    """One clip of a batch of one sample."""
    settings = augment_settings(experiment)
    frames = {name: clips[:, clip] for name, clips in batch.clips.items()}
    params = draw_for(settings, [keys[clip] for keys in batch.keys], batch.full[:, clip], frames)
    height, width = next(iter(frames.values())).shape[2:4]
    top, left, h, w = (int(value) for value in params.boxes(height, width)[0])
    return PreviewClip(
        start=start,
        box=(top, left, h, w),
        flip=bool(params.flip[0]),
        full=bool(batch.full[0, clip]),
        operations=_operations(params),
        decoded={stream: _decoded(experiment, stream, clips[0]) for stream, clips in frames.items()},
        view=_views(experiment, augmented(frames, stage.streams, params, settings)),
    )


def _operations(params: ClipParameters) -> tuple[str, ...]:
    """The colour operations on the first of the clips, in words."""
    done: list[str] = []
    if params.jitter[0]:
        factors = params.factors[0]
        words = [
            f"{name} ×{factor:.2f}"
            for name, factor in zip(("brightness", "contrast", "saturation"), factors, strict=False)
        ]
        words.append(f"hue {360 * factors[3]:+.0f}°")
        done += [words[op] for op in params.order[0]]
    if params.gray[0]:
        done.append(f"gray from {('red', 'green', 'blue')[params.gray_channel[0]]}")
    if params.blur[0]:
        done.append(f"blur σ {params.sigma[0]:.1f} px")
    return tuple(done)


def _window(experiment: Experiment, video: VideoRow, stage: Stage, reader: ClipReader | StoreReader) -> PreviewWindow:
    """The middle one of the video's evaluation windows."""
    clip = experiment.clip
    starts = evaluation_starts(positions(video, clip), clip.frames, clip.stride, experiment.evaluate.windows)
    number = len(starts) // 2
    try:
        clips = reader.read(video, [starts[number]], experiment.decoded_at_test(stage.streams))
    except VideoError as error:
        return PreviewWindow(starts[number], number + 1, len(starts), {}, refused=str(error) or "cannot be read")
    whole = {name: torch.from_numpy(frames) for name, frames in clips.items()}
    decoded = motion_crops(whole, experiment.evaluate.motion_crop)
    inputs = {stream: stream_input(decoded, stream, clip.size, experiment.augment.style) for stream in stage.streams}
    return PreviewWindow(starts[number], number + 1, len(starts), _views(experiment, inputs))


def _decoded(experiment: Experiment, stream: Decoded, clip: Tensor) -> Frames:
    """uint8 [T,H,W,3] of RGB or [T,H,W,2] of flow -> some of the frames."""
    frames = clip[strip_frames(len(clip))].numpy()
    if stream == "rgb":
        return Frames(picture=frames)
    return Frames(field=torch.from_numpy(dequantise(frames, experiment.flow.pixels)).permute(0, 3, 1, 2))


def _bound(experiment: Experiment, stream: Stream) -> float:
    """Pixels of the network's input at which a stream's vectors are clipped; 0: it holds no field."""
    if stream == "flow" and experiment.augment.style == "physical":
        return experiment.flow.pixels
    return lucas_kanade_bound(experiment.clip.size) if stream == "lucas_kanade" else 0.0


def _views(experiment: Experiment, inputs: Mapping[Stream, Tensor]) -> dict[Stream, Frames]:
    """Network inputs float [1,3,T,s,s] -> some of the frames, normalisation undone.

    Flow is a field again where augmentation kept it one; as published, its three channels are shown as a picture.
    """
    strips: dict[Stream, Frames] = {}
    for stream, batch in inputs.items():
        frames = batch[0].permute(1, 0, 2, 3)[strip_frames(batch.shape[2])]  # [n,3,s,s]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        # Differences have no mean: none of them is shown as middle gray.
        codes = frames * std * 255 + 128 if stream == "difference" else (frames * std + mean) * 255
        bound = _bound(experiment, stream)
        if bound:
            strips[stream] = Frames(field=codes[:, [2, 1]] * (2 * bound / 255) - bound)
        else:
            strips[stream] = Frames(picture=codes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return strips
