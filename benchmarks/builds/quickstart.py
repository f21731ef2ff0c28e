"""The whole quickstart, as a newcomer runs it: how long, and how well RGB has learnt motion by then."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.builds import BuildBench, Limit, Measured, Turn

SECONDS, RECALL = "s of the quickstart", "RGB-2 R@1 on the queries"


def measure(turn: Turn) -> Measured:
    """`vicc quickstart` with the round's number as its seed; its recall is that of its own evaluation."""
    began = time.monotonic()
    turn.product.run("quickstart", "--runs", str(turn.folder / "runs"), "--set", f"seed={turn.number}")
    seconds = time.monotonic() - began
    return Measured({SECONDS: seconds} | recalls(turn.folder / "runs" / "quickstart"))


def recalls(run: Path) -> dict[str, float]:
    """R@1 on the queries by encoder, of the run's one evaluation."""
    (file,) = (run / "evaluations").glob("*.json")
    found = {row["name"]: float(row["R@1"]) for row in json.loads(file.read_text())["rows"]}
    return {RECALL: found.pop("RGB-2")} | {f"R@1 of {name}": value for name, value in found.items()}


BENCH = BuildBench(
    "the whole quickstart with seeds 0, 1, ...: seconds, R@1 of RGB-2 on the queries",
    measure,
    (Limit(SECONDS, 0.6), Limit(RECALL, 0.75, at_least=True, of="new")),
)
