"""Run a function over items in processes of their own, so that a crash, a hang or a leak costs one item and not the job.

A decoder is native code that reads files from anywhere: it may end its process, never return, or keep what it took. A
`Guarded` is one such process, which works on one item at a time; `run_guarded` minds several, one thread each, so it is
always known which item did it.

The process starts from a bare interpreter that imports only what the function needs: the main module of the parent (a
Ray worker's, a test runner's) is neither forked nor imported. Items go through a pipe; what arrays a result holds goes
through memory that both sides map, has no name and is gone with its last user, however that one ended.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

START_SECONDS = 120.0
# Caches, pools and the largest video fill up over the first items; growth counts from there.
WARM_UP_ITEMS = 8
RECYCLE_BYTES = 300 << 20
# Address space that a process may take beyond what it has after its imports: 17 pictures of 8192 x 4352 with 10 bits and 4:2:0 are
# 1.8 GB. A decoder that wants more fails alone, before the machine is short of memory and others with it.
MEMORY_BYTES = 4 << 30
_ENTRY = (
    "import sys; sys.path[:] = sys.argv[3:]; from vicc_ray.data.guarded import _serve; _serve(*map(int, sys.argv[1:3]))"
)


@dataclass(frozen=True)
class Failure:
    """An item that has no result; `reason` is one line."""

    reason: str


class Closed(Exception):
    """A `Guarded` was called after its `close`."""


class Guarded(Generic[Item, Result]):
    """`function` in a process of its own: call it with an item, get the result or a `Failure`.

    An exception in `function` is a failure of its item, and so is the death of the process or no answer within
    `timeout_seconds`; a fresh process then takes the next item. It is replaced too, between two items, when its own
    memory has grown by more than `recycle_rss_growth_bytes` since its first ones. It gets `memory_bytes` of address space
    beyond its start, and what fails for want of it fails its item (None: any; a GPU's libraries take far more than they use).
    `views`: a result's arrays lie in the memory that both share and hold until the next call, which saves a copy.
    The process starts with the first call and ends with `close`, with this object or with the parent. `function` and the
    items must be picklable, and `function` must not be one of the main module's. Calls come one at a time; `close` may come
    from another thread.
    """

    def __init__(
        self,
        function: Callable[[Item], Result | Failure],
        timeout_seconds: float,
        recycle_rss_growth_bytes: int = RECYCLE_BYTES,
        memory_bytes: int | None = MEMORY_BYTES,
        views: bool = False,
    ) -> None:
        self.function, self.timeout_seconds, self.memory_bytes = function, timeout_seconds, memory_bytes
        self.views = views
        self.recycle_rss_growth_bytes = recycle_rss_growth_bytes
        self._lock = threading.Lock()
        self._closed = False
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The process that takes the next item, if it has been started."""
        return self._child.process.pid if self._child else None

    def __call__(self, item: Item) -> Result | Failure:
        """The outcome of one item; `Closed` after `close`, RuntimeError where no process can be started."""
        outcome, killed = self._request(item)
        # Only others send SIGKILL: the kernel for want of memory, or because the thread that started the process has
        # ended. The item may be innocent and is tried once more.
        return self._request(item)[0] if killed else outcome

    def close(self) -> None:
        """End the process, also in the middle of an item."""
        with self._lock:
            self._closed = True
            child = self._child
        if child is not None:
            child.stop()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def _request(self, item: Item) -> tuple[Result | Failure, bool]:
        child = self._started()
        try:
            outcome: Result | Failure | None = child.request(item, self.timeout_seconds)
        except (EOFError, OSError):
            ending = child.ending()
            return Failure(f"it crashed the decoder ({ending})"), ending == "SIGKILL"
        if outcome is None:
            child.stop()
            return Failure(f"the decoder gave no answer within {self.timeout_seconds:g} s"), False
        # Well before the bound is reached, or the next videos would be refused for what this one left behind.
        near_bound = self.memory_bytes is not None and child.address_growth > self.memory_bytes // 2
        if child.growth > self.recycle_rss_growth_bytes or near_bound:
            child.stop()
        return outcome, False

    def _started(self) -> _Child:
        """The living child, else a new one: one that died between two items costs none."""
        with self._lock:
            if self._closed:
                raise Closed
            if self._child is not None and self._child.alive:
                return self._child
            self._child = child = _Child(self.views)
        try:
            child.prepare(self.function, self.memory_bytes)
        except (EOFError, OSError) as error:
            ending = child.ending()
            if self._closed:
                raise Closed from error
            raise RuntimeError(f"a helper process did not start ({ending})") from error
        return child


class _Child:
    """One process, the pipe to it and the memory for its results."""

    def __init__(self, views: bool) -> None:
        self.views = views
        self.pipe, far = _pipe()
        self.memory = _anonymous_file()
        self.map: mmap.mmap | None = None
        self.growth = self.address_growth = 0
        self._answers = 0
        self._first_bytes = 0
        self._stopping = threading.Lock()
        # A group of its own: Ctrl-C in a terminal is the parent's to handle.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENTRY, str(far.fileno()), str(self.memory), *sys.path],
            stdin=subprocess.DEVNULL,
            pass_fds=(far.fileno(), self.memory),
            process_group=0,
        )
        far.close()

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            os.close(self.memory)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def prepare(self, function: Callable[[Any], Any], memory_bytes: int | None) -> None:
        """Hand over the function and wait until the process has imported what it needs; EOFError, OSError: it failed."""
        self.pipe.send_bytes(pickle.dumps((function, memory_bytes)))
        if not self.pipe.poll(START_SECONDS):
            self.stop()
        self.pipe.recv_bytes()

    def request(self, item: Any, seconds: float) -> Any:
        """The outcome of an item, None where none came in time; EOFError or OSError where the process died."""
        self.pipe.send_bytes(pickle.dumps(item))
        if not self.pipe.poll(seconds):
            return None
        answer: _Answer = pickle.loads(self.pipe.recv_bytes())
        self._answers += 1
        if self._answers <= WARM_UP_ITEMS:
            self._first_bytes = max(self._first_bytes, answer.own_bytes)
        self.growth = answer.own_bytes - self._first_bytes
        self.address_growth = answer.address_growth
        return pickle.loads(answer.outcome, buffers=self._buffers(answer.sizes))

    def _buffers(self, sizes: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """The result's buffers, copied out unless views are wanted: the memory is written anew by the next answer."""
        if sizes and (self.map is None or len(self.map) < sum(sizes)):
            self.map = mmap.mmap(self.memory, 0)
        start = 0
        for size in sizes:
            # numpy's own memory comes in huge pages, which makes this copy twice as fast as one to bytes.
            view = np.frombuffer(self.map or b"", np.uint8, size, start)
            yield view if self.views else view.copy()
            start += size

    def stop(self) -> None:
        """Kill the process, whatever it does."""
        self.process.kill()
        self.ending()

    def ending(self) -> str:
        """How the process ended, once it has."""
        with self._stopping:
            code = self.process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


@dataclass(frozen=True)
class _Answer:
    """`outcome`: pickled without the buffers of its arrays, whose `sizes` say how they lie in the shared memory.

    `own_bytes`: the process's memory without what it shares with others. `address_growth`: bytes of address space that it has
    taken since its start.
    """

    outcome: bytes
    sizes: list[int]
    own_bytes: int
    address_growth: int


def _serve(pipe_handle: int, memory: int) -> None:
    """The process: answer items until the parent's end of the pipe closes."""
    _end_with_parent()
    pipe = Connection(pipe_handle)
    area: mmap.mmap | None = None
    try:
        function, memory_bytes = pickle.loads(pipe.recv_bytes())
        if memory_bytes is not None:
            _bound_memory(memory_bytes)
        start_bytes = _address_bytes() or 0
        pipe.send_bytes(b"")
        while True:
            outcome = _outcome(function, pickle.loads(pipe.recv_bytes()))
            body, buffers = _pickled(outcome)
            sizes = [len(buffer) for buffer in buffers]
            if sum(sizes) > (len(area) if area else 0):
                os.ftruncate(memory, sum(sizes))
                area = mmap.mmap(memory, 0)
            start = 0
            for buffer in buffers:
                assert area is not None
                area[start : start + len(buffer)] = buffer
                start += len(buffer)
            del outcome, buffers
            pipe.send_bytes(pickle.dumps(_Answer(body, sizes, _own_bytes(), (_address_bytes() or 0) - start_bytes)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _outcome(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except MemoryError as error:
        return Failure(f"it wants more memory than it may have ({' '.join(str(error).split()) or 'MemoryError'})")
    except Exception as error:
        return Failure(" ".join(str(error).split()) or type(error).__name__)


def _pickled(outcome: Any) -> tuple[bytes, list[memoryview]]:
    parts: list[pickle.PickleBuffer] = []
    try:
        body = pickle.dumps(outcome, protocol=5, buffer_callback=parts.append)
    except Exception as error:
        return pickle.dumps(Failure(f"its result cannot be sent: {error}")), []
    # Empty ones cannot be mapped, nor need they be.
    return body, [part.raw() for part in parts]


def _end_with_parent() -> None:
    """Ask Linux to kill this process with the thread that started it, also while it is deep in native code.

    Elsewhere it ends at the next item, where it finds the pipe closed.
    """
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(signal.SIGKILL), 0, 0, 0)


def _bound_memory(more: int) -> None:
    """Let this process take no more than this beyond what it has; nothing happens where the system does not say what that is."""
    taken = _address_bytes()
    if taken is None:
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = taken + more
    resource.setrlimit(resource.RLIMIT_AS, (bound if most == resource.RLIM_INFINITY else min(bound, most), most))


def _address_bytes() -> int | None:
    """Address space of this process; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    except OSError:
        return None


def _own_bytes() -> int:
    """Resident memory of this process that it shares with none; 0 where the system does not say (then none is recycled)."""
    try:
        _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def _pipe() -> tuple[Connection, Connection]:
    from multiprocessing import Pipe

    return Pipe()


def _anonymous_file() -> int:
    """A file descriptor of memory without a name; of an unlinked temporary file where the system has none such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vicc-result")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def run_guarded(
    function: Callable[[Item], Result | Failure], items: Sequence[Item], workers: int, timeout_seconds: float
) -> Iterator[tuple[int, Result | Failure]]:
    """Yield (place in `items`, result or `Failure`) as they come: any order, each place exactly once.

    Every item gets what `Guarded` gives it, from one of `workers` processes. Closing the generator ends all of them.
    """
    crew = _Crew(function, items, workers, timeout_seconds)
    try:
        for _ in items:
            place, outcome = crew.outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield place, outcome
    finally:
        crew.dismiss()


class _Crew(Generic[Item, Result]):
    """Threads that share the items still to do; each minds one process."""

    def __init__(
        self, function: Callable[[Item], Result | Failure], items: Sequence[Item], workers: int, timeout_seconds: float
    ) -> None:
        self.items = items
        self.outcomes: SimpleQueue[tuple[int, Result | Failure | BaseException]] = SimpleQueue()
        self._todo: SimpleQueue[int] = SimpleQueue()
        for place in range(len(items)):
            self._todo.put(place)
        workers_ = [Guarded(function, timeout_seconds) for _ in range(min(max(workers, 1), len(items)))]
        self._minded = [
            (worker_, threading.Thread(target=self._mind, args=(worker_,), daemon=True)) for worker_ in workers_
        ]
        for _, thread in self._minded:
            thread.start()

    def _mind(self, guarded: Guarded[Item, Result]) -> None:
        place = -1
        try:
            while True:
                place = self._todo.get_nowait()
                self.outcomes.put((place, guarded(self.items[place])))
        except (Empty, Closed):
            pass
        except BaseException as error:
            # Without this the reader of `outcomes` would wait for ever.
            self.outcomes.put((place, error))
        finally:
            guarded.close()

    def dismiss(self) -> None:
        """End all processes and wait for the threads."""
        for guarded, _ in self._minded:
            guarded.close()
        for _, thread in self._minded:
            thread.join()
