"""What a worker that is left hands over: the state of the last finished step, whole, whatever the others have taken with them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monitored import plain_monitor
from processes import run_processes
from ray.train import ScalingConfig
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from tiny import tiny_experiment, tiny_plan
from torch import Tensor, nn

from vicc_ray import distributed
from vicc_ray.cluster.keeper import GroupEnded, Keeper, Survivor
from vicc_ray.cluster.launch import _watched
from vicc_ray.cluster.trainer import HandOver, LivingNodes, living_nodes
from vicc_ray.data.manifest import Manifest
from vicc_ray.models.encoder_file import load_encoder
from vicc_ray.objective import NonFiniteError, Objective
from vicc_ray.objective.queue import Queue, QueueCopy
from vicc_ray.runs.checkpoint import State, snapshot
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import RecordWriter, read_events, read_records
from vicc_ray.training.batches import Block, TrainingPlan, decode_share
from vicc_ray.training.loop import Notice, train
from vicc_ray.training.pretraining import Pretraining
from vicc_ray.training.restore import count_attempt, event, restore
from vicc_ray.training.survival import Finished, Kept, OwnState, Undo, merged


class _PeerDied(Exception):
    """What gloo says when a worker is gone."""


class _Host:
    """Keeps the newest checkpoint, the last finished step, and what the loop was given."""

    def __init__(self, plan: TrainingPlan) -> None:
        self.plan, self.device = plan, torch.device("cpu")
        self.saved: State = {}
        self.last: Finished | None = None

    def blocks(self, first_step: int) -> Iterator[Block]:
        for step in range(first_step, self.plan.steps):
            yield decode_share(self.plan, step, distributed.rank(), distributed.world_size())

    def save(self, state: State, about: dict[str, Any]) -> None:
        self.saved = snapshot(state)

    def finished(self, step: Finished) -> None:
        self.last = step

    def notice(self) -> Notice:
        return Notice()


def _dying(plan: TrainingPlan, path: Path, manifest: Manifest, step: int, moment: str) -> tuple[Kept, State]:
    """One of several workers, whose peer dies in the middle of a global step; what it hands over, and the last checkpoint."""
    folder, host = RunFolder(path), _Host(plan)
    if distributed.rank() == 0:
        folder.open(plan.experiment, manifest.fingerprint())
    distributed.barrier()
    calls = 0

    def fail(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > step:
            raise _PeerDied
        return original(*arguments, **settings)

    original = getattr(distributed, moment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, moment, fail)
        with pytest.raises(_PeerDied):
            train(Pretraining(), plan, folder, host, None, None)
    assert host.last is not None
    kept = host.last.take()
    assert kept is not None
    return kept, host.saved


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_survivor_has_the_state_of_the_last_finished_step(videos: Manifest, tmp_path: Path, workers: int) -> None:
    """The step after the 7th, in RGB-2, dies with its gradients half exchanged: the queue has taken it, batch norm too."""
    plan = tiny_plan(tiny_experiment(), videos)
    handed = run_processes(_dying, workers, plan, tmp_path / "run", videos, 7, "average_gradients_")
    for kept, checkpoint in handed:
        state = merged(kept.state, [kept])
        assert (kept.step, state["step"], state["stage"]) == (7, 7, "RGB-2")
        assert checkpoint["step"] == 7
        _same(state["trainer"], checkpoint["trainer"])
        assert state["trainer"]["memory"]["rows"].shape[1] == 16  # all of the queue, whoever had its rows


def test_what_was_handed_over_leads_to_the_same_end(videos: Manifest, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_experiment(), videos)
    whole = RunFolder(tmp_path / "whole")
    whole.open(plan.experiment, videos.fingerprint())
    train(Pretraining(), plan, whole, _Host(plan), None, None)
    ((kept, _),) = run_processes(_dying, 1, plan, tmp_path / "run", videos, 7, "average_gradients_")
    folder = RunFolder(tmp_path / "run")
    train(Pretraining(), plan, folder, _Host(plan), merged(kept.state, [kept]), None)
    losses = [[r["loss"] for r in read_records(run.metrics) if r["kind"] == "train"] for run in (whole, folder)]
    assert losses[0] == losses[1]


def test_a_stage_whose_last_step_was_done_is_closed_by_those_who_come_after(videos: Manifest, tmp_path: Path) -> None:
    """The workers die after the last step of RGB-1 and before its encoder is written."""
    plan = tiny_plan(tiny_experiment(), videos)
    folder, host = RunFolder(tmp_path / "run"), _Host(plan)
    folder.open(plan.experiment, videos.fingerprint())

    class Dies(Pretraining):
        def close_stage(self, *arguments: Any) -> None:
            raise _PeerDied

    with pytest.raises(_PeerDied):
        train(Dies(), plan, folder, host, None, None)
    assert host.last is not None
    kept = host.last.take()
    assert kept is not None
    assert kept.step == plan.stages[0].end
    assert "RGB-1" not in folder.encoders()
    train(Pretraining(), plan, folder, _Host(plan), merged(kept.state, [kept]), None)
    whole = RunFolder(tmp_path / "whole")
    whole.open(plan.experiment, videos.fingerprint())
    train(Pretraining(), plan, whole, _Host(plan), None, None)
    for name in ("RGB-1", "RGB-2"):
        _same(load_encoder(folder.encoder(name)).state_dict, load_encoder(whole.encoder(name)).state_dict)


def test_no_stage_is_closed_with_nan_that_was_handed_over(videos: Manifest, tmp_path: Path) -> None:
    plan = tiny_plan(tiny_experiment(), videos)
    folder, host = RunFolder(tmp_path / "run"), _HandsOver(plan, plan.stages[0].end)
    folder.open(plan.experiment, videos.fingerprint())
    with pytest.raises(GroupEnded):
        train(Pretraining(), plan, folder, host, None, None)
    assert host.last is not None
    kept = host.last.take()
    assert kept is not None
    state = merged(host.kept, [kept])
    next(iter(state["trainer"]["encoder"].values())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="stage RGB-1, step 2, worker 0, the weights"):
        train(Pretraining(), plan, folder, _Host(plan), state, None)
    assert "RGB-1" not in folder.encoders()


class _HandsOver(_Host):
    """Ends with a hand-over in the moment in which a step is done, before its record, its recall and its checkpoint."""

    def __init__(self, plan: TrainingPlan, at: int) -> None:
        super().__init__(plan)
        self.at, self.kept = at, b""

    def finished(self, step: Finished) -> None:
        super().finished(step)
        if step.step == self.at:
            kept = step.take()
            assert kept is not None
            self.kept = kept.state
            raise GroupEnded


def _history(folder: RunFolder) -> list[dict[str, Any]]:
    varying = ("time", "samples_per_second", "data_wait")
    return [{k: v for k, v in record.items() if k not in varying} for record in read_records(folder.metrics)]


def test_a_step_that_was_handed_over_has_its_record_and_its_recall(videos: Manifest, tmp_path: Path) -> None:
    """The workers are replaced after every step, the last ones of stages too."""
    changes = {"evaluate": {"monitor_every": "1 steps", "monitor_videos": 6}}
    plan = tiny_plan(tiny_experiment(**changes), videos)
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    for run in (whole, folder):
        run.open(plan.experiment, videos.fingerprint())
    train(Pretraining(), plan, whole, _Host(plan), None, plain_monitor(plan, videos))
    state: State | None = None
    for step in range(1, plan.steps + 1):
        host = _HandsOver(plan, step)
        with pytest.raises(GroupEnded):
            train(Pretraining(), plan, folder, host, state, plain_monitor(plan, videos))
        state = merged(host.kept, [])
    train(Pretraining(), plan, folder, _Host(plan), state, plain_monitor(plan, videos))
    ours, theirs = _history(folder), _history(whole)
    assert [(r["kind"], r["step"]) for r in ours] == [(r["kind"], r["step"]) for r in theirs]
    assert ours == theirs
    assert set(folder.encoders()) == set(whole.encoders())


def test_a_run_pauses_with_a_recall_and_goes_on(videos: Manifest, tmp_path: Path) -> None:
    """Whoever did the step; the run is then the same as one without a pause."""
    plan = tiny_plan(tiny_experiment(), videos)
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")
    for run in (whole, folder):
        run.open(plan.experiment, videos.fingerprint())
    train(Pretraining(), plan, whole, _Host(plan), None, plain_monitor(plan, videos))
    pausing = replace(plan, pause=5)  # RGB-2 is measured after steps 6 and 8
    host = _Host(plan)
    assert train(Pretraining(), pausing, folder, host, None, plain_monitor(plan, videos)) == 6
    assert host.saved["step"] == 6
    # The worker died after the step, before the recall or before the checkpoint: the next one does no step either.
    handing = _HandsOver(plan, 6)
    with pytest.raises(GroupEnded):
        train(Pretraining(), pausing, folder, handing, None, plain_monitor(plan, videos))
    host = _Host(plan)
    state = merged(handing.kept, [])
    assert train(Pretraining(), pausing, folder, host, state, plain_monitor(plan, videos)) == 6
    assert host.saved["step"] == 6
    assert train(Pretraining(), plan, folder, _Host(plan), host.saved, plain_monitor(plan, videos)) == plan.steps
    assert _history(folder) == _history(whole)


def test_records_that_went_with_a_machine_are_written_again(videos: Manifest, tmp_path: Path) -> None:
    """Of a run that is kept elsewhere they arrive there with each checkpoint; those since are with the workers that are left."""
    plan = tiny_plan(tiny_experiment(), videos)
    folder = RunFolder(tmp_path / "run")
    folder.open(plan.experiment, videos.fingerprint())
    host = _HandsOver(plan, plan.steps)
    with pytest.raises(GroupEnded):
        train(Pretraining(), plan, folder, host, None, None)
    before = _history(folder)
    stage_of_three = [record for record in before if record["step"] > plan.stages[-2].end]
    lines = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines[: len(lines) - len(stage_of_three)]))
    train(Pretraining(), plan, folder, _Host(plan), merged(host.kept, []), None)
    assert _history(folder)[: len(before)] == before
    assert [r["step"] for r in _history(folder) if r["kind"] == "train"] == list(range(1, plan.steps + 1))


def _same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"lr"}:  # which every step sets
            _same(ours[key], theirs[key])
    elif isinstance(ours, (list, tuple)):
        for mine, other in zip(ours, theirs, strict=True):
            _same(mine, other)
    else:
        assert ours == theirs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sets(st.integers(0, 3), max_size=4), min_size=2, max_size=2), max_size=9),
    st.integers(1, 3),
)
def test_the_copy_of_the_queue_is_the_queue(steps: list[list[set[int]]], batches: int) -> None:
    """Against the queue of one worker that gets all rows; slots that both workers draw belong to the first."""
    queue = Queue(4 * batches, global_batch=4, views=2, dim=3)
    copies = [QueueCopy(batches, 2, 4, 3) for _ in range(2)]
    for number, (first, second) in enumerate(steps):
        shares = [sorted(first), sorted(second - first)]
        rows = [_rows(number, slots) for slots in shares]
        queue.push(torch.cat(rows, dim=1), torch.tensor(shares[0] + shares[1], dtype=torch.int64))
        messages = [
            copy.message(mine, torch.tensor(slots, dtype=torch.int64))
            for copy, mine, slots in zip(copies, rows, shares, strict=True)
        ]
        total = messages[0] + messages[1]
        for copy, message in zip(copies, messages, strict=True):
            message.copy_(total)  # as the sum over the workers does, in place
            copy.take()
    for copy in copies:
        _same(copy.state_dict(), queue.state_dict())
        again = QueueCopy(batches, 2, 4, 3)
        state = copy.state_dict()
        again.load(state["rows"], state["positions"], state["pushed"])
        _same(again.state_dict(), queue.state_dict())


def _rows(number: int, slots: Sequence[int]) -> Tensor:
    values = torch.tensor([100.0 * number + slot for slot in slots]).view(1, -1, 1)
    return values + torch.arange(2).view(2, 1, 1) / 4 + torch.arange(3).view(1, 1, 3) / 16


def test_a_step_that_is_not_summed_is_not_in_the_copy() -> None:
    copy = QueueCopy(2, 2, 4, 3)
    copy.message(_rows(1, [0, 1, 2, 3]), torch.arange(4))
    assert copy.state_dict()["rows"].shape == (2, 0, 3)


def test_statistics_of_those_that_are_left_are_averaged_by_their_rows() -> None:
    workers = []
    for rows, value in ((3, 1.0), (1, 5.0)):
        own = OwnState(
            {"encoder": {"running_mean": torch.tensor([value]), "weight": torch.ones(1)}},
            "encoder",
            ["running_mean"],
            rows,
        )
        kept = Finished(4, {"stage": "RGB-1"}, partial(OwnState, own.state, own.part, own.statistics, own.rows)).take()
        assert kept is not None
        workers.append(kept)
    state = merged(workers[0].state, workers)
    assert state["trainer"]["encoder"]["running_mean"].tolist() == [2.0]
    assert state["step"] == 4


def test_what_a_step_did_to_statistics_is_taken_back() -> None:
    norm = nn.BatchNorm1d(2)
    undo = Undo(dict(norm.named_buffers()))
    before = snapshot(norm.state_dict())
    undo.begin()
    norm(torch.randn(8, 2))
    assert not torch.equal(norm.running_mean, before["running_mean"])  # type: ignore[arg-type]
    _same(undo.undone(norm.state_dict()), before)
    undo.end()
    assert torch.equal(undo.undone(norm.state_dict())["running_mean"], norm.running_mean)  # type: ignore[arg-type]


def test_an_objective_whose_memory_is_spread_has_none_to_hand_over() -> None:
    class Plain(Objective):
        pass

    class Spread(Objective):
        def memory(self) -> dict[str, Any]:
            return {"rows": torch.zeros(1)}

    experiment, stage = tiny_experiment(), None
    assert Plain(experiment, stage, 0).own_memory() == {}  # type: ignore[abstract, arg-type]
    assert Spread(experiment, stage, 0).own_memory() is None  # type: ignore[abstract, arg-type]


def _kept(step: int, rows: int = 1) -> Kept:
    return Kept(step, "rgb", rows, b"statistics")


def _give(keeper: Keeper, rank: int, step: int, state: bytes, part: int = 2) -> None:
    for start in range(0, len(state), part):
        keeper.take(rank, step, start, state[start : start + part])
    keeper.keep(rank, _kept(step), len(state))


def test_a_keeper_holds_the_newest_step_once() -> None:
    keeper = Keeper()
    assert keeper.newest() == (-1, {})
    assert keeper.wants_state(3)
    _give(keeper, 0, 3, b"state")
    assert not keeper.wants_state(3)
    keeper.keep(1, _kept(3, rows=2))
    step, workers = keeper.newest()
    assert (step, {rank: kept.rows for rank, kept in workers.items()}) == (3, {0: 1, 1: 2})
    _give(keeper, 2, 2, b"older")
    assert (keeper.state_of(3), keeper.state_of(3, 2), keeper.state_of(3, 5)) == (b"state", b"ate", b"")
    keeper.keep(2, _kept(5))  # the statistics come before the state
    assert keeper.newest()[0] == 3
    _give(keeper, 1, 5, b"new")
    assert (keeper.state_of(5), sorted(keeper.newest()[1])) == (b"new", [1, 2])
    assert keeper.state_of(3) is None
    keeper.forget()
    assert keeper.newest() == (-1, {})


def test_a_state_that_came_in_part_is_none_and_the_one_before_it_stays() -> None:
    """Whoever hands over may die in the middle, and another of the node may hand over the same step."""
    keeper = Keeper()
    _give(keeper, 0, 3, b"state")
    keeper.take(0, 4, 0, b"ne")
    assert keeper.newest()[0] == 3
    keeper.keep(0, _kept(4), 5)  # not what a worker does: a part was lost on the way
    assert (keeper.newest()[0], keeper.state_of(3)) == (3, b"state")
    assert keeper.wants_state(4)
    keeper.take(1, 4, 0, b"ne")
    keeper.take(1, 4, 2, b"wer")
    keeper.take(1, 4, 2, b"wer")  # sent again
    keeper.keep(1, _kept(4), 5)
    assert (keeper.newest()[0], keeper.state_of(4), keeper.state_of(3)) == (4, b"newer", None)
    keeper.take(0, 4, 2, b"late")
    assert keeper.state_of(4) == b"newer"


def test_the_newer_of_checkpoint_and_handed_over_state_counts(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    about = {"stage": "RGB-1", "samples": 8, "workers": 1, "versions": {}}
    folder.checkpoints.write({"step": 20, "trainer": {"from": "checkpoint"}}, {"step": 20, **about})
    start = {"session": "s", "nodes": 1}
    newer = restore(folder, start, 3, lambda: (23, {"step": 23, "trainer": {"from": "keeper"}}))
    older = restore(folder, start, 3, lambda: (19, {"step": 19, "trainer": {"from": "keeper"}}))
    assert newer is not None
    assert older is not None
    assert (newer["step"], newer["trainer"]["from"]) == (23, "keeper")
    assert (older["step"], older["trainer"]["from"]) == (20, "checkpoint")
    assert [event["step"] for event in read_events(folder.events) if event["kind"] == "start"] == [23, 20]


def test_workers_that_fail_at_one_step_again_and_again_are_given_up(tmp_path: Path) -> None:
    """Also where that step was handed over and is in no checkpoint."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for _ in range(3):
        restore(folder, {"session": "s", "nodes": 1}, 2, lambda: (7, {"step": 7, "trainer": {}}))
    with pytest.raises(Exception, match="failed 3 times in a row at the checkpoint of step 7"):
        restore(folder, {"session": "s", "nodes": 1}, 2, lambda: (7, {"step": 7, "trainer": {}}))


