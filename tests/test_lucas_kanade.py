"""Lucas and Kanade's flow beside a slow twin and beside motion that is known, and as a stream in flow's place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_experiment, tiny_plan
from torch import Tensor

from vicc_ray.config import load_experiment
from vicc_ray.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentSettings,
    augment,
    augmented,
    draw,
    evaluation_input,
    lucas_kanade_bound,
    stream_input,
)
from vicc_ray.data.flow.lucas_kanade import DAMPING, SMALLEST, WINDOW, lucas_kanade
from vicc_ray.data.manifest import Manifest
from vicc_ray.evaluation.stored import Side, source_of
from vicc_ray.preview import write_preview
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.training.schedule import make_stages

Picture = NDArray[np.float64]


def texture(height: int, width: int, x: float = 0.0, y: float = 0.0, seed: int = 0, finest: int = 6) -> Tensor:
    """float32 [H,W] about 0.5: waves of so much of the side to six times as much, moved by (x, y) pixels."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width].astype(float)
    picture = np.zeros((height, width))
    for _ in range(24):
        angle, length, phase = (
            random.uniform(0, 2 * math.pi),
            random.uniform(height / finest, 6 * height / finest),
            random.uniform(0, 2 * math.pi),
        )
        along = math.cos(angle) * (columns - x) + math.sin(angle) * (rows - y)
        picture += np.sin(2 * math.pi * along / length + phase)
    return torch.from_numpy((picture / 12 + 0.5).astype(np.float32))


def at(picture: Picture, y: int, x: int) -> float:
    """The pixel, or the border's nearest."""
    return float(picture[min(max(y, 0), picture.shape[0] - 1), min(max(x, 0), picture.shape[1] - 1)])


def between(picture: Picture, y: float, x: float) -> float:
    y, x = min(max(y, 0.0), picture.shape[0] - 1.0), min(max(x, 0.0), picture.shape[1] - 1.0)
    top, left = math.floor(y), math.floor(x)
    down, right = y - top, x - left
    upper = (1 - right) * at(picture, top, left) + right * at(picture, top, left + 1)
    return (1 - down) * upper + down * (
        (1 - right) * at(picture, top + 1, left) + right * at(picture, top + 1, left + 1)
    )


