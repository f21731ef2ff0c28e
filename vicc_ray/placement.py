"""The plan of a run on a cluster's nodes: which train and which decode, by their labels, now or once it has grown. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vicc_ray.config import PlaceConfig, TrainConfig
from vicc_ray.errors import UserError
from vicc_ray.resources import Machine, ResourcePlan, plan_cluster, plan_placed

# Decode actors that are asked of an autoscaler where `train.decode_actors` does not say.
DECODERS_A_WORKER = 8
# How many CPUs or GPUs an autoscaler may bring that does not say, as those of 'ray up' and KubeRay do not.
UNKNOWN = 10**6
NONE: Mapping[str, str] = {}


@dataclass(frozen=True)
class Node:
    """A node of the cluster: what Ray may hand out of it, and its labels."""

    machine: Machine
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether it has all these labels."""
        return labels.items() <= self.labels.items()


def plan_on(train: TrainConfig, nodes: Sequence[Node], grown: Machine | None) -> tuple[ResourcePlan, list[str]]:
    """The plan, and lines for the reader; `grown` is the most that an autoscaler may bring, None where there is none.

    UserError where it can never fit, and where only the reader can know whether GPUs will come.
    """
    if grown is not None and grown.gpus >= UNKNOWN and train.use_gpu == "auto" and not total(nodes).gpus:
        raise UserError(
            "train.use_gpu: auto cannot tell: the cluster has no GPU now, and how many its autoscaler brings is not known; "
            "set train.use_gpu to true or false"
        )
    place, notes = _place(train.place, nodes, grown is not None)
    apart = _apart(place)
    machine, decoding = total(nodes, place.train), total(nodes, place.decode)
    if grown is not None:
        # It may bring thousands of CPUs: decode actors are not to take them all.
        beside = train.workers.max * DECODERS_A_WORKER
        most = max(machine.cpus, train.workers.max + (0 if apart else beside))
        machine = replace(grown, cpus=min(grown.cpus, most))
        decoding = replace(grown, cpus=min(grown.cpus, max(decoding.cpus, beside)))
    placed = train.model_copy(update={"place": place})
    plan = plan_placed(placed, machine, decoding) if apart else plan_cluster(placed, machine)
    return replace(plan, train_labels=place.train, decode_labels=place.decode), notes


def total(nodes: Sequence[Node], labels: Mapping[str, str] = NONE) -> Machine:
    """What the nodes that have all these labels have together."""
    found = [node.machine for node in nodes if node.has(labels)]
    return Machine(sum(one.cpus for one in found), sum(one.gpus for one in found), sum(one.memory for one in found))


def _place(asked: PlaceConfig, nodes: Sequence[Node], can_grow: bool) -> tuple[PlaceConfig, list[str]]:
    """The labels that are of use: with one kind of node, as on most clusters, an experiment runs all the same."""
    wanted = {"train": asked.train, "decode": asked.decode}
    absent = {name: labels for name, labels in wanted.items() if not any(node.has(labels) for node in nodes)}
    if can_grow or not absent:
        return asked, []
    notes = [
        f"train.place.{name}: no node has {', '.join(f'{key}={value}' for key, value in labels.items())}; any node is taken"
        for name, labels in absent.items()
    ]
    # Workers that may go anywhere may take the decode nodes' CPUs too, so both are placed or none.
    return PlaceConfig(), notes


def _apart(place: PlaceConfig) -> bool:
    """Whether no node can be one that trains and one that decodes."""
    return any(place.decode.get(name, value) != value for name, value in place.train.items())
