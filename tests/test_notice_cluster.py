"""Notice that a node goes, on a cluster of this machine: blocks go on being decoded until it is gone; nothing new starts there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.nodes import local_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# A worker's part: blocks of 0.2 s from an actor on one node, which gets notice after the first ones; then of a second dataset.
_WORKER = """
import json, sys, time
import numpy as np, ray
from vicc_ray.cluster import ray_private, stream as stream_of
from vicc_ray.cluster.resources import Decoders
from vicc_ray.cluster.stream import decode_units, iterate_blocks, nodes_with_cpus

class Slow:
    def __call__(self, units):
        time.sleep(0.2)
        node = np.array([ray.get_runtime_context().get_node_id()])
        return {"unit": units["unit"], "node": node, "content": np.zeros((1, 1 << 18), np.uint8)}

def blocks(nodes):
    units = [{"unit": unit} for unit in range(1000)]
    return iterate_blocks(decode_units(units, Slow, (), Decoders(1, 0), 1 << 20, nodes))

rounds, rested = [], stream_of.PaceScheduling.on_execution_step
def counted(pace, executor):
    rounds.append(pace.wanted is not None)
    rested(pace, executor)
stream_of.PaceScheduling.on_execution_step = counted
ray.init(address=sys.argv[1])
first, other = sorted(nodes_with_cpus())
ray_private.decode_to_the_end()
stream = blocks([first])
before = [next(stream) for _ in range(3)]
client = ray._raylet.GcsClient(ray.get_runtime_context().gcs_address)
deadline = int(time.time() * 1000) + 120_000
client.drain_node(first, 2, "spot", deadline)  # 2: preemption
while ray_private.leaving_nodes() != {first}:
    time.sleep(0.05)
time.sleep(1.5)  # Ray Data asks once a second
after, until = [], time.monotonic() + 6
while time.monotonic() < until:
    after.append(next(stream))
stream.close()
slow = blocks([other])
for _ in range(4):
    next(slow)
time.sleep(8)  # as many blocks lie ready as may
paused = len(rounds)
time.sleep(5)
paused = len(rounds) - paused
slow.close()
following = next(blocks([first, other]))
stream_of.CAN_TAKE_TURNS = False  # as with Ray 2.64
anywhere = next(blocks(()))
print(json.dumps({
    "before": [str(block["node"][0]) == first for block in before], "after": len(after),
    "in order": [int(block["unit"][0]) for block in before + after] == list(range(3 + len(after))),
    "following": str(following["node"][0]) == other, "anywhere": str(anywhere["node"][0]) in (first, other),
    "rounds of 5 s in which nothing was wanted": paused, "known by its reader": all(rounds),
}))
"""


def test_blocks_go_on_from_the_notice_to_the_end_and_new_actors_start_elsewhere() -> None:
    """Ray Data itself gives actors of such a node nothing more to do; a worker whose actors are there would only wait."""
    with local_cluster(2) as cluster:
        command = [sys.executable, "-c", _WORKER, cluster.address]
        done = subprocess.run(
            command, env=cluster.environment, capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["before"] == [True] * 3
    assert found["after"] >= 15
    assert found["in order"]
    assert found["following"]
    assert found["anywhere"]
    assert found["rounds of 5 s in which nothing was wanted"] <= 10  # 50 a second without a rest
    assert found["known by its reader"]
