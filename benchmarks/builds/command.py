"""The command `benchmarks/against`: see its help."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from benchmarks import Bar, print_bars
from benchmarks.builds import NEW, OLD, BuildBench, Measured, Sizes, Turn, order, ratios
from benchmarks.builds.faulty import GOODPUT_BENCH, RECOVERY, STEADY_BENCH
from benchmarks.builds.quickstart import BENCH as QUICKSTART
from benchmarks.builds.scale import BENCH as SCALE
from benchmarks.builds.start import BENCH as START
from benchmarks.builds.sweep import BENCH as SWEEP
from benchmarks.fault_run import TooLate
from benchmarks.product import CHECKOUT, Product
from vicc_ray.console import console
from vicc_ray.errors import UserError
from vicc_ray.runs.records import write_text

BENCHES = {
    "start": START,
    "recovery": RECOVERY,
    "goodput": GOODPUT_BENCH,
    "steady": STEADY_BENCH,
    "sweep": SWEEP,
    "scale": SCALE,
    "quickstart": QUICKSTART,
}
SHORT = 7  # characters of a commit's name
FAILED = 2


def main(arguments: Sequence[str] | None = None, checkout: Path = CHECKOUT) -> int:
    """0: every bar holds, 1: one is missed, 2: it could not be measured, which one line says."""
    asked = _parser().parse_args(arguments)
    try:
        return 0 if run(asked, checkout) else 1
    except (UserError, TooLate, RuntimeError) as error:
        print(f"against: {error}", file=sys.stderr)
        return FAILED


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:10}{bench.text}" for name, bench in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="benchmarks/against",
        description=f"Measures this checkout beside an earlier commit, in turn on this machine:\n\n{known}",
        epilog="The commit is checked out and set up in .against/, once. Exit status 1: a bar is missed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("commit", metavar="COMMIT", help="the earlier build")
    parser.add_argument("benches", metavar="BENCH", nargs="+", choices=list(BENCHES), help="what to measure")
    parser.add_argument("--rounds", type=_count, help="default: 1 of goodput and sweep, 3 of the others")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    parser.add_argument("--keep", action="store_true", help="keep the folders that the runs wrote, and say where")
    parser.add_argument("--only", choices=(OLD, NEW), help="measure one build, without bars: to try a bench")
    sizes = Sizes()
    parser.add_argument(
        "--seconds", type=float, default=sizes.seconds, help="goodput: of the run with faults (%(default)g)"
    )
    parser.add_argument("--period", type=float, default=sizes.period, help="goodput: from fault to fault (%(default)g)")
    parser.add_argument(
        "--undisturbed", type=float, default=sizes.undisturbed, help="goodput: seconds before (%(default)g)"
    )
    parser.add_argument("--steady", type=float, default=sizes.steady, help="steady: seconds (%(default)g)")
    parser.add_argument("--trials", type=_count, default=sizes.trials, help="sweep: trials (%(default)d)")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def run(asked: argparse.Namespace, checkout: Path) -> bool:
    """Measure every bench asked for, print and write what was found; whether all bars hold."""
    products = {OLD: earlier(checkout, asked.commit), NEW: Product.at(checkout)}
    builds = {build: product for build, product in products.items() if asked.only in (None, build)}
    sizes = Sizes(**{part.name: getattr(asked, part.name) for part in fields(Sizes)})
    found: dict[str, Any] = {}
    bars: list[Bar] = []
    scratch = Path(tempfile.mkdtemp(prefix="vicc-against-"))
    try:
        for name in dict.fromkeys(asked.benches):
            bench = BENCHES[name]
            rounds = take_turns(name, bench, builds, scratch, sizes, asked.rounds or bench.rounds)
            judged = judge(bench, rounds) if asked.only is None else []
            show(name, rounds, judged)
            found[name] = as_json(rounds, judged)
            bars += judged
            if asked.json:
                result = {"commits": {build: _commit(builds[build].folder) for build in builds}, "benches": found}
                write_text(asked.json, json.dumps(result, indent=2) + "\n")
    finally:
        if asked.keep:
            console.print(f"kept: {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return all(bar.holds for bar in bars)


def earlier(checkout: Path, commit: str) -> Product:
    """The product of a commit, checked out and set up below the checkout where it is not yet; UserError where it cannot be."""
    full = _git(checkout, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if not full:
        raise UserError(f"commit {commit}: is unknown in {checkout}; see git log")
    folder = checkout / ".against" / full[:SHORT]
    missing = not (folder / "Makefile").exists()
    if missing and _git(checkout, "worktree", "add", "--force", "--detach", str(folder), full) is None:
        raise UserError(f"commit {commit}: git could not check it out at {folder}")
    if not (folder / ".venv" / ".installed").exists():
        console.print(f"setting up {folder}, which takes minutes")
        if subprocess.run(["make", "--no-print-directory", "setup"], cwd=folder).returncode:
            raise UserError(f"commit {commit}: 'make setup' failed in {folder}")
    return Product.at(folder)


def _git(folder: Path, *words: str) -> str | None:
    """What git says; None where it fails."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def _commit(folder: Path) -> str:
    return _git(folder, "describe", "--always", "--dirty", f"--abbrev={SHORT}") or "unknown"


