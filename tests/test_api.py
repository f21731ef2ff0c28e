"""The library's face: what its functions return, from files of every kind, in a process without Ray."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_experiment

import vicc_ray
from vicc_ray import api
from vicc_ray.cluster.decode_actors import list_windows
from vicc_ray.data.augment import evaluation_input
from vicc_ray.data.manifest import Manifest, VideoRow
from vicc_ray.data.samples import read_clips
from vicc_ray.errors import UserError
from vicc_ray.evaluation.encoder import write_frames
from vicc_ray.interop import export
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, videos: Manifest) -> Path:
    """A run's folder with an encoder of each stream, untrained."""
    experiment = tiny_experiment(runs=str(tmp_path_factory.mktemp("runs")))
    folder = RunFolder.at(experiment.run_folder)
    folder.open(experiment, videos.fingerprint())
    videos.write(folder.manifest)
    for seed, (name, stream) in enumerate(
        (
            ("RGB-1", "rgb"),
            ("RGB-2", "rgb"),
            ("Flow-2", "flow"),
            ("Difference-2", "difference"),
            ("LK-2", "lucas_kanade"),
        )
    ):
        encoder = build_encoder("r2plus1d_10", width=0.0625, embedding_dim=8, seed=seed)
        meta = {"name": name, "experiment": experiment.model_dump(mode="json")}
        file = EncoderFile(encoder.spec, stream, encoder.state_dict(), meta=meta)  # type: ignore[arg-type]
        save_encoder(folder.encoder(name), file)
    return folder.path


def by_hand(run: Path, name: str, row: VideoRow, embedding: bool = False) -> Any:
    """The mean over the windows of a video, read in this process."""
    loaded = vicc_ray.load(run).encoder(name)
    clip, module = loaded.experiment.clip, loaded.module
    starts = [start for _, start in list_windows([row], clip, "all")]
    clips = read_clips(row, starts, ("flow" if name.startswith("Flow") else "rgb",), clip, loaded.experiment.flow)
    x = evaluation_input(torch.from_numpy(next(iter(clips.values()))), clip.size)
    with torch.inference_mode():
        vectors = (module(x) if embedding else module.features(x)).double().mean(dim=0).numpy()  # type: ignore[operator]
    return vectors / np.linalg.norm(vectors) if embedding else vectors


def test_a_run_gives_its_encoders_by_name(run: Path, videos: Manifest) -> None:
    loaded = vicc_ray.load(run)
    assert loaded.encoders == ("RGB-1", "RGB-2", "Difference-2", "Flow-2", "LK-2") and loaded.evaluations() == []
    assert loaded.encoder().name == "RGB-2" and "r2plus1d_10 of rgb" in repr(loaded.encoder())
    with pytest.raises(UserError, match="has no encoder RGB-3; it has: RGB-1, RGB-2"):
        loaded.encoder("RGB-3")
    row = videos.videos[0]
    for name in ("RGB-2", "Flow-2"):
        found = loaded.encoder(name).embed(row.video)
        assert found.dtype == np.float32 and found.shape == (loaded.encoder(name).module.feature_dim,)
        np.testing.assert_allclose(found, by_hand(run, name, row), rtol=1e-4, atol=1e-6)
    unit = loaded.encoder("RGB-1").embed(row.video, output="embedding")
    np.testing.assert_allclose(unit, by_hand(run, "RGB-1", row, embedding=True), rtol=1e-4, atol=1e-6)
    for made_of_rgb in ("Difference-2", "LK-2"):
        assert loaded.encoder(made_of_rgb).embed(row.video, windows="centre").shape == found.shape


