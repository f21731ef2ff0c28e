"""The command line as a user meets it: statuses, one line for a mistake, no traceback unless asked, help with examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import typer
from videos import numbered_frames, write_video

from vicc_ray import __version__, storage
from vicc_ray.cli import app
from vicc_ray.commands.verbs import OTHER, TASKS
from vicc_ray.config import make_experiment
from vicc_ray.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.yaml")
COMMANDS = cast(Any, typer.main.get_command(app)).commands
VERBS = tuple(COMMANDS)  # whatever the command line has: a new verb is checked without anybody thinking of it


def vicc(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the installed command."""
    command = [str(Path(sys.executable).parent / "vicc"), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


def test_help_names_every_verb_and_each_verb_has_an_example() -> None:
    assert len(VERBS) >= 15
    shown = vicc("--help").stdout
    for verb in VERBS:
        assert f"  {verb} " in shown
        assert COMMANDS[verb].epilog.startswith(f"Example: vicc {verb}"), verb
        assert COMMANDS[verb].help, verb
        for option in COMMANDS[verb].params:
            assert option.hidden or option.help or option.name == "help", f"{verb}: {option.name} has no help"
    for verb in ("train", "import"):
        text = vicc(verb, "--help").stdout
        assert f"Example: vicc {verb} " in text


def test_help_lists_the_verbs_by_task() -> None:
    shown = vicc("--help").stdout
    places = [shown.index(f"\n{task}:\n") for task in TASKS]
    assert places == sorted(places) and f"\n{OTHER}:\n" not in shown
    for verb in VERBS:
        assert COMMANDS[verb].rich_help_panel in TASKS, f"{verb}: rich_help_panel says which task it is of"
        assert shown.count(f"\n  {verb} ") == 1
    assert "..." not in shown.partition("Options:")[2], "no sentence is cut off"
    assert "\x1b" not in shown


def test_the_version() -> None:
    done = vicc("--version")
    assert (done.returncode, done.stdout) == (0, f"vicc {__version__}\n")


@pytest.mark.parametrize(
    ("words", "near"),
    [(["trian"], "train"), (["wach", "runs/x"], "watch"), (["train", "x.yaml", "--sett", "a=b"], "--set")],
)
def test_a_word_that_is_nearly_right_is_suggested(words: list[str], near: str) -> None:
    done = vicc(*words)
    assert done.returncode == 2 and near in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_option_in_one_line(verb: str) -> None:
    done = vicc(verb, "--no-such-option")
    assert done.returncode == 2 and "no-such-option" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "absent.yaml"], ["absent.yaml: cannot be read"]),
        (["train", QUICKSTART], ["data.manifest: is not set", "vicc index"]),
        (["train", QUICKSTART, "--set", "data.manifest=none.parquet"], ["none.parquet: no such file", "vicc index"]),
        (["train", QUICKSTART, "--set", "optim.lrr=1"], ["optim.lrr is not a setting", "optim.lr?"]),
        (["train", QUICKSTART, "--set", "objective.prototypes=1"], ["at least 2"]),
        (["train", QUICKSTART, "--set", "schedule.single.length=0 epochs"], ["trains nothing"]),
        (["train", QUICKSTART, "--set", "clip.frames=7"], ["7 is odd"]),
        (["train", QUICKSTART, "--set", "lr"], ["--set lr", "path=value"]),
        (["train", QUICKSTART, "--plan"], ["--videos N"]),
        (["train", QUICKSTART, "--plan", "--videos", "7"], ["global_batch", "7 or less"]),
        (["index", "absent", "--out", "m.parquet"], ["absent"]),
        (["evaluate", "absent"], ["is not a run folder"]),
        (["report", "absent"], ["is not a run folder"]),
        (["export", "absent"], ["is not a run folder"]),
        (["import", "absent.pth", "--stream", "rgb", "--out", "x"], ["absent.pth"]),
        (["import", "absent.pth", "--stream", "depth", "--out", "x"], ["allowed: rgb, flow"]),
        (["bench", "nothing"], ["known: augment"]),
    ],
)
def test_a_mistake_ends_with_one_line_and_status_2(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    result = vicc(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("vicc: ")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stdout + result.stderr
    for part in parts:
        assert part in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_and_an_unknown_option_is_told(tmp_path: Path) -> None:
    assert "Traceback" in vicc("train", "absent.yaml", "--debug", cwd=tmp_path).stderr
    assert vicc("train", QUICKSTART, "--sett", "a=b").returncode == 2


def test_index_names_and_counts_what_it_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "videos" / "jump"
    folder.mkdir(parents=True)
    write_video(folder / "good one.mp4", numbered_frames(6))
    (folder / "text.mp4").write_text("not a video")
    (folder / "notes.txt").write_text("beside")
    result = vicc("index", "videos", "--out", "m.parquet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    refused = [line for line in result.stdout.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1
    assert "text.mp4: " in refused[0]
    assert "1 videos used (train 1), 1 classes, 6 frames each, 1 refused" in result.stdout
    assert "1 refused, 1 other files passed over" in result.stdout
    (folder / "good one.mp4").unlink()
    result = vicc("index", "videos", "--out", "n.parquet", cwd=tmp_path)
    assert (result.returncode, (tmp_path / "n.parquet").exists()) == (2, False)
    assert "none of its 1 videos can be read" in result.stderr


def test_more_workers_than_cpus_end_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(32):
        write_video(folder / f"{number}.mp4", numbered_frames(4))
    assert vicc("index", "videos", "--out", "m.parquet", cwd=tmp_path).returncode == 0
    result = vicc("train", QUICKSTART, "--set", "data.manifest=m.parquet", "--set", "train.workers=4096", cwd=tmp_path)
    assert result.returncode == 2
    assert "train.workers: 4096 workers need as many CPUs" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_plan_as_json(tmp_path: Path) -> None:
    result = vicc("train", QUICKSTART, "--plan", "--videos", "400", "--json", cwd=tmp_path)
    stages = json.loads(result.stdout)["stages"]
    assert [stage["stage"] for stage in stages] == ["RGB-1", "Flow-1", "RGB-2", "Flow-2"]
    assert stages[2]["guided by"] == "Flow-1"
    assert list(tmp_path.iterdir()) == []


def test_bench_list_says_what_can_be_measured() -> None:
    assert "pipeline: samples/s" in vicc("bench", "list").stdout


def test_the_page_of_a_run_in_a_store_is_put_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = RunFolder.at(f"{bucket}/runs/mine", mirror="a worker's")
    folder.open(make_experiment({"runs": f"{bucket}/runs", "name": "mine"}, "x"), "data")
    told = vicc("report", f"{bucket}/runs/mine")
    assert told.returncode == 0, told.stderr
    page = storage.read_bytes(f"{bucket}/runs/mine/report.html").decode()
    assert page.startswith("<!doctype html>") and "mine" in page
