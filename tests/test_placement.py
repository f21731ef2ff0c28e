"""Which nodes train and which decode: by labels where the cluster has them, anywhere where it has not."""

from __future__ import annotations

import pytest

from vicc_ray.cluster.resources import DECODERS_A_WORKER, UNKNOWN, Decoders, Machine, Node, plan_on, total
from vicc_ray.config import TrainConfig
from vicc_ray.errors import UserError

GIB = 2**30
TRAIN, DECODE = {"vicc-role": "train"}, {"vicc-role": "decode"}
HEAD = Node(Machine(2, 0, GIB))
MIXED = [HEAD, Node(Machine(8, 2, GIB), TRAIN), Node(Machine(16, 0, GIB), DECODE), Node(Machine(16, 0, GIB), DECODE)]


def placed(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"place": {"train": TRAIN, "decode": DECODE}, **changes})


def test_workers_go_to_one_kind_of_node_and_decode_actors_to_the_other() -> None:
    plan, notes = plan_on(placed(workers=2), MIXED, None)
    assert notes == []
    assert (plan.workers, plan.use_gpu, plan.train_labels) == (2, True, TRAIN)
    assert plan.decoders(2) == Decoders(32, 1, DECODE)
    few, _ = plan_on(placed(workers=2, decode_actors=5), MIXED, None)
    assert few.decoders(2) == Decoders(5, 1, DECODE)
    elastic, _ = plan_on(placed(workers={"min": 1, "max": 2}, use_gpu=False), MIXED, None)
    assert elastic.decoders(1) == Decoders(32, 1, DECODE)  # a CPU each: no worker can want it


def test_what_cannot_fit_on_the_nodes_that_train_is_refused() -> None:
    with pytest.raises(UserError, match="9 workers need as many CPUs, the cluster has 8"):
        plan_on(placed(workers=9, use_gpu=False), MIXED, None)
    with pytest.raises(UserError, match="no CPU to decode on"):
        plan_on(placed(), [*MIXED[:2], Node(Machine(0, 1, GIB), DECODE)], None)


def test_with_one_kind_of_node_labels_are_passed_over_and_said() -> None:
    plan, notes = plan_on(placed(workers=2), [HEAD, Node(Machine(8, 0, GIB))], None)
    assert notes == [
        "train.place.train: no node has vicc-role=train; any node is taken",
        "train.place.decode: no node has vicc-role=decode; any node is taken",
    ]
    assert (plan.train_labels, plan.decode_labels, plan.decoders(2)) == ({}, {}, Decoders(8, 1))
    one, notes = plan_on(
        placed(workers=2), MIXED[:2], None
    )  # workers alone could be placed, but would have to decode too
    assert len(notes) == 1 and not one.train_labels and not one.decode_labels


def test_labels_of_nodes_to_come_are_kept() -> None:
    plan, notes = plan_on(placed(workers={"min": 1, "max": 4}), [HEAD], Machine(1000, 8, GIB))
    assert notes == []
    assert (plan.min_workers, plan.workers, plan.train_labels) == (1, 4, TRAIN)
    assert plan.decoders(4) == Decoders(4 * DECODERS_A_WORKER, 1, DECODE)


def test_an_autoscaler_that_does_not_say_what_it_brings() -> None:
    """Fixed workers are waited for; only the reader knows about GPUs that are not there yet."""
    unknown = Machine(UNKNOWN, UNKNOWN, GIB)
    with pytest.raises(UserError, match=r"train.use_gpu: auto cannot decide.*set train.use_gpu to true or false"):
        plan_on(placed(workers=4), [HEAD], unknown)
    gpu, _ = plan_on(placed(workers=4, use_gpu=True), [HEAD], unknown)
    assert (gpu.min_workers, gpu.workers, gpu.use_gpu) == (4, 4, True)
    cpu, _ = plan_on(placed(workers=4, use_gpu=False), [HEAD], unknown)
    assert (cpu.min_workers, cpu.workers, cpu.use_gpu) == (4, 4, False)
    seen, _ = plan_on(placed(workers=4), MIXED, unknown)
    assert seen.use_gpu


def test_one_label_alone_leaves_the_rest_anywhere() -> None:
    only = TrainConfig.model_validate({"place": {"train": TRAIN}, "workers": 2})
    plan, notes = plan_on(only, MIXED, None)
    assert notes == [] and plan.train_labels == TRAIN and not plan.decode_labels
    assert plan.decoders(2) == Decoders(6, 1)  # the rest of the nodes that train


def test_nodes_are_summed_by_their_labels() -> None:
    assert total(MIXED) == Machine(42, 2, 4 * GIB)
    assert total(MIXED, DECODE) == Machine(32, 0, 2 * GIB)
    assert total(MIXED, {"vicc-role": "none"}) == Machine(0, 0, 0)
