"""The plan is checked against the machine before anything starts."""

from __future__ import annotations

import pytest

from vicc_ray.config import TrainConfig
from vicc_ray.errors import UserError
from vicc_ray.resources import Machine, plan_cluster, plan_local

GIB = 2**30


def test_workers_and_decode_actors_share_one_machine() -> None:
    plan = plan_local(TrainConfig(workers=2), Machine(2, 0, 24 * GIB))
    assert (plan.workers, plan.use_gpu, plan.decode_actors, plan.cpus) == (2, False, 1, 3)
    assert plan.object_store == 6 * GIB
    assert "2 workers on CPU, 1 decode actors" in plan.describe()


def test_gpus_leave_the_cpus_to_decoding() -> None:
    plan = plan_local(TrainConfig(workers=1), Machine(16, 1, 128 * GIB))
    assert (plan.use_gpu, plan.decode_actors) == (True, 15)


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match=r"train.workers: 3 workers need as many CPUs, this machine has 2; set .* to 2"):
        plan_local(TrainConfig(workers=3), Machine(2, 0, GIB))
    with pytest.raises(UserError, match=r"train.use_gpu: 2 workers need as many GPUs, there are 1"):
        plan_local(TrainConfig(workers=2, use_gpu=True), Machine(4, 1, GIB))
    with pytest.raises(UserError, match="need 5 CPUs, the cluster has 4"):
        plan_cluster(TrainConfig(workers=4), Machine(4, 0, GIB))


def test_a_cluster_keeps_a_cpu_for_decoding() -> None:
    plan = plan_cluster(TrainConfig(workers=3), Machine(8, 0, GIB))
    assert plan.decode_actors == 5
    assert plan_cluster(TrainConfig(workers=3, decode_actors=9), Machine(8, 0, GIB)).decode_actors == 5
