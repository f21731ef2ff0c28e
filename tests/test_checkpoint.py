"""Checkpoints: whole or not there, verified, the one before a damaged one, kept by age and recall, nothing unpickled."""

from __future__ import annotations

import json
import pickle
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vicc_ray import storage
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import (
    MARKER,
    STATE_FILE,
    CheckpointStore,
    CheckpointWriter,
    DamagedCheckpoint,
    snapshot,
    version_changes,
)

HARM = str(Path(tempfile.gettempdir()) / "vicc-harm")


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (open, (HARM, "w"))


def about(step: int, **changes: Any) -> dict[str, Any]:
    return {"step": step, "stage": "RGB-1", "samples": 8 * step, "workers": 1, **changes}


def state(step: int) -> dict[str, Any]:
    return {"step": step, "trainer": {"w": torch.arange(4.0) + step, "deep": [{"lr": 0.1}, (1, "a")]}}


@pytest.fixture(params=["path", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    """The same on a path, a file:// URI and an object store."""
    if request.param == "s3":
        return CheckpointStore(f"{request.getfixturevalue('bucket')}/run/checkpoints")
    folder = tmp_path / "run" / "checkpoints"
    return CheckpointStore(str(folder) if request.param == "path" else folder.as_uri())


def _spoil(store: CheckpointStore, step: int, data: bytes, name: str = STATE_FILE) -> None:
    storage.write_bytes(storage.join(store.folder, f"step-{step:09d}", name), data)


def test_a_state_comes_back(store: CheckpointStore) -> None:
    assert store.listing() == []
    assert store.newest() is None
    store.write(state(3), about(3, recall=0.5))
    found = store.newest()
    assert found
    assert (found[0].step, found[0].samples, found[0].recall, found[0].stage) == (3, 24, 0.5, "RGB-1")
    assert found[1]["step"] == 3
    assert torch.equal(found[1]["trainer"]["w"], torch.arange(4.0) + 3)
    assert found[1]["trainer"]["deep"] == [{"lr": 0.1}, (1, "a")]


def test_a_checkpoint_without_its_marker_does_not_exist(store: CheckpointStore) -> None:
    store.write(state(3), about(3))
    store.write(state(5), about(5))
    storage.remove(storage.join(store.folder, "step-000000005", MARKER))
    assert [info.step for info in store.listing()] == [3]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "harmful", "of another version"])
def test_the_one_before_a_damaged_one_is_taken_and_told(store: CheckpointStore, damage: str) -> None:
    store.write(state(3), about(3))
    info = store.write(state(5), about(5))
    name = storage.join(store.folder, "step-000000005", STATE_FILE)
    data = storage.read_bytes(name)
    if damage == "gone":
        storage.remove(name)
    else:
        spoilt = {
            "truncated": data[:100],
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "harmful": pickle.dumps(_Harmful()),
            "of another version": data,
        }[damage]
        if damage == "harmful":  # with a marker that vouches for it
            marker = store.write({}, about(5))
            _spoil(store, 5, spoilt)
            text = storage.read_bytes(storage.join(store.folder, "step-000000005", MARKER)).decode()
            from vicc_ray.runs.checkpoint import _digest

            text = text.replace(marker.digest, _digest(spoilt)).replace(
                f'"bytes": {marker.bytes}', f'"bytes": {len(spoilt)}'
            )
            _spoil(store, 5, text.encode(), MARKER)
        elif damage == "of another version":
            store.write({"format": 99, "step": 5}, about(5))
        else:
            _spoil(store, 5, spoilt)
    told: list[str] = []
    found = store.newest(told.append)
    assert found
    assert found[0].step == 3
    assert len(told) == 1
    assert "step 5 is damaged" in told[0]
    assert not Path(HARM).exists()
    assert info.step == 5


def test_when_none_can_be_read_nothing_starts_afresh(store: CheckpointStore) -> None:
    store.write(state(3), about(3))
    _spoil(store, 3, b"x")
    with pytest.raises(UserError, match="none of its 1 checkpoints can be read"):
        store.newest()


def test_the_newest_and_the_best_of_their_stage_are_kept(store: CheckpointStore) -> None:
    recalls = {1: 0.9, 2: 0.2, 3: 0.8, 4: 0.3, 5: None, 6: None}
    for step, recall in recalls.items():
        store.write(state(step), about(step, recall=recall, stage="Flow-1" if step == 1 else "RGB-2"))
        store.prune(2)
    assert [info.step for info in store.listing()] == [6, 5, 3]


