"""Proposals of Optuna's samplers for Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from baselines.interface import Parameter, Space
from baselines.ray_search.records import History
from baselines.spending import Spending

Proposal = dict[str, Any]


class NumberedOptuna(Searcher):
    """Ray Tune's OptunaSearch with the numbers of this search: open trials first, then new ones.

    Args:
        space: what is proposed.
        sampler: of Optuna, made from the one table of all searches.
        again: proposals that are evaluated before any new one.
        numbers: of the new ones.
        done: what the sampler learns from at the start.
        spending: of the search: once it allows no more, nothing new is proposed.
    """

    def __init__(
        self,
        space: Space,
        sampler: optuna.samplers.BaseSampler,
        again: Sequence[Proposal],
        numbers: Sequence[int],
        done: Sequence[History],
        spending: Spending,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self._names = [parameter.name for parameter in space.parameters]
        self._spending = spending
        self._left = [*again, *({"number": number} for number in numbers)]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # Names of layers may hold a "/", by which Ray would split them: the sampler knows numbers of parameters.
        self._inner = OptunaSearch(
            space={str(i): _distribution(parameter) for i, parameter in enumerate(space.parameters)},
            metric="score",
            mode="max",
            points_to_evaluate=[self._by_index(proposal["values"]) for proposal in again],
            sampler=sampler,
        )
        for history in done:
            score = history.trial().score
            failed = history.state == "failed" or score is None
            self._inner.add_evaluated_point(self._by_index(history.values), score or 0.0, error=failed)

    def _by_index(self, values: Mapping[str, float]) -> dict[str, float]:
        return {str(i): values[name] for i, name in enumerate(self._names)}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        number = self._left[0]["number"] if self._left else -1
        if not self._left or not self._spending.allows(number):
            # What runs may end sooner than it might have, and leave something over.
            return None if self._left and self._spending.running else cast(dict[str, Any], Searcher.FINISHED)
        proposed = self._inner.suggest(trial_id)
        if proposed is None:
            return None
        self._spending.running.add(number)
        values = {name: proposed[str(i)] for i, name in enumerate(self._names)}
        return {"proposal": self._left.pop(0) | {"values": values}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Keeps nothing: a resumed search learns from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Has nothing to read."""


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.integer:
        return IntDistribution(round(parameter.low), round(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
