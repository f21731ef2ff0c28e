"""Augmentation of uint8 clips to network inputs on one thread: ours, torchvision v2 by clip, PIL frame by frame.

B clips, T frames, H x W decode size, s side of the network's input. All contenders do the same drawn work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torchvision.transforms.functional as tv1
import torchvision.transforms.v2.functional as tv2
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks import Bar, Outcome, take_turns
from vicc_ray.config import ClipConfig
from vicc_ray.data.augment import IMAGENET_MEAN, IMAGENET_STD, ZERO_FLOW, AugmentSettings, ClipParameters, augment, draw

CLIPS = 16
FULL_CHAIN = 0.4  # share of training clips that get it: half of a same-window pair, 0.3 of the others
TIMES_PIL_RGB, TIMES_PIL_FLOW, TIMES_V2 = 2.0, 2.0, 1.5
# uint8 [B,T,H,W,C] and what to do with it -> network inputs [B,3,T,s,s].
Way = Callable[[Tensor, ClipParameters, AugmentSettings], Tensor]


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Clips/s of each way, RGB and flow apart, on one CPU thread; of the batched ones on a GPU too where there is one."""
    clip = ClipConfig()
    settings = AugmentSettings(size=clip.size)
    batches = {"RGB": pictures(clip, 3), "flow": pictures(clip, 2)}
    full = np.arange(CLIPS) < round(FULL_CHAIN * CLIPS)
    params = draw(settings, [(0, number) for number in range(CLIPS)], full)
    contenders: dict[str, Callable[[], float]] = {}
    for name, frames in batches.items():
        contenders[f"{name}: ours"] = partial(_clips_a_second, ours, frames, params, settings)
        contenders[f"{name}: torchvision v2 by clip"] = partial(_clips_a_second, by_clip, frames, params, settings)
        contenders[f"{name}: PIL frame by frame"] = partial(_clips_a_second, by_frame, frames, params, settings)
    if torch.cuda.is_available():
        for name, frames in batches.items():
            there = frames.cuda()
            contenders[f"{name}: ours, GPU"] = partial(_clips_a_second, ours, there, params, settings)
            contenders[f"{name}: torchvision v2 by clip, GPU"] = partial(
                _clips_a_second, by_clip, there, params, settings
            )
    with _one_thread():
        outcome = Outcome("clips/s", take_turns(contenders, rounds))
        gap = {name: _gap(frames, params, settings) for name, frames in batches.items()}
    for name, times in (("RGB", TIMES_PIL_RGB), ("flow", TIMES_PIL_FLOW)):
        for rival, bar in (("PIL frame by frame", times), ("torchvision v2 by clip", TIMES_V2)):
            ratio = outcome.ratio(f"{name}: ours", f"{name}: {rival}")
            outcome.bars.append(Bar(f"{name}: ours / {rival}", ratio, bar))
    outcome.facts = {
        "batch": f"{CLIPS} clips of {clip.frames} frames, {clip.decode_size} to {clip.size}, {int(full.sum())} full chain",
        "mean distance of ours to PIL's in codes of 255": {name: round(value, 2) for name, value in gap.items()},
    }
    return outcome


def pictures(clip: ClipConfig, channels: int) -> Tensor:
    """Smooth pictures that differ between frames: uint8 [B,T,H,W,channels]; flow keeps to small motion."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.rand((CLIPS * clip.frames, channels, 12, 16), generator=generator)
    smooth = torch.nn.functional.interpolate(noise, clip.decode_size, mode="bicubic").clamp(0, 1)
    if channels == 2:
        smooth = 0.5 + 0.2 * (smooth - 0.5)
    codes = (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return codes.view(CLIPS, clip.frames, *clip.decode_size, channels)


def ours(frames: Tensor, params: ClipParameters, settings: AugmentSettings) -> Tensor:
    """Network inputs [B,3,T,s,s] of uint8 [B,T,H,W,3] or [B,T,H,W,2]."""
    rgb, flow = (
        augment(frames, None, params, settings) if frames.shape[-1] == 3 else augment(None, frames, params, settings)
    )
    view = flow if rgb is None else rgb
    assert view is not None
    return view


def by_clip(frames: Tensor, params: ClipParameters, settings: AugmentSettings) -> Tensor:
    """As `ours`, with torchvision v2's kernels on one whole clip after the other."""
    return torch.stack([_clip_view(clip, params, row, settings.size) for row, clip in enumerate(frames)])


def by_frame(frames: Tensor, params: ClipParameters, settings: AugmentSettings) -> Tensor:
    """As `ours`, with PIL pictures one by one, the usual way of a data loader."""
    return torch.stack([_picture_views(clip, params, row, settings.size) for row, clip in enumerate(frames)])


