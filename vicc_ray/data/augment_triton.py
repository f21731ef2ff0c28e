"""The augmentation of `data.augment` on a GPU, as two passes of one Triton kernel over the decoded frames instead of some fifty.

The same numbers up to rounding (`tests/test_augment_triton.py` and `tests/gpu` hold them to each other). What it saves is memory
traffic: PyTorch's operators read and write a float picture of 604 MB for 48 clips of 32 x 128 px at every step of the chain; here
the decoded bytes are read twice (first for the mean luma that contrast needs, then for everything) and the network's input is
written once, in the type and memory layout that the network wants. A resized picture is cheaper to compute again than to store.

B clips, T frames, H x W decode size, C channels (3 for RGB; 2 for flow), s side of the network's input, K taps of the resize.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from vicc_ray.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentSettings,
    ClipParameters,
    blurred,
    check_frames,
    normalise,
)

PIXELS = 512  # of one program; a power of two
_INTEGERS = 7  # a clip: jitter, the op at each of 4 steps, gray channel (-1: none), place in the scratch (-1: no blur)
_FLOATS = 6  # a clip: 4 factors, zoom along x and y


def augment_fused(
    rgb: Tensor | None,
    flow: Tensor | None,
    params: ClipParameters,
    settings: AugmentSettings,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
) -> tuple[Tensor | None, Tensor | None]:
    """As `augment`: uint8 [B,T,H,W,3] and [B,T,H,W,2] -> network inputs [B,3,T,s,s] of this type and memory layout.

    On a CPU it runs in Triton's interpreter only (TRITON_INTERPRET=1), which is for tests.
    """
    views: list[Tensor | None] = []
    for frames, channels, name in ((rgb, 3, "rgb"), (flow, 2, "flow")):
        if frames is None:
            views.append(None)
            continue
        check_frames(frames, channels, len(params), name)
        views.append(_fused(frames.contiguous(), params, settings, dtype, layout))
    return views[0], views[1]


def taps(boxes: npt.NDArray[np.int64], axis: int, side: int, most: int) -> tuple[Any, Any]:
    """Antialiased bilinear resize along one axis: first pixel int32 [B, side] in the frame, weights float32 [B, side, most].

    PyTorch's rule (and PIL's): output pixel i weighs the triangle of half width max(scale, 1) around scale (i + 1/2).
    boxes: [B, 4] of top, left, height, width. axis: 0 along y, 1 along x.
    """
    first, length = boxes[:, axis, None], boxes[:, 2 + axis, None]
    scale = length / side  # [B, 1]
    reach = np.maximum(scale, 1.0)
    centre = scale * (np.arange(side) + 0.5)  # [B, side]
    low = np.maximum(np.floor(centre - reach + 0.5), 0)
    high = np.minimum(np.floor(centre + reach + 0.5), length)
    at = low[..., None] + np.arange(most)  # [B, side, most]
    weights = np.maximum(0.0, 1 - np.abs((at - centre[..., None] + 0.5) / reach[..., None]))
    weights[at >= high[..., None]] = 0.0
    weights /= weights.sum(axis=2, keepdims=True)
    return (first + low).astype(np.int32), weights.astype(np.float32)


def most_taps(length: int, side: int) -> int:
    """Pixels that an output pixel can depend on where `length` of them become `side`."""
    return 2 * math.ceil(max(length / side, 1.0)) + 1


def _fused(
    frames: Tensor, params: ClipParameters, settings: AugmentSettings, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    clips, times, height, width, channels = frames.shape
    side, device = settings.size, frames.device
    out = torch.empty((clips, 3, times, side, side), dtype=dtype, device=device, memory_format=layout)
    if not clips:
        return out
    is_flow, physical = channels == 2, settings.style == "physical"
    colours = not (is_flow and physical)
    blurs = np.flatnonzero(params.blur) if colours else np.empty(0, np.int64)
    boxes = params.boxes(height, width)
    ky, kx = most_taps(height, side), most_taps(width, side)
    y, wy = taps(boxes, 0, side, ky)
    x, wx = taps(boxes, 1, side, kx)
    mirrored = params.flip
    x[mirrored], wx[mirrored] = x[mirrored, ::-1], wx[mirrored, ::-1]
    integers = np.full((clips, _INTEGERS), -1, np.int32)
    integers[:, 0] = params.jitter & colours
    integers[:, 1:5] = params.order
    integers[:, 5] = np.where(params.gray & colours, params.gray_channel, -1)
    integers[blurs, 6] = np.arange(len(blurs))
    zoom = np.stack([side / boxes[:, 3] * np.where(mirrored, -1.0, 1.0), side / boxes[:, 2]], axis=1)
    reals = np.concatenate([params.factors, zoom], axis=1).astype(np.float32)
    # One copy each for whole numbers and for the others; from pinned memory the host does not wait for the device.
    whole = _sent(np.concatenate([part.ravel() for part in (integers, y, x)]), device)
    real = _sent(np.concatenate([part.ravel() for part in (reals, wy, wx)]), device)
    scratch = torch.empty((max(len(blurs), 1), 3, times, side, side), dtype=torch.float32, device=device)
    tiles = triton.cdiv(side * side, PIXELS)
    sums = torch.empty((clips * times, tiles), dtype=torch.float32, device=device)
    mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))

    def launch(stats: bool) -> None:
        _chain[(clips * times, tiles)](
            frames, whole, real, sums, out, scratch, clips, times, height, width, *out.stride(), *mean, *std,
            SIDE=side, KY=ky, KX=kx, TILES=tiles, TILES_UP=triton.next_power_of_2(tiles), PIXELS=PIXELS,
            INTEGERS=_INTEGERS, FLOATS=_FLOATS, CHANNELS=channels, FLOW=is_flow, VECTORS=is_flow and physical, STATS=stats,
        )  # fmt: skip

    if integers[:, 0].any():
        launch(True)
    launch(False)
    if len(blurs):
        picture = blurred(scratch, torch.from_numpy(params.sigma[blurs].astype(np.float32)).to(device))
        out[torch.from_numpy(blurs).to(device)] = normalise(picture, picture).to(dtype)
    return out


def _sent(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@triton.jit
def _luma(red, green, blue):  # type: ignore[no-untyped-def]
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _clamp(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _share(x):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _turned(red, green, blue, shift):  # type: ignore[no-untyped-def]
    """The hue turned by `shift` turns: `data.augment._hue` with the six cases written out."""
    value = tl.maximum(red, tl.maximum(green, blue))
    darkest = tl.minimum(red, tl.minimum(green, blue))
    chroma = value - darkest
    safe = tl.maximum(chroma, 1e-9)
    of_red = (green - blue) / safe
    of_green = (blue - red) / safe + 2.0
    of_blue = (red - green) / safe + 4.0
    h = tl.where(value == red, of_red, tl.where(value == green, of_green, of_blue)) + 6.0 * shift
    h = h - 6.0 * tl.floor(h / 6.0)
    red = darkest + chroma * _share(tl.abs(h - 3.0) - 1.0)
    green = darkest + chroma * _share(2.0 - tl.abs(h - 2.0))
    blue = darkest + chroma * _share(2.0 - tl.abs(h - 4.0))
    return red, green, blue


@triton.jit
def _resampled(  # type: ignore[no-untyped-def]
    frames, whole, real, clip, clips, picture, row, column, inside, height, width,
    SIDE: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, PIXELS: tl.constexpr, INTEGERS: tl.constexpr,
    FLOATS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Crop, size and mirror of one tile: its pixels' two or three channels (the third 0 where there are two)."""
    starts_y, starts_x = whole + clips * INTEGERS, whole + clips * (INTEGERS + SIDE)
    weights_y, weights_x = real + clips * FLOATS, real + clips * (FLOATS + SIDE * KY)
    y0 = tl.load(starts_y + clip * SIDE + row, mask=inside, other=0)
    x0 = tl.load(starts_x + clip * SIDE + column, mask=inside, other=0)
    base = frames + picture * height * width * CHANNELS
    c0 = tl.zeros([PIXELS], tl.float32)
    c1 = tl.zeros([PIXELS], tl.float32)
    c2 = tl.zeros([PIXELS], tl.float32)
    for ky in tl.static_range(KY):
        wy = tl.load(weights_y + (clip * SIDE + row) * KY + ky, mask=inside, other=0.0)
        for kx in tl.static_range(KX):
            w = wy * tl.load(weights_x + (clip * SIDE + column) * KX + kx, mask=inside, other=0.0)
            pixel = base + ((y0 + ky) * width + x0 + kx) * CHANNELS
            seen = inside & (w > 0.0)  # a weight of 0 stands for pixels outside of the crop, perhaps of the frame
            c0 += w * tl.load(pixel, mask=seen, other=0).to(tl.float32)
            c1 += w * tl.load(pixel + 1, mask=seen, other=0).to(tl.float32)
            if CHANNELS == 3:
                c2 += w * tl.load(pixel + 2, mask=seen, other=0).to(tl.float32)
    return c0, c1, c2


