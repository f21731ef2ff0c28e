"""`benchmarks/against`: what is compared with what, and the whole command with a shell script in the place of `vicc`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import Bar
from benchmarks.builds import NEW, OLD, BuildBench, Limit, Measured, Sizes, Turn, minus, order, ratios
from benchmarks.builds.command import BENCHES, as_json, earlier, judge, main, take_turns
from benchmarks.builds.quickstart import RECALL as QUICKSTART_RECALL
from benchmarks.builds.quickstart import recalls
from benchmarks.builds.start import SECONDS
from benchmarks.builds.sweep import RECALL, SHARE, figures
from benchmarks.builds.usage import Usage, role, watched
from benchmarks.product import Product
from vicc_ray.errors import UserError

# Answers as `vicc` does: `index` makes the manifest, `train` writes a record after a while and waits for the interrupt.
VICC = """#!/bin/bash
case $1 in
index) cp "$2" "$4" ;;
train)
    runs=$(sed -n 's/^runs: //p' "$2")/faults
    mkdir -p $runs
    trap 'kill $sleeper 2>/dev/null; exit 130' INT
    now() { date +%s.%N; }
    echo "{\\"kind\\": \\"start\\", \\"step\\": 0, \\"time\\": $(now)}" > $runs/events.jsonl
    sleep SECONDS
    record='"kind": "train", "stage": "RGB-1", "step": 1, "loss": 1.0, "samples": 8, "workers": 2'
    echo "{$record, \\"time\\": $(now)}" > $runs/metrics.jsonl
    sleep 60 & sleeper=$!
    wait ;;
