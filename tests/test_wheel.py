"""What `pip install vicc-ray` brings: the package with its experiments and page templates, and nothing of the checkout besides."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from this checkout by the build backend that is installed here; nothing is fetched."""
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(out)], cwd=ROOT, capture_output=True, text=True, check=True)
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed package."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_every_file_of_the_package_is_inside_and_nothing_else(wheel: Path) -> None:
    kept = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "vicc_ray").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    shipped = {f"vicc_ray/experiments/{file.name}" for file in (ROOT / "experiments").glob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == kept | shipped
    assert sum(name.endswith(".html.j2") for name in inside) >= 5
    assert len(shipped) >= 24
    assert not any(part in {"tests", "benchmarks", "findings"} for name in names for part in Path(name).parts)


def test_its_description_names_the_extras_and_no_pinned_ray(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(name).decode())
        entry = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert {"faiss", "mlflow", "onnx", "wandb"} <= set(facts.get_all("Provides-Extra", []))
    needs = facts.get_all("Requires-Dist", [])
    assert [line for line in needs if line.startswith("ray[")] == ["ray[data,default,train,tune]<3,>=2.60"]
    assert all("platform_machine" in line for line in needs if line.startswith("decord"))
    assert "vicc = vicc_ray.cli:main" in entry


@pytest.mark.parametrize("name", ["s3d_rgb_retrieval_ucf101", "experiments/s3d_rgb_retrieval_ucf101.yaml"])
def test_an_installed_package_finds_its_experiments(installed: Path, tmp_path: Path, name: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); import vicc_ray; assert vicc_ray.__file__.startswith(sys.path[0]); "
        f"sys.argv = ['vicc', 'train', {name!r}, '--plan', '--videos', '800']; from vicc_ray.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "RGB-1" in done.stdout


def test_one_that_is_not_shipped_is_named_with_those_that_are(installed: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); "
        "sys.argv = ['vicc', 'train', 'experiments/quickstar.yaml', '--plan']; from vicc_ray.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "experiments/quickstar.yaml: is no file and no shipped experiment; shipped: quickstart," in done.stderr
