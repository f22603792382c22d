"""The trials of an Optuna study, handed out one by one: those that a killed process left behind, then new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.interface import Objective, SearchSettings, Trial
from baselines.optuna_search.samplers import SAMPLERS, as_numbers, distributions, grid, proposal_seed
from baselines.optuna_search.trials import RunningTrial, recorded, tell

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

EXHAUSTIVE = ("uniform", "magnitude")
TWO_OBJECTIVES = ("optuna-nsga2",)


class Proposals:
    """Hands out the trials of a study: first those that a killed process left behind, then new ones.

    Attributes:
        trials: of the whole search; fewer than asked for where a space has no more points.
        done: those that were finished before.
    """

    def __init__(
        self,
        method: str,
        study: optuna.Study,
        objective: Objective,
        settings: SearchSettings,
        planned: int,
    ) -> None:
        self.method, self.study, self.settings, self.planned = method, study, settings, planned
        self.space = objective.space
        self.distributions = distributions(self.space)
        self.points = grid(self.space) if method in EXHAUSTIVE else None
        self.trials = settings.trials if self.points is None else min(settings.trials, len(self.points))
        self.done: list[Trial] = []
        self.left_behind: list[FrozenTrial] = []
        before = study.trials
        for frozen in before:
            self._sort(frozen)
        self.number = len(before)
        # A process may have been killed between naming the values of a trial and beginning it.
        self.number -= sum(frozen.state.name == "WAITING" for frozen in before)
        self.waiting = len(before) > self.number

    def next(self) -> RunningTrial | None:
        """Returns the next trial, or None if all have been handed out."""
        if self.left_behind:
            return self._again(self.left_behind.pop(0))
        if self.number >= self.trials:
            return None
        self._sampler(self.number)
        values = self._given()
        if values is not None and not self.waiting:
            self.study.enqueue_trial(as_numbers(self.space, values))
        self.waiting = False
        self.number += 1
        return self._running(self.study.ask(self.distributions))

    def _given(self) -> dict[str, float] | None:
        """Returns the values of the next trial where no sampler is asked for them."""
        if self.points is not None:
            return self.points[self.number]
        return dict(self.space.start) if self.number == 0 else None

    def _sort(self, frozen: FrozenTrial) -> None:
        """Notes a trial as done, or as left behind; tells Optuna the end of one that was killed just before that."""
        trial = recorded(frozen)
        if frozen.state.name == "RUNNING" and trial is None:
            self.left_behind.append(frozen)
        if frozen.state.name == "RUNNING" and trial is not None:
            self._sampler(frozen.number)
            tell(self.study, trial)
        if trial is not None:
            self.done.append(trial)

    def _again(self, frozen: FrozenTrial) -> RunningTrial:
        """Returns a trial that a killed process left behind, to be evaluated from the start."""
        import optuna

        self._sampler(frozen.number)
        trial = optuna.Trial(self.study, frozen._trial_id)
        for p in self.space.parameters:
            # Returns what was proposed; proposes what the killed process had not come to.
            if p.integer:
                trial.suggest_int(p.name, int(p.low), int(p.high), log=p.log)
            else:
                trial.suggest_float(p.name, p.low, p.high, log=p.log)
        return self._running(trial, reported=max(frozen.intermediate_values, default=0))

    def _running(self, trial: optuna.Trial, reported: int = 0) -> RunningTrial:
        two = self.method in TWO_OBJECTIVES
        return RunningTrial(trial, dict(trial.params), self.settings.retries, reports=not two, reported=reported)

    def _sampler(self, number: int) -> None:
        """Gives the study the sampler of a trial."""
        make = SAMPLERS[self.method]
        self.study.sampler = make(proposal_seed(self.settings.seed, number), self.planned, self.space)
