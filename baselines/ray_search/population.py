"""Population based training under Ray Tune: mutations that stay in their ranges, and workers that take turns."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator

from baselines.interface import Parameter

BUSY = (Trial.PENDING, Trial.RUNNING)
ENDED = (Trial.TERMINATED, Trial.ERROR)


class Population(BasicVariantGenerator):
    """Hands out the trials of a population one by one, never more than `workers` at a time.

    It counts as finished once all trials are: Ray Tune then keeps the actors of paused trials warm for the next ones.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self._workers = workers
        self._born: list[Trial] = []

    @property
    def is_complete(self) -> bool:
        return len(self._born) == int(self.total_samples)

    def next_trial(self) -> Trial | None:
        if self.is_complete or sum(trial.status in BUSY for trial in self._born) >= self._workers:
            return None
        trial: Trial = super().next_trial()  # type: ignore[no-untyped-call]
        self._born.append(trial)
        return trial

    def is_finished(self) -> bool:
        if self._finished:  # so that an interrupted search ends
            return True
        return self.is_complete and all(trial.status in ENDED for trial in self._born)

    def get_state(self) -> dict[str, Any]:
        """Returns nothing: a resumed search reads its records."""
        return {}


class TurnTaking(PopulationBasedTraining):
    """Ray Tune's population based training with at most `workers` trials at a time.

    A trial pauses after each round until all others have come as far, those included that have not begun.
    """

    def __init__(self, workers: int, round_epochs: int, mutation: Mutation) -> None:
        super().__init__(
            time_attr="epoch",
            metric="score",
            mode="max",
            perturbation_interval=round_epochs,
            custom_explore_fn=mutation,
            log_config=False,
        )
        self._workers, self._round_epochs = workers, round_epochs

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, trial, result)
        population = tune_controller.search_alg
        at_end_of_round = result["epoch"] % self._round_epochs == 0
        if decision == TrialScheduler.CONTINUE and at_end_of_round and not population.is_complete:
            return str(TrialScheduler.PAUSE)
        return decision

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Returns the paused trial that has trained least, or None as long as all workers are busy."""
        trials: list[Trial] = tune_controller.get_trials()  # type: ignore[no-untyped-call]
        if sum(trial.status in BUSY for trial in trials) >= self._workers:
            return None
        return super().choose_trial_to_run(tune_controller)


class Mutation:
    """Draws and mutates proposals, always in their ranges; called by Ray Tune's population based training.

    A mutated value is drawn anew with probability `redraw`, else moved up or down by `width` of its range (in the
    logarithm where the parameter is logarithmic), an integer by at least 1.
    """

    def __init__(self, parameters: Sequence[Parameter], seed: int, redraw: float = 0.25, width: float = 0.1) -> None:
        self._parameters = tuple(parameters)
        self._random = random.Random(seed)
        self._redraw, self._width = redraw, width

    def draw(self) -> dict[str, float]:
        return {parameter.name: self._at(parameter, self._random.random()) for parameter in self._parameters}

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config["proposal"]["values"]
        mutated = {parameter.name: self._mutated(parameter, values[parameter.name]) for parameter in self._parameters}
        return config | {"proposal": config["proposal"] | {"values": mutated}}

    def _mutated(self, parameter: Parameter, value: float) -> float:
        if self._random.random() < self._redraw:
            return self._at(parameter, self._random.random())
        way = self._random.choice((-1, 1))
        low, high = _scaled(parameter, parameter.low), _scaled(parameter, parameter.high)
        moved = self._at(parameter, (_scaled(parameter, value) - low) / ((high - low) or 1.0) + way * self._width)
        if parameter.integer and moved == value:
            moved = int(min(max(value + way, parameter.low), parameter.high))
        return moved

    @staticmethod
    def _at(parameter: Parameter, place: float) -> float:
        """Returns the value at a place between 0 (low) and 1 (high), clipped to the range."""
        low, high = _scaled(parameter, parameter.low), _scaled(parameter, parameter.high)
        value = low + min(max(place, 0.0), 1.0) * (high - low)
        value = min(max(math.exp(value) if parameter.log else value, parameter.low), parameter.high)
        return round(value) if parameter.integer else value


def _scaled(parameter: Parameter, value: float) -> float:
    return math.log(value) if parameter.log else value
