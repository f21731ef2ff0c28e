"""`--json` of every verb: one object on standard output and nothing else there, whether the verb succeeds or fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import typer
import yaml
from runs import finished_run
from test_archive import make_archive, random_rows
from test_interop import small_file
from tiny import TINY
from typer.testing import CliRunner
from videos import numbered_frames, write_video

from vicc_ray import cli
from vicc_ray.console import console, json_text
from vicc_ray.data.manifest import Manifest
from vicc_ray.interop import export
from vicc_ray.runs.folder import RunFolder
from vicc_ray.submit.following import Job

COMMANDS = cast(Any, typer.main.get_command(cli.app)).commands
# They write nothing, or JSON by nature; for a program `status --json` says what `watch` shows.
READERS = {"watch", "config"}
VERBS = sorted(set(COMMANDS) - READERS)


def in_process(*words: str) -> Any:
    """The object that a verb printed; AssertionError where standard output holds anything else."""
    done = CliRunner().invoke(cli.app, list(words))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    return only_object(done.stdout)


def process(*words: str, status: int = 0, cwd: Path) -> Any:
    """The same of the installed command, in which native code may print too."""
    command = [str(Path(sys.executable).parent / "vicc"), *words]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=500, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return only_object(done.stdout)


def only_object(text: str) -> Any:
    found = json.loads(text)
    assert isinstance(found, dict) and found
    return found


def test_every_verb_has_it() -> None:
    for verb in VERBS:
        flags = [option for option in COMMANDS[verb].params if "--json" in option.opts]
        assert len(flags) == 1 and flags[0].is_flag, verb


@pytest.mark.parametrize("verb", VERBS)
def test_a_failure_is_an_object_too(verb: str, tmp_path: Path) -> None:
    found = process(verb, "--no-such-option", "--json", status=2, cwd=tmp_path)
    assert found["status"] == 2 and "--no-such-option" in found["error"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["status", "absent"], "absent: is not a run folder"),
        (["train", "absent.yaml"], "absent.yaml: cannot be read"),
        (["index", "absent", "--out", "m.parquet"], "absent"),
    ],
)
def test_a_readers_mistake_is_said_once_on_each_side(words: list[str], part: str, tmp_path: Path) -> None:
    found = process(*words, "--json", status=2, cwd=tmp_path)
    assert part in found["error"] and not found["error"].startswith("vicc: ")
    assert list(tmp_path.iterdir()) == []


def test_words_for_another_program_are_not_this_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vicc submit e.yaml -- --json` is the job's."""
    monkeypatch.setattr(sys, "argv", ["vicc", "submit", "e.yaml", "--", "--json"])
    with console.capture() as shown:
        cli._print_error("no", 2)
    assert shown.get() == ""


def test_numbers_that_json_has_not_are_null() -> None:
    assert json.loads(json_text({"a": [float("nan"), (1.5, float("-inf"))], "b": Path("x")})) == {
        "a": [None, [1.5, None]],
        "b": "x",
    }