@triton.jit
def _coloured(  # type: ignore[no-untyped-def]
    c0, c1, c2, whole, factors, sums, clip, picture,
    SIDE: tl.constexpr, TILES: tl.constexpr, TILES_UP: tl.constexpr, INTEGERS: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """The clip's four colour operations in its order; with STATS those before contrast, which needs the sum of luma there."""
    past = clip.to(tl.int32) * 0  # whether contrast has come
    for step in range(4):
        op = tl.load(whole + clip * INTEGERS + 1 + step)
        factor = tl.load(factors + op)
        if op == 1:
            if STATS:
                past += 1
            else:
                which = tl.arange(0, TILES_UP)
                parts = tl.load(sums + picture * TILES + which, mask=which < TILES, other=0.0)
                gray = (1.0 - factor) * tl.sum(parts, axis=0) / (SIDE * SIDE)
                c0, c1, c2 = _clamp(c0 * factor + gray), _clamp(c1 * factor + gray), _clamp(c2 * factor + gray)
        elif past == 0:
            if op == 0:
                c0, c1, c2 = _clamp(c0 * factor), _clamp(c1 * factor), _clamp(c2 * factor)
            elif op == 2:
                grays = (1.0 - factor) * _luma(c0, c1, c2)
                c0, c1, c2 = (
                    _clamp(c0 * factor + grays),
                    _clamp(c1 * factor + grays),
                    _clamp(c2 * factor + grays),
                )
            else:
                c0, c1, c2 = _turned(c0, c1, c2, factor)
    return c0, c1, c2


@triton.jit
def _chain(  # type: ignore[no-untyped-def]
    frames, whole, real, sums, out, scratch, clips, times, height, width,
    stride_b, stride_c, stride_t, stride_y, stride_x, mean_r, mean_g, mean_b, std_r, std_g, std_b,
    SIDE: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, TILES: tl.constexpr, TILES_UP: tl.constexpr,
    PIXELS: tl.constexpr, INTEGERS: tl.constexpr, FLOATS: tl.constexpr, CHANNELS: tl.constexpr, FLOW: tl.constexpr,
    VECTORS: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    """One tile of one frame. With STATS: the sum of luma as contrast will see it; else the network's input."""
    picture, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    clip, time = picture // times, picture % times
    jitter = tl.load(whole + clip * INTEGERS)
    if STATS and jitter == 0:
        return
    place = tile * PIXELS + tl.arange(0, PIXELS)
    inside = place < SIDE * SIDE
    row, column = place // SIDE, place % SIDE
    c0, c1, c2 = _resampled(
        frames, whole, real, clip, clips, picture, row, column, inside, height, width,
        SIDE, KY, KX, PIXELS, INTEGERS, FLOATS, CHANNELS,
    )  # fmt: skip
    if FLOW:  # u, v -> the published three channels: 128, v, u
        c2 = c0
        c0 = tl.full([PIXELS], 128.0, tl.float32)
    factors = real + clip * FLOATS
    if VECTORS:
        c2 = _clamp((c2 - 127.5) * tl.load(factors + 4) + 127.5)
        c1 = _clamp((c1 - 127.5) * tl.load(factors + 5) + 127.5)
    elif jitter != 0:
        c0, c1, c2 = _coloured(
            c0, c1, c2, whole, factors, sums, clip, picture, SIDE, TILES, TILES_UP, INTEGERS, STATS
        )  # fmt: skip
    if STATS:
        tl.store(sums + picture * TILES + tile, tl.sum(tl.where(inside, _luma(c0, c1, c2), 0.0), axis=0))
    else:
        channel = tl.load(whole + clip * INTEGERS + 5)
        if channel >= 0:
            one = tl.where(channel == 0, c0, tl.where(channel == 1, c1, c2))
            c0, c1, c2 = one, one, one
        slot = tl.load(whole + clip * INTEGERS + 6).to(tl.int64)
        if slot >= 0:
            kept = scratch + (slot * 3 * times + time) * SIDE * SIDE + place
            tl.store(kept, c0, mask=inside)
            tl.store(kept + times * SIDE * SIDE, c1, mask=inside)
            tl.store(kept + 2 * times * SIDE * SIDE, c2, mask=inside)
        else:
            at = out + clip * stride_b + time * stride_t + row * stride_y + column * stride_x
            kind = out.dtype.element_ty
            tl.store(at, ((c0 - mean_r) / std_r).to(kind), mask=inside)
            tl.store(at + stride_c, ((c1 - mean_g) / std_g).to(kind), mask=inside)
            tl.store(at + 2 * stride_c, ((c2 - mean_b) / std_b).to(kind), mask=inside)
