"""A function run over items in processes of their own: its crash, hang or leak costs one item at most."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from afflicted import arrays, killed, leak, maps, pid, unpicklable, work

from vicc_ray.data.guarded import Closed, Failure, Guarded, run_guarded

HERE = Path(__file__).parent
proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system tells no process's memory")


@pytest.fixture
def guard() -> Iterator[Callable[..., Guarded[Any, Any]]]:
    made: list[Guarded[Any, Any]] = []

    def make(function: Callable[[Any], Any], seconds: float = 20.0, **options: Any) -> Guarded[Any, Any]:
        made.append(Guarded(function, seconds, **options))
        return made[-1]

    yield make
    for guarded in made:
        guarded.close()


def gone(process: int, seconds: float = 10.0) -> bool:
    """Whether a process that is not this one's child has ended, or does so soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@proc
def test_an_item_that_wants_too_much_memory_fails_alone(guard: Callable[..., Guarded[int, Any]]) -> None:
    guarded = guard(leak, memory_bytes=200 << 20)
    first = guarded(1)
    assert guarded(400) == Failure("it wants more memory than it may have (MemoryError)")
    assert guarded(2) == first  # the same process
    assert guard(leak)(400) > 0  # type: ignore[operator]


# One process ---------------------------------------------------------------------------------------------------------


def test_a_crash_a_hang_and_an_exception_cost_their_item(guard: Callable[..., Guarded[str, str]]) -> None:
    guarded = guard(work, 0.5)
    assert guarded("a") == "A"
    assert guarded("segfault") == Failure("it crashed the decoder (SIGSEGV)")
    assert guarded("b") == "B"
    first = guarded.pid
    assert guarded("raise") == Failure("two lines")
    assert guarded.pid == first, "an exception needs no new process"
    assert guarded("hang") == Failure("the decoder gave no answer within 0.5 s")
    assert guarded("exit") == Failure("it crashed the decoder (exit status 3)")
    assert guarded("c") == "C"


def test_arrays_arrive_whole_and_are_the_callers(guard: Callable[..., Guarded[int, dict[str, Any]]]) -> None:
    guarded = guard(arrays)
    kept = [guarded(seed) for seed in range(8)]
    for seed, got in enumerate(kept):
        wanted = arrays(seed)
        assert got.keys() == wanted.keys()  # type: ignore[union-attr]
        for name, value in wanted.items():
            assert np.array_equal(got[name], value), (seed, name)  # type: ignore[index]
        assert got["image"].flags.writeable  # type: ignore[index]
        got["image"][...] = 7  # type: ignore[index]


def test_what_cannot_be_sent_is_a_failure(guard: Callable[..., Guarded[Any, Any]]) -> None:
    guarded = guard(unpicklable)
    assert "its result cannot be sent" in guarded(0).reason
    assert "its result cannot be sent" in guarded(0).reason


@proc
def test_a_leaking_process_is_replaced_before_it_matters(guard: Callable[..., Guarded[int, int]]) -> None:
    guarded = guard(leak, recycle_rss_growth_bytes=40 << 20)
    pids = [guarded(megabytes) for megabytes in [1] * 8 + [15] * 9]
    # After 8 items the leak counts: the third of 15 MB crosses 40 MB, and the next process starts afresh.
    assert len(set(pids[:11])) == 1
    assert pids[11] != pids[10]
    assert len(set(pids)) == 2
    steady = guard(pid, recycle_rss_growth_bytes=10 << 20)
    assert len({steady(0) for _ in range(50)}) == 1


def test_death_between_items_costs_nothing(guard: Callable[..., Guarded[Any, int]]) -> None:
    guarded = guard(pid)
    first = guarded(0)
    os.kill(first, signal.SIGKILL)  # type: ignore[arg-type]
    assert gone(first)  # type: ignore[arg-type]
    assert guarded(0) != first


def test_one_kill_from_outside_is_forgiven(guard: Callable[..., Guarded[str, str]], tmp_path: Path) -> None:
    once, never = tmp_path / "once", tmp_path / "never"
    once.write_text("x")
    guarded = guard(killed)
    assert guarded(str(once)) == "done"
    assert guarded(str(never)) == Failure("it crashed the decoder (SIGKILL)")


