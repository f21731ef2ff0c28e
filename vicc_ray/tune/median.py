"""Median stopping whose trials may look at different moments, as those of a searched batch size do."""

from __future__ import annotations

import statistics

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


class MedianPruner(BasePruner):
    """Stops a trial whose best look so far is worse than the median of the completed trials' looks at that time.

    The rule is that of Optuna's own, which compares looks at exactly the same step only: a trial that never looks where
    another one did is never stopped by it. Here each completed trial counts with its last look that is not after this one.

    Args:
        startup_trials: completed trials before which none is stopped.
        grace: step (samples) before which no trial is stopped.
    """

    def __init__(self, startup_trials: int, grace: int) -> None:
        self.startup_trials, self.grace = startup_trials, grace

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to be stopped at its newest look."""
        now = trial.last_step
        if now is None or now < self.grace:
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        then = [value for other in completed if (value := _value_at(other, now)) is not None]
        if len(completed) < max(self.startup_trials, 1) or not then:
            return False
        looks = trial.intermediate_values.values()
        if study.direction == StudyDirection.MAXIMIZE:
            return max(looks) < statistics.median(then)
        return min(looks) > statistics.median(then)


def _value_at(trial: FrozenTrial, step: int) -> float | None:
    """A trial's value at its last look that is not after a step; None where it had none by then."""
    last = max((look for look in trial.intermediate_values if look <= step), default=None)
    return None if last is None else trial.intermediate_values[last]
