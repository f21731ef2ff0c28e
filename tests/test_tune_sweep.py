"""The controller of a sweep against made-up trials: every trial once, whatever is killed and when; what stops early; ends."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tiny import TINY

from vicc_ray.config import Experiment, TrainConfig, make_experiment
from vicc_ray.errors import UserError
from vicc_ray.runs.records import read_events
from vicc_ray.training.schedule import make_stages
from vicc_ray.tune.folder import SweepFolder
from vicc_ray.tune.history import Journal, open_study, point_of, preview
from vicc_ray.tune.plan import TrialsPlan
from vicc_ray.tune.space import search_of
from vicc_ray.tune.status import sweep_status
from vicc_ray.tune.sweep import Sweep, best_trial, grace_samples
from vicc_ray.tune.trials import Measurement, TrialSpec

SPACE = {"objective.temperature": {"log": [0.03, 0.3]}, "objective.prototypes": {"log_int": [4, 64]}}
VIDEOS = 16
LOOKS = (16, 32, 48, 64)  # samples of RGB-2 at its looks, of 8 steps of 8
PLAN = TrialsPlan(2, TrainConfig(), False, 2)


class Killed(BaseException):
    """The driver is gone."""


def experiment(folder: Path, space: dict[str, Any] = SPACE, **search: Any) -> Experiment:
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
    tree["schedule"]["cross"] = {"length": {"rgb": "8 steps", "flow": "2 steps"}, "global_batch": 8, "queue_start": 0}
    search = {"budget": "6 trials", "random_starts": 3, "reduction": 2, **search}
    return make_experiment(tree | {"runs": str(folder), "name": "sweep", "search": {"space": space, **search}}, "test")


def opened(asked: Experiment) -> Sweep:
    """A new driver's view of the sweep."""
    folder = SweepFolder.at(asked.run_folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    search = search_of(asked)
    sweep = Sweep(folder, asked, search, open_study(folder, search), VIDEOS)
    sweep.plan = PLAN
    return sweep


def recall(spec: TrialSpec, samples: int) -> float:
    """A made-up recall: best at a temperature of 0.1, and rising."""
    temperature = spec.experiment["objective"]["temperature"]
    return samples / 64 * max(0.0, 0.9 - abs(temperature - 0.1))  # type: ignore[no-any-return]


def facts(samples: int = 64, **more: Any) -> dict[str, Any]:
    cost = {"seconds": 10.0, "device_seconds": 20.0, "trained_samples": samples, "full_samples": 64}
    return {"outcome": "finished", "reason": "", "collapsed": False, **cost, **more}


def drive(sweep: Sweep, ran: list[int], dies: Callable[[], bool] = lambda: False) -> None:
    """What Ray Tune does, two trials side by side; `dies` may end the driver between any two of its acts."""

    def step() -> None:
        if dies():
            raise Killed

    def ends(spec: TrialSpec, looks: list[int]) -> bool:
        """Whether a trial stops: its looks are done, a request came, or it came to its rung (as `run_trial` has it)."""
        seen = LOOKS[: len(LOOKS) - len(looks)]
        reached = spec.allowed is not None and any(samples >= spec.allowed for samples in seen)
        return not looks or reached or sweep.folder.trial(spec.number).stop_requested()

    live: dict[int, tuple[TrialSpec, list[int]]] = {}
    over = False
    while live or not over:
        while len(live) < 2 and not over:
            step()
            spec = sweep.next()
            over = spec is None and not sweep.waits
            if spec is None:
                break
            sweep.folder.trial(spec.number).forget_stop()  # as a run does that begins
            live[spec.number] = (spec, list(LOOKS))
        for number, (spec, looks) in list(live.items()):
            step()
            if ends(spec, looks):
                reached = LOOKS[LOOKS.index(looks[0]) - 1] if looks else LOOKS[-1]
                stopped = bool(looks)
                sweep.folder.trial(number).forget_stop()
                sweep.end(number, facts(reached) | ({"outcome": "stopped"} if stopped else {}))
                ran.append(number)
                del live[number]
            else:
                samples = looks.pop(0)
                sweep.add_measurement(number, Measurement(recall(spec, samples), samples))


def points(study: optuna.Study, asked: Experiment) -> list[dict[str, Any]]:
    return [point_of(search_of(asked), trial) for trial in study.get_trials()]


def test_a_sweep_runs_exactly_its_trials(tmp_path: Path) -> None:
    asked, ran = experiment(tmp_path), []  # type: ignore[var-annotated]
    sweep = opened(asked)
    drive(sweep, ran)
    assert sorted(ran) == [0, 1, 2, 3, 4, 5]
    trials = sweep.study.get_trials()
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    best = best_trial(sweep.study)
    assert best
    assert best.values[0] == max(trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE)
    history = sweep.folder.history.read_bytes()
    assert opened(asked).next() is None
    assert sweep.folder.history.read_bytes() == history


@pytest.mark.parametrize("seed", range(12))
def test_a_driver_killed_at_any_moment_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    asked, ran = experiment(tmp_path, scheduler=draw.choice(["asha", "median", "none"])), []  # type: ignore[var-annotated]
    kills = 0
    while True:
        sweep = opened(asked)
        before = {trial.number: trial.params for trial in sweep.study.get_trials()}
        try:
            drive(sweep, ran, (lambda: draw.random() < 0.1) if kills < 3 else (lambda: False))
        except Killed:
            kills += 1
            continue
        break
    trials = sweep.study.get_trials()
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4, 5]
    # A trial that was asked to stop when its driver died has nothing left to run.
    given_up = {trial.number for trial in trials if trial.number not in ran}
    assert all(trials[number].user_attrs["outcome"] == "pruned" for number in given_up)
    assert len(ran) == len(set(ran))
    assert all(trial.state.is_finished() for trial in trials)
    assert all(trials[number].params == params for number, params in before.items())
    assert len({trial.params["objective.temperature"] for trial in trials}) == 6


