"""How many trials fit, and what of a run one trial is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_experiment

from vicc_ray.cluster.resources import Machine, plan_cluster, plan_local
from vicc_ray.config import Experiment, SearchConfig, TrainConfig
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.runs.records import append_record
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune.plan import TrialsPlan, plan_trials, with_drivers, with_room_for_one
from vicc_ray.tune.sharing import begin_at, first_stage
from vicc_ray.tune.trials import Follower, Measurement, cost, sum_up

MEMORY = 8 * 2**30


def plan(
    cpus: int, gpus: int = 0, local: bool = False, concurrency: int | None = None, **train: Any
) -> tuple[int, Any]:
    found = plan_trials(
        tiny_experiment(train=train), SearchConfig(concurrency=concurrency), Machine(cpus, gpus, MEMORY), local
    )
    return found.concurrency, found


@pytest.mark.parametrize(
    ("cpus", "gpus", "train", "trials", "actors"),
    [
        (2, 0, {"workers": 1}, 1, 1),
        (8, 0, {"workers": 1}, 4, 1),
        (9, 0, {"workers": 2}, 2, 2),
        (12, 0, {"workers": 2, "decode_actors": 4}, 2, 4),
        (32, 4, {"workers": 2}, 2, 14),
        (32, 4, {"workers": 1}, 4, 7),
        (5, 4, {"workers": 1}, 2, 1),
        (1, 0, {"workers": 1}, 1, 1),
    ],
)
def test_trials_on_a_cluster_never_wait_for_each_other(
    cpus: int, gpus: int, train: dict[str, Any], trials: int, actors: int
) -> None:
    """What all trials reserve together is there, with a CPU for each of their decode actors."""
    count, found = plan(cpus, gpus, **train)
    assert (count, found.train.decode_actors) == (trials, actors)
    one = plan_cluster(found.train, Machine(cpus, gpus, MEMORY))
    assert one.use_gpu == bool(gpus)
    assert count * (one.workers + (one.decode_actors or 0) * one.decode_cpus) <= cpus
    assert not gpus or count * one.workers <= gpus


def test_on_this_machine_workers_and_decode_actors_take_turns() -> None:
    count, found = plan(2, local=True, workers=1)
    assert (count, found.train.decode_actors) == (2, 1)
    assert plan_local(found.whole, Machine(2, 0, MEMORY)).cpus == 4
    assert found.describe() == "2 trials at a time x (1 worker on CPU + 1 decode actor), 2 CPUs there"
    count, found = plan(8, local=True, workers={"min": 2, "max": 8})
    assert (count, found.train.workers.max) == (4, 2)  # else the first trial would take all


def test_workers_of_trials_share_the_threads() -> None:
    """Two trials of a worker each on two CPUs: with two threads each they took more than twice as long."""
    assert plan(2, local=True, workers=1)[1].train.threads == 1
    assert plan(8, local=True, workers=1, threads=4, concurrency=1)[1].train.threads == 4
    assert plan(8, local=True, workers=1, concurrency=2)[1].train.threads == 4
    assert plan(32, workers=2)[1].train.threads == 2
    assert plan(1, workers={"min": 1, "max": 4}, concurrency=3)[1].train.threads == 1


def test_a_concurrency_that_does_not_fit_is_lowered_and_said() -> None:
    count, found = plan(8, concurrency=6, workers=2)
    assert count == 2
    assert "search.concurrency 6 does not fit" in found.describe()
    assert plan(8, concurrency=1, workers=1)[0] == 1


def test_with_a_range_of_workers_demand_may_exceed_what_is_there() -> None:
    count, found = plan(4, concurrency=6, workers={"min": 2, "max": 4})
    assert count == 6
    assert "2 fit now, the others wait for nodes" in found.describe()
    assert found.train.decode_actors is None
    assert plan_cluster(found.train, Machine(4, 0, MEMORY)).decode_cpus == 0  # none can starve another


@pytest.mark.parametrize(
    ("now", "grown", "train", "expected"),
    [
        ((1, 0), None, {"workers": 4}, (1, 0)),
        ((0, 0), (10**6, 10**6), {"workers": 2, "use_gpu": True}, (4, 2)),
        ((0, 0), (10**6, 10**6), {"workers": {"min": 2, "max": 8}, "use_gpu": False, "decode_actors": 3}, (5, 0)),
        ((64, 8), (10**6, 10**6), {"workers": 2}, (64, 8)),
        ((0, 0), (3, 1), {"workers": 2}, (3, 1)),
    ],
)
def test_with_an_autoscaler_there_is_room_for_one_trial(
    now: tuple[int, int], grown: tuple[int, int] | None, train: dict[str, Any], expected: tuple[int, int]
) -> None:
    most = Machine(*grown, MEMORY) if grown else None
    found = with_room_for_one(Machine(*now, MEMORY), most, TrainConfig.model_validate(train))
    assert found == Machine(*expected, MEMORY)


def test_a_trial_that_can_never_fit_is_refused() -> None:
    with pytest.raises(UserError, match="4 workers need as many CPUs"):
        plan(2, local=True, workers=4)
    with pytest.raises(UserError, match="4 workers need as many CPUs"):
        plan(2, workers=4)


def records(folder: Path) -> RunFolder:
    """A made-up run: RGB-1 and Flow-1 (2 steps each) before it, two starts in RGB-2, two looks."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    for time, step, workers in ((100.0, 4, 1), (200.0, 6, 2)):
        append_record(run.events, {"kind": "start", "time": time, "step": step, "workers": workers})
    for time, step in ((110.0, 5), (120.0, 6), (230.0, 7)):
        train = {"kind": "train", "stage": "RGB-2", "step": step, "time": time, "samples": 8 * step}
        append_record(run.metrics, train | {"loss": 2.0 - step / 10, "ln_k": 2.08, "entropy": 1.5})
        if step % 2 == 0:
            append_record(run.metrics, {"kind": "monitor", "stage": "RGB-2", "step": step, "R@1": 0.1 * step})
    return run