def halved(picture: Picture) -> Picture:
    height, width = (side // 2 for side in picture.shape)
    out = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        out[y, x] = picture[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean()
    return out


def doubled(field: Picture, shape: tuple[int, int]) -> Picture:
    height, width = field.shape
    out = np.zeros(shape)
    for y, x in np.ndindex(*shape):
        inside = min(y, 2 * height - 1), min(x, 2 * width - 1)
        out[y, x] = 2 * between(field, (inside[0] - 0.5) / 2, (inside[1] - 0.5) / 2)
    return out


def increment(here: list[Picture], then: list[Picture]) -> tuple[Picture, Picture]:
    (height, width), colours = here[0].shape, len(here)
    gradients = np.zeros((height, width, colours, 3))
    for y, x, c in np.ndindex(height, width, colours):
        mean = (here[c] + then[c]) / 2
        across = (at(mean, y, x + 1) - at(mean, y, x - 1)) / 2
        down = (at(mean, y + 1, x) - at(mean, y - 1, x)) / 2
        gradients[y, x, c] = across, down, then[c][y, x] - here[c][y, x]
    u, v, half = np.zeros((height, width)), np.zeros((height, width)), WINDOW // 2
    for y, x in np.ndindex(height, width):
        matrix, right = DAMPING * np.eye(2), np.zeros(2)
        for row in range(max(y - half, 0), min(y + half + 1, height)):
            for column in range(max(x - half, 0), min(x + half + 1, width)):
                for *g, t in gradients[row, column]:
                    matrix += np.outer(g, g) / WINDOW**2 / colours
                    right -= np.array(g) * t / WINDOW**2 / colours
        u[y, x], v[y, x] = np.linalg.solve(matrix, right)
    return u, v


def twin(picture: list[Picture], following: list[Picture]) -> Picture:
    """Pixel by pixel: two of C colours [H,W] -> [2,H,W]."""
    levels = [([halved(one) for one in picture], [halved(one) for one in following])]
    while min(levels[-1][0][0].shape) >= 2 * SMALLEST:
        levels.append(([halved(one) for one in levels[-1][0]], [halved(one) for one in levels[-1][1]]))
    u = v = np.zeros(levels[-1][0][0].shape)
    for number, (here, then) in enumerate(reversed(levels)):
        height, width = here[0].shape
        if number:
            u, v = (doubled(part, (height, width)) for part in (u, v))
        warped = [
            np.array([[between(one, y + v[y, x], x + u[y, x]) for x in range(width)] for y in range(height)])
            for one in then
        ]
        du, dv = increment(here, warped)
        u, v = u + du, v + dv
    shape = (picture[0].shape[0], picture[0].shape[1])
    return np.stack([doubled(u, shape), doubled(v, shape)])


@pytest.mark.parametrize("shape", [(48, 48), (16, 16), (51, 61)])
def test_a_slow_twin_finds_the_same(shape: tuple[int, int]) -> None:
    def moved(*by: tuple[float, float]) -> Tensor:
        """Two pictures of two colours each, the second of which moves alike and is weaker: [2,2,H,W]."""
        return torch.stack(
            [
                torch.stack([texture(*shape, x, y, seed=2 * n), 0.5 * texture(*shape, x, y, seed=2 * n + 1)])
                for n, (x, y) in enumerate(by)
            ]
        )

    pictures, following = moved((0, 0), (0, 0)), moved((1.3, -0.6), (-4.0, 2.0))
    found = lucas_kanade(pictures, following)
    expected = [
        twin(list(one.double().numpy()), list(two.double().numpy()))
        for one, two in zip(pictures, following, strict=True)
    ]
    torch.testing.assert_close(found.double(), torch.from_numpy(np.stack(expected)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("side", "x", "y"), [(48, 2.0, -1.0), (48, 0.3, 0.2), (112, -6.0, 3.0), (224, 9.0, 9.0)])
def test_known_motion_is_found(side: int, x: float, y: float) -> None:
    (field,) = lucas_kanade(texture(side, side)[None, None], texture(side, side, x, y)[None, None])
    border = side // 4
    inside = field[:, border:-border, border:-border]
    error = (inside - torch.tensor([x, y]).view(2, 1, 1)).norm(dim=0).mean()
    assert error < 0.25 * math.hypot(x, y)


def test_what_does_not_move_or_shows_nothing_has_no_flow() -> None:
    here = texture(48, 48)[None, None]
    plain = torch.full((1, 1, 48, 48), 0.5)
    for pictures, following in ((here, here), (plain, plain + 0.1)):
        assert lucas_kanade(pictures, following).abs().max() < 1e-4


def test_colours_count_of_which_gray_shows_nothing() -> None:
    """Red and green that are each other's negative: their mean is plain."""
    here, then = texture(48, 48), texture(48, 48, 1.5, 0.5)
    field = lucas_kanade(torch.stack([here, 1 - here])[None], torch.stack([then, 1 - then])[None])
    torch.testing.assert_close(field, lucas_kanade(here[None, None], then[None, None]), rtol=1e-4, atol=1e-4)
    assert field.abs().mean() > 0.5


def test_a_mirrored_picture_has_mirrored_flow() -> None:
    here, then = texture(48, 48)[None, None], texture(48, 48, 1.5, 0.5)[None, None]
    field, mirrored = lucas_kanade(here, then), lucas_kanade(here.flip(-1), then.flip(-1)).flip(-1)
    torch.testing.assert_close(torch.stack([-mirrored[:, 0], mirrored[:, 1]], dim=1), field, rtol=1e-4, atol=1e-4)


CLIPS = torch.randint(0, 256, (3, 6, 40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SETTINGS = AugmentSettings(32)


def by_hand(view: Tensor) -> Tensor:
    """The stream of normalised RGB [B,3,T,s,s], frame by frame."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    bound = view.shape[-1] / 8
    out = torch.zeros_like(view)
    for b in range(view.shape[0]):
        frames = [view[b, :, t] * std + mean for t in range(view.shape[2])]
        for t in range(view.shape[2]):
            here = min(t, view.shape[2] - 2)
            ((u, v),) = lucas_kanade(frames[here][None], frames[here + 1][None])
            codes = [((f + bound) * 255 / (2 * bound)).clamp(0, 255) for f in (v, u)]
            out[b, :, t] = (torch.stack([torch.full_like(u, 128.0), *codes]) / 255 - mean) / std
    return out


def test_the_stream_is_flow_of_the_crop_without_its_colours() -> None:
    params = draw(SETTINGS, [(0, row) for row in range(3)], np.ones(3, bool))
    assert params.jitter.any() and params.flip.any() != params.flip.all()
    plain, _ = augment(
        CLIPS,
        None,
        draw(AugmentSettings(32, jitter_p=0, gray_p=0, blur_p=0), [(0, row) for row in range(3)], np.ones(3, bool)),
        SETTINGS,
    )
    assert plain is not None
    views = augmented({"rgb": CLIPS}, ("rgb", "lucas_kanade"), params, SETTINGS)
    torch.testing.assert_close(views["lucas_kanade"], by_hand(plain), rtol=1e-3, atol=2e-3)
    coloured, _ = augment(CLIPS, None, params, SETTINGS)
    assert coloured is not None and torch.equal(views["rgb"], coloured)


def test_in_evaluation_it_is_that_of_the_centre_crop() -> None:
    found = stream_input({"rgb": CLIPS}, "lucas_kanade", 32, "physical")
    torch.testing.assert_close(found, by_hand(evaluation_input(CLIPS, 32)), rtol=1e-3, atol=2e-3)


def test_a_clips_stream_does_not_depend_on_the_others() -> None:
    whole = stream_input({"rgb": CLIPS}, "lucas_kanade", 32, "physical")
    alone = stream_input({"rgb": CLIPS[1:2]}, "lucas_kanade", 32, "physical")
    assert torch.equal(whole[1:2], alone)
    empty = stream_input({"rgb": CLIPS[:0]}, "lucas_kanade", 32, "physical")
    assert empty.shape == (0, 3, 6, 32, 32)


def test_a_crop_that_is_enlarged_moves_faster() -> None:
    """The unit is the network's pixel: half of a frame's side seen at the same size moves twice as far."""
    frames = torch.stack([texture(96, 96, 1.0 * t, 0.5 * t, finest=12) for t in range(4)])
    rgb = (255 * frames).round().clamp(0, 255).to(torch.uint8)[None, ..., None].expand(-1, -1, -1, -1, 3)
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def motion(clip: Tensor) -> Tensor:
        codes = (stream_input({"rgb": clip}, "lucas_kanade", 48, "physical")[0] * std + mean) * 255 - 127.5
        return codes[1:].flatten(1).median(dim=1).values

    v, u = (motion(rgb[:, :, 24:72, 24:72]) / motion(rgb)).tolist()
    assert u == pytest.approx(2, rel=0.15) and v == pytest.approx(2, rel=0.15)


def test_one_word_puts_it_in_flows_place_and_nothing_but_rgb_is_decoded(videos: Manifest) -> None:
    quickstart = load_experiment(
        Path(__file__).parent.parent / "experiments" / "quickstart.yaml", ["clip.motion=lucas_kanade"]
    )
    assert [stage.name for stage in make_stages(quickstart, 400)] == ["RGB-1", "LK-1", "RGB-2", "LK-2"]
    plan = tiny_plan(tiny_experiment(clip={"motion": "lucas_kanade"}), videos)
    assert all(stage.decoded == ("rgb",) for stage in plan.stages)


def test_features_are_known_by_the_methods_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EncoderOnDisk("LK-2", Path("r"), "r", "lucas_kanade", "1" * 32)
    before = source_of(encoder, Side((), "all"), tiny_experiment())
    assert "flow" not in before.protocol
    monkeypatch.setattr("vicc_ray.data.flow.lucas_kanade.RULES", 2)
    assert source_of(encoder, Side((), "all"), tiny_experiment()).key != before.key


@pytest.mark.parametrize("style", ["physical", "reference"])
def test_the_page_shows_it_as_a_field(style: str, videos: Manifest, tmp_path: Path) -> None:
    experiment = tiny_experiment(clip={"motion": "lucas_kanade"}, augment={"style": style})
    page = write_preview(experiment, videos, tmp_path / "preview.html", 2).read_text()
    assert "8 bits" not in page and "as a picture" not in page and "Vectors are in pixels" in page
    assert "Lucas-Kanade view" in page and "Lucas-Kanade input" in page and "decoded flow" not in page
    assert (
        f"Lucas-Kanade, of the network&#39;s input, clipped at {lucas_kanade_bound(experiment.clip.size):g} px" in page
    )