def test_a_restart_does_not_propose_the_first_points_again(tmp_path: Path) -> None:
    asked = experiment(tmp_path, sampler="random", scheduler="none")
    whole, ran = opened(asked), []  # type: ignore[var-annotated]
    drive(whole, ran)
    other = experiment(tmp_path / "other", sampler="random", scheduler="none")
    for number in range(6):
        sweep = opened(other)  # a new driver for each trial
        spec = sweep.next()
        assert spec
        assert spec.number == number
        assert (
            spec.experiment["objective"]["temperature"] == points(whole.study, asked)[number]["objective.temperature"]
        )
        sweep.end(number, facts(outcome="failed"))
    assert len({point["objective.temperature"] for point in points(whole.study, asked)}) == 6


def test_a_trial_without_all_of_its_settings_gets_them(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    sweep = opened(asked)
    assert sweep.next()
    history = sweep.folder.history
    lines = history.read_text().splitlines(keepends=True)
    drawn = [number for number, line in enumerate(lines) if "objective.prototypes" in line]
    history.write_text("".join(lines[: drawn[-1]]) + lines[drawn[-1]][:20])  # died while writing it
    again = opened(asked)
    spec = again.next()
    assert spec
    assert spec.number == 0
    assert 4 <= spec.experiment["objective"]["prototypes"] <= 64
    assert opened(asked).study.get_trials()[0].params.keys() == SPACE.keys()


def test_a_damaged_history_is_told_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    sweep = opened(asked)
    assert sweep.next()
    history = sweep.folder.history
    lines = history.read_text().splitlines(keepends=True)
    history.write_text(lines[0] + "}{garbage\n" + "".join(lines[2:]))
    before = history.read_bytes()
    with pytest.raises(UserError, match=r"history.jsonl: line 2 is damaged"):
        opened(asked)
    history.write_text(lines[0] + json.dumps({"op_code": 999, "worker_id": "x"}) + "\n")
    with pytest.raises(UserError, match=r"not a history that Optuna"):
        opened(asked)
    history.write_bytes(before)
    assert history.read_bytes() == before


def test_a_full_disk_ends_the_sweep_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment(tmp_path)
    sweep = opened(asked)
    assert sweep.next()
    before = sweep.folder.history.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
            sweep.next()
    assert sweep.folder.history.read_bytes() == before
    again = opened(asked)
    assert len(again.left_over) == 1


def test_asha_stops_the_bad_ones_and_spends_less(tmp_path: Path) -> None:
    asked = experiment(tmp_path, budget="12 trials", sampler="random")
    sweep, ran = opened(asked), []  # type: ignore[var-annotated]
    drive(sweep, ran)
    trials = sweep.study.get_trials()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    spent = sum(trial.user_attrs["trained_samples"] for trial in trials)
    assert len(pruned) >= 4
    assert spent <= 0.75 * 12 * 64
    worst, best = (pick(trials, key=lambda t: recall_at_end(t.params)) for pick in (min, max))
    assert best.state == TrialState.COMPLETE
    assert worst.state == TrialState.PRUNED or worst.number == 0


def recall_at_end(params: dict[str, Any]) -> float:
    return max(0.0, 0.9 - abs(params["objective.temperature"] - 0.1))  # type: ignore[no-any-return]


def test_a_trial_that_was_given_up_stays_given_up_after_a_restart(tmp_path: Path) -> None:
    """Asked to stop, and the driver died before it stopped: there is nothing more to run."""
    asked = experiment(tmp_path, scheduler="asha", sampler="random")
    sweep = opened(asked)
    good, bad = sweep.next(), sweep.next()
    assert good and bad
    sweep.add_measurement(good.number, Measurement(0.8, 16))
    sweep.add_measurement(bad.number, Measurement(0.1, 16))
    assert sweep.folder.trial(bad.number).stop_request.exists()
    assert not sweep.folder.trial(good.number).stop_request.exists()
    later = opened(asked)
    begun = [later.next(), later.next()]
    assert [spec.number for spec in begun if spec] == [good.number, 2]
    given_up = later.study.get_trials()[bad.number]
    assert given_up.state == TrialState.PRUNED
    assert given_up.user_attrs["outcome"] == "pruned"


def test_the_last_look_is_a_value_and_never_a_reason_to_stop(tmp_path: Path) -> None:
    asked = experiment(tmp_path, reduction=4)  # a rung at 64 samples, the end
    sweep = opened(asked)
    good, bad = sweep.next(), sweep.next()
    assert good and bad
    for samples in LOOKS[1:]:
        sweep.add_measurement(good.number, Measurement(0.9, samples))
    sweep.end(good.number, facts())
    sweep.add_measurement(bad.number, Measurement(0.1, 64))
    assert not sweep.folder.trial(bad.number).stop_request.exists()
    sweep.end(bad.number, facts())
    assert [trial.state for trial in sweep.study.get_trials()] == [TrialState.COMPLETE] * 2


def test_how_a_trial_ends_is_what_the_search_learns_from(tmp_path: Path) -> None:
    asked = experiment(tmp_path, scheduler="none")
    sweep = opened(asked)
    ends: list[dict[str, Any] | None] = [
        facts(),
        facts(outcome="not finite", reason="the loss is nan"),
        facts(collapsed=True),
        None,
        facts(outcome="failed", reason="out of memory"),
    ]
    for result in ends:
        spec = sweep.next()
        assert spec
        sweep.add_measurement(spec.number, Measurement(0.5, 64))
        sweep.end(spec.number, result)
    trials = sweep.study.get_trials()
    assert [trial.user_attrs["outcome"] for trial in trials] == [
        "finished",
        "not finite",
        "collapsed",
        "failed",
        "failed",
    ]
    assert [trial.values for trial in trials] == [[0.5], [0.0], [0.5], None, None]
    assert trials[4].user_attrs["reason"] == "out of memory"
    best = best_trial(sweep.study)
    assert best and best.number == 0


def test_what_every_trial_would_come_to_ends_the_sweep(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    sweep = opened(asked)
    spec = sweep.next()
    assert spec
    sweep.end(spec.number, facts(outcome="refused", reason="videos.parquet: cannot be read"))
    assert sweep.next() is None
    assert isinstance(sweep.error, UserError)
    assert "trial 0: videos.parquet" in str(sweep.error)
    again = opened(asked)
    assert [trial.number for trial in again.left_over] == [0]  # the reader mends it, and it goes on
    for number in range(3):
        spec = again.next()
        assert spec
        again.end(number, facts(outcome="failed", reason="out of memory"))
    assert "3 trials in a row failed" in str(again.error)
    assert again.next() is None


def test_a_grid_is_gone_through_once(tmp_path: Path) -> None:
    space = {"objective.queue": {"choice": [0, 16]}, "objective.prototypes": {"choice": [4, [4, 8], 16]}}
    asked = experiment(tmp_path, space, sampler="grid", scheduler="none", budget="1 hours")
    kills = iter([False] * 9 + [True] + [False] * 1000)
    ran: list[int] = []
    with pytest.raises(Killed):
        drive(opened(asked), ran, lambda: next(kills))
    sweep = opened(asked)
    drive(sweep, ran)
    tried = [json.dumps(point) for point in points(sweep.study, asked)]
    assert len(tried) == len(set(tried)) == 6


def test_a_budget_of_time_begins_no_trial_after_it(tmp_path: Path) -> None:
    asked = experiment(tmp_path, budget="2 hours")
    sweep = opened(asked)
    assert sweep.next()
    sweep.folder.keep_seconds(7199.0)
    assert not opened(asked).spent()
    sweep.folder.keep_seconds(7201.0)
    late = opened(asked)
    assert late.spent()
    assert late.next()  # the one that was begun is ended
    assert late.next() is None


def test_a_budget_of_devices_counts_what_trials_spent(tmp_path: Path) -> None:
    asked = experiment(tmp_path, budget="1 device-hours")
    sweep = opened(asked)
    for seconds, spent in ((1800.0, False), (1801.0, True)):
        spec = sweep.next()
        assert spec
        sweep.add_measurement(spec.number, Measurement(0.5, 64))
        sweep.end(spec.number, facts(device_seconds=seconds))
        assert sweep.spent() == spent
    assert sweep.next() is None


def test_recall_against_cost_gives_a_front(tmp_path: Path) -> None:
    asked = experiment(tmp_path, against="device-hours", scheduler="none", budget="3 trials")
    sweep = opened(asked)
    for value, seconds in ((0.9, 7200.0), (0.8, 3600.0), (0.7, 5400.0)):
        spec = sweep.next()
        assert spec
        sweep.add_measurement(spec.number, Measurement(value, 64))
        sweep.end(spec.number, facts(device_seconds=seconds))
    assert {tuple(trial.values) for trial in sweep.study.best_trials} == {(0.9, 2.0), (0.8, 1.0)}
    best = best_trial(sweep.study)
    assert best and best.number == 0


def test_grace_is_counted_in_samples_of_the_measured_stages(tmp_path: Path) -> None:
    for metric, grace, samples in (
        ("RGB-2/R@1", "0", 16),
        ("RGB-2/R@1", "50 %", 32),
        (["RGB-2/R@1", "Flow-2/R@1"], "0", 64 + 16),
    ):
        asked = experiment(tmp_path, metric=metric, grace=grace)
        assert grace_samples(search_of(asked), asked, make_stages(asked, VIDEOS)) == samples


def test_a_dry_run_shows_the_trials_that_come(tmp_path: Path) -> None:
    asked = experiment(tmp_path, sampler="random")
    sweep = opened(asked)
    first = sweep.next()
    assert first
    shown = preview(sweep.study, search_of(asked), 2)
    assert [number for number, _ in shown] == [1, 2]
    assert len(sweep.study.get_trials()) == 1
    second = sweep.next()
    assert second
    assert second.experiment["objective"]["temperature"] == shown[0][1]["objective.temperature"]


def test_a_sweep_folder_is_for_one_sweep_and_one_driver(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    folder = SweepFolder.at(asked.run_folder)
    assert not folder.open(asked, "videos")
    assert folder.open(experiment(tmp_path, budget="9 trials"), "videos")
    with pytest.raises(UserError, match=r"another experiment .search.metric: was RGB-2/R@1, now Flow-2/R@1"):
        folder.open(experiment(tmp_path, metric="Flow-2/R@1"), "videos")
    with pytest.raises(UserError, match=r"search.space.objective.queue"):
        folder.open(experiment(tmp_path, {**SPACE, "objective.queue": {"choice": [0, 8]}}), "videos")
    with pytest.raises(UserError, match="the videos of the manifest are not the same"):
        folder.open(asked, "other videos")
    with folder.driven():
        assert folder.is_driven()
        with pytest.raises(UserError, match="is training in it"), folder.driven():
            pass
    assert not folder.is_driven()


def test_the_journal_reads_what_it_wrote(tmp_path: Path) -> None:
    folder = SweepFolder.at(tmp_path)
    journal = Journal(folder)
    entries = [{"op_code": number, "text": "ü\n"} for number in range(5)]
    journal.append_logs(entries[:3])
    journal.append_logs(entries[3:])
    assert list(journal.read_logs(2)) == entries[2:]
    with folder.history.open("ab") as file:
        file.write(b'{"op_code": 5, "te')
    assert Journal(folder, read_only=True).logs == entries
    again = Journal(folder)
    again.append_logs([{"op_code": 6}])
    assert Journal(folder).logs == [*entries, {"op_code": 6}]


def test_what_is_told_of_a_sweep_that_is_ending_counts_every_trial_and_promises_nothing(tmp_path: Path) -> None:
    sweep = opened(experiment(tmp_path, budget="5 trials"))
    for number in range(3):
        assert sweep.next()
        sweep.add_measurement(number, Measurement(0.2, 64))
    sweep.end(0, facts())
    assert sweep._standing().startswith("1 trials done of 5")
    assert sweep._standing().endswith("min left")
    sweep.close("stopping")
    sweep.end(1, facts(32, outcome="stopped"))  # it goes on another time
    assert sweep._standing() == "1 trials done of 5, best so far 0.200 (trial 0), running 2 at 0.200 (100%)"


@pytest.mark.parametrize("damage", [None, b"", b"\xff", b"[" * 100_000])
def test_without_the_note_of_its_videos_a_sweep_goes_on_with_none(tmp_path: Path, damage: bytes | None) -> None:
    asked = experiment(tmp_path)
    folder = SweepFolder.at(asked.run_folder)
    folder.open(asked, "videos")
    (folder.path / "sweep.json").unlink() if damage is None else (folder.path / "sweep.json").write_bytes(damage)
    with pytest.raises(
        UserError, match=r"its sweep\.json cannot be read .* is not known whether the videos are still the same"
    ):
        folder.open(asked, "other videos")


def test_the_status_of_a_sweep_that_one_may_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment(tmp_path)
    folder = SweepFolder.at(asked.run_folder)
    folder.open(asked, "videos")
    opened_file = os.open

    def read_only(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if str(path).startswith(str(folder.path)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", path)
        return opened_file(path, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        before = sorted(folder.path.iterdir())
        assert sweep_status(asked)["state"] == "stopped"
        assert sorted(folder.path.iterdir()) == before
    with folder.driven():
        monkeypatch.setattr(os, "open", read_only)
        assert sweep_status(asked)["state"] == "running"


def test_the_events_of_a_sweep_in_a_store_are_there(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for machine in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        folder = SweepFolder.at(f"{bucket}/sweep")
        folder.path.mkdir(parents=True)
        folder.pull()
        folder.note("start")
    assert [event["kind"] for event in read_events(folder.events)] == ["start", "start"]
