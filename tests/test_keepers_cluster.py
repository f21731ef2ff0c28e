"""Keepers of two nodes: what one worker alone came to hand over is on another node before its own can go."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.nodes import local_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# The first node's keeper has step 7 of worker 1, the second's step 3 of worker 0. Where the copy was made, and what is gone on from
# when the first keeper is no more. Then a worker of a third node, whose keeper dies between two hand-overs.
_DRIVER = """
import io, json, os, sys, time
import psutil, ray, torch
from vicc_ray.cluster import keeper as keepers
from vicc_ray.training.survival import Finished, Kept, OwnState

def packed(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()

def give(handle, rank, step):
    state = packed({"step": step, "trainer": {"encoder": {"running_mean": torch.zeros(1)}}, "much": torch.zeros(1 << 20)})
    for start in range(0, len(state), 1 << 16):
        ray.get(handle.take.remote(rank, step, start, state[start : start + (1 << 16)]))
    statistics = packed({"running_mean": torch.full((1,), float(step))})
    ray.get(handle.keep.remote(rank, Kept(step, "encoder", 4, statistics), len(state)))

ray.init(address=sys.argv[1], namespace="vicc_ray")
head = ray.get_runtime_context().get_node_id()
first, second = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != head)
run = keepers.Keepers("session")
run.on([first, second])
give(run.handles[second], 0, 3)
give(run.handles[first], 1, 7)
run.spread({first})
alone = ray.get(run.handles[second].newest.remote())[0]
run.spread({first, second})
step, workers = ray.get(run.handles[second].newest.remote())
both = keepers.kept_state("session")
ray.kill(run.handles[first])
step_left, state_left = keepers.kept_state("session")

run.on([head])
worker = keepers.Survivor("session", 2)
own = OwnState({"encoder": {"running_mean": torch.zeros(1)}}, "encoder", ["running_mean"], 1)
worker.last = Finished(9, {}, lambda: own)
worker.end(sound=True)
before = worker.answer(20), ray.get(run.handles[head].newest.remote())[0]
ray.kill(run.handles[head])

def renewed():
    run.on([head])
    try:
        return ray.get(run.handles[head].newest.remote())[0] == -1
    except ray.exceptions.RayError:  # the one that was killed, which takes a moment
        return False

while not renewed():
    time.sleep(0.1)
worker.handed.clear()
worker.last = Finished(11, {}, lambda: own)
after = worker.answer(20), ray.get(run.handles[head].newest.remote())[0]

def waiting():
    return {one.pid for one in psutil.process_iter() if one.name().startswith("ray::IDLE")}

class Next:
    def pid(self):
        return os.getpid()

there = waiting()
ray.get(run.handles[second].start_spares.remote())
deadline = time.monotonic() + 60
while len(spares := waiting() - there) < 2 and time.monotonic() < deadline:
    time.sleep(0.2)
time.sleep(2)  # Ray ends other idle processes after a second
spares &= waiting()
place = {ray._raylet.RAY_NODE_ID_KEY: second}
actors = [ray.remote(Next).options(num_cpus=0, label_selector=place).remote() for _ in range(2)]
taken = set(ray.get([actor.pid.remote() for actor in actors]))
print(json.dumps({
    "spares": len(spares), "taken": len(taken & spares),
    "handed": before, "handed to the next": after,
    "alone": alone, "copied": [step, sorted(workers)], "both": both[0], "left": step_left, "whole": state_left["much"].numel(),
    "mean": [float(state["trainer"]["encoder"]["running_mean"]) for state in (both[1], state_left)],
}))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What the driver saw."""
    with local_cluster(2) as cluster:
        command = [sys.executable, "-c", _DRIVER, cluster.address]
        done = subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    shown: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return shown


def test_the_only_copy_of_a_step_is_copied_to_another_node(found: dict[str, Any]) -> None:
    expected = {"alone": 3, "copied": [7, [1]], "both": 7, "left": 7, "whole": 1 << 20}
    assert {name: found[name] for name in expected} == expected
    # One worker's statistics alone are those of the state as it handed it over; they are not averaged with themselves.
    assert found["mean"] == [0.0, 0.0]


def test_a_worker_whose_keeper_died_hands_over_to_the_one_after_it(found: dict[str, Any]) -> None:
    assert found["handed"] == [9, 9]
    assert found["handed to the next"] == [11, 11]


def test_processes_wait_for_the_next_actors_of_the_job(found: dict[str, Any]) -> None:
    assert (found["spares"], found["taken"]) == (2, 2)
