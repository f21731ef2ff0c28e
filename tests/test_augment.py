"""augment.py against a slow per-clip, per-frame twin made of PIL and torchvision, and against the physics of flow."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from vicc_ray.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentSettings,
    ClipParameters,
    _hue,
    augment,
    draw,
    draw_jitter,
    evaluation_input,
)
from vicc_ray.errors import UserError

SETTINGS = AugmentSettings(size=28)


def clips(n: int, t: int = 2, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth random pictures, so that resizing keeps some contrast, at full range."""
    noise = torch.rand((n * t, channels, 6, 6), generator=torch.Generator().manual_seed(seed))
    smooth = tv.resize(noise, [height, width], antialias=False)
    smooth = (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())
    return (  # type: ignore[no-any-return]
        (smooth.view(n, t, channels, height, width) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    )


def keys(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    return [(seed, 3, video, 0) for video in range(n)]


def to_pixels(x: Tensor) -> Tensor:
    """Undo the normalisation: [B,3,T,s,s] in 0..255."""
    mean, std = (torch.tensor(v).view(3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (x * std + mean) * 255


def gaussian_twin(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by the definition: every pixel a weighted mean of those inside the frame, rows then columns."""
    for axis in (0, 1):
        out = np.zeros_like(plane)
        n = plane.shape[axis]
        for i in range(n):
            weights = np.array([math.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in range(n)])
            mixed = np.tensordot(weights / weights.sum(), plane, axes=(0, axis))
            out[(i, slice(None)) if axis == 0 else (slice(None), i)] = mixed
        plane = out
    return plane


def chain_twin(frame: Tensor, p: ClipParameters, row: int) -> Tensor:
    """One frame [3,s,s] float in [0, 1] through torchvision's own operations, one after the other."""
    ops = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    if p.jitter[row]:
        for op in p.order[row]:
            frame = ops[op](frame, float(p.factors[row, op]))
    if p.gray[row]:
        frame = frame[p.gray_channel[row]].expand(3, -1, -1)
    if p.blur[row]:
        frame = torch.stack([torch.from_numpy(gaussian_twin(c.double().numpy(), p.sigma[row])) for c in frame]).float()
    return frame


def crop_twin(frame: np.ndarray, p: ClipParameters, row: int, size: int) -> np.ndarray:
    """One frame [H,W,3] uint8: PIL's crop, antialiased resize, mirror."""
    top, left, h, w = (int(v) for v in p.boxes(*frame.shape[:2])[row])
    picture = Image.fromarray(frame).crop((left, top, left + w, top + h))
    picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    if p.flip[row]:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 54)])
def test_crop_and_flip_equal_pil_within_one_code(height: int, width: int) -> None:
    frames = clips(12, height=height, width=width)
    p = draw(SETTINGS, keys(12), [False] * 12)
    assert p.flip.any() and not p.flip.all()
    got, none = augment(frames, None, p, SETTINGS)
    assert none is None and got is not None and got.shape == (12, 3, 2, 28, 28) and got.dtype == torch.float32
    for row in range(12):
        for t in range(2):
            want = crop_twin(frames[row, t].numpy(), p, row, 28).astype(np.float32)
            # PIL rounds between its two passes, torch's kernel once: one code value apart at most
            assert np.abs(to_pixels(got)[row, :, t].permute(1, 2, 0).numpy() - want).max() <= 1.01


def test_full_chain_equals_torchvision_per_frame() -> None:
    always = dataclasses.replace(SETTINGS, jitter_p=0.8, gray_p=0.3, blur_p=0.6)
    n = 24
    frames, p = clips(n), draw(always, keys(n), np.arange(n) % 4 > 0)
    for done in (p.jitter, p.gray, p.blur):
        assert done.any() and not done.all() and not done[::4].any()
    assert len(np.unique(p.order[p.jitter], axis=0)) > 8
    got, _ = augment(frames, None, p, always)
    plain, _ = augment(
        frames, None, dataclasses.replace(p, jitter=p.jitter & False, gray=p.gray & False, blur=p.blur & False), always
    )
    assert got is not None and plain is not None
    before, after = to_pixels(plain) / 255, to_pixels(got) / 255
    for row in range(n):
        for t in range(2):
            want = chain_twin(before[row, :, t].clamp(0, 1), p, row)
            torch.testing.assert_close(after[row, :, t], want, atol=2e-4, rtol=0)


def test_jitter_agrees_with_pil_pictures() -> None:
    """The published chain works on 8-bit PIL pictures, whose hue has 256 steps: 3 codes on average, 18 at most."""
    only = dataclasses.replace(SETTINGS, jitter_p=1, gray_p=0, blur_p=0, flip_p=0, area=(1, 1), aspect=(1, 1), size=32)
    frames, p = clips(8, t=1), draw(only, keys(8), [True] * 8)
    got, _ = augment(frames, None, p, only)
    assert got is not None
    ops = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for row in range(8):
        picture = Image.fromarray(frames[row, 0].numpy())
        for op in p.order[row]:
            picture = ops[op](picture, float(p.factors[row, op]))
        gap = np.abs(to_pixels(got)[row, :, 0].permute(1, 2, 0).numpy() - np.asarray(picture).astype(np.float32))
        assert gap.mean() < 3 and gap.max() < 18


def test_hue_turns_every_kind_of_colour_as_torchvision_does() -> None:
    """All orders of the channels and all ties between them: gray, primaries, equal pairs."""
    levels = torch.tensor([0.0, 1, 60, 128, 200, 255])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 1, 216, 1)
    for shift in (-0.5, -0.1, 0.0, 0.03, 0.5):
        got = _hue(colours, torch.tensor(shift).view(1, 1, 1, 1, 1))
        want = tv.adjust_hue(colours[0, :, 0] / 255, shift) * 255
        torch.testing.assert_close(got[0, :, 0], want, atol=1e-3, rtol=0)


def test_a_batch_at_once_equals_clip_after_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, all clips at once, and that of a CPU, one at a time, give the same."""
    n = 24
    rgb, flow = clips(n), clips(n, channels=2)
    published = dataclasses.replace(SETTINGS, style="reference", gray_p=0.5)
    p = draw(published, keys(n), np.arange(n) % 3 > 0)
    for settings in (published, dataclasses.replace(published, style="physical")):
        apart = augment(rgb, flow, p, settings)
        with monkeypatch.context() as patch:
            patch.setattr("vicc_ray.data.augment._portions", lambda frames: [slice(0, len(frames))])
            together = augment(rgb, flow, p, settings)
        for one, all_ in zip(apart, together, strict=True):
            assert one is not None and all_ is not None
            torch.testing.assert_close(one, all_, atol=1e-5, rtol=0)


def test_blur_agrees_with_torchvision_away_from_the_border() -> None:
    only = dataclasses.replace(SETTINGS, jitter_p=0, gray_p=0, blur_p=1, flip_p=0, area=(1, 1), aspect=(1, 1), size=32)
    frames, p = clips(3, t=1), draw(only, keys(3), [True] * 3)
    got, _ = augment(frames, None, p, only)
    assert got is not None
    for row in range(3):
        picture = frames[row, 0].permute(2, 0, 1).float()
        want = tv.gaussian_blur(picture, [21, 21], [float(p.sigma[row])] * 2)
        torch.testing.assert_close(
            to_pixels(got)[row, :, 0, 10:-10, 10:-10], want[:, 10:-10, 10:-10], atol=0.05, rtol=0
        )


def test_flat_frames_stay_flat_under_blur() -> None:
    frames = torch.full((2, 1, 32, 32, 3), 200, dtype=torch.uint8)
    only = dataclasses.replace(SETTINGS, jitter_p=0, gray_p=0, blur_p=1)
    got, _ = augment(frames, None, draw(only, keys(2), [True] * 2), only)
    assert got is not None
    torch.testing.assert_close(to_pixels(got), torch.full_like(got, 200.0), atol=1e-2, rtol=0)


def vectors(picture: Tensor, bound: float = 20.0) -> Tensor:
    """Network input [B,3,T,s,s] -> (u, v) in pixels [B,2,T,s,s]; checks the constant channel on the way."""
    codes = to_pixels(picture)
    torch.testing.assert_close(codes[:, 0], torch.full_like(codes[:, 0], 128.0), atol=1e-2, rtol=0)
    return codes[:, [2, 1]] * (2 * bound / 255) - bound


def test_flipping_mirrors_the_field_and_negates_u() -> None:
    flow = clips(4, channels=2)
    # vectors small enough that the zoom of a crop does not clip them
    flow = (flow.float() * 0.3 + 127.5 * 0.7).round().to(torch.uint8)
    p = draw(SETTINGS, keys(4), [False] * 4)
    straight = augment(None, flow, dataclasses.replace(p, flip=p.flip & False), SETTINGS)[1]
    mirrored = augment(None, flow, dataclasses.replace(p, flip=p.flip | True), SETTINGS)[1]
    assert straight is not None and mirrored is not None
    uv, flipped = vectors(straight), vectors(mirrored)
    torch.testing.assert_close(flipped[:, 0], -uv[:, 0].flip(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(flipped[:, 1], uv[:, 1].flip(-1), atol=1e-3, rtol=0)


def test_vectors_grow_with_the_zoom_of_the_crop() -> None:
    """A field of constant motion (2.902, -1.961) px: after a crop of h x w px to 28 px it moves 28/w, 28/h as far."""
    flow = torch.tensor([146, 115], dtype=torch.uint8).expand(16, 2, 40, 54, 2).contiguous()
    p = draw(SETTINGS, keys(16), [True] * 16)
    got = augment(None, flow, p, SETTINGS)[1]
    assert got is not None
    uv, boxes = vectors(got), p.boxes(40, 54)
    for row, (_, _, h, w) in enumerate(boxes):
        u = (146 * 40 / 255 - 20) * 28 / w * (-1 if p.flip[row] else 1)
        v = (115 * 40 / 255 - 20) * 28 / h
        want = torch.tensor([u, v], dtype=torch.float32).view(2, 1, 1, 1).expand(2, 2, 28, 28)
        torch.testing.assert_close(uv[row], want, atol=1e-3, rtol=0)
    assert len({tuple(b[2:]) for b in boxes.tolist()}) > 8


def test_vectors_beyond_the_bound_are_clipped() -> None:
    flow = torch.tensor([255, 0], dtype=torch.uint8).expand(1, 1, 14, 14, 2).contiguous()
    still = dataclasses.replace(SETTINGS, area=(1, 1), aspect=(1, 1), flip_p=0)  # zoom 2
    got = augment(None, flow, draw(still, keys(1), [False]), still)[1]
    assert got is not None
    assert vectors(got)[0, 0].max().item() == pytest.approx(20, abs=1e-3)
    assert vectors(got)[0, 1].min().item() == pytest.approx(-20, abs=1e-3)


def test_flow_is_resized_without_rounding_and_without_colour_operations() -> None:
    flow = clips(6, channels=2)
    p = draw(dataclasses.replace(SETTINGS, jitter_p=1, gray_p=1, blur_p=1), keys(6), [True] * 6)
    got = augment(None, flow, p, SETTINGS)[1]
    plain = augment(None, flow, draw(SETTINGS, keys(6), [False] * 6), SETTINGS)[1]
    assert got is not None and plain is not None and torch.equal(got, plain)
    codes = to_pixels(got)[:, 1:]
    assert (codes - codes.round()).abs().mean() > 0.1


def flow_twin(field: np.ndarray, p: ClipParameters, row: int, size: int) -> np.ndarray:
    """One field [H,W,2] of displacements through the crop: moved with PIL's float pictures, then each vector by hand."""
    top, left, h, w = (int(v) for v in p.boxes(*field.shape[:2])[row])
    planes = []
    for plane in field.transpose(2, 0, 1):
        picture = Image.fromarray(plane.astype(np.float32)).crop((left, top, left + w, top + h))
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        planes.append(np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if p.flip[row] else picture))
    u, v = planes
    return np.clip(np.stack([(-u if p.flip[row] else u) * size / w, v * size / h]), -20, 20)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 54)])
