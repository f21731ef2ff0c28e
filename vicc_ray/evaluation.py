"""`vicc evaluate`: a run's folder in, its tables out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from vicc_ray.config import Experiment, load_experiment
from vicc_ray.console import console, quiet
from vicc_ray.data.manifest import Manifest
from vicc_ray.evaluate.protocols import Retrieval, retrieve
from vicc_ray.run_folder import RunFolder
from vicc_ray.session import ray_session


def evaluate_run(
    run: Path, overrides: Sequence[str] = (), address: str | None = None, verbose: bool = False
) -> Retrieval:
    """Retrieval of a run; writes results.json and neighbours.json into its folder. `overrides` may change the data."""
    folder = RunFolder(run)
    folder.experiment()
    experiment = load_experiment(folder.config, overrides)
    changed = any(text.startswith("data.manifest=") for text in overrides)
    source = experiment.data.manifest if changed and experiment.data.manifest else folder.manifest
    retrieval = retrieve_in_session(folder, experiment, Manifest.read(source), address, verbose)
    retrieval.write(folder)
    return retrieval


def retrieve_in_session(
    folder: RunFolder, experiment: Experiment, manifest: Manifest, address: str | None = None, verbose: bool = False
) -> Retrieval:
    """`retrieve` with a Ray session around it and Ray's own words in the run's log."""
    with quiet(folder.logs / "ray.log", verbose), ray_session(experiment.train, address, verbose) as resources:
        return retrieve(folder, experiment, manifest, resources)


def print_retrieval(retrieval: Retrieval) -> None:
    """The table on the terminal, chance beside it, and what was left out."""
    columns = [key for key in retrieval.rows[0] if key != "name"]
    sides = f"{retrieval.query} queries in {retrieval.gallery} videos"
    table = Table(title=f"nearest-neighbour retrieval: {sides}, chance R@1 {retrieval.chance:.3f}")
    table.add_column("encoder")
    for column in columns:
        table.add_column(column, justify="right")
    for row in retrieval.rows:
        table.add_row(row["name"], *(f"{row[column]:.3f}" for column in columns))
    console.print(table)
    for video, reason in retrieval.refused:
        console.print(f"left out: {video}: {reason}", markup=False)
    if retrieval.refused:
        console.print(f"{len(retrieval.refused)} videos left out", markup=False)
