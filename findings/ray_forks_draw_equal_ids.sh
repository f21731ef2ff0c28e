#!/usr/bin/env bash
# Importing ray.data (ray 2.60.0) fixes the random identities that forks of the process draw: they are equal.
#
# Ray's identities of objects, tasks and workers come from one C++ generator a thread, which is seeded when it is first used.
# "import ray" does not use it, so forks of a process that has imported ray alone draw identities of their own. ray.data (and
# ray.train, which imports it) decorates classes with @ray.remote at import, and each such class draws an identity: from then on
# the generator is seeded, its state is copied by os.fork(), and every fork draws the same sequence. Nothing warns. Processes
# of one cluster made in this way name their objects alike. uuid4 and Python's random module differ in the forks, as documented.
#
# Seen: after "import ray": identities of two forks differ; after "import ray.data": they are equal, uuid4 differ.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray[data]==2.60.0"
cat >"$work/forks.py" <<'PYTHON'
import os
import sys
import uuid
from importlib import import_module


def in_a_fork(draw) -> bytes:
    ours, theirs = os.pipe()
    if not os.fork():
        os.write(theirs, draw())
        os._exit(0)
    os.close(theirs)
    os.wait()
    with os.fdopen(ours, "rb") as pipe:
        return pipe.read()


def equal(draw) -> bool:
    return in_a_fork(draw) == in_a_fork(draw)


import_module(sys.argv[1])
from ray import ObjectID, __version__  # noqa: E402

identities, uuids = equal(lambda: ObjectID.from_random().binary()), equal(lambda: uuid.uuid4().bytes)
print(f"ray {__version__}, import {sys.argv[1]}: identities equal {identities}, uuid4 equal {uuids}")
PYTHON
plain=$("$work/venv/bin/python" "$work/forks.py" ray | tail -1)
data=$("$work/venv/bin/python" "$work/forks.py" ray.data | tail -1)
printf '%s\n%s\n' "$plain" "$data"
[ "$plain" = "ray 2.60.0, import ray: identities equal False, uuid4 equal False" ]
[ "$data" = "ray 2.60.0, import ray.data: identities equal True, uuid4 equal False" ]