def test_flow_equals_pil_and_vectors_scaled_by_hand(height: int, width: int) -> None:
    flow = (clips(12, height=height, width=width, channels=2).float() * 0.5 + 127.5 * 0.5).round().to(torch.uint8)
    p = draw(SETTINGS, keys(12), np.arange(12) % 2 == 0)
    assert p.flip.any() and not p.flip.all()
    got = augment(None, flow, p, SETTINGS)[1]
    assert got is not None
    uv = vectors(got)
    for row in range(12):
        for t in range(2):
            want = flow_twin(flow[row, t].numpy() * (40 / 255) - 20, p, row, 28)
            assert np.abs(uv[row, :, t].numpy() - want).max() < 5e-3


def test_a_moving_picture_and_its_flow_still_agree_after_augmentation() -> None:
    """Warping the next RGB view back by the flow view gives the RGB view: geometry, sign and scale are one."""
    u, v = 3, -2
    large = clips(6, t=1, height=60, width=60).expand(6, 2, 60, 60, 3)
    first, second = large[:, 0, 8:48, 8:48], large[:, 1, 8 - v : 48 - v, 8 - u : 48 - u]
    rgb = torch.stack([first, second], dim=1).contiguous()
    code = torch.tensor([round((u + 20) * 255 / 40), round((v + 20) * 255 / 40)], dtype=torch.uint8)
    p = draw(SETTINGS, keys(6), [False] * 6)
    view, field = augment(rgb, code.expand(6, 2, 40, 40, 2).contiguous(), p, SETTINGS)
    assert view is not None and field is not None and p.flip.any() and not p.flip.all()
    shift = vectors(field)[:, :, 0]
    at = torch.arange(28.0)
    y, x = torch.meshgrid(at, at, indexing="ij")
    target = torch.stack([x + shift[:, 0], y + shift[:, 1]], dim=-1)
    inside = ((target > 1) & (target < 26)).all(dim=-1)
    back = torch.nn.functional.grid_sample(view[:, :, 1], (target + 0.5) / 14 - 1, align_corners=False)
    gap, still = ((other - view[:, :, 0]).abs().mean(1)[inside].mean() for other in (back, view[:, :, 1]))
    assert inside.float().mean() > 0.3 and gap < 0.1 * still


