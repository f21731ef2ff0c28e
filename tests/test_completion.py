"""What the shells finish: verbs, options, experiments, runs, settings; asked for in the way in which each shell asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vicc_ray.commands import completion

VICC = Path(sys.executable).parent / "vicc"
SHELLS = ("bash", "zsh", "fish")


def asked(shell: str, line: str, cwd: Path) -> list[str]:
    """The words that `vicc` answers for a command line that ends where the cursor stands."""
    environment = os.environ | {"_VICC_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        words = line.split(" ")
        environment |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run([VICC], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    text = done.stdout.strip()
    if shell == "zsh":
        text = text.removeprefix("_arguments '*: :((").removesuffix("))'")
        return [row.split('"')[1] for row in text.splitlines() if row.startswith('"')]
    return [row.split("\t")[0] for row in text.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("mine", "other"):
        (tmp_path / "runs" / name / "encoders").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text("{}\n")
    (tmp_path / "runs" / "mine" / "encoders" / "RGB-2.safetensors").write_bytes(b"")
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "local.yaml").write_text("seed: 1\n")
    return tmp_path


@pytest.mark.parametrize("shell", SHELLS)
def test_words_are_finished(shell: str, place: Path) -> None:
    assert asked(shell, "vicc tr", place) == ["train"]
    assert {"status", "submit", "search"} <= set(asked(shell, "vicc s", place))
    assert asked(shell, "vicc train quickstart --sc", place) == ["--scale"]
    assert asked(shell, "vicc train qu", place) == ["quickstart"]
    assert asked(shell, "vicc evaluate runs/mine runs/o", place) == ["runs/other"]
    assert asked(shell, "vicc train quickstart --set optim.l", place) == ["optim.lr=", "optim.lr=0.6"]


def test_what_words_of_each_kind_may_be(place: Path) -> None:
    assert asked("bash", "vicc train quickstart --scale s", place) == ["smoke"]
    assert asked("bash", "vicc train lo", place) == ["local.yaml"]
    assert asked("bash", "vicc status ", place) == ["runs/mine", "runs/other"]
    assert asked("bash", "vicc export runs/mine --encoder R", place) == ["RGB-2"]


def test_settings_and_their_values() -> None:
    assert [word for word, _ in completion.settings("clip.motion=")] == [
        f"clip.motion={motion}" for motion in ("flow", "difference", "lucas_kanade")
    ]
    assert [word for word, _ in completion.settings("clip.motion=d")] == ["clip.motion=difference"]
    assert tuple(word for word, _ in completion.settings("train.workers"))[:2] == ("train.workers=", "train.workers=1")
    assert completion.settings("search.samp")[0][0] == "search.sampler="
    assert completion.settings("no.such") == [] == completion.settings("no.such=")
    for word, text in completion.settings(""):
        assert not set(word) & set(" \t\n"), "a shell would take it apart"
        assert "\n" not in text


def test_paths_are_left_to_the_shell(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert completion.experiments("experiments/q") == []
    assert completion.runs("elsewhere/") == []


# How each shell is told, and how it is then asked for what may follow "vicc stat".
SCRIPTS = {
    "bash": 'eval "$(vicc --show-completion)"; COMP_WORDS=(vicc stat); COMP_CWORD=1; _vicc_completion vicc; '
    'echo "${COMPREPLY[@]}"',
    "zsh": "autoload -Uz compinit; compinit -u; source <(vicc --show-completion); "
    'words=(vicc stat); CURRENT=2; _arguments() { print "$@" }; _vicc_completion',
    "fish": 'vicc --show-completion | source; complete -C "vicc stat"',
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shells_themselves_finish_a_verb(shell: str, place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    home = {"HOME": str(place), "XDG_RUNTIME_DIR": str(place), "PATH": f"{VICC.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [shell, "-c", SCRIPTS[shell]]
    done = subprocess.run(
        command, cwd=place, env=os.environ | home, capture_output=True, text=True, timeout=60, check=False
    )
    assert "status" in done.stdout.replace('"', " ").replace("(", " ").split(), done.stdout + done.stderr
    assert "submit" not in done.stdout
