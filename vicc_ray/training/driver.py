"""What a driver does around training: refuse bad data and a second driver, end politely, count the videos after. No Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from vicc_ray.config import Experiment
from vicc_ray.console import console
from vicc_ray.data.clips import window_span
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.refusals import check_share
from vicc_ray.data.samples import all_positions
from vicc_ray.errors import UserError, interrupt
from vicc_ray.machine import lock
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import unreadable_videos
from vicc_ray.training.batches import TrainingPlan

# Between SIGTERM and the hard end. Workers check every 2 s; schedulers give 30 s and more.
STOP_SECONDS = 20.0


@contextmanager
def sigterm_stops(folder: RunFolder) -> Iterator[None]:
    """SIGTERM, a scheduler's notice, makes the workers end after a checkpoint; after a while, or at the second, at once."""

    late = threading.Timer(STOP_SECONDS, lambda: os.kill(os.getpid(), signal.SIGTERM))
    late.daemon = True
    requests: list[bool] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if requests:
            interrupt()  # Ray's own way to end, which the main thread waits in
        else:
            requests.append(True)
            folder.request_stop()
            late.start()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        late.cancel()
        signal.signal(signal.SIGTERM, before)


@contextmanager
def alone_in(folder: RunFolder) -> Iterator[None]:
    """UserError where another process of this machine (or of the file system, where that has locks) trains in the folder.

    The lock goes with its process, however that ends. Of a run under a URI it is the mirror that is locked. The folder is
    made where it is missing; nothing else in it is read or written without the lock.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"{folder.path}: cannot be written to ({error.strerror}); choose another with --set runs=..."
        ) from None
    try:
        _lock(folder, handle)
        yield
    finally:
        os.close(handle)  # gives the lock back


def _lock(folder: RunFolder, handle: int) -> None:
    taken = lock(handle)
    if taken is False:
        raise UserError(
            f"{folder}: {_holder(handle)} is training in it; wait for its end, or choose another folder with --set name=..."
        )
    if taken:
        with suppress(OSError):  # a full disk: who it is stays unknown
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(handle: int) -> str:
    try:
        return os.read(handle, 200).decode(errors="replace").strip() or "another process"
    except OSError:  # where a lock keeps others from reading, too
        return "another process"


def is_held(folder: RunFolder) -> bool | None:
    """Whether a process of this machine works in the folder, without writing there; None where that is unknown."""
    file = folder.path / "lock"
    try:
        try:
            handle = os.open(file, os.O_RDWR)  # NFS locks only what is open for writing
        except PermissionError:
            handle = os.open(file, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    try:
        taken = lock(handle)
    finally:
        os.close(handle)
    return None if taken is None else not taken


def check_refused(experiment: Experiment, manifest: Manifest) -> None:
    """UserError, with the list, where indexing refused a larger share of the videos than the experiment allows."""
    check_share(
        len(manifest.refused),
        ((row.id, str(row.refused)) for row in manifest.refused),
        len(manifest) + len(manifest.refused),
        experiment.data.max_refused,
        "videos were refused when they were indexed",
        "repair or leave them out and index again",
    )


def report_videos(plan: TrainingPlan, folder: RunFolder, refused: int) -> None:
    """How many videos were learnt from, and what happened to the others."""
    clip = plan.experiment.clip
    short = int((all_positions(plan.rows, clip) < window_span(clip.frames, clip.stride)).sum())
    lost = len(unreadable_videos(folder.refused))
    console.print(
        f"{len(plan.rows) - lost} videos used, {short} of them padded (shorter than a clip), "
        f"{refused} refused by the index, {lost} unreadable in training"
    )