def test_rgb_and_flow_of_a_clip_share_their_geometry() -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    ramp = torch.stack([x * 4 + 60, y * 4 + 60], dim=-1).to(torch.uint8).expand(8, 2, 32, 32, 2)
    rgb = torch.cat([ramp, ramp[..., :1]], dim=-1).contiguous()
    published = dataclasses.replace(SETTINGS, style="reference")
    as_rgb, as_flow = augment(rgb, ramp.contiguous(), draw(SETTINGS, keys(8), [False] * 8), published)
    assert as_rgb is not None and as_flow is not None
    torch.testing.assert_close(to_pixels(as_flow)[:, [2, 1]], to_pixels(as_rgb)[:, :2], atol=0.51, rtol=0)


def test_reference_style_treats_flow_as_a_picture() -> None:
    flow, rgb = clips(8, channels=2), clips(8, seed=1)
    published = dataclasses.replace(SETTINGS, style="reference")
    p = draw(published, keys(8), np.arange(8) % 2 == 0)
    as_picture = torch.cat([torch.full_like(flow[..., :1], 128), flow.flip(-1)], dim=-1)
    _, got = augment(rgb, flow, p, published)
    want, _ = augment(as_picture, None, p, published)
    assert got is not None and want is not None
    # the two differ by the rounding of the picture's crop, which jitter and hue may enlarge
    gap = (to_pixels(got) - to_pixels(want)).abs()
    assert gap.max() < 8 and gap.mean() < 0.6


