"""The search for one density, as a searcher."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from autocompress.errors import InvalidInputError
from baselines.condensa.goal import KeptOutcome
from baselines.interface import Objective, SearchSettings
from baselines.methods import CONDENSA, METHODS
from baselines.optuna_search import OptunaSearcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CondensaSearcher:
    """Condensa's constrained Bayesian optimization in at most ten samples; Optuna keeps and resumes them.

    Attributes:
        name: of the method.
    """

    name: str = CONDENSA

    def check(self, settings: SearchSettings) -> None:
        OptunaSearcher(self.name).check(settings)
        most = METHODS[CONDENSA].most_trials
        if most is not None and settings.trials > most:
            raise InvalidInputError(f"trials is {settings.trials}, but condensa takes at most {most}")

    def search(self, objective: Objective, settings: SearchSettings) -> KeptOutcome:
        space: Any = objective.space
        outcome = OptunaSearcher(self.name).search(objective, settings)
        kept = KeptOutcome(outcome.trials, outcome.interrupted, goal=space.goal)
        if kept.best is not None and not kept.keeps(kept.best):
            logger.warning("none of %d trials keeps the target; the nearest is taken", len(kept.trials))
        return kept
