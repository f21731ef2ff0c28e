"""One driver a folder; a polite end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_experiment

from vicc_ray import storage
from vicc_ray.cluster.launch import run_training
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.machine import lock
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.driver import alone_in, is_held, sigterm_stops

HOLD = """
import sys, time
from pathlib import Path
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.driver import alone_in
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


def test_a_driver_that_is_refused_has_changed_nothing(tmp_path: Path, videos: Manifest) -> None:
    """Also where its settings would be accepted; the workers of the other one may be started again at any time."""
    videos.write(tmp_path / "videos.parquet")
    data = {"manifest": str(tmp_path / "videos.parquet")}
    experiment = tiny_experiment(runs=str(tmp_path), data=data)
    folder = RunFolder.at(experiment.run_folder)
    folder.open(experiment, videos.fingerprint())
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "mine\n"
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        with pytest.raises(UserError, match="is training in it"):
            run_training(tiny_experiment(runs=str(tmp_path), data=data, evaluate={"neighbours": 2}))
        assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    finally:
        first.kill()
        first.wait()


def test_a_resumed_run_follows_its_videos(tmp_path: Path, videos: Manifest) -> None:
    videos.write(tmp_path / "videos.parquet")
    experiment = tiny_experiment(runs=str(tmp_path), data={"manifest": str(tmp_path / "videos.parquet")})
    folder = RunFolder.at(experiment.run_folder)
    folder.open(experiment, videos.fingerprint())
    folder.keep_manifest(videos)
    for stage in ("RGB-1", "Flow-1", "RGB-2", "Flow-2"):  # so that nothing is left to start
        folder.encoder(stage).parent.mkdir(exist_ok=True)
        folder.encoder(stage).touch()
    moved = Manifest([replace(row, video=f"/elsewhere{row.video}") for row in videos.videos])
    moved.write(tmp_path / "videos.parquet")
    run_training(experiment)
    assert Manifest.read(folder.manifest).videos == moved.videos


def test_asking_whether_a_folder_is_held_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "run")
    assert is_held(folder) is False
    assert not folder.path.exists()
    with alone_in(folder):
        assert is_held(folder) is True
    held_by = (folder.path / "lock").read_text()
    opened = os.open

    def read_only(path: str, flags: int, *rest: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", read_only)
    assert is_held(folder) is False
    assert (folder.path / "lock").read_text() == held_by

    def closed(path: str, flags: int, *rest: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", closed)
    assert is_held(folder) is None


def test_asking_whether_a_folder_is_held_refuses_no_driver(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "lock").touch()
    asking = os.open(tmp_path / "lock", os.O_RDONLY)
    assert lock(asking)
    threading.Timer(0.05, lambda: os.close(asking)).start()
    with alone_in(folder):
        assert is_held(folder) is True


def test_a_store_that_refuses_is_told_in_one_line(
    bucket: str, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    videos.write(tmp_path / "videos.parquet")
    experiment = tiny_experiment(runs=f"{bucket}/runs", data={"manifest": str(tmp_path / "videos.parquet")})

    def denied(*_: object) -> None:
        raise OSError("When uploading object: AWS Error ACCESS_DENIED during PutObject operation")

    monkeypatch.setattr("vicc_ray.storage.upload", denied)
    with pytest.raises(UserError, match=rf"{bucket}/runs/tiny: cannot be read or written \(.*ACCESS_DENIED"):
        run_training(experiment)


def test_a_run_that_was_deleted_in_its_store_is_not_finished(
    bucket: str, tmp_path: Path, videos: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    videos.write(tmp_path / "videos.parquet")
    experiment = tiny_experiment(runs=f"{bucket}/runs", data={"manifest": str(tmp_path / "videos.parquet")})
    folder = RunFolder.at(experiment.run_folder)
    folder.open(experiment, videos.fingerprint())
    for stage in ("RGB-1", "Flow-1", "RGB-2", "Flow-2"):
        folder.encoder(stage).parent.mkdir(exist_ok=True)
        folder.encoder(stage).write_bytes(b"weights")
        folder.push(folder.encoder(stage))

    class Begun(Exception):
        """Workers would start now."""

    def begins(*_: object, **__: object) -> None:
        raise Begun

    monkeypatch.setattr("vicc_ray.cluster.launch.ray_session", begins)
    run_training(experiment)  # every stage is finished
    storage.remove_folder(str(folder))
    with pytest.raises(Begun):
        run_training(experiment)
    names = {entry.name.removeprefix(f"{folder}/") for entry in storage.list_files(str(folder))}
    assert names == {"config.yaml", "provenance.json", "manifest.parquet"}