def take_turns(
    name: str, bench: BuildBench, products: Mapping[str, Product], scratch: Path, sizes: Sizes, rounds: int
) -> dict[str, list[Measured]]:
    """Each product once a round, the other one first in the next: {build: what was measured}."""
    found: dict[str, list[Measured]] = {build: [] for build in products}
    shared = scratch / "shared"
    shared.mkdir(exist_ok=True)
    for number in range(rounds):
        for build in order(number):
            if build not in products:
                continue
            folder = scratch / f"{name}-{number}-{build}"
            folder.mkdir()
            turn = Turn(products[build], build, folder, shared, sizes, number)
            measured = bench.measure(turn)
            found[build].append(measured)
            figures = ", ".join(f"{figure} {value:.4g}" for figure, value in measured.figures.items())
            console.print(f"{name}, round {number + 1} of {rounds}, {build}: {figures}")
    return found


def figures_of(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, dict[str, list[float]]]:
    """{build: {figure: a value each round}}."""
    return {
        build: {name: [one.figures[name] for one in measured if name in one.figures] for name in measured[0].figures}
        for build, measured in rounds.items()
    }


def judge(bench: BuildBench, rounds: Mapping[str, Sequence[Measured]]) -> list[Bar]:
    """The bars of a bench with what was reached."""
    figures = figures_of(rounds)
    return [bar for limit in bench.limits if (bar := limit.judge(figures))]


def show(name: str, rounds: Mapping[str, Sequence[Measured]], bars: Sequence[Bar]) -> None:
    """Print a row a figure, the tables of the last round, the bars."""
    figures = figures_of(rounds)
    table = Table("figure", title=f"{name}, {len(next(iter(rounds.values())))} rounds in turn")
    for column in (*(f"{build}: {what}" for build in figures for what in ("median", "rounds")), "new/old"):
        table.add_column(column, justify="right")
    for figure in dict.fromkeys(figure for named in figures.values() for figure in named):
        cells = [_cells(figures[build].get(figure, [])) for build in figures]
        both = ratios(*(figures.get(build, {}).get(figure, []) for build in (NEW, OLD)))
        table.add_row(
            figure, *(cell for pair in cells for cell in pair), f"{statistics.median(both):.3f}" if both else ""
        )
    console.print(table)
    for build, measured in rounds.items():
        for title, rows in measured[-1].tables.items():
            console.print(_table(f"{build}: {title}", rows))
    print_bars(bars)


def _cells(values: Sequence[float]) -> tuple[str, str]:
    if not values:
        return "", ""
    return f"{statistics.median(values):.4g}", " ".join(f"{value:.4g}" for value in values)


def _table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("", title=title)
    for column in next(iter(rows.values()), {}):
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(escape(name), *(f"{value:.3g}" for value in row.values()))
    return table


def as_json(rounds: Mapping[str, Sequence[Measured]], bars: Sequence[Bar]) -> dict[str, Any]:
    """Everything that was found, every round's."""
    figures = figures_of(rounds)
    both = [name for name in figures.get(NEW, {}) if name in figures.get(OLD, {})]
    return {
        "figures": figures,
        "ratios new/old": {name: ratios(figures[NEW][name], figures[OLD][name]) for name in both},
        "bars": [asdict(bar) | {"holds": bar.holds} for bar in bars],
        "tables": {build: [one.tables for one in measured if one.tables] for build, measured in rounds.items()},
    }
