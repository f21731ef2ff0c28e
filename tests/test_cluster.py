"""The main job on a real Ray on this machine, at a tiny size: the quickstart from end to end, a kill and the same command again."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.nodes import descendants
from vicc_ray.evaluation.results import read_all
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import read_records

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(560)]

TINY = [
    "clip.frames=8",
    "clip.size=32",
    "model.width=0.0625",
    "objective.queue=16",
    "schedule.single.length=3 steps",
    "schedule.single.global_batch=8",
    "schedule.cross.length={rgb: 60 steps, flow: 3 steps}",  # RGB-2 is long enough to be killed in its middle
    "schedule.cross.global_batch=9",  # two workers cannot share it evenly
    "train.checkpoint_every=3 steps",
    "train.log_every=1",
    "evaluate.monitor_every=20 steps",
    "evaluate.monitor_videos=8",
]
STEPS = 69
FIRST_CHECKPOINT = 9  # of RGB-2, which begins at step 6


def _quickstart(folder: Path) -> subprocess.Popen[str]:
    options = [part for setting in TINY for part in ("--set", setting)]
    command = [str(Path(sys.executable).parent / "vicc"), "quickstart", "--runs", str(folder)]
    command += ["--train-per-class", "3", "--query-per-class", "2", *options]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def _wait_for(condition: object, process: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if callable(condition) and condition():
            return
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.2)
    process.kill()
    raise AssertionError("the run did not come so far in time")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str, int]:
    """A quickstart that is killed hard in its cross-stream stage and started again; its folder, output and kill step."""
    runs = tmp_path_factory.mktemp("runs")
    folder = RunFolder(runs / "quickstart")
    first = _quickstart(runs)
    # RGB-1 and Flow-1 are finished then, RGB-2 is not.
    _wait_for(lambda: any(i.step >= FIRST_CHECKPOINT for i in folder.checkpoints.listing()), first, 300)
    everyone = [first.pid, *descendants(first.pid)]
    first.send_signal(signal.SIGKILL)
    first.wait()
    killed_at = max(r["step"] for r in read_records(folder.metrics) if r["kind"] == "train")
    _wait_until_gone(everyone)
    second = _quickstart(runs)
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0, output
    return folder, output, killed_at


def _wait_until_gone(pids: list[int]) -> None:
    """Ray's processes end with their driver; those of this test are waited for, by number, and killed if they stay."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.5)
    for pid in pids:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)


def test_the_same_command_goes_on_after_a_kill(run: tuple[RunFolder, str, int]) -> None:
    folder, output, killed_at = run
    assert "going on after RGB-1, Flow-1" in output
    assert "training RGB-2 -> Flow-2: 2 workers" in output
    records = [r for r in read_records(folder.metrics) if r["kind"] == "train"]
    assert [r["step"] for r in records] == list(range(1, STEPS + 1))  # nothing skipped, nothing twice
    assert FIRST_CHECKPOINT <= killed_at < STEPS - 3
    assert {r["workers"] for r in records} == {2}
    assert [r["rows"] for r in records] == [8.0] * 6 + [9.0] * 63
    # The second session began at a checkpoint of the first one: a start of Ray lies between two records.
    pauses = {r["step"]: r["time"] - before["time"] for before, r in itertools.pairwise(records)}
    resumed_at = max(pauses, key=lambda step: pauses[step])
    starts = [event["step"] for event in read_records(folder.events) if event["kind"] == "start"]
    assert starts == [0, resumed_at - 1]
    assert resumed_at - 1 >= FIRST_CHECKPOINT


def test_the_quickstart_leaves_results_and_a_report(run: tuple[RunFolder, str, int]) -> None:
    folder, output, _ = run
    (results,) = read_all(folder)
    assert results.chance == pytest.approx(0.125)
    assert results.seconds > 0
    assert [row["name"] for row in results.rows] == ["random", "RGB-1", "Flow-1", "RGB-2", "Flow-2", "R+F"]
    for row in results.rows:
        assert 0 <= row["R@1"] <= row["R@5"] <= row["R@10"] <= row["R@20"] <= 1
    page = folder.report.read_text()
    assert "<script src" not in page
    assert "default-src 'none'" in page  # Plotly's own text names addresses; the page's policy lets nothing be loaded
    written = re.sub("<script.*?</script>", "", page, flags=re.DOTALL).replace("http://www.w3.org", "")
    assert "http://" not in written and "https://" not in written
    for name in ("RGB-1", "RGB-2", "R+F"):
        assert name in page
        assert name in output
    assert "Traceback" not in output
    assert "WARNING" not in output  # Ray's noise is in the log
    assert (folder.logs / "ray.log").is_file()
    assert any(folder.tensorboard.glob("events*"))
    monitors = [r for r in read_records(folder.metrics) if r["kind"] == "monitor"]
    assert {r["stage"] for r in monitors} == {"RGB-1", "Flow-1", "RGB-2", "Flow-2"}
    assert load_encoder(folder.encoder("Flow-2")).stream == "flow"


def test_evaluating_again_takes_the_features_as_they_are_stored(run: tuple[RunFolder, str, int]) -> None:
    folder, _, _ = run
    vicc = str(Path(sys.executable).parent / "vicc")
    (before,) = read_all(folder)
    files = {path: path.stat().st_mtime_ns for path in folder.features.iterdir()}
    assert len(files) == 10  # five encoders, two sides
    command = [vicc, "evaluate", str(folder.path), "--json"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["evaluations"][0]["rows"] == before.rows
    assert "features of RGB-2 as they were stored" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.features.iterdir()} == files
    reference = [*command, "--set", "evaluate.retrieval=reference", "--train-on", "all", "--test-on", "query"]
    published = subprocess.run(reference, capture_output=True, text=True, timeout=300, check=False)
    assert published.returncode == 0, published.stderr
    found = json.loads(published.stdout)["evaluations"][0]
    assert (found["protocol"], found["train"], found["test"]) == ("reference", 40, 16)
    assert len(list(folder.features.iterdir())) == 20 and len(read_all(folder)) == 2


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(run: tuple[RunFolder, str, int]) -> None:
    folder, _, _ = run
    vicc = str(Path(sys.executable).parent / "vicc")
    command = [vicc, "train", str(folder.config)]
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (again.returncode, "every stage is finished" in again.stdout) == (0, True), again.stderr
    other = subprocess.run(
        [*command, "--set", "optim.lr=0.5"], capture_output=True, text=True, timeout=120, check=False
    )
    assert other.returncode == 2
    assert "(optim.lr: was 0.002, now 0.5)" in other.stderr
    exported = subprocess.run(
        [vicc, "export", str(folder.path), "--format", "published"], capture_output=True, text=True, check=False
    )
    assert exported.returncode == 0, exported.stderr
    imported = [
        vicc,
        "import",
        exported.stdout.strip(),
        "--stream",
        "rgb",
        "--out",
        str(folder.path.parent / "imported"),
    ]
    assert subprocess.run(imported, capture_output=True, check=False).returncode == 0
    ours, back = (
        load_encoder(path / "encoders" / "RGB-2.safetensors") for path in (folder.path, folder.path.parent / "imported")
    )
    assert all(bool((ours.state_dict[key] == back.state_dict[key]).all()) for key in ours.state_dict)
