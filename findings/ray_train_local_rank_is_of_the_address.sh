#!/usr/bin/env bash
# In Ray Train (ray 2.60.0) a worker's local rank, local world size and node rank go by the address of its node, not by the node.
#
# Two nodes of one address are two of Ray's nodes: with numbers of their own, resources of their own, an object store of their own,
# and a raylet each that can die alone. Containers that share their host's network are such nodes, several raylets of a Slurm
# allocation on one machine, and every cluster of ray.cluster_utils. Ray Train sees one node there: two workers, one on each, get
# local ranks 0 and 1 of a local world of 2 and the same node rank, and the second one looks as if another worker of its node did
# what is done once a node ("if local_rank == 0": download, build, keep a copy). Nobody does it on the second node. The node's own
# number, ray.get_runtime_context().get_node_id(), tells them apart.
#
# Seen: two different node numbers; (local rank, local world size, node rank) = (0, 2, 0) and (1, 2, 0).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray[train]==2.60.0"
cat >"$work/ranks.py" <<'PYTHON'
import os
import sys

import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False)
addresses = {node["NodeManagerAddress"] for node in ray.nodes()}


@ray.remote(num_cpus=0)
class Seen:
    def __init__(self):
        self.rows = []

    def add(self, row):
        self.rows.append(row)

    def all(self):
        return sorted(self.rows)


seen = Seen.remote()


def worker(settings):
    context = ray.train.get_context()
    ranks = context.get_local_rank(), context.get_local_world_size(), context.get_node_rank()
    ray.get(settings["seen"].add.remote((*ranks, ray.get_runtime_context().get_node_id())))


scaling = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
run = RunConfig(storage_path=os.path.join(sys.argv[1], "runs"))
DataParallelTrainer(worker, train_loop_config={"seen": seen}, scaling_config=scaling, run_config=run).fit()
rows = ray.get(seen.all.remote())
print(f"ray {ray.__version__}: {len(addresses)} address, {len({row[3] for row in rows})} nodes, ranks {[row[:3] for row in rows]}", flush=True)
ray.shutdown()
cluster.shutdown()
PYTHON
RAY_TRAIN_V2_ENABLED=1 timeout 300 "$work/venv/bin/python" "$work/ranks.py" "$work" 2>"$work/err" >"$work/out" || { tail -5 "$work/err"; exit 1; }
cat "$work/out"
grep -qF "ray 2.60.0: 1 address, 2 nodes, ranks [(0, 2, 0), (1, 2, 0)]" "$work/out"