def test_a_worker_whose_weights_are_not_sound_hands_nothing_over() -> None:
    survivor = Survivor("session", 0)
    survivor.last = Finished(3, {}, lambda: OwnState({}, "encoder", [], 0))
    survivor.end(sound=False)
    assert survivor.answer(0.1) == -1


class _Versions:
    """The keepers of a cluster: what each node's reports, None while it starts."""

    def __init__(self, found: dict[str, dict[str, str] | None]) -> None:
        self.found = found

    def versions(self, node: str) -> dict[str, str] | None:
        return self.found[node]


def test_a_node_is_counted_when_it_is_ready_and_has_the_same_versions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    policy = LivingNodes(ScalingConfig(num_workers=(1, 4)), "session", str(folder))
    theirs = policy.versions | {"torch": "1.0"}
    policy.keepers = _Versions({"old": theirs, "same": policy.versions, "starts": None})  # type: ignore[assignment]
    policy.running = True
    assert [node for node in ("old", "same", "starts") if policy._is_ready(node)] == ["same"]
    assert not policy._is_ready("old")
    (note,) = [event for event in read_events(folder.events) if event["kind"] == "node refused"]
    assert f"torch 1.0 there, {policy.versions['torch']} here" in note["text"]
    policy.running = False  # a group that has failed: a node whose keeper starts is better than none
    assert policy._is_ready("starts")
    assert not policy._is_ready("old")


