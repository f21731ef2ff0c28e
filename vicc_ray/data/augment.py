"""Clip-consistent augmentation of uint8 clips, batched on their own device; RGB and flow of a clip share geometry.

B clips, T frames, H x W decode size, C channels (3 for RGB; 2 for flow: u, v). Facts: docs/method.md, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vicc_ray.config import STREAMS, Decoded, Stream
from vicc_ray.data.flow.lucas_kanade import lucas_kanade
from vicc_ray.errors import UserError

Style = Literal["physical", "reference"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ZERO_FLOW = 127.5  # round((f + bound) * 255 / (2 bound)) before rounding, at f = 0: the same for every bound
CROP_TRIES = 10
_ROUNDED = ("cpu",)  # where a resized picture is rounded to whole codes, which a CPU does several times as fast
# One draw of uniforms a clip, always this many, so that a changed setting moves nothing but its own parameter:
# area and aspect of each try; x, y, flip; jitter: apply, 4 factors, 4 sort keys; gray: apply, channel;
# blur: apply, sigma.
UNIFORMS = 2 * CROP_TRIES + 3 + 9 + 2 + 2


@dataclass(frozen=True)
class AugmentSettings:
    """Strengths and probabilities of the chain; the defaults are the published ones but for `style`.

    size: side of the square output in pixels. area: share of the frame that a crop covers. aspect: its width / height.
    jitter: brightness, contrast, saturation, hue (hue in turns, at most 0.5). blur_sigma: output pixels.
    style: "physical" keeps flow a field of displacements; "reference" treats it as a picture, as published.
    follow: share of the crops' centres that is drawn where things move (`draw_for`); 0: crops lie anywhere, as published.
    """

    size: int
    area: tuple[float, float] = (0.2, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_p: float = 0.5
    flip_p: float = 0.5
    style: Style = "physical"
    follow: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"augmentation: size is {self.size}; it must be at least 1 pixel")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"augmentation: area is {self.area}; give two shares of the frame, 0 < low <= high <= 1")
        for name, (low, high) in (("aspect", self.aspect), ("blur_sigma", self.blur_sigma)):
            if not 0 < low <= high:
                raise UserError(f"augmentation: {name} is {(low, high)}; give two numbers, 0 < low <= high")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise UserError(f"augmentation: jitter is {self.jitter}; none may be negative, hue (the last) at most 0.5")
        for name in ("jitter_p", "gray_p", "blur_p", "flip_p", "follow"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name} is {getattr(self, name)}; it lies in 0 to 1")
        if self.style not in ("physical", "reference"):
            raise UserError(f"augmentation: style is {self.style!r}; allowed are 'physical' and 'reference'")


@dataclass(frozen=True)
class ClipParameters:
    """What was drawn for B clips; independent of frame size, device and neighbours.

    area, aspect: [B, CROP_TRIES], tries of share of the frame and width / height; position: [B, 2], x and y in [0, 1)
    of the room that the crop leaves. factors: [B, 4] brightness, contrast, saturation, hue shift in turns;
    order: [B, 4], the op (index into factors) done at each step. gray_channel: 0-2. sigma: output pixels.
    flip, jitter, gray, blur: [B], whether done. centre: [B, 2], x and y in [0, 1) of the frame where a crop's middle lies, as far
    as the frame lets it; it takes the place of `position`.
    """

    area: Floats
    aspect: Floats
    position: Floats
    flip: Bools
    jitter: Bools
    factors: Floats
    order: Integers
    gray: Bools
    gray_channel: Integers
    blur: Bools
    sigma: Floats
    centre: Floats | None = None

    def __len__(self) -> int:
        return len(self.flip)

    def rows(self, which: slice) -> ClipParameters:
        """The parameters of some of the clips."""
        kept: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        some: dict[str, Any] = {name: None if value is None else value[which] for name, value in kept.items()}
        return ClipParameters(**some)

    def boxes(self, height: int, width: int) -> Integers:
        """Crops of a `height` x `width` frame: [B, 4] of top, left, height, width in whole pixels.

        The first try that fits into the frame counts; if none does, the largest centred crop of the frame whose
        aspect is nearest to the allowed ones (as torchvision's RandomResizedCrop does).
        """
        pixels = self.area * height * width
        w = np.rint(np.sqrt(pixels * self.aspect)).astype(np.int64)
        h = np.rint(np.sqrt(pixels / self.aspect)).astype(np.int64)
        fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
        first = fits.argmax(axis=1)
        rows = np.arange(len(self))
        w, h, none = w[rows, first], h[rows, first], ~fits.any(axis=1)
        nearest = np.clip(width / height, self.aspect.min(axis=1), self.aspect.max(axis=1))
        w = np.where(none, np.clip(np.rint(height * nearest), 1, width), w).astype(np.int64)
        h = np.where(none, np.clip(np.rint(width / nearest), 1, height), h).astype(np.int64)
        if self.centre is None:
            x, y = (np.floor(self.position[:, axis] * (room + 1)) for axis, room in ((0, width - w), (1, height - h)))
        else:
            x = np.clip(np.rint(self.centre[:, 0] * width - w / 2), 0, width - w)
            y = np.clip(np.rint(self.centre[:, 1] * height - h / 2), 0, height - h)
        left, top = np.where(none, (width - w) // 2, x), np.where(none, (height - h) // 2, y)
        return np.stack([top, left, h, w], axis=1).astype(np.int64)


def draw(settings: AugmentSettings, keys: Sequence[tuple[int, ...]], full: npt.ArrayLike) -> ClipParameters:
    """Parameters of the clips named by `keys`, e.g. (seed, epoch, video_index, clip_number), each int >= 0.

    A clip's parameters depend on its key and the settings alone: not on rank, call order or batch neighbours.
    `full`: bool [B]; clips where it is False get crop and flip only.
    """
    whole = np.asarray(full, dtype=np.bool_)
    if whole.shape != (len(keys),):
        raise ValueError(f"draw: `full` has shape {whole.shape} for {len(keys)} keys")
    uniform = np.empty((len(keys), UNIFORMS))
    for row, key in enumerate(keys):
        np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(out=uniform[row])
    tries, rest = uniform[:, : 2 * CROP_TRIES].reshape(-1, 2, CROP_TRIES), uniform[:, 2 * CROP_TRIES :]
    low, high = np.log(settings.aspect)
    b, c, s, hue = settings.jitter
    weakest = np.array([max(0.0, 1 - b), max(0.0, 1 - c), max(0.0, 1 - s), -hue])
    strongest = np.array([1 + b, 1 + c, 1 + s, hue])
    return ClipParameters(
        area=_between(tries[:, 0], *settings.area),
        aspect=np.exp(_between(tries[:, 1], low, high)),
        position=rest[:, 0:2],
        flip=rest[:, 2] < settings.flip_p,
        jitter=whole & (rest[:, 3] < settings.jitter_p),
        factors=weakest + rest[:, 4:8] * (strongest - weakest),
        order=rest[:, 8:12].argsort(axis=1),
        gray=whole & (rest[:, 12] < settings.gray_p),
        gray_channel=(rest[:, 13] * 3).astype(np.int64),
        blur=whole & (rest[:, 14] < settings.blur_p),
        sigma=_between(rest[:, 15], *settings.blur_sigma),
    )


def draw_for(
    settings: AugmentSettings, keys: Sequence[tuple[int, ...]], full: npt.ArrayLike, clips: Mapping[Decoded, Tensor]
) -> ClipParameters:
    """As `draw`, for decoded clips uint8 [B,T,H,W,C], whose motion the crops follow where the settings say so.

    A crop's middle is drawn with density (1 - follow) / (H W) + follow e(x, y) / sum e, where e is the energy of motion
    (`motion_energy`): the two numbers that place a crop otherwise are turned into a point by the inverse of the distribution of
    columns, then of rows within the column. A clip without motion is cropped anywhere.
    """
    params = draw(settings, keys, full)
    if not settings.follow or not len(params):
        return params
    energy = motion_energy(clips).double().cpu().numpy()
    rows, height, width = energy.shape
    total = energy.sum(axis=(1, 2), keepdims=True)
    even = np.full_like(energy, 1 / (height * width))
    with np.errstate(invalid="ignore", divide="ignore"):
        density = np.where(total > 0, (1 - settings.follow) * even + settings.follow * energy / total, even)
    x = _inverse(density.sum(axis=1), params.position[:, 0])
    column = np.minimum((x * width).astype(np.int64), width - 1)
    y = _inverse(density[np.arange(rows), :, column], params.position[:, 1])
    return replace(params, centre=np.stack([x, y], axis=1))


def motion_energy(clips: Mapping[Decoded, Tensor]) -> Tensor:
    """How much moves where, float32 [B, H/4, W/4] of uint8 clips [B,T,H,W,C], looked at in every fourth pixel.

    Of flow the mean over time of |f - median f|^2, whose median over the frame is a panning camera's; without flow that of
    squared differences between frames, which a moving camera fills.
    """
    if "flow" in clips:
        field = clips["flow"][:, :, ::4, ::4].float()
        camera = field.flatten(2, 3).median(dim=2).values[:, :, None, None]
        return (field - camera).square().sum(dim=-1).mean(dim=1)
    frames = clips["rgb"][:, :, ::4, ::4].float()
    return (frames[:, 1:] - frames[:, :-1]).square().sum(dim=-1).mean(dim=1)


def _inverse(weights: Floats, uniform: Floats) -> Floats:
    """Points in [0, 1) of densities that are constant in each of n cells, weights [B, n], at uniform [B]: float64 [B]."""
    edges = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    cells = weights.shape[1]
    cell = np.minimum((edges <= uniform[:, None]).sum(axis=1), cells - 1)
    rows = np.arange(len(weights))
    before = np.where(cell > 0, edges[rows, np.maximum(cell - 1, 0)], 0.0)
    inside = (uniform - before) / np.maximum(edges[rows, cell] - before, 1e-300)
    return np.asarray((cell + np.clip(inside, 0, 1 - 1e-9)) / cells)


def draw_jitter(settings: AugmentSettings, keys: Sequence[tuple[int, ...]], p: float) -> ClipParameters:
    """Colour jitter alone, of the settings' strength and with probability `p`; keys as in `draw`."""
    only = replace(settings, jitter_p=p, gray_p=0.0, blur_p=0.0, flip_p=0.0)
    return draw(only, keys, np.ones(len(keys), np.bool_))


def augment(
    rgb: Tensor | None, flow: Tensor | None, params: ClipParameters, settings: AugmentSettings
) -> tuple[Tensor | None, Tensor | None]:
    """Network inputs of B clips: random resized crop, flip, colour chain (RGB), ImageNet normalisation.

    rgb: uint8 [B,T,H,W,3]; flow: uint8 [B,T,H,W,2], u and v as round((f + bound) * 255 / (2 bound)); either may be
    None. Returns float32 [B,3,T,size,size] of each. Flow comes as the published three channels (128, v, u); u is
    negated on a flip and vectors grow with the crop's zoom (clipped at +-bound like the input), without a second
    rounding and for any bound: the code of zero is its middle. With style "reference", u is neither negated nor
    scaled and the flow picture goes through the clip's colour chain too.
    """
    rgb_view = flow_view = None
    if rgb is not None:
        check_frames(rgb, 3, len(params), "rgb")
        rgb_view = _inputs_for(rgb, settings.size)
        for rows in _portions(rgb):
            _augment_rgb(rgb_view[rows], rgb[rows], params.rows(rows), settings)
    if flow is not None:
        check_frames(flow, 2, len(params), "flow")
        flow_view = _inputs_for(flow, settings.size)
        for rows in _portions(flow):
            _augment_flow(flow_view[rows], flow[rows], params.rows(rows), settings)
    return rgb_view, flow_view


def evaluation_input(
    frames: Tensor, size: int, style: Style = "physical", jitter: ClipParameters | None = None
) -> Tensor:
    """Network input without augmentation: the largest centred square, resized to `size` (antialiased bilinear).

    frames: uint8 [B,T,H,W,3] (RGB) or [B,T,H,W,2] (flow, whose vectors grow with the zoom unless `style` is
    "reference"). Returns float32 [B,3,T,size,size], normalised as in `augment`. `jitter` (of `draw_jitter`) changes the
    colours, of flow with style "reference" only: the test as it was published.
    """
    channels = frames.shape[-1] if frames.dim() == 5 and frames.shape[-1] in (2, 3) else 3
    check_frames(frames, channels, len(frames), "frames")
    height, width = frames.shape[2:4]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    out = _inputs_for(frames, size)
    for clip, target in zip(frames, out, strict=True):
        _resize_into(target, clip[:, top : top + side, left : left + side], size)
    if channels == 2 and style == "physical":
        _scale_vectors_(out, torch.full((len(frames), 2), size / side, device=frames.device))
    if jitter is not None and (channels == 3 or style == "reference"):
        if len(jitter) != len(frames):
            raise ValueError(f"jitter: parameters of {len(jitter)} clips for {len(frames)}")
        return normalise(_colour_chain(out, jitter), out)
    return normalise(out, out)


def difference(view: Tensor) -> Tensor:
    """Normalised RGB float [B,3,T,s,s] -> what each frame differs from the next by; the last repeats the one before it."""
    steps = view[:, :, 1:] - view[:, :, :-1]
    return torch.cat([steps, steps[:, :, -1:]], dim=2)


def lucas_kanade_picture(view: Tensor) -> Tensor:
    """Normalised RGB float [B,3,T,s,s] -> flow from each frame to the next, in flow's three channels; the last repeats.

    Normalised codes (128, v, u) as in `augment`, unrounded, of a bound of `lucas_kanade_bound(s)` pixels of the view.
    """
    codes, bound = torch.full_like(view, 128.0), lucas_kanade_bound(view.shape[-1])
    std = view.new_tensor(IMAGENET_STD).view(3, 1, 1)
    for rows in _portions(view):
        frames = view[rows].transpose(1, 2) * std  # [b,T,3,s,s]
        flow = lucas_kanade(frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1))
        field = flow.view(len(frames), -1, *flow.shape[1:])
        field = torch.cat([field, field[:, -1:]], dim=1).transpose(1, 2)  # [b,2,T,s,s]
        codes[rows, 1:] = (field.flip(1) / bound).clamp(-1, 1) * ZERO_FLOW + ZERO_FLOW
    return normalise(codes, codes)