def test_closing_ends_a_process_in_the_middle_of_its_item(guard: Callable[..., Guarded[str, str]]) -> None:
    guarded = guard(work, 300)
    assert guarded("a") == "A"
    child = guarded.pid
    assert child is not None
    threading.Timer(0.3, guarded.close).start()
    started = time.monotonic()
    with pytest.raises(Closed):
        guarded("hang")
    assert time.monotonic() - started < 10
    assert gone(child)
    with pytest.raises(Closed):
        guarded("a")


def test_nothing_stays_open(guard: Callable[..., Guarded[str, str]]) -> None:
    handles = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
    guarded = guard(work)
    guarded("exit")
    before = len(os.listdir(handles))
    for _ in range(3):
        guarded("exit")
        Guarded(work, 20.0)("a")
    assert len(os.listdir(handles)) <= before


def _script(tmp_path: Path, code: str) -> subprocess.Popen[str]:
    """A program whose main module must not run a second time in a child, like a Ray worker's."""
    path = tmp_path / "program.py"
    path.write_text(
        f"import sys\nsys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\nprint('main', flush=True)\n"
        + textwrap.dedent(code)
    )
    return subprocess.Popen([sys.executable, str(path), "--odd", "argument"], stdout=subprocess.PIPE, text=True)


@proc
@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_its_parent(tmp_path: Path, busy: bool) -> None:
    parent = _script(
        tmp_path,
        f"""
        import threading, time
        from afflicted import work
        from vicc_ray.data.guarded import Guarded
        guarded = Guarded(work, 600)
        guarded("a")
        print(guarded.pid, flush=True)
        guarded("hang") if {busy} else time.sleep(600)
        """,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "main\n"
    child = int(parent.stdout.readline())
    time.sleep(0.3 if busy else 0.0)
    assert not gone(child, 0.05)
    parent.kill()
    parent.wait()
    assert gone(child)
    parent.stdout.close()


def test_the_main_module_is_left_alone(tmp_path: Path) -> None:
    parent = _script(
        tmp_path,
        """
        from afflicted import work
        from vicc_ray.data.guarded import Guarded
        print(Guarded(work, 60)("a"), flush=True)
        """,
    )
    assert parent.communicate()[0].split() == ["main", "A"]
    assert parent.returncode == 0


def test_a_function_that_cannot_be_loaded_is_the_programmers_error(guard: Callable[..., Guarded[Any, Any]]) -> None:
    class Missing:
        def __call__(self, item: Any) -> Any:
            return item

    Missing.__qualname__ = "Missing"
    Missing.__module__ = __name__
    globals()["Missing"] = Missing
    try:
        pickle.dumps(Missing())
        with pytest.raises(RuntimeError, match=r"helper process did not start \(exit status 1\)"):
            guard(Missing())(0)
    finally:
        del globals()["Missing"]


# Many ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_outcomes_come_once_each(workers: int) -> None:
    items = ["a", "segfault", "b", "hang", "c", "exit", "raise", "d"]
    outcomes = dict(run_guarded(work, items, workers, timeout_seconds=0.7))
    assert [outcomes[i] for i in range(len(items))] == [
        "A",
        Failure("it crashed the decoder (SIGSEGV)"),
        "B",
        Failure("the decoder gave no answer within 0.7 s"),
        "C",
        Failure("it crashed the decoder (exit status 3)"),
        Failure("two lines"),
        "D",
    ]


def test_leaving_early_ends_the_processes() -> None:
    before = threading.active_count()
    started = time.monotonic()
    for _, outcome in run_guarded(work, ["a", "hang", "hang"], 2, timeout_seconds=300):
        assert outcome == "A"
        break
    assert time.monotonic() - started < 30
    assert threading.active_count() == before
    assert list(run_guarded(work, [], 2, 1.0)) == []


@proc
def test_a_process_near_its_bound_is_replaced_before_others_are_refused(
    guard: Callable[..., Guarded[Any, Any]],
) -> None:
    guarded = guard(maps, memory_bytes=400 << 20)
    found = [guarded(150 << 20) for _ in range(6)]
    assert not any(isinstance(outcome, Failure) for outcome in found), found
    assert len(set(found)) == 3  # two items each
