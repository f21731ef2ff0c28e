"""Crops at test that follow what moves: where they lie, and that every way to encode a window sees the same one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_api import run as api_run
from test_evaluate_classification import _saved
from test_neighbours import encoders as saved_encoders
from test_neighbours import judge as neighbours_judge
from tiny import tiny_experiment
from torch import Tensor

import vicc_ray
from vicc_ray.archive import embedding
from vicc_ray.archive.embedding import EmbeddingPlan
from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.config import Decoded, Experiment, Stream
from vicc_ray.data import motion_sets
from vicc_ray.data.augment import motion_energy, stream_input
from vicc_ray.data.flow.algorithms import flow_between, quantise
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.motion_crop import crop_corners, motion_crops
from vicc_ray.data.samples import read_clips
from vicc_ray.errors import UserError
from vicc_ray.evaluation.model_actors import ClassifyWindows, EncodeWindows
from vicc_ray.evaluation.stored import Side, source_of
from vicc_ray.preview.samples import _window
from vicc_ray.runs.encoders import EncoderOnDisk
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.monitor import Monitor, MonitorPlan

run, encoders, judge = api_run, saved_encoders, neighbours_judge  # fixtures


def noise(windows: int, height: int, width: int, channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (windows, 3, height, width, channels), generator=generator, dtype=torch.uint8)


def corner_twin(clips: dict[Decoded, Tensor], window: int, side: int) -> tuple[int, int]:
    """Every place, pixel by pixel, in exact whole numbers."""
    frames = next(iter(clips.values()))
    height, width = frames.shape[2:4]
    steps = frames.shape[1] - (0 if "flow" in clips else 1)
    energy = (motion_energy(clips)[window].double() * steps).round().long().tolist()
    best, found = None, (0, 0)
    for top in range(height - side + 1):
        for left in range(width - side + 1):
            score = 0
            for y in range(top, top + side):
                for x in range(left, left + side):
                    if y % 4 == 0 and x % 4 == 0:
                        down, across = abs(2 * (y - top) + 1 - side), abs(2 * (x - left) + 1 - side)
                        score += (side - down) * (side - across) * energy[y // 4][x // 4]
            away = abs(2 * top - (height - side)) + abs(2 * left - (width - side))
            if best is None or (score, -away) > best:
                best, found = (score, -away), (top, left)
    return found


@pytest.mark.parametrize(("height", "width", "side"), [(16, 20, 7), (17, 13, 8), (12, 12, 12), (16, 24, 1)])
@pytest.mark.parametrize("channels", [2, 3])
def test_the_place_is_what_loops_say(height: int, width: int, side: int, channels: int) -> None:
    clips: dict[Decoded, Tensor] = {"flow" if channels == 2 else "rgb": noise(3, height, width, channels)}
    found = crop_corners(clips, side)
    for window, corner in enumerate(found.tolist()):
        assert tuple(corner) == corner_twin(clips, window, side)


def test_all_streams_are_cut_alike_and_alone() -> None:
    clips: dict[Decoded, Tensor] = {"rgb": noise(4, 24, 32, 3), "flow": noise(4, 24, 32, 2, seed=1)}
    found = motion_crops(clips, 0.5)
    assert {name: tuple(clip.shape) for name, clip in found.items()} == {
        "rgb": (4, 3, 12, 12, 3),
        "flow": (4, 3, 12, 12, 2),
    }
    for window, (top, left) in enumerate(crop_corners(clips, 12).tolist()):
        for name, clip in clips.items():
            assert torch.equal(found[name][window], clip[window, :, top : top + 12, left : left + 12])
        alone = motion_crops({name: clip[window : window + 1] for name, clip in clips.items()}, 0.5)
        assert all(torch.equal(alone[name][0], found[name][window]) for name in clips), "neighbours do not matter"
    assert motion_crops(clips, 0.0) == clips
    none = motion_crops({name: clip[:0] for name, clip in clips.items()}, 0.5)
    assert none["rgb"].shape == (0, 3, 12, 12, 3)


def test_what_does_not_move_by_itself_is_seen_in_the_middle() -> None:
    pan = torch.full((1, 4, 40, 60, 2), 128, dtype=torch.uint8)
    pan[..., 0] += 60
    assert crop_corners({"flow": pan}, 20).tolist() == [[10, 20]]
    assert crop_corners({"rgb": torch.full((1, 4, 40, 60, 3), 9, dtype=torch.uint8)}, 20).tolist() == [[10, 20]]
    pan[:, :, 30:36, 4:10, 1] += 9  # slower than the camera
    (top, left), *_ = crop_corners({"flow": pan}, 20).tolist()
    assert top == 20 and left == 0, "as far into the corner as the frame lets it"


def test_it_finds_the_small_thing_before_a_panning_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the `far` set, whose thing covers 2 to 5 % of the picture: where pixels differ from those of a thing at rest."""
    drawn: list[tuple[Any, ...]] = []
    draw: Any = vars(motion_sets)["draw_frames"]

    def kept(*arguments: Any) -> Any:
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(motion_sets, "draw_frames", kept)
    inside, middle = [], []
    for seed in range(16):
        label = motion_sets.FAR[seed % 8]
        frames = motion_sets.MOTION_SETS["far"].draw(np.random.default_rng(seed), label, 12, 64, 1.0)
        ground, sprites, paths, camera, size = drawn[-1]
        still = draw(ground, sprites, [paths[1]] * 3, camera, size)
        moves = (np.abs(frames.astype(int) - still.astype(int)).sum(axis=-1) > 30).sum(axis=0)
        fields = quantise(flow_between(frames, "dis"), 8.0)
        codes = torch.from_numpy(np.concatenate([fields, fields[-1:]]))[None]
        ((top, left),) = crop_corners({"flow": codes}, 32).tolist()
        inside.append(moves[top : top + 32, left : left + 32].sum() / moves.sum())
        middle.append(moves[16:48, 16:48].sum() / moves.sum())
    assert np.mean(inside) > 0.7 > 2 * np.mean(middle), "a quarter of the picture"


