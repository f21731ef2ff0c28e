"""README's commands run as they stand, in their order, on small data; only the lengths of training are made short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from videos import write_video

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Makes it short and nothing else; the command before it is the README's to the letter.
SHORT = (
    " --set 'schedule.single.length=2 steps' --set 'schedule.cross.length=2 steps'"
    " --set schedule.single.global_batch=8 --set schedule.cross.global_batch=8 --set train.workers=1"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """`vicc` and `python` of these tests first on the path, and this checkout first among the packages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    packages = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
        "PATH": path,
        "PYTHONPATH": packages,
    }


def run(line: str, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euc", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout


def recordings(folder: Path) -> None:
    """party.mp4 and three others, 30 s each at 5 pictures a second: three parts of 10 s."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for name in ("party", "garden", "street", "lake"):
        ground = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
        step = int(rng.integers(1, 5))
        frames = np.stack([np.roll(ground, step * number, axis=1) for number in range(150)])
        write_video(folder / f"{name}.mp4", frames, fps=5)


def test_the_make_commands_are_targets() -> None:
    (lines,) = (block for block in blocks("sh") if "make quickstart" in block)
    named = re.findall(r"^(make \w[\w-]*)", lines, re.MULTILINE)
    assert named == ["make quickstart", "make test"]
    for line in named:
        done = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and ("vicc quickstart" in done.stdout or "pytest" in done.stdout), done.stderr


@pytest.mark.cluster
def test_the_commands_for_ones_own_videos_run(tmp_path: Path, environment: dict[str, str]) -> None:
    recordings(tmp_path / "recordings")
    (block,) = (block for block in blocks("sh") if "vicc index" in block)
    lines = [re.sub(r"\s+#\s.*", "", line) for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["index", "train", "embed", "search"]
    shown = [run(line + (SHORT if line.startswith("vicc train") else ""), tmp_path, environment) for line in lines]
    assert "12 videos and parts of videos (12 of 4 files) used" in shown[0]
    assert (tmp_path / "runs/mine/encoders/RGB-2.safetensors").is_file()
    assert (tmp_path / "search.html").is_file()
    others = {"lake", "street", "garden"}
    assert others & set(re.findall(r"/(\w+)\.mp4 +│ \d:\d\d - \d:\d\d", shown[3])), shown[3]
    (python,) = blocks("python")
    found = run(f"python - <<'PYTHON'\n{python}\nprint('d', vector.shape)\nPYTHON", tmp_path, environment)
    assert re.search(r"^-?\d\.\d+ .*\.mp4@", found, re.MULTILINE) and "d (128,)" in found
    assert "finished" in run("vicc status runs/mine", tmp_path, environment)


@pytest.mark.cluster
def test_the_quickstart_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    """With few videos and few steps: every part of it, and the table that the README shows."""
    shown = run("vicc quickstart --train-per-class 2 --query-per-class 1" + SHORT, tmp_path, environment)
    for encoder in ("random", "RGB-1", "Flow-1", "RGB-2", "Flow-2", "R+F"):
        assert re.search(rf"^│ {re.escape(encoder)} +│", shown, re.MULTILINE), shown
    assert (tmp_path / "runs/quickstart/report.html").is_file()
