"""`vicc embed` on a real Ray, killed in five ways: the same command goes on, and the archive is that of an undisturbed job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_experiment
from videos import shifted_texture, write_video

from benchmarks.nodes import command_line, descendants, local_cluster, send
from vicc_ray.archive.store import is_archive, open_archive
from vicc_ray.config import dump_experiment
from vicc_ray.models.encoder import build_encoder
from vicc_ray.models.encoder_file import EncoderFile, save_encoder
from vicc_ray.runs.folder import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FILES, SECONDS = 3, 120  # of video, cut into parts of a second: minutes of work for a job that is to be killed
# The command, but that parts are written often, as a job of hours would have written many.
_DRIVER = (
    "import sys; from vicc_ray.archive import embedding; embedding.PART_ROWS = 16; from vicc_ray import cli; "
    "sys.argv = ['vicc', *sys.argv[1:]]; cli.main()"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "tiny")
    experiment = tiny_experiment()
    folder.path.mkdir(parents=True)
    folder.config.write_text(dump_experiment(experiment))
    torch.manual_seed(0)
    encoder = build_encoder(experiment.model.backbone, width=experiment.model.width, embedding_dim=8)
    save_encoder(folder.encoder("RGB-2"), EncoderFile(encoder.spec, "rgb", encoder.state_dict()))
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(FILES):
        film = np.tile(shifted_texture(50, 64, 96, 2, 1, seed=number), (SECONDS // 2, 1, 1, 1))
        write_video(folder / f"{number}.mp4", film)
    (folder / "bad.mp4").write_bytes(b"no video")
    return folder


def start(
    run: RunFolder, films: Path, out: Path, *more: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    words = ["embed", str(run), str(films), "--out", str(out), "--cut", "1s", "--workers", "1", *more]
    environment = environment or {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = out.with_suffix(".log").open("a")
    command = [sys.executable, "-c", _DRIVER, *words]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str], out: Path) -> str:
    status = process.wait(240)
    text = out.with_suffix(".log").read_text()
    assert status == 0, text[-3000:]
    return " ".join(text.split())


def rows(out: Path) -> int:
    return len(open_archive(str(out), rows_needed=False)) if is_archive(str(out)) else 0


def wait_for_rows(out: Path, least: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while rows(out) < least:
        assert process.poll() is None, out.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)


def contents(out: Path) -> dict[str, bytes]:
    archive = open_archive(str(out))
    ids = archive.table()["id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, (vector.tobytes() for vector in archive.rows().whole()), strict=True))


@pytest.fixture(scope="module")
def undisturbed(run: RunFolder, films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "a"
    text = finish(start(run, films, out), out)
    assert f"{films}/bad.mp4" in text
    found = contents(out)
    assert len(found) == FILES * SECONDS
    return found


@pytest.mark.parametrize("least", [1, 150])
def test_the_driver_is_killed(
    run: RunFolder, films: Path, tmp_path: Path, undisturbed: dict[str, bytes], least: int
) -> None:
    out = tmp_path / "a"
    process = start(run, films, out)
    wait_for_rows(out, least, process)
    process.kill()
    process.wait()
    there = rows(out)
    assert there < len(undisturbed)
    text = finish(start(run, films, out), out)
    assert f"{there} of {len(undisturbed)} are in" in text
    assert contents(out) == undisturbed


@pytest.mark.parametrize("kind", ["DecodeListed", "EncodeWindows"])
def test_an_actor_is_killed(
    run: RunFolder, films: Path, tmp_path: Path, undisturbed: dict[str, bytes], kind: str
) -> None:
    out = tmp_path / "a"
    process = start(run, films, out)
    wait_for_rows(out, 20, process)
    victims = [number for number in descendants(process.pid) if kind in command_line(number)]
    assert victims
    send(victims[0], signal.SIGKILL)
    finish(process, out)
    assert contents(out) == undisturbed


def test_a_node_is_killed(run: RunFolder, films: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    out = tmp_path / "a"
    with local_cluster(1) as cluster:
        lost = cluster.add_node()
        process = start(run, films, out, "--address", cluster.address, environment=cluster.environment)
        wait_for_rows(out, 20, process)
        cluster.kill(lost)
        if process.wait(600):  # what Ray could not make good the same command does
            finish(start(run, films, out, "--address", cluster.address, environment=cluster.environment), out)
    assert contents(out) == undisturbed
