"""What a run costs before its first step, by the rows of its manifest, of both builds."""

from __future__ import annotations

from benchmarks.builds import BuildBench, Limit, Measured, Turn
from benchmarks.scale import probe, write_table

SIZES = {"10^4": 10_000, "10^5": 100_000, "10^6": 1_000_000}
ACTOR = "10^6 rows: MiB of an actor"


def measure(turn: Turn) -> Measured:
    """`benchmarks/scale_probe.py` with the build's Python."""
    figures: dict[str, float] = {}
    for name, rows in SIZES.items():
        table = turn.shared / f"{rows}.parquet"
        if not table.exists():
            write_table(table, rows)
        figures |= {f"{name} rows: {what}": figure for what, figure in probe(turn.product, table, True).items()}
    return Measured(figures)


BENCH = BuildBench(
    "seconds, memory and bytes of opening a manifest, by its rows; what they cost a decode actor",
    measure,
    (Limit(ACTOR, 0.1), Limit("10^6 rows: s to open and plan", 0.5)),
    rounds=1,
)
