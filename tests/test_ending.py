"""One driver a folder; a polite end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vicc_ray.errors import UserError
from vicc_ray.run_folder import RunFolder
from vicc_ray.train.ending import alone_in, sigterm_stops

HOLD = """
import sys, time
from pathlib import Path
from vicc_ray.run_folder import RunFolder
from vicc_ray.train.ending import alone_in
with alone_in(RunFolder(Path(sys.argv[1]))):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout and first.stdout.readline() == "mine\n"
    with pytest.raises(UserError, match=rf"process {first.pid} on .* is training in it"), alone_in(RunFolder(tmp_path)):
        pass
    first.kill()  # without a word: the lock goes with the process
    first.wait()
    for _ in range(2):
        with alone_in(RunFolder(tmp_path)):
            assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["listens", "in the background of a script"])
def _interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """What SIGINT does before."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
def test_sigterm_asks_for_an_end_and_the_second_one_insists(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def insist() -> None:
        with sigterm_stops(folder):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            assert folder.stop_requested()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        insist()
    assert signal.getsignal(signal.SIGTERM) == before