def test_a_repeated_step_replaces_its_checkpoint(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(state(3), about(3))

    def fails(name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vicc_ray.storage.write_bytes", fails)
        with pytest.raises(OSError, match="No space"):
            store.write(state(4), about(3))
    assert store.listing() == []  # the old marker does not vouch for half of the new one


def test_a_snapshot_does_not_follow_training() -> None:
    weight = torch.zeros(2, requires_grad=True)
    copy = snapshot({"a": [weight], "b": (1, {"c": weight})})
    with torch.no_grad():
        weight += 1
    assert copy["a"][0].tolist() == copy["b"][1]["c"].tolist() == [0, 0]
    assert not copy["a"][0].requires_grad


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.runs.checkpoint.RETRY_SECONDS", (0.01, 0.01))


@pytest.mark.usefixtures("quick")
def test_the_writer_rides_out_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, told, failures = CheckpointStore(str(tmp_path)), [], [3]
    real = storage.write_bytes

    def flaky(name: str, data: bytes) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(28, "No space left on device")
        real(name, data)

    monkeypatch.setattr("vicc_ray.storage.write_bytes", flaky)
    writer = CheckpointWriter(store, 2, lambda text, step: told.append((text, step)))
    writer.submit(state(1), about(1))  # three tries, all in vain
    assert writer.drain(10)
    assert told == [
        (
            "the checkpoint could not be written ([Errno 28] No space left on device); training goes on, "
            "the next one is tried",
            1,
        )
    ]
    failures[0] = 2
    writer.submit(state(2), about(2))  # the third try works
    writer.close()
    assert [info.step for info in store.listing()] == [2]
    assert writer.failed == 1


def test_training_does_not_wait_and_the_newest_waits_in_place_of_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gate, real = CheckpointStore(str(tmp_path)), threading.Event(), storage.write_bytes

    def slow(name: str, data: bytes) -> None:
        assert gate.wait(10)
        real(name, data)

    monkeypatch.setattr("vicc_ray.storage.write_bytes", slow)
    writer = CheckpointWriter(store, 9, lambda text, step: None)
    for step in range(1, 5):
        writer.submit(state(step), about(step))
        if step == 1:
            while writer._waiting is not None:  # the first is in hand
                pass
    assert not writer.drain(0.05)
    gate.set()
    writer.close()
    assert [info.step for info in store.listing()] == [4, 1]


def test_a_state_of_another_format_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    info = store.write({"format": 99}, about(1))
    with pytest.raises(DamagedCheckpoint, match="another version"):
        store.read(info)


def test_other_versions_are_told(tmp_path: Path) -> None:
    info = CheckpointStore(str(tmp_path)).write(state(1), about(1, versions={"torch": "2.14", "ray": "2.60"}))
    assert version_changes(info, {"torch": "2.14", "ray": "2.60"}) == ""
    assert version_changes(info, {"torch": "2.15"}) == "torch 2.14 -> 2.15, ray 2.60 -> absent"


def test_going_back_past_damaged_ones_ends_them_and_keeps_the_sound_ones(store: CheckpointStore) -> None:
    for step in (2, 4, 6, 8):
        store.write(state(step), about(step))
        store.prune(3)
    for step in (6, 8):
        _spoil(store, step, b"x")
    found = store.newest()
    assert found
    assert found[0].step == 4
    for step in (5, 7):
        store.write(state(step), about(step))
        store.prune(2)
    assert [info.step for info in store.listing()] == [7, 5]
    assert not storage.exists(storage.join(store.folder, "step-000000008"))
    found = store.newest(lambda text: pytest.fail(text))
    assert found
    assert found[0].step == 7


def _markers() -> list[bytes]:
    """What a damaged disk may make of a marker."""
    whole = {"step": 5, "stage": "RGB-1", "samples": 40, "bytes": 9, "digest": "ab", "time": 1.0, "workers": 1}
    numbers, texts = ("step", "samples", "bytes", "time", "workers"), ("stage", "digest")
    wrong = [{**whole, name: value} for name in numbers for value in (None, "x", [], {})]  # type: ignore[var-annotated]
    wrong += [{**whole, name: value} for name in texts for value in (None, 7, [], {})]  # type: ignore[var-annotated]
    wrong += [{**whole, "versions": 3}, {**whole, "recall": "good"}, {**whole, "more": 1}, {**whole, "step": -5}]
    others: list[Any] = [None, 7, "x", [], {}, {"a": 1}, *wrong]
    random = [bytes(np.random.default_rng(seed).integers(0, 256, 40, np.uint8)) for seed in range(20)]
    return [b"", b"{", b"\xff\xfe", b"[" * 100_000, *random, *(json.dumps(one).encode() for one in others)]


def test_a_marker_of_any_bytes_marks_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.write(state(3), about(3))
    store.write(state(5), about(5))
    for marker in _markers():
        _spoil(store, 5, marker, MARKER)
        assert [info.step for info in store.listing()] == [3], marker[:200]
        found = store.newest()
        assert found
        assert found[0].step == 3


def test_a_marker_of_another_step_marks_no_checkpoint(store: CheckpointStore) -> None:
    """A copied one would send the reader to another folder, and the pruner too."""
    store.write(state(3), about(3))
    store.write(state(5), about(5))
    _spoil(store, 5, storage.read_bytes(storage.join(store.folder, "step-000000003", MARKER)), MARKER)
    assert [info.step for info in store.listing()] == [3]
