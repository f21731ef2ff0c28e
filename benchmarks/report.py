"""`vicc bench report`: how long a page of many runs takes to open, in a headless Chromium on this machine."""

from __future__ import annotations

import json
import math
import tempfile
import time
from pathlib import Path

from benchmarks import Bar, Outcome
from benchmarks.browser import PROGRAM, browser
from vicc_ray.errors import UserError
from vicc_ray.report import write_report

RUNS, RECORDS, MOST_SECONDS = 300, 400, 2.0
STAGES = ("RGB-1", "Flow-1", "RGB-2", "Flow-2")

# Figures are drawn when they come near.
DRAWN = (
    "(document.querySelector('.charts .plot').scrollIntoView(), "
    "document.querySelector('.js-plotly-plot .main-svg') !== null)"
)


def measure(rounds: int, manifest: str | None) -> Outcome:
    """Seconds from the request to the load event, as the page counts them, and to the first figure that is drawn."""
    if PROGRAM is None:
        raise UserError("bench report: needs Chromium (Debian's package chromium)")
    with tempfile.TemporaryDirectory(prefix="vicc-report-") as folder:
        runs = [_made(Path(folder, "runs", f"run-{number:03d}"), number) for number in range(RUNS)]
        pages = {"1 run": Path(folder, "one.html"), f"{RUNS} runs": Path(folder, "all.html")}
        began = time.monotonic()
        for file, of in zip(pages.values(), (runs[:1], runs), strict=True):
            write_report(of, file)
        written = time.monotonic() - began
        figures: dict[str, list[float]] = {name: [] for name in pages}
        drawn: dict[str, list[float]] = {name: [] for name in pages}
        with browser() as reader:
            for number in range(rounds + 1):
                for name, file in pages.items():
                    opened = reader.open(file)
                    reader.until(DRAWN)
                    if number:
                        figures[name].append(opened)
                        drawn[name].append(float(reader.run("performance.now()")) / 1000)
        facts = {f"MB of {name}": round(file.stat().st_size / 1e6, 1) for name, file in pages.items()}
    facts |= {"seconds to write both": round(written, 1), "records a run": RECORDS}
    details = {name: {"first figure, s": sorted(drawn[name])[len(drawn[name]) // 2]} for name in figures}
    outcome = Outcome("s until open", figures, facts=facts, details=details)
    outcome.bars = [
        Bar(f"a report of {RUNS} runs is open", outcome.median(f"{RUNS} runs"), MOST_SECONDS, at_least=False)
    ]
    return outcome


def _made(folder: Path, number: int) -> Path:
    """A run's folder with records of training, recall and one result."""
    (folder / "evaluations").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"name: {folder.name}\nseed: {number}\noptim: {{lr: {0.1 + number / 1000:g}}}\n"
    )
    lines = []
    for place in range(RECORDS):
        stage, samples = STAGES[place * len(STAGES) // RECORDS], 32 * (place + 1)
        loss = 3.4 - math.log1p(place % (RECORDS // 4)) / 4 + number / 500
        figures = {"loss": loss, "ln_k": math.log(32), "entropy": 1.5 + number / 1000, "prototypes_used": 0.9}
        shared = {"stage": stage, "step": place + 1, "samples": samples, "time": 1.7e9 + place}
        lines.append({"kind": "train", "samples_per_second": 30.0, **shared, **figures})
        if place % 50 == 49:
            lines.append({"kind": "monitor", "R@1": 0.2 + place / 2 / RECORDS, "R@5": 0.8, **shared})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = {
        "protocol": "retrieval",
        "run": folder.name,
        "seed": number,
        "data": "motion",
        "fold": None,
        "seconds": 9.0,
    }
    facts |= {"train_on": "train", "test_on": "query", "train": 400, "test": 160, "chance": 0.125}
    rows = [{"name": name, "R@1": 0.2 + place / 8, "R@5": 0.9} for place, name in enumerate(STAGES)]
    (folder / "evaluations" / "retrieval-motion-train-query.json").write_text(json.dumps(facts | {"rows": rows}))
    return folder
