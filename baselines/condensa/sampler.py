"""Condensa's proposals as a sampler of Optuna's, which keeps, resumes and runs the trials."""

from __future__ import annotations

import math
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from baselines.condensa.proposals import Sample, propose
from baselines.condensa.space import DENSITY, MIN_DENSITY, CondensaSpace
from baselines.optuna_search.trials import recorded


class CondensaSampler(BaseSampler):
    """Proposes a density from the trials that have come to their end; keeps no state of its own."""

    def __init__(self, space: CondensaSpace, trials: int) -> None:
        self.goal, self.trials = space.goal, trials

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> float:
        finished = [recorded(each) for each in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        samples = [
            Sample(
                to_sparsity(each.values[DENSITY]),
                self.goal.margin(each.accuracy or 0.0, each.size),
                self.goal.worth(each.accuracy or 0.0, each.size),
            )
            for each in finished
            if each is not None
        ]
        others = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.FAIL))
        running = [to_sparsity(each.params[DENSITY]) for each in others if DENSITY in each.params]
        return to_density(propose(self.goal, samples, self.trials, running))


def to_sparsity(density: float) -> float:
    """Returns the point s in [0, 1] of a density: 0 dense, 1 the lowest."""
    return math.log(density) / math.log(MIN_DENSITY)


def to_density(sparsity: float) -> float:
    """Returns the density of a point s in [0, 1]."""
    return min(1.0, max(MIN_DENSITY, math.pow(MIN_DENSITY, sparsity)))
