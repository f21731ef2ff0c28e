"""The controller of a sweep: which trial comes next, what a measurement of one means for it, when it is over. No Ray.

Ray Tune calls it through `execution`; Optuna's study, on disk, is its only memory. So a driver that is killed leaves a sweep
that the next one goes on with: trials that were running are begun again in their own folders under their own numbers, and
new ones are proposed until the budget is spent. A trial that pauses at a rung (`promotion`) ends as one that was stopped does;
that it may go on, and how far, is in the history before it does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from vicc_ray.config import Experiment, SearchConfig
from vicc_ray.console import console
from vicc_ray.errors import UserError
from vicc_ray.runs.folder import RunFolder
from vicc_ray.training.schedule import Stage, every, make_stages
from vicc_ray.tune.folder import SweepFolder, trial_name
from vicc_ray.tune.history import again, ask, finished, metric_name, point_of, running
from vicc_ray.tune.median import MedianPruner
from vicc_ray.tune.plan import TrialsPlan
from vicc_ray.tune.promotion import Curve, Promotion, promoted, to_the_end
from vicc_ray.tune.sharing import measured
from vicc_ray.tune.space import describe_point, grid_size, metrics_of, trial_experiment
from vicc_ray.tune.trials import Follower, Measurement, TrialSpec, sum_up

FAILURES_IN_A_ROW = 3  # trials that fail one after the other, with no other end between them, fail for a common reason
CLOCK_SECONDS = 10.0
PRINT_SECONDS = 30.0
REPEAT_SECONDS = 3.0  # from one request to stop to the next: a trial that was just starting takes the first one back


@dataclass
class Live:
    """A trial that runs."""

    trial: Trial
    experiment: Experiment
    full: int  # samples of the measured stages, when they are done
    measurement: Measurement | None = None
    pruned: bool = False
    paused: bool = False


class Sweep:
    """See the head of this file.

    Attributes:
        plan: how each trial is placed; no trial begins before it is set.
        shared: run folder that trials begin from, if there is one.
        error: what ended the sweep before its budget was spent, if anything did.
        waits: whether `next` said None only for now: what runs decides which trial goes on.
    """

    def __init__(
        self,
        folder: SweepFolder,
        experiment: Experiment,
        search: SearchConfig,
        study: optuna.Study,
        videos: int,
    ) -> None:
        self.folder, self.experiment, self.search, self.study, self.videos = folder, experiment, search, study, videos
        stages = make_stages(experiment, videos)
        study.pruner = make_pruner(search, experiment, stages)
        self.shared: str | None = None
        self.plan: TrialsPlan | None = None
        self.live: dict[int, Live] = {}
        self.pauses, self.first_rung = search.scheduler == "promotion", grace_samples(search, experiment, stages)
        paused = {curve.number for curve in self.curves() if curve.paused}
        self.left_over = [trial for trial in running(study) if trial.number not in paused]  # of earlier drivers
        self.waits = False
        self.closing = False
        self.error: Exception | None = None
        self.before, self.began = folder.seconds(), time.monotonic()
        self.kept = self.printed = self.repeated = self.began
        self.ended = self.failed_in_a_row = 0

    @property
    def seconds(self) -> float:
        """Seconds that drivers of this sweep have been at work."""
        return self.before + time.monotonic() - self.began

    def device_hours(self) -> float:
        """What the finished and the paused trials spent."""
        trials = self.study.get_trials(deepcopy=False)
        return sum(float(trial.user_attrs.get("device_seconds", 0.0)) for trial in trials) / 3600

    def trials_left(self) -> int | None:
        """Trials that are not begun yet; None where the budget is not counted in trials."""
        begun = len(self.study.get_trials(deepcopy=False))
        budget = self.search.budget
        most = [grid_size(self.search)] if self.search.sampler == "grid" else []
        most += [int(budget.value)] if budget.unit == "trials" else []
        return max(min(most) - begun, 0) if most else None

    def spent(self) -> bool:
        """Whether no new trial may begin."""
        budget = self.search.budget
        if budget.unit == "hours" and self.seconds >= 3600 * budget.value:
            return True
        if budget.unit == "device-hours" and self.device_hours() >= budget.value:
            return True
        return self.trials_left() == 0

    def next(self) -> TrialSpec | None:
        """The next trial: one that an earlier driver left, or is promoted, else a new one; None where there is none to begin."""
        self.waits = False
        if self.closing or not self.plan:
            return None
        while self.left_over:
            frozen = self.left_over.pop(0)
            spec = self._begin(again(self.study, self.search, frozen), self.plan)
            if not frozen.user_attrs.get("pruned"):
                return spec
            self._end_given_up(spec)
        if promotion := self._promotion():
            return self._go_on(promotion, self.plan)
        if not self.spent():
            return self._begin(ask(self.study, self.search), self.plan)
        if self.pauses:
            self.waits = bool(self.live)
            if not self.waits:
                self._end_paused()
        return None

    def curves(self) -> list[Curve]:
        """Every trial as promotion sees it; a high value is a good one."""
        sign = 1 if self.search.mode == "max" else -1
        return [
            Curve(
                trial.number,
                {samples: sign * value for samples, value in trial.intermediate_values.items()},
                allowed=int(trial.user_attrs.get("allowed", 0)),
                full=int(trial.user_attrs.get("whole", 0)),
                busy=trial.number in self.live,
                over=trial.state.is_finished(),
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def _promotion(self) -> Promotion | None:
        """The paused trial that goes on now, if any: also one of the best to its end, when too few came to theirs."""
        if not self.pauses:
            return None
        curves, spent = self.curves(), self.spent()
        time_is_up = spent and self.search.budget.unit != "trials"
        if not time_is_up and (found := promoted(curves, self.first_rung, self.search.reduction)):
            return found
        wanted = 1 if time_is_up else self.search.reduction
        done = sum(trial.state == TrialState.COMPLETE for trial in self.study.get_trials(deepcopy=False))
        return to_the_end(curves) if spent and not self.live and done < wanted else None

    def _go_on(self, promotion: Promotion, plan: TrialsPlan) -> TrialSpec:
        """Begin a paused trial again; once its allowance is in the history, any driver would."""
        frozen = self.study.get_trials(deepcopy=False)[promotion.number]
        trial = again(self.study, self.search, frozen)
        trial.set_user_attr("allowed", promotion.samples)
        return self._begin(trial, plan)

    def _end_paused(self) -> None:
        """The sweep is over: trials that were never good enough to go on have ended."""
        paused = [curve.number for curve in self.curves() if curve.paused]
        for number in paused:
            trial = Trial(self.study, self.study.get_trials(deepcopy=False)[number]._trial_id)
            trial.set_user_attr("outcome", "pruned")
            self.study.tell(trial, state=TrialState.PRUNED)
        if paused:
            console.print(f"{len(paused)} paused trials were not good enough to go on; {self._standing()}")

    def _end_given_up(self, spec: TrialSpec) -> None:
        """End a trial whose driver died after it was to stop; there is nothing to run."""
        live = self.live.pop(spec.number)
        folder, stages = RunFolder.at(spec.folder), make_stages(live.experiment, self.videos)
        follower = Follower(folder, stages, spec.metrics)
        live.measurement = next(iter(follower.read()[-1:]), None)
        self._record(live, "pruned", "", sum_up(folder, stages, follower))

    def _begin(self, trial: Trial, plan: TrialsPlan) -> TrialSpec:
        point = point_of(self.search, trial)
        experiment = trial_experiment(self.experiment, point, self.folder.trials, trial_name(trial.number))
        experiment = experiment.model_copy(update={"train": plan.train})
        stages = {stage.name: stage for stage in make_stages(experiment, self.videos)}
        full = sum(stages[name].samples for name in measured(self.search))
        self.live[trial.number] = Live(trial, experiment, full)
        if self.pauses and "allowed" not in trial.user_attrs:
            trial.set_user_attr("whole", full)
            trial.set_user_attr("allowed", min(self.first_rung, full))
        self.folder.note("trial", number=trial.number)
        console.print(f"trial {trial.number}: {describe_point(point)}")
        allowed = int(trial.user_attrs["allowed"]) if self.pauses else full
        return TrialSpec(
            trial.number,
            experiment.model_dump(mode="json"),
            str(self.folder.trial(trial.number)),
            self.shared,
            self.videos,
            metrics_of(self.search),
            "auto",
            allowed if allowed < full else None,
        )

    def add_measurement(self, number: int, measurement: Measurement) -> None:
        """Take a trial's recall at one moment; one that the pruner gives up is stopped, one that came to its rung ends itself."""
        live = self.live.get(number)
        if live is None:
            return
        live.measurement = measurement
        trial = live.trial
        known = self.study._storage.get_trial(trial._trial_id).intermediate_values
        if measurement.samples not in known and math.isfinite(measurement.value) and self.search.against == "none":
            trial.report(measurement.value, measurement.samples)
            if measurement.samples < live.full and not live.pruned and trial.should_prune():
                live.pruned = True
                trial.set_user_attr("pruned", True)
        if self.pauses and math.isfinite(measurement.value):
            live.paused = int(trial.user_attrs["allowed"]) <= measurement.samples < live.full
        if live.pruned:
            self.folder.trial(number).request_stop()

    def end(self, number: int, result: Mapping[str, Any] | None) -> None:
        """Take a trial's end; `result` is what `run_trial` reported last, None where its driver was lost."""
        live = self.live.pop(number, None)
        if live is None:
            return
        outcome = str(result.get("outcome")) if result and "outcome" in result else "failed"
        reason = str(result.get("reason", "")) if result else "its driver was lost"
        if outcome == "refused":
            self.error, self.closing = UserError(f"trial {number}: {reason}"), True
            return
        if outcome == "stopped" and not live.pruned:
            if live.paused:
                self._keep_cost(live.trial, result or {})
            return  # it goes on another time
        self._record(live, "pruned" if outcome == "stopped" else outcome, reason, result or {})
        self._count(outcome, number, reason)

    def _keep_cost(self, trial: Trial, result: Mapping[str, Any]) -> None:
        for name, value in result.items():
            if name in FACTS:
                trial.set_user_attr(name, value)

    def _record(self, live: Live, outcome: str, reason: str, result: Mapping[str, Any]) -> None:
        trial, measurement = live.trial, live.measurement
        facts = {name: value for name, value in result.items() if name in FACTS}
        if outcome == "finished" and facts.get("collapsed"):
            outcome = "collapsed"
        for name, value in {"outcome": outcome, "reason": reason, **facts}.items():
            trial.set_user_attr(name, value)
        if outcome == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif outcome == "failed" or (outcome != "not finite" and measurement is None):
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            value = measurement.value if measurement and outcome != "not finite" else self.worst()
            self.study.tell(trial, [value, *self._costs(facts)])
        printed = f"{metric_name(self.search)} {measurement.value:.3f}" if measurement else "no figure"
        console.print(
            f"trial {trial.number}: {outcome}, {printed}, {facts.get('seconds', 0.0):.0f} s"
            f"{f' ({reason})' if reason else ''}; {self._standing()}",
        )

    def worst(self) -> float:
        """The value that a trial without a number gets, so that the search keeps away from its settings."""
        if self.search.mode == "max":
            return 0.0  # a recall
        seen = [value for trial in finished(self.study) for value in (trial.values or [])[:1]]
        return max(seen, default=1.0)

    def _costs(self, facts: Mapping[str, Any]) -> list[float]:
        if self.search.against == "none":
            return []
        seconds = float(facts.get("seconds", 0.0))
        return [seconds if self.search.against == "seconds" else float(facts.get("device_seconds", 0.0)) / 3600]

    def _count(self, outcome: str, number: int, reason: str) -> None:
        self.ended += 1
        self.failed_in_a_row = self.failed_in_a_row + 1 if outcome == "failed" else 0
        if self.failed_in_a_row >= FAILURES_IN_A_ROW:
            self.closing = True
            self.error = UserError(
                f"{self.failed_in_a_row} trials in a row failed, the last one, trial {number}, with: {reason}; "
                "mend the cause, then the same command goes on"
            )

    def tick(self) -> None:
        """What is done now and then while trials run."""
        now = time.monotonic()
        if not self.closing and self.folder.run.stop_requested():
            self.close("a stop was requested")
        if self.closing and now - self.repeated > REPEAT_SECONDS:
            self.repeated = now
            for number in list(self.live):
                with suppress(OSError):
                    self.folder.trial(number).request_stop()
        if now - self.kept > CLOCK_SECONDS:
            self.kept = now
            self.folder.keep_seconds(self.seconds)
        if now - self.printed > PRINT_SECONDS:
            self.printed = now
            console.print(self._standing())

    def close(self, why: str) -> None:
        """Begin no more trials and stop those that run after a checkpoint."""
        if not self.closing:
            self.closing = True
            self.repeated = -math.inf
            console.print(f"{why}: no more trials; those that run end after a checkpoint")

    def _standing(self) -> str:
        done, left = len(finished(self.study)), self.trials_left()
        running_now = ", ".join(
            f"{number} at {live.measurement.value:.3f} ({live.measurement.samples / live.full:.0%})"
            if live.measurement
            else f"{number}"
            for number, live in sorted(self.live.items())
        )
        begun = len(self.study.get_trials(deepcopy=False))
        parts = [f"{done} trials done" + (f" of {begun + left}" if left is not None else "")]
        if paused := sum(curve.paused for curve in self.curves()):
            parts.append(f"{paused} paused")
        if (best := best_trial(self.study)) is not None:
            parts.append(f"best so far {best.values[0]:.3f} (trial {best.number})")
        if running_now:
            parts.append(f"running {running_now}")
        if (eta := self.eta()) is not None:
            parts.append(f"about {eta / 60:.0f} min left")
        return ", ".join(parts)

    def eta(self) -> float | None:
        """Seconds that the trials to come will take at the pace so far; None before one has ended, or where none is to come."""
        budget = self.search.budget
        if self.closing:
            return None
        if budget.unit == "hours":
            return max(3600 * budget.value - self.seconds, 0.0)
        left = self.trials_left()
        if left is None or not self.ended:
            return None
        return (time.monotonic() - self.began) / self.ended * (left + len(self.live) + len(self.left_over))


