#!/usr/bin/env bash
# Ray (2.60.0) imports a web framework, and pydantic's old half, in each worker process when it first gives an answer, if they are
# installed; nobody has to use them.
#
# Before a process first turns a Python object into bytes, Ray registers how objects of some packages are written. For Starlette's
# `State` and pydantic's models it imports starlette.datastructures (with anyio) and pydantic.v1 to have the classes, and
# pyarrow.json for Arrow's. Both come with packages that have nothing to do with Ray's workers here (MLflow brings Starlette). An
# actor that returns one number pays for it after its constructor and first call are done, in the middle of its first answer, and
# where processes are forked from one that has imported all the rest, it is the largest part of the memory that each has alone.
# Importing the four modules before the fork, or leaving the packages away, avoids it.
#
# Seen: an actor's first call ends with no module of starlette, anyio or pydantic imported; in its second call 98 modules more are
# there, and 7 MiB of memory of its own (10 in a process that was forked with pydantic itself imported, by 42 modules). In an
# environment without both packages it is pyarrow.json and two modules of Ray's own, 0.2 MiB.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/first.py" <<'PYTHON'
import sys

import ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)


@ray.remote
class Counter:
    def modules(self):
        import pyarrow  # so that only what Ray imports by itself counts

        with open("/proc/self/smaps_rollup") as lines:
            own = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        return sorted(sys.modules), own / 1024


counter = Counter.remote()
first, before = ray.get(counter.modules.remote())
second, after = ray.get(counter.modules.remote())
new = set(second) - set(first)
packages = sorted({".".join(name.split(".")[:2]) if name.startswith(("pydantic", "pyarrow")) else name.split(".")[0] for name in new})
print(f"ray {ray.__version__}: {len(new)} modules more after the first answer, {after - before:.1f} MiB: {', '.join(packages)}")
web = {name for name in new if name.split(".")[0] in ("starlette", "anyio") or name.startswith("pydantic.v1")}
expected = sys.argv[1] == "installed"
assert not any(name.split(".")[0] in ("starlette", "anyio") for name in first), "imported before"
assert bool(web) is expected, sorted(new)
assert not expected or ("starlette.datastructures" in web and "pydantic.v1.main" in web and after - before > 4), (web, after - before)
PYTHON
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray==2.60.0" "pyarrow==26.0.1"
"$work/venv/bin/python" "$work/first.py" absent
"$work/venv/bin/pip" -q install "starlette==1.10.0" "pydantic==2.14.3"
"$work/venv/bin/python" "$work/first.py" installed
