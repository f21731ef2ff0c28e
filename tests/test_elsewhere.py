"""The package where decord, fcntl, Triton, the extras and Linux's own calls are absent, as on another system or processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_experiment, tiny_manifest

from vicc_ray.data import decode
from vicc_ray.data.manifest import Manifest, probe
from vicc_ray.data.samples import read_clips

HERE = Path(__file__).parent
ELSEWHERE = HERE / "elsewhere"


def _elsewhere(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python on such a machine; the processes that it starts are there, too."""
    paths = [str(ELSEWHERE), str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=580)


def test_what_is_absent_there_is_absent() -> None:
    for name in ("decord", "fcntl"):
        assert f"No module named '{name}'" in _elsewhere("-c", f"import {name}").stderr
    assert "has no attribute 'sched_getaffinity'" in _elsewhere("-c", "import os; os.sched_getaffinity(0)").stderr


def test_a_manifest_made_here_trains_elsewhere(tmp_path: Path) -> None:
    """Every module is imported; the same videos, indexed without decord, are the same manifest; training needs none of it."""
    manifest = tiny_manifest(tmp_path / "videos")
    assert {row.decoder for row in manifest.videos} == {"decord"}
    manifest.write(tmp_path / "m.parquet")
    table = tmp_path / "videos" / "videos.csv"
    done = _elsewhere(str(ELSEWHERE / "work.py"), str(tmp_path / "m.parquet"), str(table), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["imported"] > 200
    assert (facts["readers"], facts["videos"]) == (["pyav"], len(manifest))
    assert facts["fingerprint"] == manifest.fingerprint()
    assert facts["steps"] == 10
    assert facts["held"] is None, "nobody knows, where there are no locks"
    assert facts["cpus"] == os.cpu_count()
    for message, extra in zip(facts["needs"], ("mlflow", "wandb", "onnx", "faiss"), strict=True):
        assert f"pip install 'vicc-ray[{extra}]'" in message
        assert "\n" not in message
    experiment = tiny_experiment()
    clips = read_clips(manifest.videos[0], [0], ["rgb", "flow"], experiment.clip, experiment.flow)
    assert facts["clips"] == {name: [list(a.shape), int(a.astype(int).sum())] for name, a in clips.items()}


def test_another_decord_is_not_used(monkeypatch: pytest.MonkeyPatch, videos: Manifest) -> None:
    """decord2 comes under decord's name, and scales otherwise."""
    row = videos.videos[0]
    wanted = decode.read_frames(row.video, np.arange(4), (32, 32), "pyav")
    monkeypatch.setattr("decord.__version__", "3.4.0")
    decode.decord_here.cache_clear()
    try:
        assert decode.decord_here() is None
        assert probe(row.video).decoder == "pyav"
        assert np.array_equal(decode.read_frames(row.video, np.arange(4), (32, 32), "decord"), wanted)
    finally:
        decode.decord_here.cache_clear()
