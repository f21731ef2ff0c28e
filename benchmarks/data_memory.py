"""Memory while a stream runs: the decode processes' own, the object store's, and what was spilled."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import ray
from ray._private.internal_api import get_memory_info_reply

MEGABYTE = 10**6
INTERVAL = 0.5  # seconds from one sample to the next


def decode_memory() -> dict[int, int]:
    """Bytes of each decode actor of this process's cluster, its own processes included: {process id: bytes}.

    Resident memory without the shared part, because pages of the object store that an actor has once written to count
    as its own, however long ago that was.
    """
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if any("MapWorker" in part for part in process.cmdline()):
                found[process.pid] = sum(map(_private, [process, *process.children(recursive=True)]))
        except psutil.Error:
            continue  # it ended while it was measured
    return found


def _private(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def store_memory() -> tuple[int, int]:
    """Bytes in the connected cluster's object stores now, and bytes spilled since its start."""
    # Pinned with Ray's version: what `ray memory --stats-only` prints, as numbers.
    stats = get_memory_info_reply(ray._private.state.state).store_stats
    return int(stats.object_store_bytes_used + stats.object_store_bytes_fallback), int(stats.spilled_bytes_total)


class Watch:
    """Looks twice a second while it is open and keeps the peaks; set `epoch` as the stream goes on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.peaks: dict[int, dict[int, int]] = {}  # epoch -> process id -> bytes
        self.store_peak = self.spilled = 0
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                self.note(decode_memory(), *store_memory())
        except Exception as failure:
            self._failure = failure  # raised where the watch is closed, not lost with its thread

    def note(self, decoders: dict[int, int], stored: int, spilled: int) -> None:
        """Take one sample's figures into the peaks."""
        peaks = self.peaks.setdefault(self.epoch, {})
        for pid, size in decoders.items():
            peaks[pid] = max(size, peaks.get(pid, 0))
        self.store_peak, self.spilled = max(self.store_peak, stored), max(self.spilled, spilled)

    def growth(self) -> int:
        """Bytes by which the process that grew most exceeded, later, its peak of the first epoch in which it was seen.

        RuntimeError where no process was seen in two epochs: then nothing was measured.
        """
        series: dict[int, list[int]] = {}
        for _, peaks in sorted(self.peaks.items()):
            for pid, size in peaks.items():
                series.setdefault(pid, []).append(size)
        growths = [max(sizes[1:]) - sizes[0] for sizes in series.values() if len(sizes) > 1]
        if not growths:
            raise RuntimeError("no decode process was seen in more than one epoch, so its growth is unknown")
        return max(growths)

    def processes(self) -> int:
        """The most decode processes of one epoch."""
        return max((len(peaks) for peaks in self.peaks.values()), default=0)

    def by_epoch(self) -> list[int]:
        """Megabytes of the largest process in each epoch."""
        return [round(max(peaks.values(), default=0) / MEGABYTE) for _, peaks in sorted(self.peaks.items())]