def follows(share: float = 0.5, **changes: Any) -> Experiment:
    return tiny_experiment(evaluate={"motion_crop": share}, **changes)


def test_flow_is_decoded_for_every_encoder_that_follows_it() -> None:
    assert tiny_experiment().decoded_at_test(["rgb"]) == ("rgb",)
    assert follows().decoded_at_test(["rgb"]) == ("rgb", "flow")
    assert follows().decoded_at_test(["flow"]) == ("flow",)
    assert follows(clip={"motion": "difference"}).decoded_at_test(["rgb", "difference"]) == ("rgb",)
    for wrong in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"evaluate.motion_crop"):
            follows(wrong)


def by_hand(run: Path, name: str, row: Any, experiment: Experiment) -> Any:
    """The mean over a video's windows, cut by hand before the input is made of them."""
    encoder = vicc_ray.load(run).encoder(name)
    starts = [start for _, start in list_windows([row], experiment.clip, "all")]
    arrays = read_clips(row, starts, ("rgb", "flow"), experiment.clip, experiment.flow)
    clips: dict[Decoded, Tensor] = {kind: torch.from_numpy(array) for kind, array in arrays.items()}
    cut: dict[Decoded, Tensor] = {}
    corners = crop_corners({"flow": clips["flow"]}, 16).tolist()
    for kind, clip in clips.items():
        cut[kind] = torch.stack([one[:, y : y + 16, x : x + 16] for one, (y, x) in zip(clip, corners, strict=True)])
    with torch.inference_mode():
        return encoder.module.features(stream_input(cut, encoder.stream, 32, "physical")).mean(dim=0).numpy()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["RGB-2", "Flow-2"])
def test_an_encoder_sees_the_crop_in_python_and_in_a_model_actor(run: Path, videos: Manifest, name: str) -> None:
    row, experiment = videos.select("query")[0], follows()
    want = by_hand(run, name, row, experiment)
    encoder = vicc_ray.load(run).encoder(name)
    whole = encoder.embed_row(row)
    encoder.experiment = experiment
    np.testing.assert_allclose(encoder.embed_row(row), want, rtol=1e-4, atol=1e-6)
    assert np.abs(whole - want).max() > 1e-3
    starts = [start for _, start in list_windows([row], experiment.clip, "all")]
    clips = read_clips(row, starts, ("rgb", "flow"), experiment.clip, experiment.flow)
    block: dict[str, Any] = {"rgb": clips["rgb"], "flow": clips["flow"]}
    block |= {"video": np.zeros(len(starts), int), "refused": [""] * len(starts)}
    path = str(RunFolder(run).encoder(name))
    rows = EncodeWindows({name: path}, experiment, False, 1)(block)[name]
    np.testing.assert_allclose(rows.mean(axis=0), want, rtol=1e-4, atol=1e-6)


