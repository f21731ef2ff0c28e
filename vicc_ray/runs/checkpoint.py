"""Checkpoints of a run in a folder or object store: whole or not there at all, verified when read, written beside training.

    STORE/step-000001200/state.pt         tensors and plain values of the training loop
    STORE/step-000001200/complete.json    comes last: step, bytes and digest of state.pt, when, by what, recall

A checkpoint without its `complete.json` does not exist; one whose digest does not fit is passed over for the one before.
Nothing in a checkpoint is ever unpickled beyond tensors and plain values.
"""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from vicc_ray import storage
from vicc_ray.errors import UserError

State = dict[str, Any]
STATE_FILE = "state.pt"
MARKER = "complete.json"
STATE_FORMAT = 2
RETRY_SECONDS = (1.0, 4.0, 15.0)


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read back; the message says what is wrong with it, in one line."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What `complete.json` says of a checkpoint."""

    step: int
    stage: str
    samples: int
    bytes: int
    digest: str
    time: float
    workers: int
    recall: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


def snapshot(state: Any) -> Any:
    """A copy of a state on the CPU, that training does not change any more."""
    import torch

    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(snapshot(value) for value in state)
    return state


def version_changes(info: CheckpointInfo, now: Mapping[str, str]) -> str:
    """One phrase for the packages that are another version than when the checkpoint was written; empty for none."""
    return ", ".join(
        f"{name} {before} -> {now.get(name, 'absent')}"
        for name, before in info.versions.items()
        if now.get(name) != before
    )


class CheckpointStore:
    """The checkpoints below `folder` (path or URI). One process writes, any number read."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def listing(self) -> list[CheckpointInfo]:
        """Whole checkpoints, the newest first; none where the folder does not exist. OSError where the store is away.

        A marker that was cut off or damaged, whatever its bytes, marks no checkpoint.
        """
        if not storage.exists(self.folder):
            return []
        found = []
        for entry in storage.list_files(self.folder):
            if not entry.name.endswith(f"/{MARKER}"):
                continue
            with suppress(FileNotFoundError):  # just removed
                info = _parse_marker(storage.read_bytes(entry.name))
                if info is not None and entry.name == self._file(info.step, MARKER):
                    found.append(info)
        return sorted(found, key=lambda info: -info.step)

    def read(self, info: CheckpointInfo) -> State:
        """The state of a checkpoint; `DamagedCheckpoint` where it is not what was written."""
        import torch

        try:
            data = storage.read_bytes(self._file(info.step, STATE_FILE))
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{STATE_FILE} is missing") from error
        if len(data) != info.bytes:
            raise DamagedCheckpoint(f"{STATE_FILE} has {len(data)} of {info.bytes} bytes")
        if _digest(data) != info.digest:
            raise DamagedCheckpoint(f"{STATE_FILE} is not what was written (its digest differs)")
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            raise DamagedCheckpoint(f"{STATE_FILE} cannot be read ({type(error).__name__})") from error
        if not isinstance(state, dict) or state.pop("format", None) != STATE_FORMAT:
            raise DamagedCheckpoint("it was written by another version of vicc_ray")
        return state

    def newest(self, on_damage: Callable[[str], None] = lambda text: None) -> tuple[CheckpointInfo, State] | None:
        """The newest checkpoint that can be read; `on_damage` is called for each newer one that cannot. None for none.

        UserError where there are checkpoints and none of them can be read: starting afresh would be a silent loss.
        """
        whole = self.listing()
        for info in whole:
            try:
                return info, self.read(info)
            except DamagedCheckpoint as error:
                on_damage(f"the checkpoint of step {info.step} is damaged ({error}); going back to the one before")
        if whole:
            raise UserError(
                f"{self.folder}: none of its {len(whole)} checkpoints can be read; "
                "remove the folder to begin the unfinished stage again"
            )
        return None

    def write(self, state: Mapping[str, Any], info: Mapping[str, Any]) -> CheckpointInfo:
        """Write a checkpoint, its marker last, then remove those of later steps.

        `info` holds the fields of `CheckpointInfo` that are not in the bytes.
        """
        import torch

        buffer = io.BytesIO()
        torch.save({"format": STATE_FORMAT, **state}, buffer)
        data = buffer.getvalue()
        about = CheckpointInfo(bytes=len(data), digest=_digest(data), time=time.time(), **info)
        # An earlier run of this step (its work was lost, its checkpoint was not) must not vouch for half of this one.
        storage.remove(self._file(about.step, MARKER))
        storage.write_bytes(self._file(about.step, STATE_FILE), data)
        storage.write_bytes(self._file(about.step, MARKER), json.dumps(asdict(about), indent=2).encode())
        with suppress(OSError):  # the next one tries again
            self._remove_after(about.step)
        return about

    def _remove_after(self, step: int) -> None:
        """Remove what is newer than the checkpoint just written: damaged ones that training went back past.

        Counted as the newest ones they would be kept in place of the sound ones that are written now.
        """
        steps = {_step_of(entry.name) for entry in storage.list_files(self.folder)}
        for later in sorted(found for found in steps if found is not None and found > step):
            self.remove(later)

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints and the one with the best recall of the newest one's stage."""
        whole = self.listing()
        if not whole:
            return
        rated = [info for info in whole if info.recall is not None and info.stage == whole[0].stage]
        best = max(rated, key=lambda info: (info.recall or 0.0, info.step)).step if rated else -1
        for info in whole[keep:]:
            if info.step != best:
                self.remove(info.step)

    def remove(self, step: int) -> None:
        """Remove a checkpoint; its marker goes first."""
        storage.remove(self._file(step, MARKER))
        storage.remove_folder(self._file(step))

    def _file(self, step: int, *name: str) -> str:
        return storage.join(self.folder, f"step-{step:09d}", *name)


