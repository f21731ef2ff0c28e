"""Flow: known shifts are found, with the right sign; the uint8 form keeps what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large, raft_small
from videos import shifted_texture

from vicc_ray.data.flow.algorithms import (
    TVL1,
    Dis,
    Farneback,
    dequantise,
    fingerprint,
    flow_between,
    quantise,
)
from vicc_ray.data.pictures import RULES
from vicc_ray.errors import UserError
from vicc_ray.extensions import FLOW_ALGORITHMS

SHIFTS = [(1.0, 0.0), (0.0, 2.0), (-3.0, 1.0), (4.0, -4.0), (2.5, -1.5)]


OPENCV = {"dis": Dis, "farneback": Farneback, "tvl1": TVL1}


@pytest.mark.parametrize("algorithm", [*sorted(OPENCV), "tvl1_torch"])
@pytest.mark.parametrize(("u", "v"), SHIFTS)
def test_shifts_are_found(algorithm: str, u: float, v: float) -> None:
    flow = flow_between(shifted_texture(3, 64, 64, u, v), algorithm)
    assert flow.shape == (2, 64, 64, 2)
    assert flow.dtype == np.float32
    error = np.hypot(flow[..., 0] - u, flow[..., 1] - v)
    assert error.mean() < 0.3


@pytest.mark.parametrize("algorithm", ["dis", "dis_compensated", "farneback", "tvl1_torch"])
def test_fields_do_not_depend_on_what_came_before(algorithm: str) -> None:
    frames = shifted_texture(4, 48, 72, 1.5, -0.5, seed=4)
    together = flow_between(frames, algorithm)
    for i in range(3):
        assert np.array_equal(together[i], flow_between(frames[i : i + 2], algorithm)[0])


def test_compensated_flow_is_what_moves_beyond_the_camera() -> None:
    """A ground that the camera passes over by (3, 1) px a frame, and on it a thing that stays where it is in the picture."""
    frames = shifted_texture(4, 96, 96, 3, 1)
    frames[:, 40:60, 40:60] = frames[0, 40:60, 40:60]
    plain, compensated = flow_between(frames), flow_between(frames, "dis_compensated")
    expected = np.stack([field - np.array([np.median(field[..., 0]), np.median(field[..., 1])]) for field in plain])
    np.testing.assert_allclose(compensated, expected, atol=1e-6)
    assert compensated.dtype == np.float32
    ground, thing = compensated[:, 5:30, 5:30], compensated[:, 47:53, 47:53]
    assert np.abs(ground).mean() < 0.1
    np.testing.assert_allclose(thing.mean(axis=(0, 1, 2)), [-3, -1], atol=0.5)
    assert json.loads(fingerprint("dis_compensated"))["camera"] == "median"
    assert "camera" not in json.loads(fingerprint("dis"))


def test_dis_survives_frames_too_small_for_opencv() -> None:
    for height, width in [(1, 1), (4, 40), (8, 12), (9, 9), (10, 10), (15, 40)]:
        flow = flow_between(shifted_texture(3, height, width, 1, 0), "dis")
        assert flow.shape == (2, height, width, 2)
        assert np.isfinite(flow).all()


def test_one_frame_has_no_flow_and_other_arrays_are_refused() -> None:
    assert flow_between(np.zeros((1, 16, 20, 3), np.uint8)).shape == (0, 16, 20, 2)
    with pytest.raises(ValueError, match="frames must be uint8"):
        flow_between(np.zeros((2, 16, 20, 3), np.float32))
    with pytest.raises(
        UserError,
        match=r"'raff' is unknown .did you mean raft\?.; "
        "known: dis, dis_compensated, farneback, tvl1, tvl1_torch, motion_vectors, raft",
    ):
        flow_between(np.zeros((2, 16, 20, 3), np.uint8), "raff")


def test_quantised_values_are_the_published_formula() -> None:
    field = np.random.default_rng(0).uniform(-25, 25, (2, 5, 7, 2)).astype(np.float32)
    values = quantise(field)
    assert values.dtype == np.uint8
    for got, f in zip(values.ravel(), field.ravel(), strict=True):
        assert int(got) == round((min(max(float(f), -20.0), 20.0) + 20.0) * 255 / 40)
    assert np.abs(dequantise(values) - np.clip(field, -20, 20)).max() <= 20 / 255 + 1e-5
    assert np.array_equal(quantise(dequantise(np.arange(256, dtype=np.uint8))), np.arange(256))
    assert quantise(np.array([-4.0, 4.0], np.float32), bound=4.0).tolist() == [0, 255]
    assert dequantise(np.array([0, 255], np.uint8), bound=4.0).tolist() == [-4.0, 4.0]


def test_fingerprint_names_what_decides_the_numbers() -> None:
    for name in OPENCV:
        print_ = json.loads(fingerprint(name))
        assert print_["algorithm"] == name
        assert print_["opencv"] == cv2.__version__
        assert OPENCV[name].parameters.items() <= print_.items()
        assert fingerprint(name) == fingerprint(name, None, "weave") != fingerprint(name, None, "deinterlace")
        assert print_["pictures"] == RULES
    assert fingerprint("motion_vectors", None, "weave") == fingerprint("motion_vectors", None, "deinterlace")
    assert json.loads(fingerprint("motion_vectors")).keys() == {"algorithm", "libavcodec", "reach", "rules"}
    with pytest.raises(UserError, match="is unknown"):
        fingerprint("none")


def test_written_out_parameters_are_opencvs_presets() -> None:
    medium = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
    ours = OPENCV["dis"].parameters
    changed = {name: value for name, value in ours.items() if getattr(medium, f"get{name}")() != value}
    assert changed == {"PatchStride": 4, "VariationalRefinementIterations": 2}
    frames = shifted_texture(2, 24, 24, 1, 1)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    plain = cv2.optflow.DualTVL1OpticalFlow.create().calc(gray[0], gray[1], None)
    assert np.array_equal(flow_between(frames, "tvl1")[0], plain)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn weights: what they find is no motion of the frames, but it is the same wherever it is computed."""
    folder = tmp_path_factory.mktemp("raft")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        files = {"raft_small": folder / "a.pth", "raft_large": folder / "b.safetensors"}
        torch.save(raft_small(weights=None).state_dict(), files["raft_small"])
        save_file(raft_large(weights=None).state_dict(), files["raft_large"])
    return files


