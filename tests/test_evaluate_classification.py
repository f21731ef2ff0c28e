"""Classifiers on windows: probabilities averaged over crops and windows; one test on Ray with real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_experiment, tiny_manifest

from vicc_ray.cluster.resources import ResourcePlan
from vicc_ray.config import Experiment, Stream
from vicc_ray.data.augment import difference, evaluation_input, lucas_kanade_picture
from vicc_ray.data.manifest import VideoRow
from vicc_ray.errors import UserError
from vicc_ray.evaluation.crops import crop_views
from vicc_ray.evaluation.means import mean_over_windows
from vicc_ray.evaluation.model_actors import ClassifyWindows
from vicc_ray.evaluation.predictions import classify_videos
from vicc_ray.metrics.accuracy import accuracy
from vicc_ray.models.classifier import ClassifierProtocol, build_classifier
from vicc_ray.models.classifier_file import ClassifierFile, load_classifier, save_classifier
from vicc_ray.models.encoder import EncoderSpec, build_encoder

CLASSES = ("jump", "run", "sit")
SPEC = EncoderSpec("r2plus1d_10", width=0.0625, embedding_dim=16)


def _saved(
    path: Path,
    stream: Stream,
    protocol: ClassifierProtocol = "linear",
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
) -> Path:
    """A classifier whose scores differ between crops by about 1 and have no favourite."""
    encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=16, seed=seed)
    classifier = build_classifier(encoder, protocol, len(classes), seed).eval()
    windows = torch.from_numpy(_windows(2, 3 if stream == "rgb" else 2))
    with torch.no_grad():
        logits = torch.cat([classifier(view) for view in crop_views(windows, 32, "ten")])
        classifier.head.linear.weight /= logits.std(dim=0)[:, None]
        classifier.head.linear.bias -= logits.mean(dim=0) / logits.std(dim=0)  # type: ignore[misc]
    save_classifier(path, ClassifierFile(SPEC, stream, protocol, classes, classifier.state_dict()))
    return path


def _windows(windows: int, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    coarse = torch.randint(0, 256, (windows, channels, 4, 3, 5), generator=torch.Generator().manual_seed(channels))
    smooth = torch.nn.functional.interpolate(coarse.float(), (8, 30, 40), mode="trilinear")
    return smooth.permute(0, 2, 3, 4, 1).to(torch.uint8).numpy()


def _block(windows: int) -> dict[str, Any]:
    return {
        "video": np.arange(windows),
        "refused": np.array([""] * windows, object),
        "rgb": _windows(windows, 3),
        "flow": _windows(windows, 2),
    }


def _seen(windows: np.ndarray[Any, Any], experiment: Experiment) -> Iterator[torch.Tensor]:
    """The ten crops, each made by mirroring and cutting the frames themselves."""
    height, width = windows.shape[2:4]
    side = round(min(height, width) * 224 / 240)
    places = [((height - side) // 2, (width - side) // 2)]
    places += [(top, left) for top in (0, height - side) for left in (0, width - side)]
    for top, left in places:
        crop = windows[:, :, top : top + side, left : left + side]
        mirrored = crop[:, :, :, ::-1].copy()
        if crop.shape[-1] == 2:
            mirrored[..., 0] = 255 - mirrored[..., 0]
        for frames in (crop.copy(), mirrored):
            yield evaluation_input(torch.from_numpy(frames), experiment.clip.size)


@pytest.mark.parametrize("channels_last", [False, True])
def test_probabilities_are_the_softmax_averaged_over_ten_crops(tmp_path: Path, channels_last: bool) -> None:
    experiment = tiny_experiment(train={"channels_last": channels_last})
    files = {
        "RGB-2": _saved(tmp_path / "rgb", "rgb"),
        "RGB-1": _saved(tmp_path / "old", "rgb", "finetune", seed=1),
        "Flow-2": _saved(tmp_path / "flow", "flow", "finetune", seed=2),
    }
    block = _block(2)
    found = ClassifyWindows({name: str(path) for name, path in files.items()}, experiment, False, 1)(block)
    assert set(found) == {"video", "refused", *files}
    for name, stream in (("RGB-2", "rgb"), ("RGB-1", "rgb"), ("Flow-2", "flow")):
        classifier = load_classifier(files[name]).build()
        with torch.no_grad():
            crops = [torch.softmax(classifier(x), dim=1) for x in _seen(block[stream], experiment)]
        twin = torch.stack(crops).mean(dim=0).numpy()
        assert found[name].dtype == np.float32 and found[name].shape == (2, 3)
        np.testing.assert_allclose(found[name], twin, atol=5e-3)
        # Neither one crop alone nor the softmax of the mean would do.
        assert np.abs(crops[0].numpy() - twin).max() > 2e-2


@pytest.mark.parametrize(("stream", "made"), [("difference", difference), ("lucas_kanade", lucas_kanade_picture)])
def test_streams_that_are_made_of_rgb_are_made_of_each_crop(
    stream: Stream, made: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    file, experiment, block = _saved(tmp_path / "saved", "rgb"), tiny_experiment(), _block(2)
    classifier = load_classifier(file)
    path = tmp_path / "made"
    save_classifier(path, replace(classifier, stream=stream))
    found = ClassifyWindows({"Made-2": str(path)}, experiment, False, 1)(block)["Made-2"]
    with torch.no_grad():
        crops = [torch.softmax(classifier.build()(made(x)), dim=1) for x in _seen(block["rgb"], experiment)]
    np.testing.assert_allclose(found, torch.stack(crops).mean(dim=0).numpy(), atol=5e-3)
    plain = ClassifyWindows({"RGB-2": str(file)}, experiment, False, 1)(block)["RGB-2"]
    assert np.abs(found - plain).max() > 2e-2


def test_crops_and_streams_are_as_asked(tmp_path: Path) -> None:
    path = _saved(tmp_path / "rgb", "rgb")
    block = {name: column for name, column in _block(2).items() if name != "flow"}
    by_crops = {}
    for crops in ("ten", "five", "centre"):
        experiment = tiny_experiment(evaluate={"crops": crops})
        by_crops[crops] = ClassifyWindows({"RGB-2": str(path)}, experiment, False, 1)(block)["RGB-2"]
        np.testing.assert_allclose(by_crops[crops].sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(by_crops["ten"], by_crops["five"], atol=1e-3)
    assert not np.allclose(by_crops["five"], by_crops["centre"], atol=1e-3)


def _rows(count: int) -> list[VideoRow]:
    return [VideoRow(f"{number}.mp4", "run") for number in range(count)]


def test_windows_are_averaged_and_unreadable_videos_left_out() -> None:
    blocks = [
        {
            "video": np.array([0, 0, 1]),
            "refused": np.array(["", "", "cut short"], object),
            "RGB-2": np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32),
        },
        {"video": np.array([2]), "refused": np.array([""], object), "RGB-2": np.array([[0.25, 0.75]], np.float32)},
    ]
    rows = _rows(3)
    found = mean_over_windows(blocks, rows, ["RGB-2"], ("a", "b"))
    assert found.videos == (rows[0], rows[2]) and found.refused == (("1.mp4", "cut short"),)
    np.testing.assert_array_equal(found.probabilities["RGB-2"], np.array([[0.75, 0.25], [0.25, 0.75]], np.float32))


def test_nothing_readable_and_nan_are_refused_in_one_line() -> None:
    block = {
        "video": np.array([0, 1]),
        "refused": np.array(["", ""], object),
        "RGB-2": np.array([[0.5, 0.5], [0.5, np.nan]], np.float32),
    }
    with pytest.raises(UserError, match=r"RGB-2 gives NaN.*1 of 2 videos \(first: 1\.mp4\)"):
        mean_over_windows([block], _rows(2), ["RGB-2"], ("a", "b"))
    block["refused"] = np.array(["gone", "cut short"], object)
    with pytest.raises(UserError, match=r"none of 2 videos could be read \(first: 0\.mp4: gone\)"):
        mean_over_windows([block], _rows(2), ["RGB-2"], ("a", "b"))


def test_files_that_do_not_go_together_are_refused_before_ray_is_asked(tmp_path: Path) -> None:
    rgb, flow = _saved(tmp_path / "rgb", "rgb"), _saved(tmp_path / "flow", "flow")
    turned = _saved(tmp_path / "turned", "flow", classes=CLASSES[::-1])
    experiment, plan = tiny_experiment(), ResourcePlan(1, 1, False, 1, 1, 1 << 28)
    cases = [
        ({"RGB-2": rgb, "Flow-2": turned}, _rows(1), "not the same or not in one order"),
        ({"RGB-2": flow}, _rows(1), r"RGB-2 is the name of a rgb classifier.*holds one of the flow stream"),
        ({"RGB-2": rgb, "Flow-2": flow}, [], "no videos to classify"),
        ({"RGB-2": tmp_path / "absent"}, _rows(1), "absent"),
    ]
    for files, rows, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            classify_videos(files, rows, experiment, plan)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.cluster
def test_videos_are_classified_on_ray(tmp_path: Path) -> None:
    """Both streams of real files, a broken one among them, against the same windows classified one by one."""
    from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows
    from vicc_ray.cluster.session import ray_session

    manifest = tiny_manifest(tmp_path / "videos")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    videos = [*manifest.select("query")]
    videos.insert(
        3, VideoRow(str(broken), "run", "query", frames=12, fps=25, width=32, height=32, duration_seconds=0.5)
    )
    classes = tuple(manifest.labels)
    experiment = tiny_experiment(evaluate={"crops": "five"})
    files = {
        "RGB-2": _saved(tmp_path / "rgb", "rgb", classes=classes),
        "Flow-2": _saved(tmp_path / "flow", "flow", classes=classes),
    }
    done: list[int] = []
    with ray_session(experiment.train) as plan:
        found = classify_videos(files, videos, experiment, plan, done.append)  # type: ignore[arg-type]
    windows = list_windows(videos, experiment.clip, "all")
    assert sum(done) == len(windows) > len(videos)
    assert [row.video for row in found.videos] == [row.video for row in videos if row.video != str(broken)]
    assert [video for video, _ in found.refused] == [str(broken)]
    decode = DecodeWindows(videos, windows, len(windows), experiment)
    classify = ClassifyWindows({name: str(path) for name, path in files.items()}, experiment, False, 1)
    rows = classify(decode({"unit": [0]}))
    for name in files:
        for place, row in enumerate(found.videos):
            mine = rows[name][rows["video"] == videos.index(row)]
            np.testing.assert_allclose(found.probabilities[name][place], mine.mean(axis=0), atol=1e-5)
        figures = accuracy(found.probabilities[name], [row.label for row in found.videos], found.classes).figures
        assert set(figures) == {"top-1", "top-5", "mean class"}
