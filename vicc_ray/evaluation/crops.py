"""Views of a window for the test of classifiers: centre, five or ten crops of its frames (docs/method.md, section 6).

w windows, T frames, H x W pixels as decoded, C channels (3 for RGB; 2 for flow: u, v).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from vicc_ray.data.augment import IMAGENET_MEAN, IMAGENET_STD, Style, evaluation_input

Crops = Literal["ten", "five", "centre"]
COUNTS: dict[Crops, int] = {"ten": 10, "five": 5, "centre": 1}
# Published: crops of 224 pixels of frames 240 pixels high, whatever size they are decoded and seen at here.
SHARE = 224 / 240


def crop_boxes(height: int, width: int, crops: Crops) -> list[tuple[int, int, int]]:
    """(top, left, side) in whole pixels of the crops, unflipped: centre, then the corners in reading order.

    The side is 224/240 of the shorter side of the frame.
    """
    side = max(1, round(min(height, width) * SHARE))
    bottom, right = height - side, width - side
    centre = (bottom // 2, right // 2, side)
    if crops == "centre":
        return [centre]
    return [centre, *((top, left, side) for top in (0, bottom) for left in (0, right))]


def crop_views(frames: Tensor, size: int, crops: Crops, style: Style = "physical") -> Iterator[Tensor]:
    """Network inputs of every crop of the windows, one crop at a time; of ten each crop is followed by its mirror image.

    frames: uint8 [w,T,H,W,3] (RGB) or [w,T,H,W,2] (flow). Each view is float32 [w,3,T,size,size], resized and normalised
    as `evaluation_input` does; one or two are held at once. Flow vectors grow with the zoom, and u is negated in a
    mirror image, unless `style` is "reference", which treats flow as a picture.
    """
    negated = frames.shape[-1] == 2 and style == "physical"
    for top, left, side in crop_boxes(frames.shape[2], frames.shape[3], crops):
        view = evaluation_input(frames[:, :, top : top + side, left : left + side], size, style)
        yield view
        if crops == "ten":
            yield _mirrored(view, negated)


def _mirrored(view: Tensor, negated: bool) -> Tensor:
    """The view [w,3,T,s,s] left to right; `negated`: its third channel is u, which then points the other way."""
    mirrored = view.flip(-1)
    if negated:
        # A code c of 0..255 becomes 255 - c; here codes are normalised to x = (c / 255 - mean) / std.
        mirrored[:, 2].neg_().add_((1 - 2 * IMAGENET_MEAN[2]) / IMAGENET_STD[2])
    return mirrored
