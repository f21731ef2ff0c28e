#!/usr/bin/env python3
"""Tells Ray that this spot machine is about to be taken away, so that a run writes a checkpoint in time.

    spot_notice.py --cloud aws|gcp --address HEAD:6379

Asks the cloud's metadata service every few seconds; at its notice this machine's node is drained with the reason and the
time that is left, which Ray Train passes on to the run's workers. Ends after the notice.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
SECONDS_LEFT = {"aws": 110, "gcp": 25}  # the clouds promise 120 and 30
WAIT = 5.0


def ask(url: str, method: str = "GET", **headers: str) -> str | None:
    """The answer of the metadata service; None where it has none (404) or cannot be reached now."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=named), timeout=3) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, TimeoutError):
        return None


def told(cloud: str, base: str) -> bool:
    """Whether the cloud has said that this machine will be taken away."""
    if cloud == "gcp":
        return ask(f"{base}/computeMetadata/v1/instance/preempted", Metadata_Flavor="Google") == "TRUE"
    token = ask(f"{base}/latest/api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
    notice = ask(f"{base}/latest/meta-data/spot/instance-action", X_aws_ec2_metadata_token=token or "")
    return notice is not None


def node_here(address: str) -> str:
    """Ray's number of this machine's node."""
    import ray
    import ray._private.services as services

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    here = services.get_node_ip_address()
    return next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == here)


def main() -> int:
    """Wait for the notice, pass it on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cloud", choices=sorted(METADATA), required=True)
    parser.add_argument("--address", required=True, help="HOST:PORT of the head")
    parser.add_argument("--metadata", help="address of the metadata service, where it is not the cloud's")
    parser.add_argument("--node", help="Ray's number of the node, where it is not to be looked up")
    asked = parser.parse_args()
    while not told(asked.cloud, asked.metadata or METADATA[asked.cloud]):
        time.sleep(WAIT)
    node = asked.node or node_here(asked.address)
    drain = ["ray", "drain-node", "--address", asked.address, "--node-id", node]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot machine is taken away"]
    return subprocess.run(
        [*drain, "--deadline-remaining-seconds", str(SECONDS_LEFT[asked.cloud])], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