def test_a_trials_looks_are_read_as_they_come(tmp_path: Path) -> None:
    stages = make_stages(tiny_experiment(), 16)
    run = records(tmp_path / "run")
    follower = Follower(run, stages, [("RGB-2", "R@1")])
    assert follower.read() == [Measurement(pytest.approx(0.6), 16)]  # type: ignore[arg-type]
    assert follower.read() == []
    assert not follower.complete()
    append_record(run.metrics, {"kind": "monitor", "stage": "RGB-1", "step": 2, "R@1": 0.9})
    append_record(run.metrics, {"kind": "monitor", "stage": "RGB-2", "step": 8, "R@1": 0.7})
    assert follower.read() == [Measurement(0.7, 32)]
    assert follower.complete()


def test_a_metric_of_two_stages_is_their_mean_once_both_are_known(tmp_path: Path) -> None:
    stages = make_stages(tiny_experiment(), 16)
    run = records(tmp_path / "run")
    follower = Follower(run, stages, [("RGB-2", "R@1"), ("Flow-2", "R@1")])
    assert follower.read() == []
    append_record(run.metrics, {"kind": "monitor", "stage": "RGB-2", "step": 8, "R@1": 0.7})
    append_record(run.metrics, {"kind": "monitor", "stage": "Flow-2", "step": 10, "R@1": 0.5})
    assert follower.read() == [Measurement(pytest.approx(0.6), 32 + 16)]  # type: ignore[arg-type]
    assert follower.complete()


def test_a_trial_is_charged_for_what_it_trained_itself(tmp_path: Path) -> None:
    stages = make_stages(tiny_experiment(), 16)
    run = records(tmp_path / "run")
    follower = Follower(run, stages, [("RGB-2", "R@1")])
    follower.read()
    found = sum_up(run, stages, follower)
    assert found["seconds"] == 20.0 + 30.0
    assert found["device_seconds"] == 20.0 + 2 * 30.0
    assert found["trained_samples"] == 3 * 8  # not those of the stages that the trial began after
    assert found["full_samples"] == 4 * 8
    assert found["end_entropy"] == 1.5
    assert not found["collapsed"]
    append_record(run.metrics, {"kind": "note", "stage": "RGB-2", "step": 7, "text": "the loss is at ln(K)"})
    assert sum_up(run, stages, follower)["collapsed"]


def test_cost_without_records_is_nothing() -> None:
    assert cost([], []) == (0.0, 0.0)
    assert cost([{"kind": "start", "time": 1.0, "workers": 4}], []) == (0.0, 0.0)


def shared_run(folder: Path, experiment: Experiment) -> RunFolder:
    run = RunFolder(folder)
    for name in ("RGB-0", "RGB-1", "Flow-0", "Flow-1"):
        run.encoder(name).parent.mkdir(parents=True, exist_ok=True)
        run.encoder(name).write_text(name)
    return run


