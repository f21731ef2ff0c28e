"""TV-L1 optical flow of many pairs at once in PyTorch, on CPU and CUDA.

The method: Zach, Pock and Bischof, "A duality based approach for realtime TV-L1 optical flow" (DAGM 2007), as described with
its pyramid, warps and stopping rule by Sanchez, Meinhardt-Llopis and Facciolo, "TV-L1 optical flow estimation" (IPOL 2013);
with a median filter of the field between the iterations. `Parameters` mean what OpenCV's of these names mean.

Sought is the field u that makes small the sum over pixels of  |grad u1| + |grad u2| + lambda |rho(u)|,  where
rho(u) = I1(x + u0) + g (u - u0) - I0,  g = grad I1(x + u0),  is the difference of the pictures, linear around the field u0
of the last warp. With a second field v that is held near u by theta, an iteration is

    v = u + g clamp(-rho(u) / |g|^2, -lambda theta, lambda theta)        the minimum over v, in closed form
    u = v + theta div p                                                 the minimum over u, by its dual field p
    p = (p + tau / theta grad u) / (1 + tau / theta |grad u|)           a step of the dual

with forward differences in grad and the backward ones that belong to them in div.

How it is made fast: w = u tau / theta is iterated, so that every factor but one is folded into what a warp prepares. Pairs lie
one behind the other in one flat array, and a neighbour is a shift of all of it; what a shift would carry over an edge is
the dual field in a last column or row, which is 0. All is in place, and the views are made once. A pair that has converged
is taken out of the batch, so its field does not depend on the others'.

Legend: N pairs of frames, H rows, W columns; fields [2, N, H, W] = (u, v) while they are computed, the dual [2, 2, N, H, W] with
the direction of the difference first.

torch is imported on first use: a decode actor that needs none of this stays small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vicc_ray.errors import UserError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parameters:
    """OpenCV's parameters and defaults; gray values are 0-255."""

    tau: float = 0.25  # step of the dual; at most 0.25 converges
    lambda_: float = 0.15  # weight of the pictures' difference
    theta: float = 0.3  # how far v may be from u
    scales: int = 5  # pictures of the pyramid; fewer where a side would fall below SMALLEST
    warps: int = 5  # linearisations a scale
    epsilon: float = 0.01  # pixels (root of the mean square) an iteration below which a warp is done
    inner_iterations: int = 30  # between two median filters
    outer_iterations: int = 10  # median filters a warp, at most
    scale_step: float = 0.8  # size of a picture of the pyramid beside the one below it
    median: int = 5  # side of the median filter: 1 (none), 3 or 5

    def __post_init__(self) -> None:
        """ValueError for a filter of another side."""
        if self.median not in (1, 3, 5):
            raise ValueError(f"median must be 1, 3 or 5; it is {self.median}")


DEFAULT = Parameters()
SMALLEST = 16
CHECK = 5  # iterations between two checks how far the field still moves
RULES = 1  # raised whenever this file gives other numbers for the same parameters
# Pairs at a time. A CPU's caches hold the state of one, and then nothing at all depends on how a clip is cut into batches; a
# GPU is idle between the launches of few.
PAIRS = {"cpu": 1, "cuda": 256}


