"""`make release` builds, checks and tags a commit whose version is the same everywhere, and refuses any other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def release(folder: Path) -> subprocess.CompletedProcess[str]:
    identity = {"GIT_COMMITTER_NAME": "T", "GIT_COMMITTER_EMAIL": "t@example.org"}
    environment = os.environ | identity | {"BIN": str(Path(sys.executable).parent)}
    return subprocess.run(
        [str(folder / ".ci" / "release")], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of the files of this one, committed."""
    folder = tmp_path / "checkout"
    kept = ("vicc_ray", "experiments", "docs", ".ci", "pyproject.toml", "README.md", "LICENSE", ".gitignore")
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        else:
            shutil.copy(ROOT / name, folder / name)
    for name in ("tests", "benchmarks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")
    git(folder, "init", "--quiet")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")


def dated(folder: Path, version: str) -> None:
    changelog = folder / "docs" / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## Unreleased", f"## {version} (2026-12-01)"))
    for name, pattern in (("pyproject.toml", r'^version = ".*"$'), ("docs/CITATION.cff", r"^version: .*$")):
        text = (folder / name).read_text()
        line = f'version = "{version}"' if name == "pyproject.toml" else f"version: {version}"
        (folder / name).write_text(re.sub(pattern, line, text, count=1, flags=re.MULTILINE))


def test_a_release_is_built_checked_and_tagged(checkout: Path) -> None:
    dated(checkout, "7.1.0")
    commit(checkout)
    done = release(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(checkout, "tag") == "v7.1.0" and git(checkout, "rev-list", "-n1", "v7.1.0") == git(
        checkout, "rev-parse", "HEAD"
    )
    with ZipFile(checkout / "dist" / "vicc_ray-7.1.0-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
    assert {"vicc_ray/experiments/quickstart.yaml", "vicc_ray/report/template.html.j2", "vicc_ray/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"vicc_ray", "vicc_ray-7.1.0.dist-info"}
    with tarfile.open(checkout / "dist" / "vicc_ray-7.1.0.tar.gz") as source:
        assert "vicc_ray-7.1.0/docs/CHANGELOG.md" in source.getnames()
    again = release(checkout)
    assert again.returncode == 2 and "the tag v7.1.0 is there already" in again.stderr


def test_what_does_not_agree_is_refused(checkout: Path) -> None:
    done = release(checkout)
    assert done.returncode == 2 and "docs/CHANGELOG.md has no heading" in done.stderr
    dated(checkout, "7.1.0")
    done = release(checkout)
    assert done.returncode == 2 and "the tree has changes" in done.stderr
    citation = checkout / "docs" / "CITATION.cff"
    citation.write_text(citation.read_text().replace("version: 7.1.0", "version: 7.0.0"))
    commit(checkout)
    done = release(checkout)
    assert done.returncode == 2 and "CITATION.cff does not say version: 7.1.0" in done.stderr
    assert git(checkout, "tag") == "" and not (checkout / "dist").exists()
