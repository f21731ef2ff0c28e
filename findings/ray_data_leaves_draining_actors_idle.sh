#!/usr/bin/env bash
# From the notice that a node will go to its end, Ray Data (ray 2.60.0) gives the actors on that node nothing more to do.
#
# The pool behind map_batches(..., compute=ActorPoolStrategy(...)) asks once a second which nodes are draining and takes their
# actors out of the choice. That spares a repeat of tasks where others can do them. Where all actors of a dataset are on the
# draining node (one node, or a label selector that ties them to the consumer's node), the dataset stands still, without a
# warning, from the notice on: two minutes of a spot machine of AWS in which its CPUs and its consumer still work. Tasks that an
# actor had already are finished, and what is decoded ahead comes out. The actor itself goes on to answer other calls.
#
# Seen: some 5 blocks/s before the notice; in the 10 s from 4 s after it not one block, while the same actor class, called
# directly on the same node, goes on with some 5 calls/s.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray[data]==2.60.0"
cat >"$work/notice.py" <<'PYTHON'
import os
import threading
import time

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ray.data import ActorPoolStrategy, ExecutionOptions, ExecutionResources

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
node = cluster.add_node(num_cpus=2, labels={"part": "spot"})
ray.init(address=cluster.address, log_to_driver=False)


class Slow:
    def __call__(self, rows):
        time.sleep(0.2)
        return rows


source = ray.data.from_blocks([pa.table({"number": [number]}) for number in range(1000)])
spot = {"part": "spot"}
dataset = source.map_batches(Slow, batch_size=1, num_cpus=0, compute=ActorPoolStrategy(size=1), label_selector=spot)
limits = ExecutionResources.for_limits(object_store_memory=1 << 20)  # little is decoded ahead
dataset.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
dataset.context.enable_progress_bars = False
times = []


def consume():
    for _ in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        times.append(time.monotonic())


threading.Thread(target=consume, daemon=True).start()
direct = ray.remote(Slow).options(num_cpus=0, label_selector=spot).remote()
ray.get(direct.__call__.remote([]))
while len(times) < 20:
    time.sleep(0.1)
before = 10 / (times[19] - times[9])
client = ray._raylet.GcsClient(cluster.address)
client.drain_node(node.node_id, 2, "spot machine", int(time.time() * 1000) + 120_000)  # 2: preemption
time.sleep(4)
start, calls = time.monotonic(), 0
while time.monotonic() < start + 10:
    ray.get(direct.__call__.remote([]))
    calls += 1
blocks = sum(start < moment < start + 10 for moment in times)
alive = any(one["Alive"] and one["NodeID"] == node.node_id for one in ray.nodes())
assert before > 2 and calls > 20
print(f"ray {ray.__version__}: {before:.1f} blocks/s before; after: {blocks} blocks, {calls} direct calls, node alive {alive}", flush=True)
cluster.shutdown()
os._exit(0)  # the consumer waits for a block
PYTHON
timeout 240 "$work/venv/bin/python" "$work/notice.py" 2>"$work/err" >"$work/out" || true  # no cluster is left
cat "$work/out"
grep -q "^ray 2.60.0: .* after: 0 blocks, .* node alive True" "$work/out"
