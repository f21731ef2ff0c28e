#!/usr/bin/env bash
# While its reader is busy with a block, the scheduling loop of Ray Data (ray 2.60.0) goes round without a pause.
#
# The loop waits in ray.wait for the next task that has something to deliver, 0.1 s at most. Where as many blocks lie ready as the
# limit of the object store allows, actors have finished blocks that are not taken off them, so ray.wait returns at once, and the
# loop goes round as fast as Python can, in the process that reads, for as long as the reader computes.
# Nothing is written to the log, and the progress bar shows a pipeline at rest. With a larger limit, under which all is decoded
# at once, the loop ends and nothing of it is seen, so short tests do not find it.
#
# Seen on two cores while nothing is taken for 5 s: 9,769 rounds and 4.96 s of CPU, a whole core; with other work on them 1,626
# rounds and 1.17 s.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray[data]==2.60.0"
cat >"$work/spin.py" <<'PYTHON'
import json
import time

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions, ExecutionResources

ray.init(num_cpus=2, log_to_driver=False)
rounds = []


class Count:
    def before_execution_starts(self, executor):
        pass

    def on_execution_step(self, executor):
        rounds.append(time.thread_time())

    def after_execution_succeeds(self, executor):
        pass

    def after_execution_fails(self, executor, error):
        pass


class Quick:
    def __call__(self, rows):
        return {"number": rows["number"], "content": np.zeros((1, 1 << 18), np.uint8)}


DataContext.get_current().custom_execution_callback_classes = [Count]
DataContext.get_current().enable_progress_bars = False


def held(limit):
    """Rounds and CPU seconds of the loop's thread in 5 s in which no block is taken."""
    source = ray.data.from_blocks([pa.table({"number": [number]}) for number in range(100)])
    dataset = source.map_batches(Quick, batch_size=1, num_cpus=1, compute=ActorPoolStrategy(size=1))
    limits = ExecutionResources.for_limits(object_store_memory=limit)
    dataset.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    blocks = iter(dataset.iter_batches(batch_size=None, prefetch_batches=2))
    for _ in range(4):
        next(blocks)
    time.sleep(6)  # as many lie ready as may
    rounds.clear()
    time.sleep(5)
    found = len(rounds), rounds[-1] - rounds[0] if rounds else 0.0
    for _ in blocks:
        pass
    return found


few = held(2 << 20)
many = held(1 << 30)
print(json.dumps({"rounds": few[0], "CPU s": round(few[1], 2), "rounds where all is decoded": many[0]}))
assert few[0] > 500 and few[1] > 0.5, few
assert many[0] == 0, many
PYTHON
"$work/venv/bin/python" "$work/spin.py"
