"""`vicc bench`: one way to measure. Contenders take turns in one run; figures are medians; bars come as rows at the end."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from vicc_ray.config import load_experiment
from vicc_ray.console import console
from vicc_ray.errors import UserError
from vicc_ray.runs.records import write_text

# Each name is a module of this package with a function `measure(rounds, manifest) -> Outcome`; the text is shown by
# `vicc bench list`. Without a manifest a bench makes its own videos, if it needs any. `step` measures an experiment:
# its function is `measure(rounds, experiment, device)`. Those of `TAKES` get options of their own by name.
BENCHES = {
    "augment": "clips/s of the batched augmentation beside a frame-by-frame one with PIL",
    "checkpoint": "what a healthy run pays for records and checkpoints, beside bare optimiser steps",
    "data": "samples/s of Ray Data, streamed and from a packed store, beside a bare loop, a DataLoader and JPEG frames; memory, S3",
    "day": "a file of 24 hours indexed, cut, planned, read and evaluated, beside one of an hour: CPU seconds, memory",
    "delivery": "CPU time of delivering a block that holds nothing, by the number of workers; a dataset each beside one for all",
    "embed": "segments/s of vicc embed beside a bare loop of decoding and encoding; clips/s a core",
    "faults": "every fault that a run survives, on a cluster of several nodes: time to recover, work lost",
    "flow": "error and bytes of stored flow; time to read it beside the RGB clip; TV-L1 in PyTorch beside OpenCV's",
    "formats": "formats of a packed store of decoded clips: time of a clip from disk and S3, bytes beside JPEG, PSNR",
    "index": "vicc index over 10^5 and 10^6 files that its manifest knows, beside the listing alone: seconds, memory",
    "learning": "R@1 against samples seen of recipes x seeds on the same videos, beside naive features; resumable",
    "objective": "seconds and memory of the objective alone with 30,000 prototypes and a long queue, in blocks and at once",
    "pipeline": "samples/s of the quickstart's stream through Ray Data beside a bare decode + flow loop",
    "pruning": "training that stopping or pausing trials early saves, and what it loses, on recorded curves",
    "readers": "CPU ms a clip of PyAV, decord, decord2, torchcodec and OpenCV; memory; right frames of a manifest",
    "recovery": "seconds from a node's death to the next optimiser step",
    "report": "seconds until a report of 300 runs is open in a headless Chromium, beside one of a single run; its bytes",
    "step": "samples/s and TFLOP/s of an experiment's training step beside the published way, lever by lever",
    "retrieval": "queries/s of exact search beside faiss",
    "store": "opening the index of a packed store of 1,000,000 entries: seconds, memory",
    "scale": "what a run costs before its first step, for manifests of 10^3 to 10^7 rows: seconds, memory, bytes to an actor",
    "scaling": "samples/s of two one-core nodes beside one; the share of a step that is spent in messages",
    "tune": "best value that the samplers of sweeps find beside random search: made-up surface, recorded grid, public tables",
}
# Options besides rounds and manifest, by bench; others take none.
TAKES = {
    "step": ("experiment", "overrides", "device"),
    "learning": ("experiment", "overrides", "data", "folder", "recipes", "cores", "queries"),
}


@dataclass(frozen=True)
class Bar:
    """A figure that has to reach a bar; `at_least` False: must not exceed it."""

    name: str
    figure: float
    bar: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar


@dataclass
class Outcome:
    """What a bench found: per contender the figures of each round, and the bars."""

    unit: str
    figures: dict[str, list[float]]
    bars: list[Bar] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, dict[str, float]] = field(default_factory=dict)  # per contender, named figures with unit

    def median(self, contender: str) -> float:
        """The median over the rounds."""
        return statistics.median(self.figures[contender])

    def ratio(self, contender: str, rival: str) -> float:
        """The median of the round-by-round ratios, which holds when the machine's speed drifts; NaN beside zeros only."""
        pairs = zip(self.figures[contender], self.figures[rival], strict=True)
        ratios = [mine / theirs for mine, theirs in pairs if theirs]  # a recall may be 0
        return statistics.median(ratios) if ratios else math.nan