def lucas_kanade_bound(size: int) -> float:
    """Pixels at which the Lucas-Kanade stream's displacements are clipped, in views of this side: an eighth of it."""
    return size / 8


# Streams that are made of another one's network input on its device: normalised RGB -> theirs, float32 [B,3,T,s,s] each.
_MADE_OF: dict[Stream, Callable[[Tensor], Tensor]] = {
    "difference": difference,
    "lucas_kanade": lucas_kanade_picture,
}


def as_stream(view: Tensor, stream: Stream) -> Tensor:
    """The network input of a stream, float [B,3,T,s,s], from that of the clips it is made from; RGB and flow stay as they are."""
    return _MADE_OF[stream](view) if stream in _MADE_OF else view


def stream_input(
    clips: Mapping[Decoded, Tensor], stream: Stream, size: int, style: Style, jitter: ClipParameters | None = None
) -> Tensor:
    """Network input of a stream without augmentation, float32 [B,3,T,size,size], of its decoded clips; see `evaluation_input`."""
    frames = clips[STREAMS[stream].decoded]
    return as_stream(evaluation_input(frames, size, style, None if stream in _MADE_OF else jitter), stream)


_PLAIN: tuple[Stream, Stream] = ("rgb", "flow")  # what `augment` takes


def augmented(
    clips: Mapping[Decoded, Tensor], streams: Collection[Stream], params: ClipParameters, settings: AugmentSettings
) -> dict[Stream, Tensor]:
    """Network inputs of some streams, float32 [B,3,T,size,size] each; one draw of the parameters for all of them.

    Streams that are made of RGB have its crop, flip and normalisation; the colour chain is left out.
    """
    rgb, flow = (clips[STREAMS[name].decoded] if name in streams else None for name in _PLAIN)
    views: dict[Stream, Tensor] = {}
    for name, view in zip(_PLAIN, augment(rgb, flow, params, settings), strict=True):
        if view is not None:
            views[name] = view
    made = [stream for stream in streams if stream in _MADE_OF]
    if made:
        none = np.zeros(len(params), np.bool_)
        view, _ = augment(clips["rgb"], None, replace(params, jitter=none, gray=none, blur=none), settings)
        assert view is not None
        views |= {stream: as_stream(view, stream) for stream in made}
    return views


