"""`vicc train --plan`: what a run would do, without running it."""

from __future__ import annotations

import json

from rich.table import Table

from vicc_ray.config import Experiment
from vicc_ray.console import console
from vicc_ray.data.manifest import Manifest
from vicc_ray.errors import UserError
from vicc_ray.train.schedule import describe, make_stages


def print_plan(experiment: Experiment, videos: int | None, as_json: bool) -> None:
    """Print the stages for `videos` training videos, or for those of the manifest."""
    if videos is None:
        if experiment.data.manifest is None:
            raise UserError(
                "data.manifest: is not set, so the length of an epoch is unknown; set it or give --videos N"
            )
        videos = len(Manifest.read(experiment.data.manifest).select(experiment.data.train_split))
    stages = make_stages(experiment, videos)
    rows = describe(stages, experiment)
    if as_json:
        console.print(json.dumps({"videos": videos, "stages": rows}, indent=2), markup=False, soft_wrap=True)
        return
    table = Table(
        title=f"{experiment.name}: {videos} training videos, {sum(s.samples for s in stages)} samples, {stages[-1].end} steps"
    )
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
