"""The plan is checked against the machine before anything starts."""

from __future__ import annotations

import pytest

from vicc_ray.cluster.resources import Decoders, Machine, plan_cluster, plan_local
from vicc_ray.config import TrainConfig
from vicc_ray.errors import UserError

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
    with pytest.raises(UserError, match=r"5 workers need as many CPUs, the cluster has 4; .* \{min: 1, max: 5\}"):
        plan_cluster(TrainConfig(workers=5), Machine(4, 0, GIB))


def test_a_cluster_gives_free_cpus_to_decoding() -> None:
    plan = plan_cluster(TrainConfig(workers=3), Machine(8, 0, GIB))
    assert plan.decoders(3) == Decoders(5, 1)
    assert plan_cluster(TrainConfig(workers=3, decode_actors=9), Machine(8, 0, GIB)).decoders(3) == Decoders(5, 1)
    assert plan_cluster(TrainConfig(workers={"min": 2, "max": 4}), Machine(16, 4, GIB)).decoders(2) == Decoders(12, 1)


def test_workers_that_take_every_cpu_share_them_with_decoding() -> None:
    """Otherwise workers that came as the cluster grew would leave nothing to decode with, and wait for ever."""
    plan = plan_cluster(TrainConfig(workers={"min": 1, "max": 8}), Machine(2, 0, GIB))
    assert (plan.min_workers, plan.workers) == (1, 8)
    assert plan.decoders(2) == Decoders(2, 0)
    assert plan.decoders(5) == Decoders(5, 0)
    assert plan_cluster(TrainConfig(workers=4), Machine(4, 0, GIB)).decoders(4) == Decoders(4, 0)


def test_a_range_on_one_machine_is_as_many_as_it_has() -> None:
    plan = plan_local(TrainConfig(workers={"min": 1, "max": 8}), Machine(4, 0, GIB))
    assert (plan.min_workers, plan.workers) == (4, 4)
    with pytest.raises(UserError, match="3 workers need as many CPUs"):
        plan_local(TrainConfig(workers={"min": 3, "max": 8}), Machine(2, 0, GIB))
