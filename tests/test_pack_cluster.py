"""`vicc pack` on a real Ray, killed in several ways: the same command goes on, and the store is that of an undisturbed job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from videos import shifted_texture, write_video

from benchmarks.nodes import command_line, descendants, local_cluster, send
from vicc_ray.commands.unpack import entries_of
from vicc_ray.data.layouts import scan
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.probing import index
from vicc_ray.data.segments import cut_evenly
from vicc_ray.data.store.reading import EntryReader
from vicc_ray.data.store.store import PackedStore
from vicc_ray.data.store.writing import list_loose

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FILES, SECONDS = 3, 60  # of video, cut into parts of a second: long enough to be killed
Contents = dict[tuple[str, str, int], bytes]
# The command, but that shards are small, as a job of hours would have filled many.
_DRIVER = (
    "import sys; from dataclasses import replace; from vicc_ray.commands import pack; whole = pack.pack_videos; "
    "pack.pack_videos = lambda *words: whole(*words[:-1], replace(words[-1], shard_bytes=150_000)); "
    "from vicc_ray import cli; sys.argv = ['vicc', *sys.argv[1:]]; cli.main()"
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(FILES):
        film = np.tile(shifted_texture(50, 64, 96, 2, 1, seed=number), (SECONDS // 2, 1, 1, 1))
        write_video(folder / f"{number}.mp4", film)
    found = Manifest(part for row in index(scan(str(folder), "flat")).videos for part in cut_evenly(row, 1.0))
    assert len(found) == FILES * SECONDS
    gone = folder / "2.mp4"  # it was there when the videos were indexed
    file = folder / "videos.parquet"
    found.write(file)
    gone.unlink()
    return file


def start(manifest: Path, store: Path, *more: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    words = ["pack", str(manifest), "--store", str(store), "--size", "64x96", "--workers", "1", *more]
    words += ["--set", "data.max_refused=0.4"]
    environment = environment or {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    log = store.with_suffix(".log").open("a")
    command = [sys.executable, "-c", _DRIVER, *words]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen[str], store: Path) -> str:
    status = process.wait(300)
    text = store.with_suffix(".log").read_text()
    assert status == 0, text[-3000:]
    return " ".join(text.split())


def count(store: Path) -> int:
    """Entries that are whole, in shards or waiting for one."""
    if not (store / "store.json").is_file():
        return 0
    opened = PackedStore.open(str(store))
    return len(list_loose(opened)) + len(opened.index("rgb")) + len(opened.index("flow"))


def wait_for(store: Path, least: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while count(store) < least:
        assert process.poll() is None, store.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def contents(store: Path) -> Contents:
    """Every entry's bytes; each is there once, nothing waits, and no shard is left that no index speaks of."""
    opened = PackedStore.open(str(store))
    reader, found = EntryReader(opened), dict[tuple[str, str, int], bytes]()
    for entry in entries_of(opened):
        where = entry.where
        reader.verify(where)
        key = (entry.video, entry.stream, where.first_frame)
        assert key not in found
        found[key] = reader.files.read(where.shard, where.offset, where.offset + where.bytes)
    assert not list_loose(opened) and not list((store / "loose").rglob("*"))
    indexed = {shard for stream in ("rgb", "flow") for shard in opened.index(stream).shards}
    assert {file.stem for file in (store / "shards").iterdir()} == indexed and len(indexed) > 4
    return found


@pytest.fixture(scope="module")
def undisturbed(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    store = tmp_path_factory.mktemp("whole") / "s"
    text = finish(start(manifest, store), store)
    assert "2.mp4@0-1: no such file" in text and f"{(FILES - 1) * SECONDS} videos stored, {SECONDS} refused" in text
    found = contents(store)
    assert len(found) == 2 * (FILES - 1) * SECONDS
    return found


@pytest.mark.parametrize("least", [1, 120])
def test_the_driver_is_killed(manifest: Path, tmp_path: Path, undisturbed: Contents, least: int) -> None:
    store = tmp_path / "s"
    process = start(manifest, store)
    wait_for(store, least, process)
    process.kill()
    process.wait()
    there = count(store)
    assert there < len(undisturbed)
    text = finish(start(manifest, store), store)
    assert least == 1 or "are there already" in text
    assert contents(store) == undisturbed


def test_a_packing_actor_is_killed(manifest: Path, tmp_path: Path, undisturbed: Contents) -> None:
    store = tmp_path / "s"
    process = start(manifest, store)
    wait_for(store, 60, process)
    victims = [number for number in descendants(process.pid) if "MapBatches(_Worker)" in command_line(number)]
    assert victims
    send(victims[0], signal.SIGKILL)
    finish(process, store)
    assert contents(store) == undisturbed


def test_a_node_is_killed(manifest: Path, tmp_path: Path, undisturbed: Contents) -> None:
    store = tmp_path / "s"
    with local_cluster(1) as cluster:
        lost = cluster.add_node()
        address = ("--address", cluster.address)
        process = start(manifest, store, *address, environment=cluster.environment)
        wait_for(store, 60, process)
        cluster.kill(lost)
        if process.wait(600):  # what Ray could not make good the same command does
            finish(start(manifest, store, *address, environment=cluster.environment), store)
    assert contents(store) == undisturbed


def test_only_what_is_new_is_packed(manifest: Path, tmp_path: Path, undisturbed: Contents) -> None:
    store = tmp_path / "s"
    rows = Manifest.read(manifest).videos
    part = tmp_path / "part.parquet"
    Manifest(rows[:SECONDS]).write(part)
    finish(start(part, store), store)
    before = {file.name: file.stat().st_mtime_ns for file in (store / "shards").iterdir()}
    text = finish(start(manifest, store), store)
    assert f"{SECONDS} of {FILES * SECONDS} videos are there already" in text
    after = {file.name: file.stat().st_mtime_ns for file in (store / "shards").iterdir()}
    assert before.items() <= after.items()
    found = contents(store)
    assert found == undisturbed
