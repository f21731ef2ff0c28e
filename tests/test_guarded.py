"""A function run over items in processes of their own: its crash or hang costs one item."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from vicc_ray.data.guarded import Failure, run_guarded


def _work(item: str) -> str:
    if item == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hang":
        time.sleep(600)
    if item == "exit":
        os._exit(3)
    if item == "raise":
        raise ValueError("two\nlines")
    return item.upper()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_crash_or_a_hang_costs_one_item(workers: int) -> None:
    items = ["a", "segfault", "b", "hang", "c", "exit", "raise", "d"]
    outcomes = dict(run_guarded(_work, items, workers, timeout_seconds=1.0))
    assert [outcomes[i] for i in range(len(items))] == [
        "A",
        Failure("it crashed the decoder (SIGSEGV)"),
        "B",
        Failure("the decoder gave no answer within 1 s"),
        "C",
        Failure("it crashed the decoder (exit status 3)"),
        Failure("two lines"),
        "D",
    ]


def test_leaving_early_ends_the_processes() -> None:
    before = threading.active_count()
    started = time.monotonic()
    for _, outcome in run_guarded(_work, ["a", "hang", "hang"], 2, timeout_seconds=300):
        assert outcome == "A"
        break
    assert time.monotonic() - started < 30
    assert threading.active_count() == before
    assert list(run_guarded(_work, [], 2, 1.0)) == []
