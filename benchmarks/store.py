"""The index of a packed store of 1,000,000 entries: time to open it, memory, lookups; and who of a node's processes holds it.

`vicc bench store`: the index is made, the shards are not there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import Bar, Outcome
from vicc_ray.config import CHANNELS
from vicc_ray.data.store.index import Part, part_table, write_part
from vicc_ray.data.store.store import Header, PackedStore, picture_facts

ENTRIES, A_SHARD = 1_000_000, 1000
STEP = 96  # samples, whose places in the store are found
MOST_SECONDS, MOST_MIB = 5.0, 500.0
# In a process of its own, whose memory is that of opening alone.
_OPEN = """
import resource, sys, time
import numpy as np, psutil, pyarrow
from vicc_ray.data.manifest import VideoRow
from vicc_ray.data.store.store import PackedStore
process = psutil.Process()
before = process.memory_info().rss
began = time.perf_counter()
store = PackedStore.open(sys.argv[1])
indexes = [store.index("rgb"), store.index("flow")]
opened = time.perf_counter() - began
hashes = open(sys.argv[2], "rb").read()
rows = [VideoRow("v", frames=250, content_hash=hashes[16 * k : 16 * k + 16].hex()) for k in range(int(sys.argv[3]))]
began = time.perf_counter()
assert all(index.find(row) for row in rows for index in indexes)
found = time.perf_counter() - began
held = sum(array.nbytes for index in indexes for array in vars(index).values() if isinstance(array, np.ndarray))
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(opened, found, held / 2**20, peak / 2**20)
"""


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """Seconds from the store's name to the places of a step's clips. The manifest is not read: the entries are made up."""
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        folder, hashes = Path(scratch, "packed"), Path(scratch, "hashes")
        hashes.write_bytes(_make(str(folder)))
        found = []
        for _ in range(rounds + 1):
            command = [sys.executable, "-c", _OPEN, str(folder), str(hashes), str(STEP)]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append([float(word) for word in text.split()])
        counted = np.array(found[1:])
        outcome = Outcome("s", {"open": counted[:, 0].tolist(), f"find {STEP} samples": counted[:, 1].tolist()})
    outcome.bars = [
        Bar("seconds to open and find a step's clips", float(np.median(counted[:, :2].sum(1))), MOST_SECONDS, False),
        Bar("MiB that opening takes at its peak", float(np.median(counted[:, 3])), MOST_MIB, False),
    ]
    outcome.facts = {
        "entries": f"{ENTRIES:,} of pictures and of flow each, in {2 * ENTRIES // A_SHARD:,} shards",
        "held, MiB": round(float(counted[0, 2])),
    }
    return outcome


def _make(folder: str) -> bytes:
    """The index files; the content hashes of the entries, 16 bytes each."""
    facts = {"algorithm": "dis"}
    store = PackedStore.create(folder, Header((128, 171), "weave", picture_facts(), facts, 20.0))
    rng = np.random.default_rng(0)
    hashes = rng.bytes(16 * ENTRIES)
    schema = part_table({name: [] for name in _COLUMNS}).schema
    for stream in CHANNELS:
        for first in range(0, ENTRIES, A_SHARD):
            sizes = rng.integers(100_000, 400_000, A_SHARD)
            offsets = np.cumsum(sizes) - sizes
            numbers = range(first, first + A_SHARD)
            columns = [
                pa.array([hashes[16 * number : 16 * number + 16] for number in numbers], pa.binary(16)),
                np.zeros(A_SHARD, np.int64),
                np.full(A_SHARD, 250),
                offsets,
                np.full(A_SHARD, 1200),
                sizes,
                [f"videos/class/v_{number:07d}.mp4" for number in numbers],
            ]
            table = pa.table(dict(zip(_COLUMNS, columns, strict=True))).cast(schema)
            write_part(folder, Part(f"{stream}-{first:016x}", int(sizes.sum()), table), store.header.id)
    return hashes


_COLUMNS = ("content_hash", "first_frame", "frames", "offset", "head", "bytes", "video")
