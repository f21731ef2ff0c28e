#!/usr/bin/env bash
# An actor (ray 2.60.0) keeps the pages of large arguments that it was given, long after nobody refers to them.
#
# An argument above 100 KiB travels through the node's object store, a file in shared memory that each process maps. Reading an
# argument touches its part of that mapping, and the pages stay mapped when the object is gone from the store: the actor's memory
# grows by the size of what went through, as far as the store puts objects to new places, though it holds no reference. Its heap
# does not show it; `smaps` does, under /dev/shm/plasma (and a limit of a container counts it once for all processes).
#
# The same bytes as many arguments of up to 100 KiB each, 10 MiB a call at most, come with the call itself and leave no such pages.
#
# Seen: 168 MiB in calls of 8 MiB, other objects of 3 MiB put in between: 168 MiB of the mapping resident in the actor, which holds nothing.
# In pieces of 96 KiB, 16 a call: 0 MiB.
#
# Exits with 0 while this is so, with 1 where it changes. Needs python3 and a package index; writes to a temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray==2.60.0"
cat >"$work/pages.py" <<'PYTHON'
import os
import re
import sys

import ray

STATE, LARGE, PIECE = 168 << 20, 8 << 20, 96 << 10


@ray.remote(num_cpus=0)
class Taker:
    def take(self, *parts):
        return sum(map(len, parts))  # and keeps none of them

    def mapped(self):
        """MiB of the object store's file that are resident in this process."""
        kib, here = 0, False
        with open("/proc/self/smaps") as maps:
            for line in maps:
                if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                    here = "plasma" in line
                elif here and line.startswith("Rss:"):
                    kib += int(line.split()[1])
        return kib / 1024


ray.init(num_cpus=1, object_store_memory=10**9, log_to_driver=False)
state = os.urandom(STATE)

large = Taker.remote()
for start in range(0, STATE, LARGE):
    other = ray.put(os.urandom(3 << 20))  # what goes on beside it
    ray.get(large.take.remote(state[start : start + LARGE]))
small = Taker.remote()
for start in range(0, STATE, 16 * PIECE):
    part = state[start : start + 16 * PIECE]
    ray.get(small.take.remote(*(part[at : at + PIECE] for at in range(0, len(part), PIECE))))
seen = [ray.get(actor.mapped.remote()) for actor in (large, small)]
print(f"ray {ray.__version__}: {STATE >> 20} MiB in large arguments leave {seen[0]:.0f} MiB mapped, in small ones {seen[1]:.0f} MiB")
sys.exit(not (seen[0] > 60 and seen[1] < 2))
PYTHON
"$work/venv/bin/python" "$work/pages.py"