_MARKER_FIELDS: dict[str, Any] = {
    "step": int,
    "stage": str,
    "samples": int,
    "bytes": int,
    "digest": str,
    "time": (int, float),
    "workers": int,
    "recall": (int, float, type(None)),
    "versions": dict,
}


def _parse_marker(data: bytes) -> CheckpointInfo | None:
    """What a marker says; None for anything but a marker of this version."""
    try:
        info = CheckpointInfo(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        return None
    whole = all(isinstance(getattr(info, name), kind) for name, kind in _MARKER_FIELDS.items())
    return info if whole and info.step >= 0 else None


def _step_of(name: str) -> int | None:
    """The step of a checkpoint by the name of one of its files."""
    match = re.fullmatch(r"step-(\d+)", name.split("/")[-2])
    return int(match[1]) if match else None


class CheckpointWriter:
    """Writes checkpoints in a thread of its own. One is in hand and at most one waits: a newer one takes its place.

    A write that fails is tried again for some seconds and then given up with a line to `tell`; training goes on, and the
    next checkpoint tries anew. So a full disk or a store that is away costs checkpoints, not the run. `before` is called
    before each write: what a checkpoint refers to must be in the store when it is.
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int,
        report: Callable[[str, int], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.keep, self.report, self.before = store, keep, report, before
        self._changed = threading.Condition()
        self._waiting: tuple[State, dict[str, Any]] | None = None
        self._busy = self._closed = False
        self.failed = 0
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoints")
        self._thread.start()

    def submit(self, state: State, info: dict[str, Any]) -> None:
        """Take a state that nobody changes any more."""
        with self._changed:
            self._waiting = (state, info)
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> bool:
        """Wait until everything that was submitted is written or given up; False where it takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._busy, seconds)

    def close(self) -> None:
        """Write what waits, then end."""
        self.drain()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                (state, info), self._waiting, self._busy = self._waiting, None, True
            try:
                self._write(state, info)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _write(self, state: State, info: dict[str, Any]) -> None:
        for pause in _pauses():
            try:
                self.before()
                self.store.write(state, info)
                with suppress(OSError):  # the next one prunes
                    self.store.prune(self.keep)
                return
            except Exception as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                with self._changed:
                    newer = self._waiting is not None
                if pause is None or newer:
                    break
                time.sleep(pause)
        self.failed += 1
        self.report(
            f"the checkpoint could not be written ({reason}); training goes on, the next one is tried", info["step"]
        )


def _pauses() -> Iterator[float | None]:
    yield from RETRY_SECONDS
    yield None


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