def _between(uniform: Floats, low: float, high: float) -> Floats:
    return low + uniform * (high - low)


def check_frames(frames: Tensor, channels: int, clips: int, name: str) -> None:
    """ValueError, which names `name`, unless frames are uint8 [clips,T,H,W,channels]."""
    if frames.dim() != 5 or frames.shape[-1] != channels or frames.dtype != torch.uint8 or len(frames) != clips:
        want = f"uint8 [{clips},T,H,W,{channels}]"
        raise ValueError(f"{name}: expected {want}, got {frames.dtype} {list(frames.shape)}")


def _inputs_for(frames: Tensor, size: int) -> Tensor:
    """Room for the network inputs of uint8 [B,T,H,W,C]: float32 [B,3,T,size,size]."""
    return frames.new_empty((frames.shape[0], 3, frames.shape[1], size, size), dtype=torch.float32)


def _portions(frames: Tensor) -> list[slice]:
    """The rows that are worked on at a time: all on a GPU, one on a CPU.

    On a CPU what lies between the steps costs more than the steps: a clip's worth of it is reused memory, partly still
    in the cache, a batch's worth is requested from the system again and again.
    """
    if frames.device.type != "cpu":
        return [slice(0, len(frames))]
    return [slice(row, row + 1) for row in range(len(frames))]


