"""What a command begins before its imports, so that a cluster of this machine alone starts while they go on."""

from __future__ import annotations

from vicc_ray.cluster.resources import plan_local, this_machine
from vicc_ray.cluster.warm.start import begin_head, init_settings
from vicc_ray.config import TrainConfig


def begin_cluster(train: TrainConfig, address: str | None, verbose: bool, dashboard: bool = False) -> None:
    """Begin the cluster that `ray_session` is going to open; UserError where its plan cannot fit this machine."""
    if address is None:
        plan = plan_local(train, this_machine())
        begin_head(init_settings(plan.cpus, plan.object_store, verbose, dashboard))
