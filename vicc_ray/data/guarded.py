"""Run a function over many items in processes of their own, so that a crash or a hang costs one item and not the job.

A decoder is native code that reads files from anywhere: it may end its process or never return. Each process works on
one item at a time and one thread of the parent minds it, so it is always known which item did it.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

START_SECONDS = 120.0


@dataclass(frozen=True)
class Failure:
    """An item that has no result; `reason` is one line."""

    reason: str


def run_guarded(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Result | Failure]]:
    """Yield (place in `items`, result or `Failure`) as they come: any order, each place exactly once.

    An exception in `function` is a failure of its item, and so is the death of its process or no answer within
    `timeout_seconds`; a fresh process then takes the next item. Processes are spawned, never forked (the parent may
    hold threads), so `function` and the items must be picklable. Closing the generator ends all of them.
    """
    crew = _Crew(function, items, timeout_seconds)
    threads = [threading.Thread(target=crew.mind, daemon=True) for _ in range(min(max(workers, 1), len(items)))]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            place, outcome = crew.outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield place, outcome
    finally:
        crew.dismiss()
        for thread in threads:
            thread.join()


class _Crew(Generic[Item, Result]):
    """What the minding threads share: the items still to do, the outcomes, and the living processes."""

    def __init__(self, function: Callable[[Item], Result], items: Sequence[Item], timeout_seconds: float) -> None:
        self.function, self.items, self.timeout_seconds = function, items, timeout_seconds
        self.outcomes: SimpleQueue[tuple[int, Result | Failure | BaseException]] = SimpleQueue()
        self._todo: SimpleQueue[int] = SimpleQueue()
        for place in range(len(items)):
            self._todo.put(place)
        self._processes: set[BaseProcess] = set()
        self._lock = threading.Lock()
        self._dismissed = False

    def mind(self) -> None:
        """One thread: keep one process alive and hand it items until none is left."""
        worker: tuple[BaseProcess, Connection] | None = None
        place = -1
        try:
            while not self._dismissed:
                place = self._todo.get_nowait()
                worker = worker or self._start()
                outcome = self._ask(*worker, self.items[place])
                if not worker[0].is_alive():
                    worker = None
                self.outcomes.put((place, outcome))
        except Empty:
            pass
        except BaseException as error:
            # Without this the reader of `outcomes` would wait for ever.
            self.outcomes.put((place, error))
        finally:
            if worker is not None:
                self._stop(worker[0])

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        pipe, far = context.Pipe()
        with self._lock:
            if self._dismissed:
                raise Empty
            process = context.Process(target=_serve, args=(self.function, far), daemon=True)
            process.start()
            self._processes.add(process)
        far.close()
        try:
            if pipe.poll(START_SECONDS):
                pipe.recv()
                return process, pipe
        except EOFError:
            pass
        self._stop(process)
        if self._dismissed:
            raise Empty
        raise RuntimeError(f"a helper process did not start (exit status {process.exitcode})")

    def _ask(self, process: BaseProcess, pipe: Connection, item: Item) -> Result | Failure:
        try:
            pipe.send(item)
            if pipe.poll(self.timeout_seconds):
                outcome: Result | Failure = pipe.recv()
                return outcome
        except (EOFError, OSError):
            process.join()
            code = process.exitcode or 0
            ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            return Failure(f"it crashed the decoder ({ending})")
        self._stop(process)
        return Failure(f"the decoder gave no answer within {self.timeout_seconds:g} s")

    def _stop(self, process: BaseProcess) -> None:
        process.kill()
        process.join()
        with self._lock:
            self._processes.discard(process)

    def dismiss(self) -> None:
        with self._lock:
            self._dismissed = True
            living = list(self._processes)
        for process in living:
            process.kill()


def _serve(function: Callable[[Item], Result], pipe: Connection) -> None:
    """The process: answer items until the parent's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        outcome: Result | Failure
        try:
            outcome = function(item)
        except Exception as error:
            outcome = Failure(" ".join(str(error).split()) or type(error).__name__)
        pipe.send(outcome)
