"""A package outside of vicc_ray adds one extension of each kind: found by name, used through the command line on a real Ray."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vicc_ray.data.synthetic import make_dataset

PACKAGE = Path(__file__).parent / "outside"
EXPERIMENT = {
    "name": "extras",
    "clip": {"frames": 8, "decode_size": [32, 32], "size": 32},
    "flow": {"algorithm": "block_matching", "options": {"block": 8}, "bound": 8},
    "model": {"backbone": "small_3d", "width": 0.5, "embedding_dim": 16},
    "objective": {"name": "info_nce", "options": {"temperature": 0.2}},
    "schedule": {
        "cycles": 1,
        "single": {"length": "6 steps", "global_batch": 8, "cosine_over": None, "queue_start": 0, "freeze_prototypes": 0},
        "cross": {"length": "4 steps", "global_batch": 8, "queue_start": 0},
    },
    "optim": {"name": "adamw", "lr": 0.003, "end_lr": 0.0003},
    "train": {
        "workers": 2, "log_every": 2, "checkpoint_every": "3 steps", "sinks": {"tensorboard": {}, "csv": {"file": "out.csv"}},
    },
    "evaluate": {"monitor_every": "3 steps", "monitor_videos": 16, "options": {"clusters": 8}},
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the package is installed, beside the one that the tests run in."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "outside"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def vicc(environment: dict[str, str], folder: Path, *words: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "vicc_ray.cli", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if "--json" in words else done.stdout + done.stderr


def test_entry_points_are_known_by_name_and_others_are_not(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "extras.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    plan = vicc(installed, tmp_path, "train", "extras.yaml", "--plan", "--videos", "32")
    assert "RGB-2" in plan and "prototypes" not in plan  # the columns are the objective's own
    without = vicc(dict(os.environ), tmp_path, "train", "extras.yaml", "--plan", "--videos", "32", status=2)
    assert "flow algorithm 'block_matching' is unknown" in without and "Traceback" not in without
    told = vicc(installed, tmp_path, "train", "extras.yaml", "--plan", "--set", "objective.name=info_ncs", status=2)
    assert "did you mean info_nce?" in told


@pytest.mark.cluster
def test_one_of_each_kind_trains_evaluates_and_reports(installed: dict[str, str], tmp_path: Path) -> None:
    table = make_dataset(tmp_path / "made", train_per_class=2, query_per_class=1, frames=12, size=32, seed=5, workers=1)
    (tmp_path / "videos").mkdir()
    with table.open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            name = f"{row['split']}-{row['label'].replace('-', '_')}-{number:02}.mp4"
            shutil.copy(table.parent / row["video"], tmp_path / "videos" / name)
    vicc(installed, tmp_path, "index", "videos", "--layout", "named", "--out", "videos.parquet")
    (tmp_path / "extras.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    store = ("flow", "videos.parquet", "--store", "store", "--for", "extras.yaml")
    assert "24 videos" in vicc(installed, tmp_path, *store)
    settings = ("--set", "data.manifest=videos.parquet", "--set", "flow.source=store", "--set", "flow.store=store")
    shown = vicc(installed, tmp_path, "train", "extras.yaml", *settings)
    assert "finished; encoders in" in shown
    run = tmp_path / "runs" / "extras"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    learnt = [record for record in records if record["kind"] == "train"]
    assert learnt and all({"loss", "matched"} <= record.keys() and "ln_k" not in record for record in learnt)
    with (run / "out.csv").open() as file:
        figures = list(csv.reader(file))
    assert {name for _, name, _ in figures} >= {"RGB-1/loss", "Flow-2/matched", "RGB-2/R@1"}
    assert sum(name.endswith("/loss") for _, name, _ in figures) == len(learnt)

    judged = vicc(installed, tmp_path, "evaluate", str(run), "--protocol", "purity")
    assert "purity of clusters on named" in judged and "RGB-2" in judged
    again = json.loads(
        vicc(installed, tmp_path, "evaluate", str(run), "--protocol", "vicc_extras.protocol:Purity", "--json")
    )
    rows = {row["name"]: row["purity"] for row in again["evaluations"][0]["rows"]}
    assert set(rows) == {"random", "RGB-1", "Flow-1", "RGB-2", "Flow-2"} and all(
        0 < value <= 1 for value in rows.values()
    )
    vicc(installed, tmp_path, "report", str(run))
    page = (run / "report.html").read_text()
    assert "Purity of clusters" in page and "matched" in page and "ln K" not in page


def test_the_page_shows_the_package_as_it_is() -> None:
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    files = [PACKAGE / "pyproject.toml", *sorted((PACKAGE / "vicc_extras").glob("[a-z]*.py"))]
    assert len(files) == 7
    for file in files:
        assert f"\n{file.read_text().strip()}\n```" in page, f"docs/extending.md shows another {file.name}"
