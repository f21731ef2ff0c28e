"""Crops of the classifiers' test against slow twins made with PIL, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from vicc_ray.data.augment import IMAGENET_MEAN, IMAGENET_STD, evaluation_input
from vicc_ray.evaluation.crops import COUNTS, crop_boxes, crop_views

CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def _smooth(windows: int, frames: int, height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """Smooth random pictures, so that rounding before or after a flip makes no more than a step."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (windows, frames, 5, 7, channels), dtype=np.uint8)
    out = np.empty((windows, frames, height, width, channels), np.uint8)
    for place in np.ndindex(windows, frames, channels):
        picture = Image.fromarray(coarse[place[0], place[1], :, :, place[2]])
        out[place[0], place[1], :, :, place[2]] = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
    return out


def _twin(windows: NDArray[np.uint8], size: int, style: str) -> list[NDArray[np.float64]]:
    """Ten crops one picture and one channel at a time: cut, mirror, zoom, then the vectors, then normalise."""
    height, width, channels = windows.shape[2:]
    side = round(min(height, width) * 224 / 240)
    boxes = [((height - side) // 2, (width - side) // 2)]
    boxes += [(y * (height - side), x * (width - side)) for y, x in CORNERS]
    views = []
    for top, left in boxes:
        for mirrored in (False, True):
            view = np.empty((len(windows), 3, windows.shape[1], size, size))
            for w, t in np.ndindex(windows.shape[:2]):
                frame = windows[w, t, top : top + side, left : left + side].astype(np.float32)
                frame = frame[:, ::-1] if mirrored else frame
                planes = [
                    np.asarray(Image.fromarray(np.ascontiguousarray(frame[..., c])).resize((size, size), 2), np.float64)
                    for c in range(channels)
                ]
                if channels == 2:
                    u, v = planes
                    if style == "physical":
                        u = np.clip(127.5 + (u - 127.5) * size / side * (-1 if mirrored else 1), 0, 255)
                        v = np.clip(127.5 + (v - 127.5) * size / side, 0, 255)
                    planes = [np.full_like(u, 128.0), v, u]
                for c in range(3):
                    view[w, c, t] = (planes[c] / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c]
            views.append(view)
    return views


@pytest.mark.parametrize(("channels", "style"), [(3, "physical"), (2, "physical"), (2, "reference")])
@pytest.mark.parametrize("size", [16, 40])
def test_ten_crops_equal_their_slow_twin(channels: int, style: str, size: int) -> None:
    windows = _smooth(2, 3, 30, 45, channels)
    views = list(crop_views(torch.from_numpy(windows), size, "ten", style))  # type: ignore[arg-type]
    twins = _twin(windows, size, style)
    assert len(views) == len(twins) == 10
    step = 1 / 255 / min(IMAGENET_STD)
    for view, twin in zip(views, twins, strict=True):
        assert view.shape == (2, 3, 3, size, size) and view.dtype == torch.float32
        # RGB is rounded to whole codes as a decoded picture is; flow never is.
        np.testing.assert_allclose(view.numpy(), twin, atol=1.1 * step if channels == 3 else 0.01 * step)


def test_fewer_crops_are_some_of_the_ten() -> None:
    windows = torch.from_numpy(_smooth(1, 2, 24, 32, 3))
    ten, five, centre = (list(crop_views(windows, 16, crops)) for crops in ("ten", "five", "centre"))
    assert (len(ten), len(five), len(centre)) == (COUNTS["ten"], COUNTS["five"], COUNTS["centre"]) == (10, 5, 1)
    for number, view in enumerate(five):
        assert torch.equal(view, ten[2 * number])
        assert torch.equal(view.flip(-1), ten[2 * number + 1])
    assert torch.equal(centre[0], five[0])


def test_a_view_stays_as_it_is_while_the_next_is_made() -> None:
    windows = torch.from_numpy(_smooth(1, 2, 24, 32, 2))
    kept: list[torch.Tensor] = []
    for view in crop_views(windows, 16, "ten"):
        kept.append(view.clone())
        view.zero_() if len(kept) % 2 == 0 else None
    for view, fresh in zip(kept, crop_views(windows, 16, "ten"), strict=True):
        assert torch.equal(view, fresh)


@pytest.mark.parametrize(("height", "width", "side"), [(240, 320, 224), (128, 171, 119), (171, 128, 119), (16, 16, 15)])
def test_crops_have_the_published_share_of_the_frame(height: int, width: int, side: int) -> None:
    boxes = crop_boxes(height, width, "five")
    assert [box[2] for box in boxes] == [side] * 5
    top, left, _ = boxes[0]
    assert abs(2 * top + side - height) <= 1 and abs(2 * left + side - width) <= 1
    assert [box[:2] for box in boxes[1:]] == [(y * (height - side), x * (width - side)) for y, x in CORNERS]


def test_no_windows_give_views_of_none_and_wrong_ones_are_refused() -> None:
    assert [view.shape for view in crop_views(torch.zeros(0, 4, 16, 20, 3, dtype=torch.uint8), 16, "centre")] == [
        (0, 3, 4, 16, 16)
    ]
    with pytest.raises(ValueError, match="uint8"):
        next(crop_views(torch.zeros(1, 4, 16, 20, 3), 16, "centre"))


def test_a_frame_is_cut_from_the_frame_and_not_from_its_middle_square() -> None:
    windows = torch.full((1, 2, 30, 60, 3), 10, dtype=torch.uint8)
    windows[:, :, :, 50:] = 250
    ten = list(crop_views(windows, 16, "five"))
    assert ten[2][..., -1].min() > ten[1].max()  # upper right sees the bright edge, upper left does not
    whole = evaluation_input(windows, 16)
    assert whole.max() == ten[0].max() < ten[2].max()