def tvl1_flow(frames: NDArray[np.uint8], device: str = "cpu", parameters: Parameters = DEFAULT) -> NDArray[np.float32]:
    """Flow from each frame to the next: uint8 RGB [n + 1, H, W, 3] -> float32 [n, H, W, 2], (u, v) in pixels.

    On the CPU it runs on one thread, as OpenCV's does here. `UserError` where there is no such device.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device}: this machine has no CUDA device; tvl1_torch runs on cpu too, more slowly")
    flow = np.empty((max(len(frames) - 1, 0), *frames.shape[1:3], 2), np.float32)
    pairs = PAIRS[torch.device(device).type]
    gray = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]) if len(flow) else flow
    with _one_thread(device):
        for start in range(0, len(flow), pairs):
            chunk = torch.from_numpy(gray[start : start + pairs + 1]).to(device)
            field = tvl1(chunk[:-1], chunk[1:], parameters)
            flow[start : start + len(field)] = field.cpu().numpy()
    return flow


def identity(parameters: Parameters = DEFAULT) -> dict[str, Any]:
    """What decides the numbers: the parameters, this file's rules and torch's version."""
    import torch

    return {**asdict(parameters), "rules": RULES, "torch": torch.__version__.split("+")[0]}


def tvl1(first: torch.Tensor, second: torch.Tensor, parameters: Parameters = DEFAULT) -> torch.Tensor:
    """Flow between gray frames: two uint8 [N, H, W] on one device -> float32 [N, H, W, 2] there, (u, v) in pixels.

    Raises `ValueError` for tensors of another type, or of two shapes.
    """
    import torch

    if first.shape != second.shape or first.ndim != 3 or {first.dtype, second.dtype} != {torch.uint8}:
        came = " and ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (first, second))
        raise ValueError(f"first and second must both be uint8 [N, H, W]; they are {came}")
    with torch.inference_mode():
        pyramid = _pyramid(torch.stack([first, second]).float(), parameters)
        u = torch.zeros_like(pyramid[-1])
        for pictures in reversed(pyramid):
            u = _at_scale(pictures, _enlarged(u, pictures.shape[2:]), parameters)
        return u.permute(1, 2, 3, 0).contiguous()


def _pyramid(pictures: torch.Tensor, parameters: Parameters) -> list[torch.Tensor]:
    """[2, N, H, W] -> the same and ever smaller ones."""
    step = parameters.scale_step
    pyramid = [pictures]
    for _ in range(1, parameters.scales):
        height, width = (round(side * step) for side in pyramid[-1].shape[2:])
        if min(height, width) < SMALLEST:
            break
        # IPOL's anti-aliasing: a picture's own blur of 0.6 pixels is to be that of the smaller one, too.
        smooth = _blurred(pyramid[-1], 0.6 * math.sqrt(step**-2 - 1))
        pyramid.append(_resized(smooth, (height, width)))
    return pyramid


def _blurred(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [2, N, H, W], edges repeated."""
    import torch
    from torch.nn.functional import pad

    reach = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    for axis, rim in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        padded = pad(pictures, rim, mode="replicate")
        size = pictures.shape[axis]
        blurred = torch.zeros_like(pictures)
        for k, weight in enumerate(weights):
            blurred.add_(padded.narrow(axis, k, size), alpha=weight / sum(weights))
        pictures = blurred
    return pictures