def test_nothing_starts_on_a_node_that_has_notice_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that runs stays there until the node goes; one that starts would wait for room that Ray does not give."""
    policy = LivingNodes(ScalingConfig(num_workers=(1, 4)), "session", str(tmp_path))
    policy.keepers = _Versions(dict.fromkeys(("stays", "leaves"), policy.versions))  # type: ignore[assignment]
    policy.seen = {"stays", "leaves"}
    monkeypatch.setattr("vicc_ray.cluster.trainer.living_nodes", lambda: {"stays", "leaves"})
    monkeypatch.setattr("vicc_ray.cluster.ray_private.leaving_nodes", lambda: {"leaves"})
    room = {"stays": {"CPU": 1.0}, "leaves": {"CPU": 1.0}}
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda policy: room)
    policy.running = True
    assert policy._get_reserved_resources() == room
    policy.running = False
    assert policy._get_reserved_resources() == {"stays": {"CPU": 1.0}}


def test_a_group_that_ends_does_not_wait_long_for_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train waits 30 s by default, and does not bring the variable along from the driver to its controller."""
    monkeypatch.delenv(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, raising=False)
    assert TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S not in ENV_VARS_TO_PROPAGATE
    HandOver("session").after_worker_group_start(SimpleNamespace(get_workers=list))
    assert os.environ.pop(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S) == "2"


