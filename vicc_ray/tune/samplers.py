"""What proposes a trial's settings, with every argument set that Optuna has a default for: an update of Optuna moves no result.

Optuna 5 made TPE multivariate and its running trials count as bad ones, and PED-ANOVA the measure of importance. What is set
here is what Optuna 5.0.0 does for one objective and for several, and fANOVA for importances, as the page always had it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler

if TYPE_CHECKING:
    from optuna.importance import FanovaImportanceEvaluator

CANDIDATES = 24  # points drawn from TPE's good group, of which the best one is proposed
GOOD_SHARE, MOST_GOOD = 0.1, 25
IMPORTANCE_TREES = IMPORTANCE_DEPTH = 64


@contextmanager
def settled() -> Iterator[None]:
    """Optuna calls parts of itself experimental that have stayed as they are since version 3, and arguments that are to go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


def good_group(ended: int) -> int:
    """How many of the trials that ended TPE takes for good ones, where there is one objective."""
    return min(math.ceil(GOOD_SHARE * ended), MOST_GOOD)


def good_group_of_front(ended: int) -> int:
    """The same where there are several objectives."""
    return math.ceil(GOOD_SHARE * ended)


def tpe(seed: int, random_starts: int, objectives: int = 1) -> TPESampler:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), all settings at once (Falkner et al., ICML 2018).

    Trials that are running count as bad ones, so that trials side by side are not the same. With several objectives each
    setting is drawn by itself (Ozaki et al., GECCO 2020). Proposes at random until `random_starts` trials have ended.
    """
    with settled():
        return TPESampler(
            seed=seed,
            n_startup_trials=random_starts,
            n_ei_candidates=CANDIDATES,
            gamma=good_group if objectives == 1 else good_group_of_front,
            multivariate=objectives == 1,
            group=False,
            constant_liar=True,
        )


def gp(seed: int, random_starts: int) -> BaseSampler:
    """Gaussian process (Matern 5/2, a length scale a setting) with log expected improvement (Ament et al., NeurIPS 2023).

    Where trials are running, the improvement is that of the batch which they make with the new one; with several objectives it
    is that of the front's hypervolume. Only trials that are complete are learnt from: see `history.seen`. Proposes at random
    until `random_starts` trials are.
    """
    return GPSampler(seed=seed, n_startup_trials=random_starts, warn_independent_sampling=False)


def importance() -> FanovaImportanceEvaluator:
    """fANOVA (Hutter et al., ICML 2014): the share of the metric's variance that a setting explains."""
    from optuna.importance import FanovaImportanceEvaluator  # loads scikit-learn

    return FanovaImportanceEvaluator(n_trees=IMPORTANCE_TREES, max_depth=IMPORTANCE_DEPTH, seed=0)
