"""The doctor: each check against facts that are right and facts that are wrong, what a node finds, real nodes last."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from packed import make_store, pack
from tiny import TINY, tiny_experiment, tiny_manifest

from benchmarks.nodes import local_cluster
from vicc_ray.cluster.resources import PREFETCH, UNKNOWN, Machine, Node, buffer_bytes
from vicc_ray.commands.doctor import healthy
from vicc_ray.config import WorkerRange
from vicc_ray.data.manifest import Manifest
from vicc_ray.doctor import facts as facts_module
from vicc_ray.doctor.checks import (
    Finding,
    Transfer,
    check_clocks,
    check_gpus,
    check_memory,
    check_network,
    check_nodes,
    check_processors,
    check_storage,
    check_stores,
    check_supply,
    check_versions,
    check_videos,
)
from vicc_ray.doctor.demand import Capacity, check_demand, demand_of
from vicc_ray.doctor.facts import (
    NodeFacts,
    Question,
    VideoTry,
    cores_here,
    gather,
    gpus_here,
    leave_file,
    try_videos,
    unseen_files,
)

GIB = 2**30
PACKAGES = {"python": "3.12.4", "ray": "2.60.0", "torch": "2.15.0"}
SOUND = NodeFacts(
    name="a",
    packages=PACKAGES,
    cpus=8,
    cores=8,
    memory=32 * GIB,
    memory_free=30 * GIB,
    shm=10 * GIB,
    object_store=9 * GIB,
    videos=(VideoTry("v.mp4", 0.05),),
)


def worst(findings: Sequence[Finding]) -> str:
    """The gravest state."""
    return max((finding.state for finding in findings), key=["ok", "warning", "failure"].index)


@pytest.mark.parametrize(
    ("check", "wrong", "state", "told"),
    [
        (
            lambda n: check_versions(n, PACKAGES),
            {"packages": PACKAGES | {"torch": "2.11.0"}},
            "failure",
            "a has 2.11.0",
        ),
        (
            lambda n: check_versions(n, PACKAGES),
            {"packages": PACKAGES | {"python": "3.11.4"}},
            "failure",
            "a has 3.11.4",
        ),
        (lambda n: check_versions(n, PACKAGES), {"packages": {}}, "failure", "a has none"),
        (check_processors, {"cores": 4}, "warning", "allocates 8, the machine allows 4"),
        (
            check_gpus,
            {"gpus": 2, "gpu_memory": (GIB,), "gpu_error": "no driver"},
            "failure",
            "2, torch can use 1 (no driver)",
        ),
        (check_memory, {"shm": 64 * 2**20}, "failure", "may take 9.0 GiB, /dev/shm has 0.1 GiB"),
        (check_memory, {"memory_free": GIB}, "warning", "1.0 GiB of 32.0 GiB are free"),
        (check_clocks, {"clock": -5.0, "clock_error": 0.1}, "warning", "a is -5.0 s off"),
        (check_clocks, {"clock": 120.0, "clock_error": 0.1}, "failure", "a is +120.0 s off"),
        (
            lambda n: check_storage(n, "/runs"),
            {"storage_error": "read-only"},
            "failure",
            "cannot write to /runs: read-only",
        ),
        (lambda n: check_storage(n, "/runs"), {"unseen": ("b",)}, "failure", "a does not see in /runs what b wrote"),
        (check_stores, {"store_error": "is not there"}, "failure", "a: is not there"),
        (
            check_videos,
            {"videos": (VideoTry("v", 0.1, "gone"), VideoTry("w", 0.1))},
            "failure",
            "1 of 2 cannot be read (v: gone",
        ),
        (check_videos, {"videos": (VideoTry("v", 9.0), VideoTry("w", 3.0))}, "warning", "3.0 s for a clip"),
    ],
)
def test_what_is_wrong_is_found_and_what_is_right_is_not(
    check: Callable[[list[NodeFacts]], list[Finding]], wrong: dict[str, Any], state: str, told: str
) -> None:
    assert all(finding.state == "ok" for finding in check([replace(SOUND, name="b"), SOUND]))
    findings = check([replace(SOUND, name="b"), replace(SOUND, **wrong)])
    assert worst(findings) == state
    assert any(told in finding.message and finding.remedy for finding in findings)


def test_nodes_with_matrix_units_are_counted() -> None:
    (found,) = check_processors([SOUND, replace(SOUND, name="b", matrix_units=True)])
    assert found.message == "2 nodes of 8; 1 with matrix units for bf16 (see optim.precision)"
    assert check_processors([SOUND])[0].message == "1 nodes of 8"


def test_small_differences_are_none() -> None:
    assert check_versions([replace(SOUND, packages=PACKAGES | {"python": "3.12.9"})], PACKAGES)[0].state == "ok"
    slow_question = replace(SOUND, clock=5.0, clock_error=4.0)
    assert check_clocks([slow_question])[0].state == "ok", "the way there and back took as long"


def test_a_node_that_cannot_be_asked_is_told_and_left_out() -> None:
    lost = NodeFacts("c", error="ModuleNotFoundError: No module named 'vicc_ray'")
    findings = check_nodes([SOUND, lost], PACKAGES, None)
    assert [f.message for f in findings if f.state == "failure"] == [
        "c: ModuleNotFoundError: No module named 'vicc_ray'"
    ]
    assert not healthy(findings) and healthy(check_nodes([SOUND], PACKAGES, None))


def test_a_node_that_cannot_write_is_not_missed_by_others() -> None:
    findings = check_storage([replace(SOUND, storage_error="no"), replace(SOUND, name="b", unseen=("a",))], "/runs")
    assert len(findings) == 1


def test_network() -> None:
    assert check_network([]) == []
    fine = [Transfer("a", "b", 1e9), Transfer("b", "a", 5e8)]
    assert check_network(fine)[0].state == "ok" and "b -> a: 500 MB/s" in check_network(fine)[0].message
    assert check_network([*fine, Transfer("a", "c", 2e7)])[0].state == "warning"
    assert check_network([*fine, Transfer("a", "c", 0.0, "lost")])[0].state == "failure"


# -- room


def room(now: tuple[int, int], grown: tuple[int, int] | None, **train: Any) -> Finding:
    """The finding about room for the tiny experiment."""
    experiment = tiny_experiment(train=train)
    capacity = Capacity((Node(Machine(*now, 4 * GIB)),), Machine(*grown, 4 * GIB) if grown else None, 64 * GIB)
    return next(f for f in check_demand(experiment, 8, capacity) if f.check == "room")


@pytest.mark.parametrize(
    ("now", "grown", "train", "state", "told"),
    [
        ((8, 0), None, {"workers": 4}, "ok", "fits now: 4 workers, CPUs for 8"),
        ((8, 2), None, {"workers": 2}, "ok", "fits now: 2 workers, GPUs for 2"),
        (
            (2, 0),
            None,
            {"workers": {"min": 1, "max": 4}},
            "ok",
            "begins now with 2 of up to 4 workers, grows if nodes join",
        ),
        ((2, 0), (6, 0), {"workers": {"min": 1, "max": 4}}, "ok", "begins now with 2 of up to 4 workers, grows to 4"),
        ((0, 0), (6, 0), {"workers": {"min": 1, "max": 4}}, "ok", "fits after scaling up"),
        (
            (0, 0),
            (64, 8),
            {"workers": 4, "use_gpu": True},
            "ok",
            "fits after scaling up, and waits for it: GPUs for 0 workers now, for 8 at most",
        ),
        (
            (0, 0),
            (UNKNOWN, UNKNOWN),
            {"workers": 4, "use_gpu": True},
            "ok",
            "GPUs for 0 workers now, and how many may come is not known",
        ),
        ((0, 0), (UNKNOWN, UNKNOWN), {"workers": 4}, "failure", "auto cannot decide"),
        ((2, 0), None, {"workers": 4}, "failure", "4 workers need as many CPUs"),
        ((8, 0), None, {"workers": 2, "use_gpu": True}, "failure", "2 workers need as many GPUs, there are 0"),
        ((0, 0), (2, 0), {"workers": {"min": 4, "max": 8}}, "failure", "the cluster has 0 and at most 2"),
    ],
)
def test_room(now: Any, grown: Any, train: dict[str, Any], state: str, told: str) -> None:
    found = room(now, grown, **train)
    assert found.state == state and told in found.message
    assert bool(found.remedy) == (state == "failure")


def test_memory_that_is_too_small_is_told() -> None:
    experiment = tiny_experiment(train={"workers": 4})
    wide = replace_clip(experiment.model_dump(mode="json"))
    few = Capacity((Node(Machine(8, 0, 200 * 2**20)),), None, GIB)
    told = [finding.check for finding in check_demand(wide, 512, few) if finding.state == "warning"]
    assert told == ["object store", "room"]


def replace_clip(tree: dict[str, Any]) -> Any:
    return tiny_experiment(**tree | {"clip": {"frames": 32, "decode_size": [128, 171], "size": 128}})


def test_buffer_is_the_streams_own() -> None:
    """The estimate is what the stream will set: asked of its own function with its own arguments."""

    for batch, workers, actors in ((8, 1, 1), (512, 8, 24), (96, 5, 3)):
        experiment = replace_clip(tiny_experiment().model_dump(mode="json"))
        train = experiment.train.model_copy(
            update={"workers": WorkerRange(min=workers, max=workers), "decode_actors": actors, "use_gpu": False}
        )
        experiment = experiment.model_copy(update={"train": train})
        capacity = Capacity((Node(Machine(workers + actors, 0, 1 << 40)),), None, 1 << 40)
        blocks = PREFETCH + 3 + 2 * math.ceil(actors / workers)
        real = buffer_bytes(experiment.clip, clips=2 * -(-batch // workers), blocks=blocks)
        assert demand_of(experiment, batch, capacity).buffer == workers * real


# -- what a node finds


def test_facts_of_this_machine(videos: Manifest, tmp_path: Path) -> None:
    rows = tuple(videos.select("train")[:2])
    found = gather("me", Question(str(tmp_path / "d"), tiny_experiment(), rows))
    assert found.error is None and found.storage_error is None and (tmp_path / "d" / "me").is_file()
    assert found.packages["torch"] and 0 < found.memory_free <= found.memory
    assert [one.refused for one in found.videos] == [None, None] and all(one.seconds > 0 for one in found.videos)
    assert found.cores <= cores_here() + 1e-6


def test_files_of_other_nodes(tmp_path: Path, bucket: str) -> None:
    for folder in (str(tmp_path / "d"), f"{bucket}/runs/d"):
        assert leave_file(folder, "a") is None
        assert unseen_files(folder, ["a", "b"]) == ("b",)
    assert unseen_files(str(tmp_path / "none"), ["a"]) == ("a",)
    (tmp_path / "file").write_text("")
    assert "file" in (leave_file(str(tmp_path / "file"), "a") or "")


def test_a_video_that_is_not_there(videos: Manifest) -> None:
    row = replace(videos.select("train")[0], video="/nowhere/v.mp4")
    (one,) = try_videos(tiny_experiment(), [row])
    assert one.refused


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "GPU_QUESTION", "print('1024 card'); print('2048 other card')")
    assert gpus_here() == ((1024, 2048), None)
    monkeypatch.setattr(facts_module, "GPU_QUESTION", "raise SystemError('no driver')")
    assert gpus_here() == ((), "SystemError: no driver")
    monkeypatch.setattr(facts_module, "GPU_SECONDS", 0.2)
    monkeypatch.setattr(facts_module, "GPU_QUESTION", "import time; time.sleep(9)")
    assert "did not come back" in (gpus_here()[1] or "")


@pytest.mark.parametrize("section", ["clip", "flow"])
def test_a_store_that_is_not_there(section: str, tmp_path: Path) -> None:
    place = tmp_path / "packed"
    experiment = tiny_experiment(**{section: {"source": "store", "store": str(place)}})
    assert gather("me", Question(experiment=experiment)).store_error == f"{place} is not there"
    place.mkdir()
    assert gather("me", Question(experiment=experiment)).store_error is None


def test_what_a_core_delivers_from_the_videos_and_from_a_store(tmp_path: Path, videos: Manifest) -> None:
    rows = videos.videos[:2]
    experiment = tiny_experiment()
    size, flow = experiment.clip.decode_size, experiment.flow
    pack(make_store(tmp_path, size, flow=flow), rows, flow=flow)
    (streamed,) = check_supply([replace(SOUND, videos=tuple(try_videos(experiment, rows)))])
    assert "samples/s from the videos; cores" in streamed.message and "vicc pack" in streamed.remedy
    packed = tiny_experiment(clip={"source": "store", "store": str(tmp_path)})
    tries = try_videos(packed, rows)
    assert all(one.refused is None and set(one.sample_seconds) == {"videos", "store"} for one in tries)
    (both,) = check_supply([replace(SOUND, videos=tuple(tries))])
    assert "from the videos, " in both.message and "from the packed store" in both.message and not both.remedy
    slow = VideoTry("v", 0.1, sample_seconds={"videos": 0.16, "store": 0.008})
    assert (
        "a core delivers 6.25 samples/s from the videos, 125 samples/s"
        in check_supply([replace(SOUND, videos=(slow,))])[0].message
    )
    assert check_supply([replace(SOUND, videos=(slow,))])[0].message.endswith("at 100 samples/s: 16, 1")
    assert check_supply([SOUND]) == []


# -- real nodes


def vicc(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "vicc"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.cluster
def test_two_nodes(tmp_path: Path) -> None:
    """Every check on a real cluster; then a video that is gone, more workers than there are CPUs, and no cluster at all."""
    manifest = tiny_manifest(tmp_path / "data")
    manifest.write(tmp_path / "videos.parquet")
    tree = TINY | {"runs": str(tmp_path / "runs"), "data": {"manifest": str(tmp_path / "videos.parquet")}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    words = ["doctor", str(tmp_path / "tiny.yaml"), "--json", "--address"]
    with local_cluster(2) as cluster:
        told = vicc(*words, cluster.address, "--set", "train.workers={min: 1, max: 4}", env=cluster.environment)
        assert told.returncode == 0, told.stdout + told.stderr
        found = {entry["check"]: entry for entry in json.loads(told.stdout)["findings"]}
        assert found["nodes"]["message"].startswith("3 of 3 answered: ")
        assert {"versions", "CPUs", "memory", "clocks", "storage", "videos", "network", "demand", "room"} <= set(found)
        assert "begins now with 2 of up to 4 workers" in found["room"]["message"]
        assert not list((tmp_path / "runs").glob("doctor-*")), "nothing is left in the folder of runs"

        Path(manifest.select("train")[0].video).unlink()
        told = vicc(*words, cluster.address, "--set", "train.workers=3", env=cluster.environment)
        failed = [entry for entry in json.loads(told.stdout)["findings"] if entry["state"] == "failure"]
        assert told.returncode == 1 and {entry["check"] for entry in failed} == {"videos", "room"}
        assert all(entry["remedy"] for entry in failed)
    told = vicc(*words, "127.0.0.1:1", env=cluster.environment)
    assert told.returncode == 2 and "cannot join the Ray cluster there" in told.stderr.strip().splitlines()[-1]
