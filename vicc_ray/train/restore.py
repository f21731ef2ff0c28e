"""Where a start of the workers goes on: the newest sound checkpoint, and an end where starting leads nowhere. No Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vicc_ray import distributed
from vicc_ray.checkpoint import CheckpointInfo, State, version_changes
from vicc_ray.errors import UserError
from vicc_ray.records import RecordWriter, read_records
from vicc_ray.run_folder import RunFolder, versions


def restore(folder: RunFolder, start: Mapping[str, Any], max_failures: int) -> State | None:
    """The newest sound checkpoint, the same on every worker; None at a run's beginning. Worker 0 notes the start.

    `start`: what the event says beside step and workers; its `session` is one driver's. UserError, on every worker, where
    the workers started more than `max_failures` times in a row at one checkpoint, or no checkpoint can be read.
    """
    events = RecordWriter(folder.events)
    answer: dict[str, Any] = {"info": None, "error": None}
    state: State | None = None
    if distributed.rank() == 0:
        try:
            found = folder.checkpoints.newest(lambda text: events.add(event("damaged checkpoint", text=text)))
            if found:
                answer["info"], state = asdict(found[0]), found[1]
                if changed := version_changes(found[0], versions()):
                    events.add(event("versions", text=f"the checkpoint is older than what is installed: {changed}"))
            _note_start(folder, events, start, found[0].step if found else 0, max_failures)
        except UserError as error:
            answer["error"] = str(error)
    # JSON: what goes between workers is neither signed nor encrypted, so nothing of it is unpickled.
    answer = json.loads(distributed.broadcast_bytes(json.dumps(answer).encode()))
    if answer["error"]:
        raise UserError(answer["error"])
    if answer["info"] and state is None:
        state = folder.checkpoints.read(CheckpointInfo(**answer["info"]))
    return state


def _note_start(folder: RunFolder, events: RecordWriter, start: Mapping[str, Any], step: int, allowed: int) -> None:
    """Note a start of the workers; UserError where they keep failing without getting anywhere."""
    earlier = [record for record in read_records(folder.events) if record["kind"] == "start"]
    in_vain = 0
    for record in reversed(earlier):
        if record["session"] != start["session"] or record["step"] != step:
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
    return {"kind": kind, "time": time.time(), **facts}