@pytest.fixture
def place(tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run, an archive, a published checkpoint, a sweep's file and a few videos."""
    monkeypatch.chdir(tmp_path)
    finished_run("runs/tiny", videos)
    videos.write("videos.parquet")
    make_archive(Path("archive"), random_rows(12), source="films")
    export(small_file(), "published", Path("one.pth.tar"))
    tree = TINY | {"data": {"manifest": "videos.parquet"}}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    search = {"space": {"objective.temperature": {"log": [0.03, 0.3]}}, "budget": "2 trials", "share": "single"}
    Path("sweep.yaml").write_text(yaml.safe_dump(tree | {"search": search}))
    Path("films").mkdir()
    write_video(Path("films/one.mp4"), numbered_frames(6))
    return tmp_path


# Verb -> words after it and what the object says. Those that need Ray are below.
Check = Callable[[Any], bool]
WITHOUT_RAY: dict[str, tuple[list[str], Check]] = {
    "index": (["films", "--out", "m.parquet"], lambda o: (o["videos"], o["refused"]) == (1, [])),
    "preview": (["tiny.yaml", "--samples", "1"], lambda o: Path(o["page"]).is_file()),
    "train": (["tiny.yaml", "--plan"], lambda o: len(o["stages"]) == 4),
    "tune": (["sweep.yaml", "--dry-run"], lambda o: len(o["trials"]) == 2),
    "status": (["runs/tiny"], lambda o: o["state"] == "finished"),
    "clean": (["runs/tiny"], lambda o: o["removed"] is False and o["bytes"] > 0),
    "report": (["runs/tiny", "--out", "r.html"], lambda o: o["bytes"] == Path("r.html").stat().st_size),
    "search": (["archive", "/films/0.mp4@0-10", "-k", "2"], lambda o: len(o["answers"][0]["matches"]) == 2),
    "duplicates": (["archive", "--no-check", "--page", "d.html"], lambda o: "groups" in o),
    "clusters": (["archive", "--by", "kmeans", "--count", "2", "--page", "c.html"], lambda o: len(o["clusters"]) == 2),
    "import": (["one.pth.tar", "--stream", "rgb", "--out", "runs/got"], lambda o: len(o["encoders"]) == 1),
    "export": (["runs/tiny"], lambda o: Path(o["file"]).is_file()),
    "bench": (["list"], lambda o: "pipeline" in o["benches"]),
}
WITH_RAY = {"pack", "flow", "unpack", "evaluate", "embed", "doctor", "quickstart", "submit", "jobs"}


def test_no_verb_is_forgotten() -> None:
    assert set(WITHOUT_RAY) | WITH_RAY == set(VERBS)


@pytest.mark.parametrize("verb", WITHOUT_RAY)
def test_the_result_is_one_object(verb: str, place: Path) -> None:
    words, says = WITHOUT_RAY[verb]
    assert says(in_process(verb, *words, "--json"))


def test_pages_of_archives_are_written_beside_it(place: Path) -> None:
    for verb, word in (("duplicates", "d.html"), ("clusters", "c.html")):
        in_process(verb, *WITHOUT_RAY[verb][0], "--json")
        assert Path(word).is_file()


def test_quickstart_keeps_its_lines_to_standard_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> dict[str, Any]:
        console.print("making the motion data set")
        return {"run": "runs/quickstart"}

    monkeypatch.setattr("vicc_ray.commands.quickstart.run_quickstart", run)
    monkeypatch.setattr("vicc_ray.cluster.ahead.begin_cluster", lambda *_: None)
    assert in_process("quickstart", "--json") == {"run": "runs/quickstart"}


class Server:
    """A jobs server that takes every job and has it run already."""

    def __init__(self, *_: object) -> None:
        self.all: list[Job] = []

    def job(self, name: str) -> Job | None:
        return next((job for job in self.all if job.id == name), None)

    def jobs(self) -> list[Job]:
        return self.all

    def submit(self, name: str, *_: object) -> bool:
        self.all.append(Job(name, "RUNNING"))
        return True

    def stop(self, name: str) -> None:
        self.all = [Job(name, "STOPPED", exit_code=130)]


def test_jobs_and_submit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setattr("vicc_ray.submit.client.connect", lambda *_: server)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    address = ["--address", "http://head:8265", "--json"]
    sent = in_process("submit", "tiny.yaml", *address)
    assert sent["id"].startswith("vicc-train-tiny-")
    assert [job["id"] for job in in_process("jobs", *address)["jobs"]] == [sent["id"]]
    assert in_process("jobs", sent["id"], "--stop", *address)["jobs"][0]["id"] == sent["id"]


def test_a_request_to_stop_a_sweep(place: Path, videos: Manifest) -> None:
    from vicc_ray.commands.tune import load_sweep
    from vicc_ray.tune.folder import SweepFolder

    settings = load_sweep("sweep.yaml", [], False)
    SweepFolder.at(settings.run_folder + "2").open(settings, "data")
    found = in_process("tune", "sweep.yaml", "--set", "name=tiny2", "--stop", "--json")
    assert found["stop_requested"] is True and RunFolder.at(settings.run_folder + "2").stop_requested()


@pytest.mark.cluster
def test_verbs_that_start_ray(place: Path) -> None:
    packed = process("pack", "videos.parquet", "--store", "packed", "--size", "32x32", "--json", cwd=place)
    assert (packed["videos"], packed["streams"]) == (24, ["rgb", "flow"])
    name = process("unpack", "packed", "--json", cwd=place)["entries"][0]["video"]
    assert len(process("unpack", "packed", name, "--json", cwd=place)["files"]) == 2
    assert process("flow", "videos.parquet", "--store", "flows", "--size", "32x32", "--json", cwd=place)["videos"] == 24
    words = ["tiny.yaml", "--set", "name=new", "--json"]
    trained = process("train", *words, cwd=place)["encoders"]
    assert trained == ["Flow-0", "Flow-1", "Flow-2", "RGB-0", "RGB-1", "RGB-2"]
    (judged,) = process("evaluate", "runs/new", "--json", cwd=place)["evaluations"]
    assert judged["protocol"] == "retrieval"
    made = process("embed", "runs/new", "videos.parquet", "--out", "vectors", "--json", cwd=place)
    assert (made["rows"], made["left"]) == (24, 0)
    assert process("doctor", *words, cwd=place)["healthy"] is True
