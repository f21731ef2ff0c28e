#!/usr/bin/env bash
# ray.init() (ray[default] 2.60.0) takes 3 to 4 s longer where anything listens at port 52365, and then starts all the same.
#
# 52365 is the fixed default of the dashboard agent's own HTTP port, which ray.init() has no argument for (`ray start` has
# --dashboard-agent-listen-port). The agent tries it six times, with pauses of 0.2, 0.3, 0.5, 0.9 and 1.6 s, gives up with an error
# in dashboard_agent.log alone, and the raylet waits for it meanwhile. Another cluster on the machine is enough, and so is the one
# before: its agent outlives its raylet by more than a minute where the raylet was killed.
#
# Seen on 2 cores, medians of 3: port free 4 s, port taken 7.5 s; at least 2.5 s more.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q install "ray[default]==2.60.0"
cat >"$work/start.py" <<'PYTHON'
import json
import os
import socket
import sys
import time

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
import ray

taken = None
if sys.argv[1] == "taken":
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("0.0.0.0", 52365))
    taken.listen()
started = time.monotonic()
ray.init(address="local", num_cpus=1, object_store_memory=100 * 2**20, logging_level="ERROR", log_to_driver=False)
print(json.dumps({"version": ray.__version__, "seconds": time.monotonic() - started}))
ray.shutdown()
PYTHON
seconds() {
    for _ in 1 2 3; do
        "$work/venv/bin/python" "$work/start.py" "$1" 2>/dev/null | tail -1 |
            "$work/venv/bin/python" -c 'import json, sys; print(json.load(sys.stdin)["seconds"])'
        for _ in $(seq 120); do # until the agent of the cluster that just ended has let go of the port
            "$work/venv/bin/python" -c 'import socket; socket.create_server(("0.0.0.0", 52365)).close()' 2>/dev/null && break
            sleep 1
        done
    done | sort -n | sed -n 2p
}
free=$(seconds free)
taken=$(seconds taken)
echo "port free: $free s, port taken: $taken s"
"$work/venv/bin/python" -c "assert $taken - $free > 2.5, 'it does not wait any more'"
