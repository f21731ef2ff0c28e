"""The shipped sweep over the quickstart's videos: how long, how good, how much of the training."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from benchmarks.builds import BuildBench, Limit, Measured, Turn
from vicc_ray.data.synthetic import make_dataset

SECONDS, RECALL, SHARE = "s of the sweep", "best recall", "share of samples trained"


def measure(turn: Turn) -> Measured:
    """`vicc tune` of the product's own sweep file; the figures are those of the table that it writes."""
    manifest = turn.manifest(_table, "quickstart")
    file = turn.product.folder / "experiments" / "sweep_quickstart.yaml"
    settings = (
        f"data.manifest={manifest}",
        f"runs={turn.folder / 'runs'}",
        f"search.budget={turn.sizes.trials} trials",
    )
    began = time.monotonic()
    turn.product.run("tune", str(file), *(word for setting in settings for word in ("--set", setting)))
    seconds = time.monotonic() - began
    return Measured({SECONDS: seconds} | figures(turn.folder / "runs" / "sweep_quickstart" / "trials.csv"))


def figures(trials: Path) -> dict[str, float]:
    """Best recall of a finished trial; samples trained / those of whole trials, as the sweep itself says it."""
    with trials.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    finished = [row for row in rows if row["outcome"] == "finished" and row["value"]]
    counted = [row for row in rows if row["samples"] and row["samples_of_a_whole_trial"]]
    spent = sum(float(row["samples"]) for row in counted)
    whole = sum(max(float(row["samples_of_a_whole_trial"]), float(row["samples"])) for row in counted)
    return {
        RECALL: max((float(row["value"]) for row in finished), default=0.0),
        SHARE: spent / whole if whole else 1.0,
        "trials": float(len(rows)),
        "trials stopped early": float(sum(row["outcome"] == "pruned" for row in rows)),
    }


def _table(folder: Path) -> Path:
    """The quickstart's videos."""
    return make_dataset(folder / "data", train_per_class=50, query_per_class=20, frames=16, seed=0)


BENCH = BuildBench(
    "the shipped sweep of the quickstart: seconds, best recall, share of samples trained",
    measure,
    (
        Limit(SECONDS, 0.5),
        Limit(RECALL, -0.02, at_least=True, of="difference"),
        Limit(SHARE, 0.6, of="new"),
    ),
    rounds=1,
)