def test_one_network_input_for_a_clip_whoever_its_neighbours_are() -> None:
    rgb, flow, full = clips(6), clips(6, channels=2), np.array([1, 0, 1, 1, 0, 1], dtype=bool)
    together = augment(rgb, flow, draw(SETTINGS, keys(6), full), SETTINGS)
    some = [4, 2]
    apart = augment(rgb[some], flow[some], draw(SETTINGS, [keys(6)[i] for i in some], full[some]), SETTINGS)
    for whole, part in zip(together, apart, strict=True):
        assert whole is not None and part is not None
        torch.testing.assert_close(whole[some], part, atol=1e-5, rtol=0)
    other = draw(SETTINGS, keys(6, seed=1), full)
    assert not np.isin(other.position, draw(SETTINGS, keys(6), full).position).any()


def test_frames_of_a_clip_get_the_same_geometry_and_colours() -> None:
    frames = clips(4, t=1).expand(4, 3, 32, 32, 3).contiguous()
    got, _ = augment(frames, None, draw(SETTINGS, keys(4), [True] * 4), SETTINGS)
    assert got is not None
    torch.testing.assert_close(got[:, :, 0], got[:, :, 2], atol=1e-6, rtol=0)


def test_the_inputs_are_left_as_they_were() -> None:
    rgb, flow = clips(2), clips(2, channels=2)
    copies = rgb.clone(), flow.clone()
    augment(rgb, flow, draw(SETTINGS, keys(2), [True] * 2), SETTINGS)
    assert torch.equal(rgb, copies[0]) and torch.equal(flow, copies[1])


