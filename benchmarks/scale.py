"""What a run costs before its first step, for manifests of 10^4 to 10^7 rows: seconds, memory, bytes to an actor.

`vicc bench scale` measures this build; `benchmarks/against COMMIT scale` measures an earlier one beside it, where that still runs.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import Bar, Outcome
from benchmarks.product import CHECKOUT, Product, this_checkout
from vicc_ray.data.manifest import Manifest
from vicc_ray.data.rows import VideoRow, schema

PROBE = CHECKOUT / "benchmarks" / "scale_probe.py"
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
CLASSES, A_GROUP, A_PART = 400, 25, 500_000


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """The table, of one round: each size is a process of its own. The manifest is not read: the rows are made up."""
    found: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        for rows in SIZES:
            table = Path(scratch, f"{rows}.parquet")
            write_table(table, rows)
            found[rows] = probe(this_checkout(), table, further=True)
            table.unlink()
    few, most = found[SIZES[0]], found[SIZES[-1]]
    outcome = Outcome(
        "s", {f"open and plan {rows:,} rows": [facts["s to open and plan"]] for rows, facts in found.items()}
    )
    outcome.details = {f"{rows:,} rows": facts for rows, facts in found.items()}
    outcome.bars = [
        Bar("10^7 rows: s to open and plan", most["s to open and plan"], 10, at_least=False),
        Bar("10^7 rows: MiB of the first process", most["MiB of the first process"], 2048, at_least=False),
        Bar("10^7 rows: MiB more an actor than with 10^3", most["MiB of an actor"] - few["MiB of an actor"], 60, False),
        Bar("10^7 rows: MiB pickled to an actor", most["MiB pickled to an actor"], 1, at_least=False),
        Bar(
            "ms to draw a step, 10^7 / 10^3 rows",
            most["ms to draw a step"] / few["ms to draw a step"],
            2,
            at_least=False,
        ),
    ]
    return outcome


def probe(product: Product, table: Path, further: bool) -> dict[str, float]:
    """What `scale_probe.py` finds with a build; RuntimeError with its words where it fails."""
    command = [str(product.commands / "python"), str(PROBE), str(table), *["--further"] * further]
    # From another folder than the checkout, whose package would come before the build's own.
    environment = product.environment() | ({"PYTHONPATH": str(CHECKOUT)} if product.folder == CHECKOUT else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=table.parent)
    if done.returncode:
        raise RuntimeError(f"{product.folder}: status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_table(path: Path, rows: int) -> None:
    """A manifest of made-up videos of ten seconds, written as `vicc index` writes one, a part at a time."""
    metadata = metadata_of_a_manifest(path.parent)
    with pq.ParquetWriter(path, schema().with_metadata(metadata), write_page_checksum=True) as writer:
        for first in range(0, rows, A_PART):
            writer.write_table(made_up(np.arange(first, min(first + A_PART, rows))).replace_schema_metadata(metadata))


def metadata_of_a_manifest(folder: Path) -> dict[bytes, bytes]:
    """What a manifest's file says of itself; `folder`: for a file that is removed again."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        Manifest([VideoRow("a.mp4")]).write(Path(scratch, "one.parquet"))
        return dict(pq.read_schema(Path(scratch, "one.parquet")).metadata)


def made_up(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Table:
    """Rows of made-up videos with these numbers."""
    count = len(numbers)
    rng = np.random.default_rng(int(numbers[0]))
    frames = rng.integers(100, 500, count)
    # 32 hex digits of each number, no two alike.
    hashes = [f"{number:016x}" for number in rng.integers(0, 2**62, count).tolist()]
    columns = {
        "video": [f"/archive/films/{number // 1000:05d}/{number:08d}.mp4" for number in numbers.tolist()],
        "label": [f"class {number}" for number in (numbers % CLASSES).tolist()],
        "split": ["train"] * count,
        "group": [f"g{number}" for number in (numbers // A_GROUP).tolist()],
        "frames": frames,
        "declared_frames": frames,
        "fps": np.full(count, 25.0),
        "constant_rate": np.ones(count, bool),
        "width": np.full(count, 852),
        "height": np.full(count, 480),
        "rotation": np.zeros(count, np.int64),
        "duration_seconds": frames / 25,
        "codec": ["h264"] * count,
        "bytes": rng.integers(100_000, 2_000_000, count),
        "modified": np.full(count, 1.7e9) + numbers,
        "content_hash": [f"{number:016x}{digits}" for number, digits in zip(numbers.tolist(), hashes, strict=True)],
        "checked": np.zeros(count, bool),
        "decoder": ["decord"] * count,
        "refused": [None] * count,
        "hash_rule": np.full(count, 2),
        "start": pa.nulls(count, pa.float64()),
        "end": pa.nulls(count, pa.float64()),
        "first_frame": np.zeros(count, np.int64),
        "file_frames": np.zeros(count, np.int64),
        "frame_table": [""] * count,
        "changes": [""] * count,
    }
    return pa.table(columns, schema=schema())