class _Dying:
    """In the place of a trainer: its workers start from a step of the run, then whoever watches them dies; at last they end."""

    interrupted = False

    def __init__(self, folder: RunFolder, starts: Iterator[int]) -> None:
        self.folder, self.starts = folder, starts

    def fit(self) -> str:
        step = next(self.starts, None)
        if step is None:
            return "trained"
        count_attempt(self.folder, "session", 100, f"group {step}")
        RecordWriter(self.folder.events).add(event("start", step=step, requester="train"))
        raise ray.exceptions.RayActorError(error_msg="its process has died")


@pytest.mark.parametrize(("starts", "survives"), [((0, 0, 0), False), ((0, 20, 20, 40, 40), True), ((0, 0), True)])
def test_deaths_of_what_watches_the_workers_are_counted_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: tuple[int, ...], survives: bool
) -> None:
    """And what its workers held is given back, which Ray Train's own process for that does not always."""
    given: list[set[str] | None] = []
    monkeypatch.setattr("vicc_ray.cluster.ray_private.release", lambda names: None)
    monkeypatch.setattr("vicc_ray.cluster.ray_private.remove_placement_groups", given.append)
    folder, left = RunFolder(tmp_path / "run"), iter(starts)
    if survives:
        assert _watched(lambda: _Dying(folder, left), folder, 2, alone=False) == "trained"  # type: ignore[arg-type, return-value]
        assert given == [{f"group {step}" for step in starts[:count]} for count in range(1, len(starts) + 1)]
    else:
        with pytest.raises(RuntimeError, match=r"3 times in a row \(train.max_failures: 2\)"):
            _watched(lambda: _Dying(folder, left), folder, 2, alone=False)  # type: ignore[arg-type, return-value]