def test_crops_of_the_test_of_classifiers_are_cut_out_of_it(tmp_path: Path) -> None:
    path = str(_saved(tmp_path / "rgb", "rgb"))
    block: dict[str, Any] = {"video": np.arange(2), "refused": np.array(["", ""], object)}
    block |= {"rgb": noise(2, 30, 40, 3).numpy(), "flow": noise(2, 30, 40, 2).numpy()}
    cut = {
        name: clip.numpy()
        for name, clip in motion_crops(
            {"rgb": torch.from_numpy(block["rgb"]), "flow": torch.from_numpy(block["flow"])}, 0.8
        ).items()
    }
    plain = ClassifyWindows({"RGB-2": path}, tiny_experiment(), False, 1)
    found = ClassifyWindows({"RGB-2": path}, follows(0.8), False, 1)(block)["RGB-2"]
    np.testing.assert_allclose(found, plain(block | cut)["RGB-2"], atol=1e-6)
    assert np.abs(found - plain(block)["RGB-2"]).max() > 1e-3


def test_features_are_known_by_their_crop_and_its_flow() -> None:
    side, rgb = Side((), "all"), EncoderOnDisk("RGB-2", Path("r"), "r", "rgb", "1" * 32)
    flow = EncoderOnDisk("Flow-2", Path("f"), "f", "flow", "2" * 32)
    plain = source_of(rgb, side, tiny_experiment())
    assert not {"motion_crop", "motion", "flow"} & set(plain.protocol), "as earlier versions knew them"
    assert list(source_of(flow, side, tiny_experiment()).protocol)[-2:] == ["style", "flow"]
    keys = [
        source_of(rgb, side, experiment).key
        for experiment in (
            tiny_experiment(),
            follows(),
            follows(0.6),
            follows(flow={"bound": 4}),
            follows(clip={"motion": "difference"}),
        )
    ]
    assert len(set(keys)) == 5


def test_retrieval_makes_them_and_says_so(judge: Any) -> None:
    found = judge(evaluate={"ks": [1, 5], "motion_crop": 0.5}).evaluation
    assert judge.streams == [("rgb", "flow")] and found.settings["motion_crop"] == 0.5
    plain = judge(evaluate={"ks": [1, 5]}).evaluation
    assert len(judge.made) == 2 and "motion_crop" not in plain.settings
    names = {name: [table.vectors for table in judge.stored(name)] for name in ("RGB-2", "Flow-2")}
    assert all(len(tables) == 4 for tables in names.values()), "both kinds are kept apart"


class Seen(torch.nn.Module):
    """An encoder that keeps what it is given."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def features(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return x.mean(dim=(2, 3, 4))


def test_the_recall_in_training_is_of_the_crops(videos: Manifest) -> None:
    rows = (*videos.select("train")[:2], *videos.select("query")[:1])
    plan = MonitorPlan(tuple(rows), 2, (0, 1, 0))
    clips: dict[Decoded, Tensor] = {"rgb": noise(3, 32, 32, 3), "flow": noise(3, 32, 32, 2)}
    streams: tuple[Stream, ...] = ("rgb", "flow")
    for stream in streams:
        encoder: Any = Seen()
        Monitor(plan, range(3), clips, follows(), torch.device("cpu"))(encoder, stream)
        want = stream_input(motion_crops(clips, 0.5), stream, 32, "physical")
        assert torch.equal(torch.cat(encoder.inputs), want)


def test_the_preview_shows_the_crop(videos: Manifest) -> None:
    from tiny import tiny_plan

    from vicc_ray.data.reader import make_reader

    seen = []
    for experiment in (tiny_experiment(), follows()):
        reader = make_reader(experiment)
        stage = tiny_plan(experiment, videos).stages[0]
        seen.append(_window(experiment, videos.select("train")[0], stage, reader))
        reader.close()
    whole, cut = (window.view["rgb"].picture for window in seen)
    assert whole is not None and cut is not None
    assert whole.shape == cut.shape and not np.array_equal(whole, cut)


def test_an_archive_decodes_flow_for_them(videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def encode(rows: Any, parts: Any, experiment: Any, clips: Any, *_: Any) -> Iterator[Any]:
        seen.append(clips)
        return iter(())

    monkeypatch.setattr(embedding, "modelled_windows", encode)
    rows, encoder = videos.select("query"), EncoderOnDisk("RGB-2", Path("r"), "r", "rgb", "1" * 32)
    for experiment in (tiny_experiment(), follows()):
        windows = list_windows(rows, experiment.clip, "centre")
        plan = EmbeddingPlan(rows, np.zeros(len(rows), bool), windows)
        assert not list(embedding._blocks(plan, [encoder], experiment, ResourcePlan(1, 1, False, 1, 1, 1 << 28), print))
    assert seen == [("rgb",), ("rgb", "flow")]