# What is kept of a trial's last report beside its value.
FACTS = (
    "seconds",
    "device_seconds",
    "trained_samples",
    "full_samples",
    "collapsed",
    "end_loss",
    "end_ln_k",
    "end_entropy",
)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The completed trial with the best metric, the cheaper of two equal ones; None before one is completed.

    One that is not finite got the worst value and is passed over.
    """
    done = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get("outcome") != "not finite"
    ]
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(
        done,
        key=lambda trial: (sign * trial.values[0], *(-cost for cost in trial.values[1:]), -trial.number),
        default=None,
    )


def make_pruner(search: SearchConfig, experiment: Experiment, stages: Sequence[Stage]) -> BasePruner:
    """What stops bad trials early. Its unit is samples of the measured stages; its memory is the study on disk.

    asha: asynchronous successive halving (Li et al., 2020), as Optuna has it: at rung k, `grace * reduction**k` samples, a
    trial goes on if it is among the best 1/reduction of those that came there so far.
    """
    if search.scheduler in ("none", "promotion"):
        return NopPruner()
    grace = grace_samples(search, experiment, stages)
    if search.scheduler == "median":
        return MedianPruner(startup_trials=search.random_starts, grace=grace)
    return SuccessiveHalvingPruner(min_resource=grace, reduction_factor=search.reduction)


def grace_samples(search: SearchConfig, experiment: Experiment, stages: Sequence[Stage]) -> int:
    """Samples of the measured stages before which no trial is stopped: `search.grace` of the last one, or its first measurement."""
    named = measured(search)
    judged = [stage for stage in stages if stage.name in named]
    last = judged[-1]
    first = min(every(experiment.evaluate.monitor_every, last), last.steps)
    grace = search.grace.steps(steps_per_epoch=last.steps_per_epoch, global_batch=last.global_batch, whole=last.steps)
    earlier = sum(stage.samples for stage in judged[:-1])
    return earlier + max(first, grace) * last.global_batch