def take_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each contender once a round, in order, after one round that is not counted: {name: figures}."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            figure = run()
            if number:
                figures[name].append(figure)
    return figures


def run_bench(
    name: str, json_file: Path | None, rounds: int, manifest: str | None = None, **options: Any
) -> dict[str, Any]:
    """Run a bench by name, print it, write it as JSON; gives the same figures and bars. UserError for an unknown name.

    `options`: of `TAKES`; those of other benches are refused where they are given (None, false and empty ones are not).
    """
    if name == "list":
        for known, text in BENCHES.items():
            console.print(f"{known}: {text}")
        return {"benches": dict(BENCHES)}
    if name not in BENCHES:
        raise UserError(f"bench {name}: is unknown; known: {', '.join(BENCHES)}")
    outcome = _measured(name, rounds, manifest, {option: value for option, value in options.items() if value})
    _print(name, outcome)
    bars = [asdict(bar) | {"holds": bar.holds} for bar in outcome.bars]
    result = {"bench": name, "unit": outcome.unit, "figures": outcome.figures, "facts": outcome.facts, "bars": bars}
    if outcome.details:
        result["details"] = outcome.details
    if json_file:
        write_text(json_file, json.dumps(result, indent=2) + "\n")
    return result


def _measured(name: str, rounds: int, manifest: str | None, options: Mapping[str, Any]) -> Outcome:
    module = import_module(f"benchmarks.{name}")
    for option in options:
        if option not in TAKES.get(name, ()):
            shown = {"experiment": "experiment", "overrides": "--set"}.get(option, f"--{option}")
            takers = " and ".join(f"'vicc bench {one}'" for one, taken in TAKES.items() if option in taken)
            raise UserError(f"bench {name}: takes no {shown}; that is for {takers}")
    if name != "step":
        outcome: Outcome = module.measure(rounds, manifest, **options)
        return outcome
    if not options.get("experiment"):
        raise UserError("bench step: measures an experiment's step; name its file: vicc bench step EXPERIMENT.yaml")
    if manifest:
        raise UserError("bench step: makes its own clips and takes no --manifest")
    experiment = load_experiment(options["experiment"], options.get("overrides", ()))
    measured: Outcome = module.measure(rounds, experiment, options.get("device"))
    return measured


def _print(name: str, outcome: Outcome) -> None:
    table = Table(title=f"{name} ({outcome.unit}, {len(next(iter(outcome.figures.values())))} rounds in turn)")
    for column in ("contender", "median", "lowest", "highest", "ratio to the first"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    first = next(iter(outcome.figures))
    for contender, figures in outcome.figures.items():
        cells = (f"{outcome.median(contender):.3g}", f"{min(figures):.3g}", f"{max(figures):.3g}")
        table.add_row(contender, *cells, f"{outcome.ratio(contender, first):.3f}")
    console.print(table)
    if outcome.details:
        console.print(_details(outcome.details))
    for fact, value in outcome.facts.items():
        console.print(f"{fact}: {value}")
    print_bars(outcome.bars)


# More contenders than this are rows of the table of details, not columns.
MOST_COLUMNS = 12


def _details(details: Mapping[str, Mapping[str, float]]) -> Table:
    """A column each contender, by its number, and a row each figure: names as columns would be too wide.

    The other way round where contenders are many.
    """
    if len(details) > MOST_COLUMNS:
        table = Table("contender", *(Column(name, justify="right") for name in next(iter(details.values()))))
        for contender, figures in details.items():
            table.add_row(contender, *(f"{value:.3g}" for value in figures.values()))
        return table
    table = Table(title="contenders numbered in the order above")
    table.add_column("figure")
    for number in range(1, len(details) + 1):
        table.add_column(str(number), justify="right")
    for figure in next(iter(details.values())):
        values = (figures[figure] for figures in details.values())
        table.add_row(figure, *(f"{value:.3g}" for value in values))
    return table


def print_bars(bars: Sequence[Bar]) -> None:
    """A line each, with whether it holds."""
    for bar in bars:
        sign = ">=" if bar.at_least else "<="
        verdict = "holds" if bar.holds else "MISSED"
        console.print(f"bar: {bar.name}: {bar.figure:.3f} {sign} {bar.bar:g}: {verdict}")