def _plain_raft(frames: np.ndarray, file: Path, inner: tuple[int, int], padded: tuple[int, int]) -> np.ndarray:
    """One pair at a time, with torchvision's model called as its documentation says."""
    torch.set_num_threads(1)
    model = raft_small(weights=None).eval()
    model.load_state_dict(torch.load(file, weights_only=True))
    height, width = frames.shape[1:3]
    fields = []
    for pair in pairwise(frames):
        images = []
        for frame in pair:
            image = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            image = torch.nn.functional.interpolate(image, inner, mode="bilinear", align_corners=False) * 2 - 1
            image = torch.nn.functional.pad(image, (0, padded[1] - inner[1], 0, padded[0] - inner[0]), mode="replicate")
            images.append(image)
        with torch.no_grad():
            field = model(*images)[-1][:, :, : inner[0], : inner[1]]
        field = torch.nn.functional.interpolate(field, (height, width), mode="bilinear", align_corners=False)[0]
        fields.append(torch.stack([field[0] * width / inner[1], field[1] * height / inner[0]], -1).numpy())
    return np.stack(fields)


@pytest.mark.parametrize(
    ("size", "inner", "padded"),
    [((128, 131), (128, 131), (128, 136)), ((64, 96), (128, 192), (128, 192)), ((50, 71), (128, 182), (128, 184))],
)
def test_raft_is_torchvisions_at_a_size_that_it_takes(
    size: tuple[int, int], inner: tuple[int, int], padded: tuple[int, int], weights: dict[str, Path]
) -> None:
    frames = shifted_texture(4, *size, 1, 0)
    flow = flow_between(frames, "raft", str(weights["raft_small"]))
    assert flow.shape == (3, *size, 2) and flow.dtype == np.float32
    plain = _plain_raft(frames, weights["raft_small"], inner, padded)
    assert np.abs(plain).max() > 0.1
    assert np.abs(flow - plain).max() < 1e-2 * np.abs(plain).max()


def test_raft_cuts_long_clips_and_takes_short_ones(weights: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    frames = shifted_texture(6, 128, 128, 1, 0)
    whole = flow_between(frames, "raft", str(weights["raft_small"]))
    monkeypatch.setattr("vicc_ray.data.flow.raft.PAIRS", 2)
    assert np.allclose(flow_between(frames, "raft", str(weights["raft_small"])), whole, atol=1e-2 * np.abs(whole).max())
    assert flow_between(frames[:1], "raft", str(weights["raft_small"])).shape == (0, 128, 128, 2)


def test_weights_tell_the_network_and_are_in_the_fingerprint(weights: dict[str, Path], tmp_path: Path) -> None:
    prints = {name: json.loads(fingerprint("raft", str(file))) for name, file in weights.items()}
    assert {name: print_["network"] for name, print_ in prints.items()} == {name: name for name in weights}
    assert prints["raft_small"]["weights"] != prints["raft_large"]["weights"]
    copy = tmp_path / "copy.pth"
    copy.write_bytes(weights["raft_small"].read_bytes())
    assert json.loads(fingerprint("raft", str(copy))) == prints["raft_small"]


def test_weights_that_are_not_rafts_are_refused(tmp_path: Path) -> None:
    frames = np.zeros((2, 128, 128, 3), np.uint8)
    files = {"pickle": tmp_path / "a.pth", "foreign": tmp_path / "b.pth", "safe": tmp_path / "c.safetensors"}
    torch.save({"x": object}, files["pickle"])
    torch.save({"layer.weight": torch.zeros(3)}, files["foreign"])
    files["safe"].write_bytes(b"none")
    for file, match in [
        (None, "flow.weights: is not set; algorithm raft needs a file"),
        (str(tmp_path / "none.pth"), "none.pth: no such file"),
        (str(files["pickle"]), "a.pth: cannot be read as a file of tensors"),
        (str(files["safe"]), "c.safetensors: cannot be read"),
        (str(files["foreign"]), "b.pth: holds 1 tensors that are neither torchvision's raft_small nor raft_large"),
    ]:
        for ask in (lambda f=file: flow_between(frames, "raft", f), lambda f=file: fingerprint("raft", f)):
            with pytest.raises(UserError, match=match):
                ask()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            flow_between(frames, "raft", str(files["foreign"]), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_raft_on_the_gpu_is_raft_on_the_cpu(weights: dict[str, Path]) -> None:
    frames = shifted_texture(4, 128, 171, 1, 0)
    for file in weights.values():
        flow = flow_between(frames, "raft", str(file))
        assert np.abs(flow_between(frames, "raft", str(file), "cuda") - flow).max() < 0.05 * np.abs(flow).max()


def test_motion_vectors_come_from_files_and_torch_only_where_it_is_asked_for() -> None:
    assert set(OPENCV) < set(FLOW_ALGORITHMS.built_in)
    with pytest.raises(ValueError, match="read from the video file"):
        flow_between(np.zeros((2, 16, 20, 3), np.uint8), "motion_vectors")
    code = "import sys, vicc_ray.data.flow.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