def _augment_rgb(out: Tensor, rgb: Tensor, params: ClipParameters, settings: AugmentSettings) -> None:
    """uint8 [b,T,H,W,3] -> network inputs, into out [b,3,T,size,size]."""
    _resized_crops(out, rgb, params, settings.size)
    normalise(_colour_chain(out, params), out)


def _augment_flow(out: Tensor, flow: Tensor, params: ClipParameters, settings: AugmentSettings) -> None:
    """uint8 [b,T,H,W,2] -> network inputs, into out [b,3,T,size,size]."""
    _resized_crops(out, flow, params, settings.size)
    if settings.style == "physical":
        _scale_vectors_(out, _zoom(params, flow, settings.size))
        normalise(out, out)
    else:
        normalise(_colour_chain(out, params), out)


def _resized_crops(out: Tensor, frames: Tensor, params: ClipParameters, size: int) -> None:
    """Each clip's crop of uint8 [b,T,H,W,C], resized and flipped, in code values 0..255 into out [b,3,T,size,size]."""
    for row, (top, left, h, w) in enumerate(params.boxes(*frames.shape[2:4]).tolist()):
        _resize_into(out[row], frames[row, :, top : top + h, left : left + w], size, flip=bool(params.flip[row]))


def _resize_into(target: Tensor, crop: Tensor, size: int, flip: bool = False) -> None:
    """crop [T,h,w,C] uint8 -> target [3,T,size,size] float32; antialiased bilinear, as PIL resizes.

    Flow (u, v) fills the published three channels: 128, v, u. RGB on a CPU goes through the uint8 kernel, three to four
    times as fast as the float one and rounded to whole values as a decoded picture is. Flow is never rounded again:
    half a step is 0.08 px, as much as slow motion.
    """
    if crop.shape[-1] == 3 and crop.device.type in _ROUNDED:
        planes = crop.permute(0, 3, 1, 2)
        resized = F.interpolate(planes, (size, size), mode="bilinear", antialias=True).permute(1, 0, 2, 3)
    else:
        planes = crop.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)  # [C,T,h,w]
        resized = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)
    if flip:
        resized = resized.flip(-1)
    if crop.shape[-1] == 3:
        target.copy_(resized)
    else:
        target[0], target[1], target[2] = 128.0, resized[1], resized[0]


