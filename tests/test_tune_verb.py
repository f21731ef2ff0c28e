"""`vicc tune` as a user meets it, without a cluster: what is refused, in one line and before anything is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_tune_sweep import experiment, opened
from tiny import TINY

from vicc_ray.commands import tune as tuning
from vicc_ray.commands.tune import check, load_sweep, request_stop, run_sweep
from vicc_ray.config import dump_experiment, load_experiment, make_experiment
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.tune.space import search_of

SPACE = {"objective.temperature": {"log": [0.03, 0.3]}}


def written(folder: Path, videos: Manifest, **search: Any) -> Path:
    manifest = folder / "videos.parquet"
    videos.write(manifest)
    tree = {**TINY, "runs": str(folder / "runs"), "data": {"manifest": str(manifest)}}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree | {"search": {"space": SPACE, **search}}))
    return file


def test_a_dry_run_lists_the_plan_and_the_first_trials_and_writes_nothing(tmp_path: Path, videos: Manifest) -> None:
    file = written(tmp_path, videos, budget="3 trials", share="single")
    command = [str(Path(sys.executable).parent / "vicc"), "tune", str(file), "--dry-run", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["trial"] for row in told["trials"]] == [0, 1, 2]
    assert all(0.03 <= row["settings"]["objective.temperature"] <= 0.3 for row in told["trials"])
    assert "at a time x (1 worker on" in told["plan"]
    assert not (tmp_path / "runs").exists()


def test_a_plain_experiment_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(TINY))
    command = [str(Path(sys.executable).parent / "vicc"), "tune", str(tmp_path / "plain.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("vicc: search: is not set; a sweep is an experiment with a search section")
    assert done.stderr.count("\n") == 1


def test_there_must_be_a_sweep_to_resume_or_to_stop(tmp_path: Path, videos: Manifest) -> None:
    file = written(tmp_path, videos)
    videos_folder = tmp_path / "videos"
    videos_folder.mkdir()
    with pytest.raises(UserError, match=r"--resume: .* holds no sweep"):
        load_sweep(str(file), [], resume=True)
    with pytest.raises(UserError, match="is not a sweep folder"):
        load_sweep(str(videos_folder), [])
    with pytest.raises(UserError, match="is not a sweep folder"):
        request_stop(load_experiment(file))


def test_a_sweep_folder_stands_for_its_file(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    sweep = opened(asked)
    sweep.folder.open(asked, "videos")
    assert load_sweep(str(sweep.folder), [], resume=True) == asked
    assert search_of(load_sweep(str(sweep.folder), ["search.budget=9 trials"])).budget.value == 9
    request_stop(asked)
    assert sweep.next()
    sweep.tick()
    assert sweep.closing
    assert sweep.next() is None


def test_videos_without_labels_measure_nothing(tmp_path: Path, videos: Manifest) -> None:
    file = written(tmp_path, videos)
    asked = load_experiment(file, ["data.query_split=nowhere"])
    with pytest.raises(UserError, match="no labelled videos are in the splits 'train' and 'nowhere'"):
        check(asked)
    with pytest.raises(UserError, match=r"data.manifest: is not set"):
        check(make_experiment(TINY | {"search": {"space": SPACE}}, "test"))


def test_paths_mean_the_same_in_every_process(
    tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, videos)
    monkeypatch.chdir(tmp_path)
    asked = check(load_experiment("sweep.yaml", ["data.manifest=videos.parquet", "runs=runs"])).experiment
    assert asked.data.manifest == str(tmp_path / "videos.parquet")
    assert asked.runs == str(tmp_path / "runs")


def test_a_flow_that_is_not_in_the_store_is_told_before_the_first_trial(tmp_path: Path, videos: Manifest) -> None:
    file = written(tmp_path, videos)
    asked = load_experiment(file, ["flow.source=store", f"flow.store={tmp_path / 'nothing'}"])
    with pytest.raises(UserError, match="nothing"):
        check(asked)


def test_how_a_sweep_ends(tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray: what `_run` leaves decides what is said, and the results are written whichever it is."""
    asked = load_experiment(written(tmp_path, videos, budget="0.001 hours"))
    folder = tmp_path / "runs" / "tiny"

    monkeypatch.setattr(tuning, "_run", lambda *arguments: None)
    with pytest.raises(UserError, match=r"0.001 hours were spent before any trial came to its end"):
        run_sweep(asked)
    assert (folder / "report.html").is_file()

    def stop(asked: Any, sweep: Any, *arguments: Any) -> None:
        sweep.close("stopping")

    monkeypatch.setattr(tuning, "_run", stop)
    with pytest.raises(Interrupted, match="stopped after 0 finished trials; the same command goes on"):
        run_sweep(asked)

    def fail(asked: Any, sweep: Any, *arguments: Any) -> None:
        sweep.error = UserError("trial 3: the disk is full")

    monkeypatch.setattr(tuning, "_run", fail)
    with pytest.raises(UserError, match="trial 3: the disk is full"):
        run_sweep(asked)


def test_the_shipped_sweep_is_one(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    asked = load_experiment(root / "experiments" / "sweep_quickstart.yaml")
    search = search_of(asked)
    assert search.budget.value == 12
    assert load_experiment(_dumped(tmp_path, dump_experiment(asked))) == asked


def _dumped(folder: Path, text: str) -> Path:
    (folder / "dumped.yaml").write_text(text)
    return folder / "dumped.yaml"