def test_lists_folders_and_frames(run: Path, videos: Manifest, tmp_path: Path) -> None:
    encoder = vicc_ray.load(run).encoder()
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    names = [videos.videos[number].video for number in (3, 0)]
    table = encoder.embed([*names, frames])
    assert table.shape[0] == 3 and np.allclose(table[1], encoder.embed(names[1]), rtol=1e-5)
    written = Path(write_frames(frames, tmp_path / "b.mkv"))
    np.testing.assert_allclose(
        table[2], encoder.embed(written), rtol=1e-4
    )  # frames and a lossless file of them are one
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"a\.mp4: "):
        encoder.embed(tmp_path)
    with pytest.warns(UserWarning, match=r"left out: .*a\.mp4"):
        found = encoder.embed(tmp_path, on_error="skip")
    assert list(found) == [str(written)] and np.array_equal(found[str(written)], encoder.embed(str(written)))
    with pytest.warns(UserWarning, match="left out"):
        rows = encoder.embed([tmp_path / "a.mp4", written], on_error="skip")
    assert np.isnan(rows[0]).all() and np.isfinite(rows[1]).all()
    assert encoder.embed([]).shape == (0, table.shape[1])
    with pytest.raises(UserError, match=r"frames float64 \[2, 3\]: a video is uint8"):
        encoder.embed(np.zeros((2, 3)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such file"):
        encoder.embed(tmp_path / "absent.mp4")


def test_files_of_encoders(run: Path, videos: Manifest, tmp_path: Path) -> None:
    expected = vicc_ray.load(run).encoder("RGB-2").embed(videos.videos[0].video)
    one = vicc_ray.load(run / "encoders" / "RGB-2.safetensors")
    assert one.encoders == ("RGB-2",) and one.folder is None
    np.testing.assert_array_equal(one.encoder().embed(videos.videos[0].video), expected)
    with pytest.raises(UserError, match="has no run folder to evaluate in"):
        vicc_ray.evaluate(one)
    file = vicc_ray.load(run).encoder("RGB-1").file
    file = replace(file, prototypes=[torch.nn.functional.normalize(torch.randn(5, 8), dim=1)])
    export(file, "published", tmp_path / "p.pth.tar", (8, 32, 32), None)
    with pytest.raises(UserError, match="give stream='rgb' or stream='flow'"):
        vicc_ray.load(tmp_path / "p.pth.tar")
    assert vicc_ray.load(tmp_path / "p.pth.tar", stream="rgb").encoders == ("RGB-1",)
    with pytest.raises(UserError, match="is not a run folder"):
        vicc_ray.load(tmp_path)


def test_train_evaluate_and_index_take_what_they_say(
    run: Path, videos: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def trained(experiment: Any, address: Any, verbose: Any) -> str:
        seen["train"] = experiment
        return str(run)

    def evaluated(runs: Any, protocol: str, data: Any, *rest: Any) -> list[Any]:
        seen["evaluate"] = (runs, protocol, data, *rest)
        return []

    monkeypatch.setattr("vicc_ray.cluster.launch.run_training", trained)
    monkeypatch.setattr("vicc_ray.commands.evaluate.evaluate_runs", evaluated)
    again = vicc_ray.train("s3d_rgb_retrieval_ucf101", settings={"data.manifest": "x.parquet", "train": {"workers": 3}})
    assert again.encoders[0] == "RGB-1"
    assert (seen["train"].data.manifest, seen["train"].train.workers.max, seen["train"].model.backbone) == (
        "x.parquet",
        3,
        "s3d",
    )
    vicc_ray.train({"model": {"backbone": "s3dg"}})
    assert seen["train"].model.backbone == "s3dg"
    with pytest.raises(UserError, match=r"nosuch: is no file and no shipped experiment; shipped: .*quickstart"):
        vicc_ray.train("nosuch")
    vicc_ray.evaluate(again, "probe", data="y.parquet", settings={"evaluate.ks": [1, 5], "name": "a b"}, test_on="val")
    assert seen["evaluate"] == (
        [str(run)],
        "probe",
        ["y.parquet"],
        None,
        "val",
        ["evaluate.ks=[1, 5]", "name=a b"],
        None,
        False,
    )
    folder = Path(videos.videos[0].video).parent
    made = vicc_ray.index(folder, tmp_path / "m.parquet", layout="flat", workers=1)
    assert len(made.videos) == len(Manifest.read(tmp_path / "m.parquet").videos) > 0
    with pytest.raises(UserError, match="unexpected keyword argument"):
        vicc_ray.index(folder, tmp_path / "m.parquet", layouts="flat")


def test_names_are_there_and_nothing_heavy_is_loaded_before_it_is_used() -> None:
    assert set(vicc_ray.__all__) <= set(dir(vicc_ray)) and vicc_ray.__version__
    assert vicc_ray.Encoder is api.Encoder and callable(vicc_ray.train) and callable(vicc_ray.evaluate)
    code = (
        "import sys, vicc_ray, vicc_ray.training.loop, vicc_ray.evaluation.results\n"
        "assert callable(vicc_ray.train) and callable(vicc_ray.evaluate)\n"
        "assert 'ray' not in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    light = "import sys, vicc_ray; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