def _zoom(params: ClipParameters, frames: Tensor, size: int) -> Tensor:
    """Output pixels per input pixel along x (negative when mirrored) and y: float32 [B,2] on the frames' device."""
    boxes = params.boxes(frames.shape[2], frames.shape[3])
    x = size / boxes[:, 3] * np.where(params.flip, -1.0, 1.0)
    y = size / boxes[:, 2]
    return torch.from_numpy(np.stack([x, y], axis=1).astype(np.float32)).to(frames.device)


def _scale_vectors_(picture: Tensor, zoom: Tensor) -> None:
    """Multiply displacements, codes in [B,3,T,s,s] as 128, v, u, by zoom [B,2] (x, y), in place; clip at the bound."""
    factors = zoom.flip(1)[:, :, None, None, None]
    picture[:, 1:].sub_(ZERO_FLOW).mul_(factors).add_(ZERO_FLOW).clamp_(0, 255)


def normalise(picture: Tensor, out: Tensor) -> Tensor:
    """float32 [B,3,T,s,s] in 0..255 -> ImageNet mean 0, standard deviation 1, written to `out` and returned."""
    mean = picture.new_tensor(IMAGENET_MEAN).view(3, 1, 1, 1)
    std = picture.new_tensor(IMAGENET_STD).view(3, 1, 1, 1)
    return torch.sub(picture, 255 * mean, out=out).div_(255 * std)