*) exit 3 ;;
esac
"""
MAKEFILE = """setup:
\tmkdir -p .venv/bin
\tcp vicc .venv/bin/vicc
\tchmod +x .venv/bin/vicc
\techo once >> set-up
\ttouch .venv/.installed
"""


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, seconds: float) -> str:
    """A build that takes this long to its first step."""
    (folder / "vicc").write_text(VICC.replace("SECONDS", str(seconds)))
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / ".gitignore").write_text(".venv/\n.against/\nset-up\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", f"{seconds} s")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that is set up, whose first commit took 4 s to its first step and whose second one takes 0.2 s."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, 4.0)
    commit(folder, 0.2)
    subprocess.run(["make", "--silent", "setup"], cwd=folder, check=True)
    return folder


def test_ratios_are_of_a_round_and_a_build_that_did_nothing_has_one() -> None:
    assert ratios([1.0, 6.0], [2.0, 3.0]) == [0.5, 2.0]
    assert ratios([1.0, 0.0], [0.0, 0.0]) == [math.inf, 1.0]
    assert minus([0.75], [0.5]) == [0.25]


def test_the_median_of_the_ratios_is_judged_not_the_ratio_of_the_medians() -> None:
    rounds = {OLD: {"s": [10.0, 100.0, 10.0]}, NEW: {"s": [4.0, 30.0, 30.0]}}
    assert Limit("s", 0.4).judge(rounds) == Bar("s, new/old", 0.4, 0.4, False)


def test_a_limit_is_of_the_ratio_the_new_build_or_the_difference() -> None:
    rounds = {OLD: {"recall": [0.9]}, NEW: {"recall": [0.89]}}
    difference = Limit("recall", -0.02, at_least=True, of="difference").judge(rounds)
    alone = Limit("recall", 0.9, at_least=True, of="new").judge(rounds)
    assert difference and difference.holds and difference.figure == pytest.approx(-0.01)
    assert alone and not alone.holds and alone.figure == 0.89


@pytest.mark.parametrize("at_least", [True, False])
def test_a_bar_is_missed_where_a_figure_is_lacking_and_none_where_nobody_has_it(at_least: bool) -> None:
    lacking = Limit("s", 1.0, at_least).judge({OLD: {"s": [1.0]}, NEW: {}})
    assert lacking and not lacking.holds
    assert Limit("s", 1.0, at_least).judge({OLD: {}, NEW: {}}) is None


def test_the_builds_of_a_round_take_turns_in_being_first(tmp_path: Path) -> None:
    seen: list[str] = []

    def measure(turn: Turn) -> Measured:
        assert turn.folder.is_dir() and not list(turn.folder.iterdir()) and turn.shared.is_dir()
        seen.append(f"{turn.number} {turn.build} {turn.product.folder.name}")
        return Measured({"s": float(turn.number)})

    products = {build: Product(tmp_path / f"{build} checkout", tmp_path) for build in (OLD, NEW)}
    found = take_turns("x", BuildBench("x", measure, ()), products, tmp_path, Sizes(), 3)
    expected = [f"{number} {build} {build} checkout" for number in range(3) for build in order(number)]
    assert seen == expected
    assert [line.split()[1] for line in seen] == [OLD, NEW, NEW, OLD, OLD, NEW]
    assert [one.figures["s"] for one in found[NEW]] == [0.0, 1.0, 2.0]


def test_what_is_written_has_every_round(tmp_path: Path) -> None:
    bench = BuildBench("x", lambda turn: Measured({}), (Limit("s", 0.4),))
    old = [Measured({"s": 2.0}), Measured({"s": 4.0})]
    new = [Measured({"s": 1.0}, {"t": {"a": {"n": 1.0}}}), Measured({"s": 1.0})]
    rounds = {OLD: old, NEW: new}
    written = as_json(rounds, judge(bench, rounds))
    assert written["ratios new/old"] == {"s": [0.5, 0.25]}
    assert written["bars"] == [{"name": "s, new/old", "figure": 0.375, "bar": 0.4, "at_least": False, "holds": True}]
    assert written["tables"][NEW] == [{"t": {"a": {"n": 1.0}}}]


def test_the_whole_command(checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    words = ["HEAD~1", "start", "--rounds", "1", "--json", str(out)]
    assert main(words, checkout) == 0
    found = json.loads(out.read_text())["benches"]["start"]
    (old,), (new,) = (found["figures"][build][SECONDS] for build in (OLD, NEW))
    assert old > 4 > new > 0.2
    assert found["ratios new/old"][SECONDS] == [new / old]
    (table,) = found["tables"][NEW]
    assert table["processes"]["driver"]["processes"] == 1
    assert 0 < table["milestones"]["event start"]["s"] < table["milestones"]["first record"]["s"] == new
    assert "holds" in capfd.readouterr().out


def test_a_missed_bar_is_status_1_and_the_worktree_is_used_again(checkout: Path) -> None:
    before = git(checkout, "rev-parse", "HEAD")
    commit(checkout, 2.0)
    subprocess.run(["make", "--silent", "setup"], cwd=checkout, check=True)
    assert main([before, "start", "--rounds", "1"], checkout) == 1
    folder = checkout / ".against" / before[:7]
    again = earlier(checkout, before)
    assert again.vicc == folder / ".venv" / "bin" / "vicc"
    assert (folder / "set-up").read_text() == "once\n"
    assert not git(checkout, "status", "--short")


def test_a_build_that_fails_is_one_status_with_its_words(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / ".venv" / "bin" / "vicc").write_text("#!/bin/bash\necho no room >&2\nexit 4\n")
    assert main(["HEAD~1", "start", "--rounds", "1", "--only", "new"], checkout) == 2
    assert "no room" in capfd.readouterr().err


def test_an_unknown_commit_is_refused_with_one_line(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such", "start"], checkout) == 2
    told = capfd.readouterr().err
    assert told.startswith("against: commit no-such: is unknown in ") and told.count("\n") == 1
    assert not (checkout / ".against").exists()


def test_a_commit_that_cannot_be_set_up_is_refused(checkout: Path) -> None:
    (checkout / "Makefile").write_text("setup:\n\tfalse\n")
    git(checkout, "commit", "--quiet", "--all", "--message", "broken")
    with pytest.raises(UserError, match="'make setup' failed"):
        earlier(checkout, "HEAD")


def test_a_bench_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["HEAD", "nothing"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(name in told for name in BENCHES)


def test_another_checkout_gets_none_of_our_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "ours")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    environment = Product(tmp_path, tmp_path / "bin").environment()
    assert "PYTHONPATH" not in environment and "RAY_ADDRESS" not in environment
    assert environment["PATH"].startswith(f"{tmp_path / 'bin'}:")


def test_a_command_starts_in_its_own_folder_where_ray_looks_for_modules(tmp_path: Path) -> None:
    (tmp_path / "vicc").write_text("#!/bin/bash\npwd\n")
    (tmp_path / "vicc").chmod(0o755)
    (tmp_path / "build").mkdir()
    assert Product(tmp_path / "build", tmp_path).run("index").strip() == str(tmp_path / "build")


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "gcs_server"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/a", "raylet"),
        ("/x/python -u /x/ray/_private/log_monitor.py --session-dir=/a", "log monitor"),
        ("/x/python -u /x/ray/autoscaler/_private/monitor.py", "autoscaler"),
        ("/x/python /x/ray/dashboard/dashboard.py --host=127.0.0.1", "dashboard"),
        ("/x/python -u /x/ray/dashboard/agent.py --node-ip-address=127.0.0.1", "agents"),
        ("ray::DashboardAgent", "agents"),
        ("ray::RuntimeEnvAgent", "agents"),
        ("ray::IDLE", "idle worker"),
        ("/x/python -u /x/ray/_private/workers/default_worker.py --node-ip-address=1", "worker that starts"),
        ("ray::_RayTrainWorker__execute.get_next", "_RayTrainWorker__execute"),
        ("ray::RayTrainWorker.run", "RayTrainWorker"),
        ("ray::MapWorker(MapBatches(Decode)).submit", "MapWorker"),
        ("ray::SplitCoordinator", "SplitCoordinator"),
        ("ray::TrainController.run", "TrainController"),
        ("ray::Keeper.hold", "Keeper"),
        ("/x/python -c from vicc_ray.data.guarded import _serve; _serve() 5 6 /x/ray/raylet/raylet", "decode child"),
        ("/bin/sleep 60", "sleep"),
        ("", "?"),
    ],
)
def test_processes_are_known_by_what_they_are_for(title: str, expected: str) -> None:
    assert role(title) == expected


def test_usage_counts_what_a_command_started_with_its_cpu_and_memory() -> None:
    busy = "import time; x = bytearray(50_000_000)\nwhile time.process_time() < 0.5: pass\ntime.sleep(30)"
    outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {busy!r}]); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", outer])
    usage = Usage(process.pid)
    deadline = time.monotonic() + 60
    with watched(usage):
        while time.monotonic() < deadline and not (usage.table()["all"]["CPU s"] >= 0.5 and usage.peak > 50 * 2**20):
            time.sleep(0.1)
    table = usage.table()
    (child,) = set(usage.left()) - {process.pid}
    assert table["all"]["processes"] == 2
    assert table["all"]["CPU s"] >= 0.5
    assert table["all"]["peak MiB"] > 45
    process.kill()
    process.wait()
    assert usage.left() == [child]  # it has another parent now and is still known, and looked at
    (orphan,) = (seen for (pid, _), seen in usage.seen.items() if pid == child)
    orphan.cpu = 0.0
    usage.sample()
    assert orphan.cpu >= 0.4
    subprocess.run(["kill", str(child)], check=True)
    deadline = time.monotonic() + 10
    while usage.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert usage.left() == []


def test_a_sweep_is_judged_by_the_table_that_it_writes(tmp_path: Path) -> None:
    table = tmp_path / "trials.csv"
    table.write_text(
        '"outcome","value","samples","samples_of_a_whole_trial"\n'
        '"finished",0.8,100,100\n"pruned",0.9,20,100\n"collapsed",0.1,100,100\n"failed",,,\n'
    )
    found = figures(table)
    assert found[RECALL] == 0.8  # one that was stopped early has no encoder to use
    assert found[SHARE] == pytest.approx(220 / 300)
    assert found["trials"] == 4 and found["trials stopped early"] == 1


def test_the_recall_of_a_quickstart_is_that_of_its_own_evaluation(tmp_path: Path) -> None:
    (tmp_path / "evaluations").mkdir()
    rows = [{"name": "RGB-2", "R@1": 0.8, "R@5": 0.9}, {"name": "R+F", "R@1": 0.95}]
    (tmp_path / "evaluations" / "retrieval-made.json").write_text(json.dumps({"rows": rows}))
    assert recalls(tmp_path) == {QUICKSTART_RECALL: 0.8, "R@1 of R+F": 0.95}