def begin(trial: RunFolder, experiment: Experiment, shared: RunFolder | None, *measured: str) -> None:
    stages = make_stages(experiment, 16)
    begin_at(first_stage(stages, measured or ("RGB-2",), shared is not None), trial, experiment, stages, shared)


@pytest.mark.parametrize(
    ("measured", "shared", "first"),
    [
        (["Flow-1"], False, "Flow-1"),
        (["RGB-1"], False, "RGB-1"),
        (["RGB-1", "Flow-1"], False, "RGB-1"),
        (["RGB-2"], False, "RGB-1"),  # which RGB-2 starts from, and Flow-1 guides it
        (["Flow-2"], False, "RGB-1"),  # which RGB-2 starts from, and that guides Flow-2
        (["RGB-2"], True, "RGB-2"),
        (["Flow-2"], True, "RGB-2"),
    ],
)
def test_a_trial_begins_with_what_its_metric_builds_on(measured: list[str], shared: bool, first: str) -> None:
    assert first_stage(make_stages(tiny_experiment(), 16), measured, shared).name == first


def test_a_trial_that_is_judged_by_flow_alone_begins_after_rgb(tmp_path: Path) -> None:
    trial = RunFolder(tmp_path / "trials" / "0000")
    begin(trial, tiny_experiment(), None, "Flow-1")
    assert not trial.encoders()
    found = trial.checkpoints.newest()
    assert found
    info, state = found
    assert (info.step, info.stage, info.samples) == (2, "RGB-1", 16)
    assert state == {"step": 2, "stage": "RGB-1", "trainer": {}}


def test_a_trial_that_trains_all_stages_begins_with_nothing(tmp_path: Path) -> None:
    trial = RunFolder(tmp_path / "trials" / "0000")
    begin(trial, tiny_experiment(), None, "RGB-2")
    assert not trial.path.exists()


def test_a_trial_begins_where_the_shared_run_ended(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    trial = RunFolder(tmp_path / "trials" / "0000")
    begin(trial, experiment, shared_run(tmp_path / "shared", experiment))
    assert trial.encoders() == ["Flow-0", "Flow-1", "RGB-0", "RGB-1"]
    assert trial.encoder("RGB-1").read_text() == "RGB-1"
    found = trial.checkpoints.newest()
    assert found
    info, state = found
    assert (info.step, info.stage, info.samples) == (4, "Flow-1", 32)
    assert state == {"step": 4, "stage": "Flow-1", "trainer": {}}
    assert not trial.config.exists()  # the run itself claims the folder
    assert not list(trial.path.rglob(".*"))


def test_a_trial_that_was_begun_is_left_as_it_is(tmp_path: Path) -> None:
    experiment = tiny_experiment()
    trial = RunFolder(tmp_path / "trials" / "0000")
    trial.path.mkdir(parents=True)
    trial.config.write_text(json.dumps({}))
    begin(trial, experiment, shared_run(tmp_path / "shared", experiment))
    assert not trial.checkpoints.listing()


def test_shared_encoders_reach_a_store(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    experiment = tiny_experiment()
    shared = shared_run(RunFolder.at(f"{bucket}/sweep/shared").path, experiment)
    shared = RunFolder.at(f"{bucket}/sweep/shared")
    shared.push(*(shared.encoder(name) for name in shared.encoders()))
    trial = RunFolder.at(f"{bucket}/sweep/trials/0000")
    begin(trial, experiment, shared)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    elsewhere = RunFolder.at(f"{bucket}/sweep/trials/0000")
    elsewhere.pull()
    assert elsewhere.encoders() == ["Flow-0", "Flow-1", "RGB-0", "RGB-1"]
    assert elsewhere.checkpoints.newest()


def test_no_more_trials_than_drivers_fit() -> None:
    plan = TrialsPlan(4, TrainConfig(), False, 8)
    assert with_drivers(plan, 4 * 600, 600) is plan
    few = with_drivers(plan, 2 * 600 + 599, 600)
    assert (few.concurrency, few.note) == (2, "memory for 2 drivers only")
    assert with_drivers(replace(plan, note="as asked"), 600, 600).note == "as asked; memory for 1 drivers only"
    with pytest.raises(UserError, match="a trial's driver takes 600 MiB, the cluster has 599 MiB"):
        with_drivers(plan, 599 * 2**20, 600 * 2**20)