def test_only_nodes_that_answer_may_have_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as raylet, socket.create_server(("127.0.0.1", 0)) as gone:
        ports = raylet.getsockname()[1], gone.getsockname()[1]
        gone.close()
        nodes = [
            {"NodeID": name, "Alive": alive, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": port}
            for name, port, alive in (
                ("lives", ports[0], True),
                ("just died", ports[1], True),
                ("dead", ports[0], False),
            )
        ]
        monkeypatch.setattr("ray.nodes", lambda: nodes)
        assert living_nodes() == {"lives"}


def test_a_step_made_without_the_others_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train destroys the process group of workers that still train; alone, they would go on with their own gradients."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    survivor = Survivor("session", 0)
    survivor.copies = True
    whole = Finished(3, {}, lambda: None)
    survivor.finished(whole)
    monkeypatch.setattr(distributed, "world_size", lambda: 1)
    with pytest.raises(GroupEnded):
        survivor.finished(Finished(4, {}, lambda: None))
    assert survivor.last is None
    survivor.end(sound=True)
    assert survivor.answer(0.1) == -1


def test_training_stops_where_it_has_handed_over_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vicc_ray.cluster.keeper.END_SECONDS", 0.01)
    survivor = Survivor("session", 0)
    handed: list[int] = []
    monkeypatch.setattr(survivor, "_hand_over", lambda: handed.append(survivor.last.step if survivor.last else -1))
    survivor.requested.set()
    with pytest.raises(GroupEnded):
        survivor.finished(Finished(5, {}, lambda: None))
    assert handed == [5]
