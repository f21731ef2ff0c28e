"""`vicc watch`: what it makes of a run's records, that it ends with the run, and its lines where there is no terminal."""

from __future__ import annotations

import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from runs import STAGES, add_encoder, add_records, finished_run, open_run
from tiny import tiny_experiment

from vicc_ray.commands import watch as watching
from vicc_ray.commands.watch import Watched, chart, line_of, steps_line, summary, view, watch_run
from vicc_ray.config import dump_experiment
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import Interrupted, UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record, forget_records_after


@pytest.fixture
def run(tmp_path: Path, videos: Manifest) -> RunFolder:
    """A run in its middle: RGB-1 and Flow-1 are done, RGB-2 is at step 7 of 4 to 8."""
    folder = open_run(tmp_path / "tiny", videos, train={"workers": {"min": 1, "max": 3}})
    add_records(folder, videos, steps=7)
    for name in STAGES[:2]:
        folder.encoder(name).parent.mkdir(exist_ok=True)
        folder.encoder(name).write_bytes(b"")
    append_record(folder.events, {"kind": "worker lost", "time": time.time(), "text": "node [/x] \x1b[31mis gone"})
    return folder


def shown(run: Watched) -> str:
    with console.capture() as text:
        console.print(view(run))
    return text.get()


def test_the_view_has_curves_recall_workers_and_faults(run: RunFolder) -> None:
    watched = Watched(run)
    watched.poll()
    assert (watched.step, watched.rate, watched.finished) == (7, 8.0, False)
    assert watched.seconds_left == pytest.approx((80 - 56) / 8)
    assert watched.recall == {"RGB-1": [(16.0, 0.2)], "Flow-1": [(32.0, 0.3)], "RGB-2": [(48.0, 0.4)]}
    text = shown(watched)
    for told in (
        "7 of 10",
        "loss 1.8500 (ln K 2.08)",
        "8.0 samples/s",
        "RGB-2 0.400",
        "2 (from 1 to 3)",
        "restarts: 0",
    ):
        assert told in text, told
    assert "3 of 4" in text and "0 of 2" in text and any("⠁" <= letter <= "⣿" for letter in text)
    assert "worker lost: node [/x] \\u001b[31mis gone" in text and "\x1b" not in text


def test_a_resumed_run_takes_back_what_it_does_again(run: RunFolder) -> None:
    watched = Watched(run)
    watched.poll()
    forget_records_after(run.metrics, 5)
    watched.poll()
    assert watched.step == 5 and max(watched.loss) == 40.0 and len(watched.events) == 2
    assert watched.poll() == []


