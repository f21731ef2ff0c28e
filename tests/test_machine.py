"""CPUs, memory and locks, with and without what Linux has."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from vicc_ray import machine
from vicc_ray.machine import lock, memory_bytes, usable_cpus


def test_cpus_are_those_of_the_affinity_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
        assert usable_cpus() == 3
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cpus() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus() == 1


def test_memory_is_what_the_system_says() -> None:
    if "SC_PHYS_PAGES" in os.sysconf_names:
        assert memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes() > 1 << 28


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").write_text("who")
    first, second = (os.open(tmp_path / "lock", os.O_RDWR) for _ in range(2))
    monkeypatch.setattr(machine, "LOCK_RETRY_SECONDS", 0.01)
    assert lock(first) is True
    assert lock(second) is False
    os.close(first)
    assert lock(second) is True
    os.close(second)
    assert (tmp_path / "lock").read_text() == "who"


def test_a_lock_that_is_held_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    handles = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    assert lock(handles[0])
    threading.Timer(0.05, lambda: os.close(handles[0])).start()
    assert lock(handles[1]) is True
    os.close(handles[1])


def test_where_there_are_no_locks_nobody_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", none)
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert lock(handle) is None
    os.close(handle)
