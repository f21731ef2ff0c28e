"""A file of 24 hours through every step that meets it, beside one of an hour: CPU seconds, and memory at the peak.

`vicc bench day`: both files are ten seconds of H.264 joined, 160x120 at 25 pictures a second, of which the long one has 2,160,000;
they are made for the bench and deleted. Each step is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import Bar, Outcome
from benchmarks.embed import repeat_film, write_film

PIECE, HOURS = 10, (1, 24)  # seconds that are encoded once; hours of the files
SIZE, RATE = (120, 160), 25
FEATURES = 1024
CLIPS = 8
MOST_MIB = 256
STEPS = ("index", "cut every 10 s and plan", "a clip", "a window encoded", "mean over all windows")

# A process a step: what it needs is imported, then the clock starts. Memory is the process's peak from there on.
_PRELUDE = """
import json, sys, time
import numpy as np
import torch
from vicc_ray.cluster.decode_actors import DecodeWindows, list_windows
from vicc_ray.config import make_experiment
from vicc_ray.data.augment import evaluation_input
from vicc_ray.data.manifest import Manifest, probe
from vicc_ray.data.samples import read_clips
from vicc_ray.data.segments import cut_evenly
from vicc_ray.evaluation.means import video_means
from vicc_ray.models.encoder import build_encoder
from vicc_ray.training.batches import make_plan

torch.set_num_threads(1)
film, manifest, clips, features, piece = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
settings = {"name": "day", "data": {"manifest": manifest}, "clip": {"decode_size": [120, 160], "size": 112}}
experiment = make_experiment(settings, "day")
rng = np.random.default_rng(0)

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

def starts(row):
    span = experiment.clip.frames
    return [int(place) for place in rng.integers(row.frames // 3, 2 * row.frames // 3 - span, clips)]

def row():
    return Manifest.read(manifest).videos[0]

count = 1
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
before, began = peak(), time.process_time()
"""
_CLOSE = """
seconds = time.process_time() - began
print(json.dumps({"s": seconds / count, "MiB": peak() - before, **facts}))
"""
_BODIES = {
    "index": """
found = probe(film)
Manifest([found]).write(manifest)
facts = {"frames": found.frames, "bytes of its row's frame table": len(found.frame_table or "")}
""",
    "cut every 10 s and plan": """
parts = cut_evenly(row(), piece)
plan = make_plan(experiment, Manifest(parts))
facts = {"parts": len(parts)}
""",
    "a clip": """
one, count = row(), clips
for start in starts(one):
    read_clips(one, [start], ("rgb",), experiment.clip, experiment.flow)
facts = {}
""",
    "a window encoded": """
one, count = row(), clips
encoder = build_encoder("s3d", width=0.25)
with torch.inference_mode():
    for start in starts(one):
        clip = read_clips(one, [start], ("rgb",), experiment.clip, experiment.flow)["rgb"]
        encoder.features(evaluation_input(torch.from_numpy(clip), experiment.clip.size))
facts = {}
""",
    "mean over all windows": """
windows = list_windows([row()], experiment.clip, "all")
def blocks():
    for first in range(0, len(windows), 16):
        rows = min(16, len(windows) - first)
        refused = np.array([""] * rows, object)
        yield {"video": np.zeros(rows, np.int64), "refused": refused, "RGB-2": rng.normal(size=(rows, features))}
(mean,) = video_means(blocks(), ["RGB-2"])
assert mean.windows == len(windows)
facts = {"windows": len(windows)}
""",
}


def measure(rounds: int, manifest: str | None = None) -> Outcome:
    """CPU seconds of each step; the manifest is not read."""
    figures: dict[str, list[float]] = {}
    details: dict[str, dict[str, float]] = {}
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vicc-bench-") as scratch:
        piece = Path(scratch, "piece.mp4")
        write_film(piece, PIECE, size=SIZE, rate=RATE)
        for hours in HOURS:
            film, known = Path(scratch, f"{hours}.mp4"), Path(scratch, f"{hours}.parquet")
            repeat_film(piece, film, 3600 * hours // PIECE)
            facts[f"MB of the file of {hours} h"] = round(film.stat().st_size / 1e6)
            for step in STEPS:
                found = [_run(step, film, known) for _ in range(rounds)]
                name = f"{hours} h: {step}"
                figures[name] = [one.pop("s") for one in found]
                details[name] = {"MiB more at the peak": max(one.pop("MiB") for one in found)}
                facts |= {f"{hours} h: {key}": value for key, value in found[0].items()}
            film.unlink()
    outcome = Outcome("CPU s", figures, facts=facts, details=details)
    few, many = HOURS
    growth = max(_memory(details, many, step) - _memory(details, few, step) for step in STEPS)
    outcome.bars = [Bar(f"MiB more at the peak of any step, {many} h beside {few} h", growth, MOST_MIB, at_least=False)]
    more = outcome.median(f"{many} h: a clip") - outcome.median(f"{few} h: a clip")
    facts["ms that a clip takes more, as the file is opened for it"] = round(1000 * more)
    return outcome


def _memory(details: dict[str, dict[str, float]], hours: int, step: str) -> float:
    return details[f"{hours} h: {step}"]["MiB more at the peak"]


def _run(step: str, film: Path, manifest: Path) -> dict[str, Any]:
    """The figures of a step in a process of its own; RuntimeError with its words where it fails."""
    source = _PRELUDE + _BODIES[step] + _CLOSE
    command = [sys.executable, "-c", source, str(film), str(manifest), str(CLIPS), str(FEATURES), str(PIECE)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{step}: status {done.returncode}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
