"""Median stopping whose trials may be measured at different moments, as those of a searched batch size do."""

from __future__ import annotations

import statistics

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class MedianPruner(BasePruner):
    """Stops a trial whose best value so far is worse than the median of the completed trials' values at that time.

    The rule is that of Optuna's own, which compares values at exactly the same step only: a trial that is never measured where
    another one did is never stopped by it. Here each completed trial counts with its last value that is not after this one.

    Args:
        startup_trials: completed trials before which none is stopped.
        grace: step (samples) before which no trial is stopped.
    """

    def __init__(self, startup_trials: int, grace: int) -> None:
        self.startup_trials, self.grace = startup_trials, grace

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped at its newest value."""
        now = trial.last_step
        if now is None or now < self.grace:
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        then = [value for other in completed if (value := _value_at(other, now)) is not None]
        if len(completed) < max(self.startup_trials, 1) or not then:
            return False
        values = trial.intermediate_values.values()
        if study.direction == StudyDirection.MAXIMIZE:
            return max(values) < statistics.median(then)
        return min(values) > statistics.median(then)


def _value_at(trial: FrozenTrial, step: int) -> float | None:
    """A trial's last value that is not after a step; None where it had none by then."""
    last = max((step_of for step_of in trial.intermediate_values if step_of <= step), default=None)
    return None if last is None else trial.intermediate_values[last]