def test_statistics_of_the_draws() -> None:
    n = 4000
    p = draw(SETTINGS, keys(n), np.arange(n) % 2 == 0)
    full = np.arange(n) % 2 == 0
    assert p.flip.mean() == pytest.approx(0.5, abs=0.03)
    for done, share in ((p.jitter, 0.8), (p.gray, 0.2), (p.blur, 0.5)):
        assert done[full].mean() == pytest.approx(share, abs=0.04) and not done[~full].any()
    assert (p.factors.min(0) >= [0.6, 0.6, 0.6, -0.1]).all() and (p.factors.max(0) <= [1.4, 1.4, 1.4, 0.1]).all()
    assert p.factors.mean(0) == pytest.approx([1, 1, 1, 0], abs=0.02)
    assert np.bincount(p.gray_channel) / n == pytest.approx([1 / 3] * 3, abs=0.03)
    assert p.sigma.min() >= 0.1 and p.sigma.max() <= 2 and p.sigma.mean() == pytest.approx(1.05, abs=0.05)
    first = (p.order[:, :, None] == np.arange(4)).mean(0)  # share of each op at each step
    assert first == pytest.approx(np.full((4, 4), 0.25), abs=0.03)
    boxes = p.boxes(100, 100)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 100).all()
    area, aspect = boxes[:, 2] * boxes[:, 3] / 1e4, boxes[:, 3] / boxes[:, 2]
    assert area.min() > 0.19 and area.max() <= 1
    assert aspect.min() > 0.73 and aspect.max() < 1.37 and np.log(aspect).mean() == pytest.approx(0, abs=0.02)
    # corners are reached and the middle is not favoured: position within the free room is uniform
    room = 100 - boxes[:, 3]
    assert (boxes[:, 1][room > 20] / room[room > 20]).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 100)])
