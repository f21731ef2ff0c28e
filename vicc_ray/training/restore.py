"""Where a start of the workers goes on: the newest sound checkpoint, and an end where starting leads nowhere. No Ray."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch

from vicc_ray import distributed
from vicc_ray.errors import UserError
from vicc_ray.runs.checkpoint import CheckpointInfo, State, version_changes
from vicc_ray.runs.folder import RunFolder, versions
from vicc_ray.runs.records import COUNTED, RecordWriter, read_events


def count_attempt(folder: RunFolder, session: str, max_failures: int, group: str | None = None) -> None:
    """Count that the workers begin to start, before anything of the run is read that could make them fail.

    Every worker calls it. `group`: what their places are known by, for whoever has to give them back. UserError, on every worker,
    where more than `max_failures` attempts of this session (one driver's) in a row did not come to a start, which `restore` notes.
    """
    answer = b""
    if distributed.rank() == 0:
        with suppress(OSError):  # away: counted in the mirror
            folder.fetch(folder.events)
        folder.path.mkdir(parents=True, exist_ok=True)
        earlier = read_events(folder.events)
        failed = _attempts_in_vain(earlier, session)
        if failed > max_failures:
            reasons = [str(record.get("text")) for record in earlier if record["kind"] == "failed"]
            answer = (
                f"the workers failed {failed} times in a row before they came to start from a checkpoint "
                f"(train.max_failures: {max_failures}){': ' if reasons else ''}{''.join(reasons[-1:])}; see {folder.logs}"
            ).encode()
        else:
            RecordWriter(folder.events).add(event("attempt", session=session, **({"group": group} if group else {})))
            with suppress(OSError):
                folder.push(folder.events)
    answer = distributed.broadcast_bytes(answer)
    if answer:
        raise UserError(answer.decode())


def _attempts_in_vain(events: Sequence[Mapping[str, Any]], session: str) -> int:
    """Attempts of a session since its last start."""
    count = 0
    for record in reversed(events):
        if (record["kind"] in COUNTED and record.get("session") != session) or record["kind"] == "start":
            break
        count += record["kind"] == "attempt"
    return count


def agree(problem: str | None) -> None:
    """UserError on every worker where one of them has a problem that starting again cannot solve; all call it."""
    problems = [part.decode() for part in distributed.gather_bytes((problem or "").encode())]
    found = next(filter(None, problems), None)
    if found:
        raise UserError(found)


def restore(
    folder: RunFolder,
    start: Mapping[str, Any],
    max_failures: int,
    kept: Callable[[], tuple[int, State] | None] = lambda: None,
) -> State | None:
    """The newest state to go on from, the same on every worker; None at a run's beginning. Worker 0 notes the start.

    That is the newest sound checkpoint, or what `kept` gives, (step, state), where that is newer: what the workers before these
    handed over.

    `start`: what the event says beside step and workers; its `session` is one driver's. UserError, on every worker, where
    the workers started more than `max_failures` times in a row at one checkpoint, or no checkpoint can be read.
    """
    events = RecordWriter(folder.events)
    answer: dict[str, Any] = {"info": None, "error": None, "kept": -1}
    state: State | None = None
    if distributed.rank() == 0:
        try:
            handed = kept()
            found = None
            if handed is not None and handed[0] > _newest_step(folder):
                answer["kept"], state = handed
            else:
                found = folder.checkpoints.newest(lambda text: events.add(event("damaged checkpoint", text=text)))
            if found:
                answer["info"], state = asdict(found[0]), found[1]
                if changed := version_changes(found[0], versions()):
                    events.add(event("versions", text=f"the checkpoint is older than what is installed: {changed}"))
            step = found[0].step if found else max(answer["kept"], 0)
            _note_start(folder, events, start, step, max_failures)
        except UserError as error:
            answer["error"] = str(error)
    # JSON: what goes between workers is neither signed nor encrypted, so nothing of it is unpickled.
    answer = json.loads(distributed.broadcast_bytes(json.dumps(answer).encode()))
    if answer["error"]:
        raise UserError(answer["error"])
    if answer["kept"] >= 0:
        return _from_rank_zero(state)
    if answer["info"] and state is None:
        state = folder.checkpoints.read(CheckpointInfo(**answer["info"]))
    return state


def _newest_step(folder: RunFolder) -> int:
    """The step of the newest checkpoint; 0 for none. Where the store is away, what was handed over counts."""
    try:
        return max((info.step for info in folder.checkpoints.listing()), default=0)
    except OSError:
        return 0


def _from_rank_zero(state: State | None) -> State:
    """Worker 0's state on every worker: tensors and plain values."""
    if state is not None and distributed.world_size() == 1:
        return state
    file = io.BytesIO()
    if distributed.rank() == 0:
        torch.save(state, file)
    content = distributed.broadcast_bytes(file.getvalue())
    whole: State = (
        state if state is not None else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    )
    return whole


def _note_start(folder: RunFolder, events: RecordWriter, start: Mapping[str, Any], step: int, allowed: int) -> None:
    """Note a start of the workers; UserError where they keep failing without getting anywhere."""
    earlier = [record for record in read_events(folder.events) if record["kind"] == "start"]
    in_vain = 0
    for record in reversed(earlier):
        if record.get("session") != start["session"] or record.get("step") != step:
            break
        in_vain += 1
    if in_vain > allowed:
        raise UserError(
            f"training failed {in_vain} times in a row at the checkpoint of step {step} (train.max_failures: {allowed}); "
            f"the reasons are in {folder.logs}"
        )
    events.add(event("start", step=step, workers=distributed.world_size(), **start))
    folder.push(folder.events)


def event(kind: str, **facts: Any) -> dict[str, Any]:
    """An event of a run, at this moment."""
    return {"kind": kind, "time": time.time(), **facts}
