"""`vicc index` over files that its manifest knows already: CPU seconds and peak memory, beside the listing alone.

The files are hard links to a few small ones in a folder of this machine, none is opened: what is measured is the listing, the
comparison with the manifest, and writing it again.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import Bar, Outcome
from benchmarks.product import Product, this_checkout
from benchmarks.scale import A_PART, made_up, metadata_of_a_manifest
from vicc_ray.data.rows import FIELDS, Rows, schema

SIZES = (100_000, 1_000_000)
A_FOLDER, LINKS = 2500, 50_000  # files in a class folder; hard links to a file, of which file systems allow some 65,000
WALK = """
import os, sys
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        os.stat(os.path.join(folder, name))
"""
LIST = "import sys; from vicc_ray.data.layouts import scan; scan(sys.argv[1])"
MOST_TIMES, MOST_BYTES = 3.0, 1024


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """CPU seconds, of one round: each is a process of its own. The manifest is not read: the rows are made up."""
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    beside: list[float] = []  # MiB of the command beside the listing's
    times = 0.0
    for files in SIZES:
        with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
            found = compare(this_checkout(), Path(scratch), files)
        for name, (seconds, memory) in found.items():
            figures[f"{files:,} files, {name}"] = [seconds]
            details[f"{files:,} files, {name}"] = {"MiB at the peak": memory}
        (seconds, memory), (listing, least) = found["vicc index"], found["listing alone"]
        times = seconds / listing
        beside.append(memory - least)
    more = (beside[-1] - beside[0]) * 2**20 / (SIZES[-1] - SIZES[0])
    bars = [
        Bar(f"{SIZES[-1]:,} known files: CPU of vicc index / of the listing", times, MOST_TIMES, at_least=False),
        Bar("bytes a known file more than the listing's", more, MOST_BYTES, at_least=False),
    ]
    return Outcome("CPU s", figures, bars, details=details)


def compare(product: Product, scratch: Path, files: int) -> dict[str, tuple[float, float]]:
    """(CPU seconds, MiB at the peak) of a bare walk, the listing and the command of a build, for so many known files."""
    root, known = scratch / "videos", scratch / "known.parquet"
    write_files(root, known, files)
    python, vicc = str(product.commands / "python"), str(product.commands / "vicc")
    commands = {
        "bare walk": [python, "-c", WALK, str(root)],
        "listing alone": [python, "-c", LIST, str(root)],
        "vicc index": [vicc, "index", str(root), "--out", str(known)],
    }
    return {name: timed(command, product.environment(), scratch) for name, command in commands.items()}


def timed(command: list[str], environment: dict[str, str], folder: Path) -> tuple[float, float]:
    """CPU seconds and MiB at the peak of a process; RuntimeError with its words where it fails."""
    memory = 0.0
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)
        while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
            memory = max(memory, _peak(process.pid))
            time.sleep(0.02)
        _, status, usage = found
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)}: status {process.returncode}\n{output.read()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, memory


def _peak(process: int) -> float:
    """MiB that a process has held at most since it began its program; what rusage gives includes the program before."""
    with suppress(OSError), open(f"/proc/{process}/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def write_files(root: Path, manifest: Path, files: int) -> None:
    """So many files in class folders, and the manifest that knows them."""
    metadata = metadata_of_a_manifest(root.parent)
    with pq.ParquetWriter(manifest, schema().with_metadata(metadata), write_page_checksum=True) as writer:
        for first in range(0, files, A_PART):
            numbers = np.arange(first, min(first + A_PART, files))
            names, sizes, times = _link(root, numbers.tolist())
            rows = Rows(made_up(numbers)).having({"video": names, "bytes": sizes, "modified": times})
            table = pa.table({name: rows.texts(name) for name in FIELDS}).cast(schema())
            writer.write_table(table.replace_schema_metadata(metadata))


def _link(root: Path, numbers: list[int]) -> tuple[list[str], list[int], list[float]]:
    names: list[str] = []
    sizes: list[int] = []
    times: list[float] = []
    source, status = root, os.stat(root.parent)
    for number in numbers:
        folder = root / f"class{number // A_FOLDER:04d}"
        if number % A_FOLDER == 0:
            folder.mkdir(parents=True)
        if not names or number % LINKS == 0:
            source = root.parent / f"linked-{number}"
            source.write_bytes(bytes(1000))
            status = source.stat()
        name = f"{folder}/video_{number:08d}.mp4"
        os.link(source, name)
        names.append(name)
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns / 1e9)
    return names, sizes, times
