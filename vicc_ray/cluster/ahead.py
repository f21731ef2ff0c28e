"""What a command begins before its imports, so that a cluster of this machine alone starts while they go on."""

from __future__ import annotations

from vicc_ray.cluster.resources import plan_local, this_machine
from vicc_ray.cluster.warm.start import init_settings, prepare
from vicc_ray.config import Experiment


def prepare_training(experiment: Experiment, address: str | None, verbose: bool, dashboard: bool = False) -> None:
    """For a command that trains, or evaluates as training does; UserError where the plan cannot fit this machine."""
    if address is not None:
        prepare()
        return
    plan = plan_local(experiment.train, this_machine())
    prepare(init_settings(plan.cpus, plan.object_store, verbose, dashboard))