def _colour_chain(x: Tensor, params: ClipParameters) -> Tensor:
    """Jitter in each clip's own order, channel-split gray, blur; x [b,3,T,s,s] in 0..255, which may be written to.

    Every op runs once over the clips that need it, not once a clip.
    """
    for step in range(4):
        for op, adjust in enumerate(_JITTER):
            rows = np.flatnonzero(params.jitter & (params.order[:, step] == op))
            factor = params.factors[rows, op].astype(np.float32)
            x = _on_rows(x, rows, adjust, torch.from_numpy(factor).view(-1, 1, 1, 1, 1))
    rows = np.flatnonzero(params.gray)
    x = _on_rows(x, rows, _gray, torch.from_numpy(params.gray_channel[rows]))
    rows = np.flatnonzero(params.blur)
    return _on_rows(x, rows, blurred, torch.from_numpy(params.sigma[rows].astype(np.float32)))


def _on_rows(x: Tensor, rows: Integers, op: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """op(clips, their values) applied to some rows of x; x itself may be written to, or left for the result."""
    if not len(rows):
        return x
    if len(rows) == len(x):
        return op(x, values.to(x.device))
    where = torch.from_numpy(rows).to(x.device)
    x[where] = op(x[where], values.to(x.device))
    return x


def _luma(x: Tensor) -> Tensor:
    """ITU-R 601 luma of [n,3,T,s,s]: [n,1,T,s,s]."""
    return (0.299 * x[:, 0:1]).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:3], alpha=0.114)


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 255)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Towards or away from the mean luma of each frame."""
    mean = _luma(x).mean(dim=(-2, -1), keepdim=True)
    return (x * factor).add_(mean * (1 - factor)).clamp_(0, 255)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Towards or away from each pixel's luma."""
    return (x * factor).add_(_luma(x).mul_(1 - factor)).clamp_(0, 255)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` turns, keeping value and chroma of HSV.

    Sorting the channels by maxima and minima gives the hue in sixths of a turn without its six cases: |K + (middle -
    low) / chroma|, where K, the place of the swaps that sorting took, is 0, -6, -2 or 4. (`torch.where` would do, at
    thirty times the price of a maximum on a CPU.)
    """
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    place = (blue - green).sign_().clamp_(0, 1).mul_(-6)
    swapped = (high - red).sign_().clamp_(0, 1)
    place.addcmul_(swapped, place + 1, value=-2)
    value, middle = torch.maximum(red, high), torch.minimum(red, high)
    chroma = value - torch.minimum(middle, low)
    # Gray pixels: their hue does not matter, as chroma 0 multiplies it below.
    h = (middle - low).div_(chroma.clamp_min(1e-9)).add_(place).abs_().add_(6 * shift.squeeze(1))
    h.addcmul_((h / 6).floor_(), torch.full_like(shift.squeeze(1), -6))
    darkest = value - chroma
    # How far each channel rises above the darkest one at hue h: a trapezium around 0 (or 6), 2 and 4.
    shares = ((h - 3).abs_().sub_(1), (h - 2).abs_().neg_().add_(2), (h - 4).abs_().neg_().add_(2))
    return torch.stack([torch.addcmul(darkest, chroma, share.clamp_(0, 1)) for share in shares], dim=1)


_JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)


def _gray(x: Tensor, channel: Tensor) -> Tensor:
    """All three channels become the chosen one, an index a clip."""
    return x[torch.arange(len(x), device=x.device), channel][:, None].expand_as(x)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of [n,3,T,s,s], one sigma a clip, as two matrix products a frame.

    Weights of taps outside the frame go to those inside, so that a flat frame stays flat up to its border.
    """
    n, c, t, side, _ = x.shape
    at = torch.arange(side, device=x.device, dtype=torch.float32)
    distance = (at[:, None] - at[None, :]) / sigma.view(-1, 1, 1)
    kernel = torch.exp(-0.5 * distance.square())
    kernel = kernel / kernel.sum(dim=2, keepdim=True)  # [n, out, in]
    across = torch.bmm(x.reshape(n, c * t * side, side), kernel.transpose(1, 2)).view(n, c * t, side, side)
    return torch.matmul(kernel[:, None], across).view(n, c, t, side, side)
