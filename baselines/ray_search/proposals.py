"""Proposals of Optuna's samplers for Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from baselines.interface import Parameter, Space
from baselines.ray_search.records import History

Proposal = dict[str, Any]


class NumberedOptuna(Searcher):
    """Ray Tune's OptunaSearch with the numbers of this search: open trials first, then new ones.

    Args:
        space: what is proposed.
        sampler: "tpe" or "random".
        seed: of the sampler.
        again: proposals that are evaluated before any new one.
        numbers: of the new ones.
        done: what the sampler learns from at the start.
    """

    def __init__(
        self,
        space: Space,
        sampler: Literal["tpe", "random"],
        seed: int,
        again: Sequence[Proposal],
        numbers: Sequence[int],
        done: Sequence[History],
    ) -> None:
        super().__init__(metric="accuracy", mode="max")
        self._names = [parameter.name for parameter in space.parameters]
        self._left = [*again, *({"number": number} for number in numbers)]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        # Names of layers may hold a "/", by which Ray would split them: the sampler knows numbers of parameters.
        self._inner = OptunaSearch(
            space={str(i): _distribution(parameter) for i, parameter in enumerate(space.parameters)},
            metric="accuracy",
            mode="max",
            points_to_evaluate=[self._by_index(proposal["values"]) for proposal in again],
            sampler=kinds[sampler](seed=seed),
        )
        for history in done:
            accuracy = history.trial().accuracy
            failed = history.state == "failed" or accuracy is None
            self._inner.add_evaluated_point(self._by_index(history.values), accuracy or 0.0, error=failed)

    def _by_index(self, values: Mapping[str, float]) -> dict[str, float]:
        return {str(i): values[name] for i, name in enumerate(self._names)}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Returns the configuration of the next trial, or None."""
        proposed = self._inner.suggest(trial_id) if self._left else None
        if proposed is None:
            return None
        values = {name: proposed[str(i)] for i, name in enumerate(self._names)}
        return {"proposal": self._left.pop(0) | {"values": values}}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells the sampler what an epoch brought."""
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the sampler what a trial brought."""
        self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Keeps nothing: a resumed search learns from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Has nothing to read."""


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.integer:
        return IntDistribution(round(parameter.low), round(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
