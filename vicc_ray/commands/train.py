"""`vicc train --plan`: what a run would do, without running it."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vicc_ray import storage
from vicc_ray.config import Experiment
from vicc_ray.config.published import videos_of
from vicc_ray.console import console, errors
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.training.batches import training_samples
from vicc_ray.training.schedule import describe, make_stages


def make_plan(experiment: Experiment, videos: int | None) -> dict[str, Any]:
    """Print the stages for `videos` training videos, or for those of the manifest; a published row's need not be there.

    Gives the same for a program.
    """
    count, samples = (videos, videos) if videos else _videos(experiment)
    stages = make_stages(experiment, samples)
    rows = describe(stages, experiment)
    seconds = experiment.data.samples_an_epoch
    drawn = "" if seconds == "row" else f", {samples} samples an epoch (one for every {seconds})"
    table = Table(
        title=f"{experiment.name}: {count} training videos{drawn}, {sum(s.samples for s in stages)} samples, "
        f"{stages[-1].end} steps"
    )
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    return {"videos": count, "samples_an_epoch": samples, "stages": rows}


def _videos(experiment: Experiment) -> tuple[int, int]:
    """Training videos, and samples of an epoch."""
    manifest = experiment.data.manifest
    if manifest is None:
        raise UserError("data.manifest: is not set, so the length of an epoch is unknown; set it or give --videos N")
    published = videos_of(manifest)
    if published and not storage.exists(manifest):
        errors.print(f"{manifest} is not there yet; planned for the {published} training videos of UCF101, split 1")
        return published, published
    samples = training_samples(experiment, Manifest.read(manifest))
    return len({row.id for row in samples}), len(samples)