def _resized(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    from torch.nn.functional import interpolate

    return interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def _enlarged(u: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A field at another size, its vectors in pixels of that."""
    height, width = u.shape[2:]
    larger = _resized(u, size)
    larger[0] *= size[1] / width
    larger[1] *= size[0] / height
    return larger


def _at_scale(pictures: torch.Tensor, u: torch.Tensor, parameters: Parameters) -> torch.Tensor:
    """The field [2, N, H, W] at one scale, from the one that the smaller pictures gave."""
    w = u.mul_(parameters.tau / parameters.theta)
    dual = w.new_zeros(2, *w.shape)
    warp = _Warp(pictures, parameters)
    for _ in range(parameters.warps):
        _minimise(w, dual, warp(w), parameters)
    return w.mul_(parameters.theta / parameters.tau)


class _Warp:
    """The second picture and its gradient where a field leads, and what an iteration takes of them."""

    def __init__(self, pictures: torch.Tensor, parameters: Parameters) -> None:
        import torch
        from torch.nn.functional import pad

        self.first = pictures[0]
        self.scaled = parameters.tau / parameters.theta  # w / u
        second = pictures[1][:, None]
        around = pad(second, (1, 1, 1, 1), mode="replicate")
        dx = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) / 2
        dy = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) / 2
        self.second = torch.cat([second, dx, dy], 1)  # [N, 3, H, W]
        height, width = pictures.shape[2:]
        # grid_sample's coordinates: -1 and 1 are the outer edges of the first and last pixel.
        self.unit = torch.tensor([2 / width, 2 / height], device=pictures.device)
        y, x = (torch.arange(side, device=pictures.device) + 0.5 for side in (height, width))
        self.here = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1) * self.unit - 1  # [H, W, 2]

    def __call__(self, w: torch.Tensor) -> torch.Tensor:
        """[5, N, H, W]: what to add to w for each unit of the clamped ratio (two), and the ratio -rho / |g|^2 as a linear
        function of w (its two factors and its constant). Where a field leads out of the picture nothing pulls at it."""
        import torch
        from torch.nn.functional import grid_sample

        u = w / self.scaled
        where = torch.addcmul(self.here, u.permute(1, 2, 3, 0), self.unit)  # [N, H, W, 2]
        warped = grid_sample(self.second, where, mode="bicubic", padding_mode="border", align_corners=False)
        g = warped[:, 1:].transpose(0, 1) * (where.abs() <= 1).all(-1)  # [2, N, H, W]
        square = g.square().sum(0)
        minus = torch.where(square > 1e-9, -1 / square, 0.0)
        data = w.new_empty(5, *w.shape[1:])
        torch.mul(g, self.scaled, out=data[:2])
        torch.mul(g, minus / self.scaled, out=data[2:4])
        torch.mul(warped[:, 0] - self.first - (g * u).sum(0), minus, out=data[4])
        return data


def _minimise(w: torch.Tensor, dual: torch.Tensor, data: torch.Tensor, parameters: Parameters) -> None:
    """Iterate w [2, N, H, W] and dual [2, 2, N, H, W] in place until each pair's field rests or the iterations are used up."""
    import torch

    bound = (parameters.epsilon * parameters.tau / parameters.theta) ** 2
    left = torch.arange(w.shape[1], device=w.device)
    state, run = (w, dual, data), None
    for _ in range(parameters.outer_iterations):
        _median_filter(state[0], parameters.median)
        for done in range(0, parameters.inner_iterations, CHECK):
            run = run or _Iteration(*state, parameters)
            moved = run(min(CHECK, parameters.inner_iterations - done))
            rests = (moved < bound).tolist()
            if any(rests):
                keep = torch.tensor([i for i, rest in enumerate(rests) if not rest], dtype=torch.long, device=w.device)
                if state[0] is not w:
                    w[:, left], dual[:, :, left] = state[:2]
                if not len(keep):
                    return
                left = left[keep]
                state, run = (state[0][:, keep], state[1][:, :, keep], state[2][:, keep]), None
    if state[0] is not w:
        w[:, left], dual[:, :, left] = state[:2]


class _Iteration:
    """The iteration on one batch: buffers, and views of all that it touches, each component flat."""

    def __init__(self, w: torch.Tensor, dual: torch.Tensor, data: torch.Tensor, parameters: Parameters) -> None:
        import torch

        n, height, width = w.shape[1:]
        self.w, self.shape, self.width = w.view(2, -1), (2, n, height * width), width
        self.dual, self.before = dual.view(2, 2, -1), torch.empty_like(self.w)
        self.reach, self.factor_x, self.factor_y, self.constant = data[:2].view(2, -1), *data[2:].view(3, -1)
        self.ratio = torch.empty_like(self.w[0])
        self.norm = torch.empty_like(self.w)
        self.steps = torch.zeros_like(self.dual)  # grad w
        steps = self.steps.view(2, 2, n, height, width)
        self.edges = steps[0, ..., -1], steps[1, ..., -1, :]
        self.tau, self.clamp = parameters.tau, parameters.lambda_ * parameters.theta

    def __call__(self, times: int) -> torch.Tensor:
        """Iterate; the mean square of what the last iteration moved w by, float32 [n]."""
        import torch

        w, (w_x, w_y), ratio, norm, width = self.w, self.w, self.ratio, self.norm, self.width
        (dual_x, dual_y), (steps_x, steps_y), (edge_x, edge_y) = self.dual, self.steps, self.edges
        w_right, w_but_first, w_below, w_but_top = w[:, :-1], w[:, 1:], w[:, :-width], w[:, width:]
        dual_left, dual_above = dual_x[:, :-1], dual_y[:, :-width]
        to_right, to_below = steps_x[:, :-1], steps_y[:, :-width]
        for number in range(times):
            if number == times - 1:
                self.before.copy_(w)
            torch.addcmul(self.constant, self.factor_x, w_x, out=ratio)
            ratio.addcmul_(self.factor_y, w_y).clamp_(-self.clamp, self.clamp)
            w.addcmul_(self.reach, ratio)
            w.add_(dual_x, alpha=self.tau).add_(dual_y, alpha=self.tau)
            w_but_first.sub_(dual_left, alpha=self.tau)
            w_but_top.sub_(dual_above, alpha=self.tau)
            torch.sub(w_but_first, w_right, out=to_right)
            torch.sub(w_but_top, w_below, out=to_below)
            edge_x.zero_()
            edge_y.zero_()
            # 1 + |grad w|; the root as 1 / rsqrt, which is right at 0, too, and was a quarter faster than sqrt on a CPU.
            torch.mul(steps_x, steps_x, out=norm)
            norm.addcmul_(steps_y, steps_y).rsqrt_().reciprocal_().add_(1.0)
            self.dual.add_(self.steps).div_(norm)
        return self.before.sub_(w).square_().view(self.shape).sum(0).mean(-1)


def _median_filter(w: torch.Tensor, side: int) -> None:
    """The median over side x side pixels, edges repeated, of each [H, W] of float32 [2, N, H, W], in place."""
    if side == 1:
        return
    if w.device.type == "cpu":
        for plane in w.flatten(0, 1).numpy():
            plane[:] = cv2.medianBlur(plane, side)
    else:
        w.copy_(median_by_exchanges(w, side))


def median_by_exchanges(values: torch.Tensor, side: int) -> torch.Tensor:
    """The median over side x side pixels, edges repeated, of [M, N, H, W] by minima and maxima alone: what a GPU does fast.

    First each column of `side` pixels is sorted, once for all places; then each row of the columns' ranks. In such a matrix the
    value at (i, j), counted from 1, has at least i j - 1 others below or beside it that are not larger; those that are so
    known to stand on one side of the middle fall away, as many on either side, and the rest is sorted as far as needed.
    """
    from torch.nn.functional import pad

    reach, half = side // 2, side * side // 2
    height, width = values.shape[2:]
    padded = pad(values, (reach, reach, reach, reach), mode="replicate")
    columns = _select([padded[:, :, k : k + height] for k in range(side)], tuple(range(side)))
    rest: list[torch.Tensor] = []
    for i, rank in enumerate(columns, start=1):
        other = side + 1 - i
        kept = tuple(j - 1 for j in range(1, side + 1) if i * j - 1 <= half and other * (side + 1 - j) - 1 <= half)
        rest += _select([rank[..., k : k + width] for k in range(side)], kept)
    return _select(rest, (len(rest) // 2,))[0]


def _select(values: Sequence[torch.Tensor], places: tuple[int, ...]) -> list[torch.Tensor]:
    """What stands at these places of the sorted values, elementwise."""
    import torch

    line = list(values)
    for i, j, low, high in _exchanges(len(line), places):
        a, b = line[i], line[j]
        if low:
            line[i] = torch.minimum(a, b)
        if high:
            line[j] = torch.maximum(a, b)
    return [line[place] for place in places]


@lru_cache(maxsize=32)
def _exchanges(n: int, places: tuple[int, ...]) -> list[tuple[int, int, bool, bool]]:
    """Batcher's odd-even merge sort of n values (Knuth, vol. 3, algorithm 5.2.2M) without what these places do not need.

    (i, j, whether the smaller is needed at i, whether the larger is at j), in order.
    """
    needed, exchanges = set(places), []
    for i, j in reversed(list(_merge_exchange(n))):
        if i in needed or j in needed:
            exchanges.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return exchanges[::-1]


def _merge_exchange(n: int) -> Iterator[tuple[int, int]]:
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            yield from ((i, i + d) for i in range(n - d) if i & p == r)
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """On the CPU torch keeps to one thread; then it has as many as before."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