def test_crops_are_spread_as_torchvision_spreads_them(height: int, width: int) -> None:
    n = 4000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frame = torch.zeros(3, height, width)
        twin = np.array([RandomResizedCrop.get_params(frame, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    boxes = draw(SETTINGS, keys(n), [False] * n).boxes(height, width)
    for column, extent in enumerate((height, width, height, width)):
        for q in (0.1, 0.3, 0.5, 0.7, 0.9):
            assert np.quantile(boxes[:, column], q) == pytest.approx(np.quantile(twin[:, column], q), abs=0.04 * extent)


def test_a_crop_that_fits_nowhere_falls_back_to_the_centre() -> None:
    tall = dataclasses.replace(SETTINGS, area=(1, 1), aspect=(3 / 4, 4 / 3))
    boxes = draw(tall, keys(5), [True] * 5).boxes(20, 200)
    assert (boxes[:, 2] == 20).all() and (boxes[:, 3] <= 27).all() and (boxes[:, 3] >= 15).all()
    assert (boxes[:, 1] == (200 - boxes[:, 3]) // 2).all()


def test_jitter_at_test_is_the_chains_jitter_alone() -> None:
    settings = AugmentSettings(28, jitter=(0.4, 0.3, 0.2, 0.1))
    drawn = draw_jitter(settings, keys(400), 0.3)
    assert 80 < drawn.jitter.sum() < 160 and not (drawn.gray.any() or drawn.blur.any() or drawn.flip.any())
    full = draw(dataclasses.replace(settings, jitter_p=1.0), keys(400), np.ones(400, np.bool_))
    assert np.array_equal(drawn.factors, full.factors) and np.array_equal(drawn.order, full.order)
    chosen = drawn.rows(slice(0, 12))
    rgb, flow = clips(12), clips(12, channels=2)
    plain, jittered = evaluation_input(rgb, 28), evaluation_input(rgb, 28, "physical", chosen)
    assert 0 < chosen.jitter.sum() < 12
    for row in range(12):
        before, after = to_pixels(plain[row : row + 1])[0], to_pixels(jittered[row : row + 1])[0]  # [3,T,s,s]
        for t in range(2):
            want = chain_twin(before[:, t].clamp(0, 255) / 255, chosen, row) * 255
            torch.testing.assert_close(after[:, t], want, atol=0.6, rtol=0)
        assert bool(torch.equal(before, after)) == (not chosen.jitter[row])
    assert torch.equal(evaluation_input(flow, 28, "physical", chosen), evaluation_input(flow, 28))
    as_picture = evaluation_input(flow, 28, "reference", chosen)
    assert not torch.equal(as_picture, evaluation_input(flow, 28, "reference"))
    with pytest.raises(ValueError, match="parameters of 400 clips for 12"):
        evaluation_input(rgb, 28, "physical", drawn)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 43), (43, 32)])
def test_evaluation_input_is_the_centred_square(height: int, width: int) -> None:
    frames = clips(2, height=height, width=width)
    got, side = to_pixels(evaluation_input(frames, 28)), min(height, width)
    for row in range(2):
        square = tv.center_crop(tv.to_pil_image(frames[row, 1].permute(2, 0, 1)), [side, side])
        if (height - side) % 2 or (width - side) % 2:  # torchvision rounds the odd half pixel to even; ours goes down
            top, left = (height - side) // 2, (width - side) // 2
            square = tv.to_pil_image(frames[row, 1].permute(2, 0, 1)).crop((left, top, left + side, top + side))
        want = np.asarray(square.resize((28, 28), Image.Resampling.BILINEAR)).astype(np.float32)
        assert np.abs(got[row, :, 1].permute(1, 2, 0).numpy() - want).max() <= 1.01


def test_evaluation_flow_is_scaled_by_the_zoom() -> None:
    flow = torch.tensor([146, 115], dtype=torch.uint8).expand(2, 3, 32, 43, 2).contiguous()
    u, v = 146 * 40 / 255 - 20, 115 * 40 / 255 - 20
    scaled, plain = vectors(evaluation_input(flow, 28)), vectors(evaluation_input(flow, 28, style="reference"))
    for got, zoom in ((scaled, 28 / 32), (plain, 1.0)):
        torch.testing.assert_close(got[:, 0], torch.full_like(got[:, 0], u * zoom), atol=1e-3, rtol=0)
        torch.testing.assert_close(got[:, 1], torch.full_like(got[:, 1], v * zoom), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("area", (0.0, 1.0)),
        ("area", (0.9, 0.2)),
        ("aspect", (0.0, 1.0)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("flip_p", 1.5),
        ("blur_sigma", (0.0, 1.0)),
        ("style", "published"),
    ],
)
def test_impossible_settings_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        dataclasses.replace(SETTINGS, **{field: value})  # type: ignore[arg-type]


def test_wrong_tensors_are_refused() -> None:
    p = draw(SETTINGS, keys(2), [True] * 2)
    for wrong in (clips(3), clips(2).float(), clips(2, channels=2)):
        with pytest.raises(ValueError, match="rgb"):
            augment(wrong, None, p, SETTINGS)
    with pytest.raises(ValueError, match="frames"):
        evaluation_input(clips(2)[0], 28)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_within_one_code() -> None:
    rgb, flow = clips(6), clips(6, channels=2)
    p = draw(SETTINGS, keys(6), [False] * 6)
    here, there = augment(rgb, flow, p, SETTINGS), augment(rgb.cuda(), flow.cuda(), p, SETTINGS)
    for a, b in zip(here, there, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(to_pixels(a), to_pixels(b.cpu()), atol=0.6, rtol=0)