def test_piped_it_prints_lines_and_ends_with_the_run(run: RunFolder, videos: Manifest) -> None:
    """From the run's folder alone, while another process finishes it."""
    command = [str(Path(sys.executable).parent / "vicc"), "watch", str(run), "--every", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith(f"{run}: RGB-2, step 7 of 10, loss 1.85, R@1 RGB-1 0.200")
    append_record(run.events, {"kind": "start", "step": 7, "workers": 3, "time": time.time()})
    append_record(
        run.metrics, {"kind": "monitor", "stage": "RGB-2", "step": 8, "R@1": 0.5, "R@5": 0.75, "time": time.time()}
    )
    for number, name in enumerate(STAGES):
        add_encoder(run, name, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert "starts at step 7 with 3 workers" in lines and "RGB-2: step 8: R@1 0.500, R@5 0.750" in lines
    assert lines[-1].startswith("finished; encoders in ") and "\x1b" not in out


@pytest.mark.parametrize("coloured", [True, False])
def test_a_terminal_gets_the_view_and_no_colours_where_none_are_wanted(
    coloured: bool, tmp_path: Path, videos: Manifest
) -> None:
    run = finished_run(tmp_path / "tiny", videos)
    command = [str(Path(sys.executable).parent / "vicc"), "watch", str(run)]
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "140", "NO_COLOR": "" if coloured else "1"}
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = b""
    try:
        while piece := os.read(main, 65536):
            text += piece
    except OSError:  # the terminal's other side is closed
        pass
    assert process.wait(120) == 0
    told = text.decode()
    assert "neighbours' recall" in told and "finished; encoders in" in told
    colours = re.findall(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|9[0-7])(?:;[\d;]*)?m", told)
    assert bool(colours) is coloured, colours[:3]


def test_a_run_whose_process_of_this_machine_is_gone_has_ended(run: RunFolder) -> None:
    (run.path / "lock").write_text(f"process 1 on {socket.gethostname()}")
    with console.capture() as text:
        assert watch_run(str(run), 0.1) is False
    assert "ended before it was finished; the same 'vicc train' goes on" in text.get()
    (run.path / "lock").write_text("process 1 on another-machine")
    assert not Watched(run).abandoned, "whose locks are not seen here"


def test_ctrl_c_ends_the_view_and_not_the_run(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vicc_ray.commands.watch.time.sleep", interrupted)
    with console.capture(), pytest.raises(Interrupted, match="goes on as it was"):
        watch_run(str(run), 0.1)


def test_what_cannot_be_watched(tmp_path: Path, videos: Manifest) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        watch_run(str(tmp_path / "absent"), 1)
    run = open_run(tmp_path / "tiny", videos)
    search = {"space": {"objective.temperature": {"log": [0.03, 0.3]}}}
    run.config.write_text(dump_experiment(tiny_experiment(search=search)))
    with pytest.raises(UserError, match="is a sweep"):
        watch_run(str(run), 1)


def test_a_run_in_a_store(bucket: str, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(watching, "FETCH_SECONDS", 0.0)
    trainer = open_run(f"{bucket}/runs/tiny", videos)
    add_records(trainer, videos, steps=6)
    watched = Watched(RunFolder.at(f"{bucket}/runs/tiny"))
    watched.poll()
    assert watched.step == 6 and not watched.finished

    def finish() -> None:
        for number, name in enumerate(STAGES):
            add_encoder(trainer, name, number)

    thread = threading.Thread(target=finish)
    thread.start()
    with console.capture():
        assert watch_run(f"{bucket}/runs/tiny", 0.1) is True
    thread.join()


def test_lines_of_records(run: RunFolder) -> None:
    watched = Watched(run)
    assert summary(watched).endswith("nothing was trained yet")
    watched.poll()
    assert line_of(watched, {"kind": "attempt", "time": 0.0}) is None
    assert line_of(watched, {"kind": "note", "stage": "RGB-2", "step": 1, "text": "slow"}) == "RGB-2: slow"
    assert line_of(watched, {"kind": "preempted", "time": 0.0}) == "preempted"
    assert line_of(watched, {"kind": "monitor", "stage": "RGB-2", "step": 1}) is None


def test_a_chart_has_its_highest_and_lowest_points_at_its_edges() -> None:
    rows = chart([(0.0, 3.0), (50.0, 2.0), (100.0, 1.0)], width=3, height=3).plain.split("\n")
    assert [row[:8] for row in rows] == ["      3 ", "        ", "      1 "]
    assert [row[8:] for row in rows] == ["⠁⠀⠀", "⠀⠄⠀", "⠀⠀⢀"] or rows[1][8:] in ("⠀⠂⠀", "⠀⠐⠀", "⠀⠠⠀")
    assert rows[0][8] == "⠁" and rows[2][10] == "⢀"
    assert "nothing yet" in chart([]).plain and len(chart([(1.0, 1.0)], width=3, height=2).plain.split("\n")) == 2


def test_a_line_of_steps() -> None:
    assert steps_line([1, 2, 4], 10) == "▃▅█" or steps_line([1, 2, 4], 10) == "▃▄█"
    assert steps_line([], 5) == "" and len(steps_line(list(range(100)), 7)) == 7
