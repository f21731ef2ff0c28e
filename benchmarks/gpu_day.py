"""All that is to be known of this project on a GPU, in one command and nine minutes: what holds, how fast, what bounds it.

    python benchmarks/gpu_day.py --json gpu.json              # on a machine with a GPU; needs no Ray but for its last part
    python benchmarks/gpu_day.py --rehearse                   # the same path at tiny sizes on a CPU
    python benchmarks/gpu_day.py --parts ceilings,step_s3d    # some of it

Each part is a process of its own with a budget: it is ended when that is used up, skipped (with a line) when too little time is
left, and its failure ends no other. Figures come as lines while it runs; with --json all of them are in one file, also when a
part was ended. Parts and the floors that they are held to: `gpu_parts`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Part:
    """A part of the day: most seconds it may take, and how many must be left for it to begin."""

    name: str
    seconds: float
    least: float
    text: str


PARTS = [
    Part(
        "tests",
        130,
        40,
        "tests marked gpu: losses of every lever, checkpoints, batch norm, flow, two ranks on one card",
    ),
    Part(
        "ceilings", 60, 25, "rates of the card: copy, matrix products, the networks' own convolutions; floors of a step"
    ),
    Part("step_s3d", 200, 40, "S3D's cross-stream step: the published way, then lever by lever"),
    Part("step_r2plus1d", 120, 40, "R(2+1)D's cross-stream step: the published way, then lever by lever"),
    Part("tvl1", 45, 20, "TV-L1 on the device beside one CPU core of OpenCV"),
    Part("features", 45, 20, "feature extraction, clips/s"),
    Part("profile", 60, 25, "the best step: time by kind of kernel, share of peak, what bounds it"),
    Part("quickstart", 240, 90, "vicc quickstart with Ray, to its end"),
]


def main() -> int:
    """Run the parts in order; 1 where one failed or was ended, or (but in a rehearsal) a bar was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together (default 9)")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; figures mean nothing")
    chosen = parser.parse_args()
    names = chosen.parts.split(",")
    unknown = sorted(set(names) - {part.name for part in PARTS})
    if unknown:
        parser.error(f"--parts: {', '.join(unknown)}: unknown; known: {', '.join(part.name for part in PARTS)}")
    if chosen.json:
        try:  # now, and not when the first part has its figures
            chosen.json.write_text("{}\n")
        except OSError as error:
            parser.error(f"--json {chosen.json}: cannot be written ({error.strerror})")
    end = time.monotonic() + 60 * (60 if chosen.rehearse else chosen.minutes)
    results: dict[str, Any] = {"parts": {}}
    for part in PARTS:
        if part.name in names:
            earlier = {name: result["figures"] for name, result in results["parts"].items()}
            results["parts"][part.name] = run(part, end - time.monotonic(), chosen.rehearse, earlier)
            if chosen.json:
                chosen.json.write_text(json.dumps(results, indent=1) + "\n")
    states = {name: result["state"] for name, result in results["parts"].items()}
    print("summary:", ", ".join(f"{name} {state}" for name, state in states.items()), flush=True)
    whole = all(state in ("done", "skipped") for state in states.values())
    if chosen.rehearse:
        return 0 if whole else 1
    figures = {name: figure for result in results["parts"].values() for name, figure in result["figures"].items()}
    bars = {name: figure for name, figure in figures.items() if name.startswith("bar: ")}
    for name, bar in bars.items():
        print(f"{name}: {bar['figure']:.4g} {bar['bar']}: {'holds' if bar['holds'] else 'MISSED'}", flush=True)
    return 0 if whole and all(bar["holds"] for bar in bars.values()) else 1


def run(part: Part, left: float, rehearse: bool, earlier: dict[str, Any]) -> dict[str, Any]:
    """One part in a process of its own: its state, seconds and figures."""
    if left < part.least:
        print(f"== {part.name}: skipped, {left:.0f} s are left and it needs {part.least:.0f}", flush=True)
        return {"state": "skipped", "seconds": 0.0, "figures": {}}
    limit = min(part.seconds, left) if not rehearse else 600.0
    print(f"== {part.name}: {part.text} (at most {limit:.0f} s)", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file, before = Path(folder) / "figures.jsonl", Path(folder) / "earlier.json"
        before.write_text(json.dumps(earlier))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path()), "PYTHONUNBUFFERED": "1"}
        script = ROOT / "benchmarks" / "gpu_parts.py"
        command = [sys.executable, str(script), part.name, str(file), f"{limit:.0f}", str(before)]
        if rehearse:
            command.append("--rehearse")
            environment |= {"CUDA_VISIBLE_DEVICES": "", "VICC_REHEARSE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        try:
            state = "done" if process.wait(timeout=limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "out of time"
        finally:
            _end(process)
        lines = file.read_text().splitlines() if file.exists() else []
    seconds = time.monotonic() - start
    print(f"== {part.name}: {state}, {seconds:.0f} s", flush=True)
    figures: dict[str, Any] = {}
    for line in lines:
        figures |= json.loads(line)
    return {"state": state, "seconds": round(seconds, 1), "figures": figures}


def _path() -> list[str]:
    """Where the part finds the package, the tests' helpers and what was there before."""
    return [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started: it is the leader of its own group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
