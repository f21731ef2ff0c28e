"""What is outside of the tested versions is said once, in one line; the table of them is that of the lock and pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from vicc_ray import versions
from vicc_ray.versions import TESTED, untested

ROOT = Path(__file__).parents[1]


def _floors() -> dict[str, Version]:
    """Package -> lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    floors: dict[str, Version] = {}
    for line in [*project["dependencies"], *extras]:
        requirement = Requirement(line)
        bounds = [Version(part.version) for part in requirement.specifier if part.operator in (">=", "==")]
        floors |= {requirement.name: max(bounds)} if bounds else {}
    return floors


def test_tested_versions_reach_from_the_lowest_allowed_to_the_locked() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    floors = _floors()
    for name, (lowest, highest) in TESTED.items():
        locked = [Version(found) for found in re.findall(rf"^{name}==([^ \\;]+)", lock, re.MULTILINE)]
        assert Version(highest) == max(locked), f"{name} in the lock: vicc_ray/versions.py follows it"
        assert Version(lowest) == floors[name], f"{name} in pyproject.toml: vicc_ray/versions.py follows it"


@pytest.mark.parametrize(
    ("here", "said"),
    [
        ("2.60.0", []),
        ("2.60.3", []),
        ("2.59.1", ["ray 2.59.1 (tested: 2.60.0)"]),
        ("2.61.0", ["ray 2.61.0 (tested: 2.60.0)"]),
        ("3.0.0", ["ray 3.0.0 (tested: 2.60.0)"]),
    ],
)
def test_what_is_outside_is_named(here: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"ray": here, "torch": "2.15.0+cu132"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)
    assert untested() == said


def test_it_is_said_once_on_stderr() -> None:
    code = (
        "import sys; from vicc_ray import versions; versions.TESTED['numpy'] = ('1.0', '1.9'); "
        "sys.argv = ['vicc', 'bench', 'list']; from vicc_ray.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stderr.count("not tested with") == 1
    assert re.fullmatch(r"vicc: not tested with numpy \S+ \(tested: 1.0 to 1.9\)\n", done.stderr)
    assert "tested" not in done.stdout