def _clip_view(clip: Tensor, params: ClipParameters, row: int, size: int) -> Tensor:
    """uint8 [T,H,W,C] -> [3,T,s,s]."""
    top, left, h, w = (int(value) for value in params.boxes(*clip.shape[1:3])[row])
    x = clip.permute(0, 3, 1, 2)
    if clip.shape[-1] == 2:  # resized as float, as a half step of its codes is slow motion
        x = torch.cat([torch.full_like(x[:, :1], 128), x.flip(1)], dim=1).float()
    x = tv2.resized_crop(x, top, left, h, w, [size, size], tv2.InterpolationMode.BILINEAR, antialias=True)
    if params.flip[row]:
        x = tv2.horizontal_flip(x)
    if clip.shape[-1] == 2:
        x = _scaled(x, params, row, h, w) / 255
    else:
        x = _coloured_clip(tv2.to_dtype(x, torch.float32, scale=True), params, row)
    view: Tensor = tv2.normalize(x, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return view.permute(1, 0, 2, 3)


def _coloured_clip(x: Tensor, params: ClipParameters, row: int) -> Tensor:
    adjust = (tv2.adjust_brightness, tv2.adjust_contrast, tv2.adjust_saturation, tv2.adjust_hue)
    if params.jitter[row]:
        for op in params.order[row]:
            x = adjust[op](x, float(params.factors[row, op]))
    if params.gray[row]:
        x = x[:, params.gray_channel[row]][:, None].expand(-1, 3, -1, -1)
    if params.blur[row]:
        sigma = float(params.sigma[row])
        x = tv2.gaussian_blur(x, [2 * int(4 * sigma + 0.5) + 1] * 2, [sigma, sigma])
    return x


def _picture_views(clip: Tensor, params: ClipParameters, row: int, size: int) -> Tensor:
    """uint8 [T,H,W,C] -> [3,T,s,s]."""
    top, left, h, w = (int(value) for value in params.boxes(*clip.shape[1:3])[row])
    views = []
    for frame in clip.numpy():
        is_flow = frame.shape[-1] == 2
        codes = np.dstack([np.full_like(frame[..., :1], 128), frame[..., ::-1]]) if is_flow else frame
        picture = tv1.resized_crop(
            Image.fromarray(codes), top, left, h, w, [size, size], tv1.InterpolationMode.BILINEAR
        )
        if params.flip[row]:
            picture = tv1.hflip(picture)
        if is_flow:
            view = _scaled(tv1.to_tensor(picture)[None] * 255, params, row, h, w)[0] / 255
        else:
            view = tv1.to_tensor(_coloured_picture(picture, params, row))
        views.append(tv1.normalize(view, list(IMAGENET_MEAN), list(IMAGENET_STD)))
    return torch.stack(views, dim=1)


def _coloured_picture(picture: Image.Image, params: ClipParameters, row: int) -> Image.Image:
    adjust = (tv1.adjust_brightness, tv1.adjust_contrast, tv1.adjust_saturation, tv1.adjust_hue)
    if params.jitter[row]:
        for op in params.order[row]:
            picture = adjust[op](picture, float(params.factors[row, op]))
    if params.gray[row]:
        picture = Image.merge("RGB", [picture.split()[params.gray_channel[row]]] * 3)
    if params.blur[row]:
        picture = picture.filter(ImageFilter.GaussianBlur(float(params.sigma[row])))
    return picture


def _scaled(x: Tensor, params: ClipParameters, row: int, height: int, width: int) -> Tensor:
    """Flow codes [n,3,s,s] (128, v, u) of a crop of height x width, as vectors of the output's pixels."""
    size = x.shape[-1]
    mirrored = -1 if params.flip[row] else 1
    zoom = x.new_tensor([size / height, mirrored * size / width]).view(2, 1, 1)
    return torch.cat([x[:, :1], ((x[:, 1:] - ZERO_FLOW) * zoom + ZERO_FLOW).clamp(0, 255)], dim=1)


def _gap(frames: Tensor, params: ClipParameters, settings: AugmentSettings) -> float:
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1, 1)
    gap = ours(frames, params, settings) - by_frame(frames, params, settings)
    return float((gap * std * 255).abs().mean())


def _clips_a_second(way: Way, frames: Tensor, params: ClipParameters, settings: AugmentSettings) -> float:
    started = time.perf_counter()
    if way(frames, params, settings).is_cuda:
        torch.cuda.synchronize()
    return len(frames) / (time.perf_counter() - started)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
