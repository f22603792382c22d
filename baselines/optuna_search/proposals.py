"""The trials of an Optuna study, claimed one by one: by one process, or by several that share the study.

A trial is claimed by Optuna's own step from WAITING to RUNNING, which only one process can take. Numbers are made when
nothing waits; where two processes make one too many, it stays waiting for a search of more trials. What a lost process
was working on goes back to WAITING, with its number and its values: every trial has one number for good, and all that
depends on numbers is as if nothing had happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from baselines.interface import Objective, SearchSettings, Trial, starts_of
from baselines.optuna_search.ownership import OWNER, Ownership
from baselines.optuna_search.samplers import SAMPLERS, as_numbers, distributions, grid, proposal_seed
from baselines.optuna_search.trials import LOSSES, SPENT, RunningTrial, recorded, tell
from baselines.spending import Spending

logger = logging.getLogger(__name__)
EXHAUSTIVE = ("uniform", "magnitude", "gradual")
TWO_OBJECTIVES = ("optuna-nsga2",)
POLL_SECONDS = 0.5
# Far longer than the three writes by which another process may put the same lost trial back once more.
SETTLE_SECONDS = 1.0
# A trial that takes the process with it each time, by its memory say, is not to take all of them.
MAX_LOSSES = 5


class Proposals:
    """Hands out the trials of a study.

    Attributes:
        trials: of the whole search; fewer than asked for where a space has no more points.
        done: those that had ended when the search was opened.
    """

    def __init__(
        self,
        method: str,
        study: optuna.Study,
        storage: BaseStorage,
        objective: Objective,
        settings: SearchSettings,
        planned: int,
        ended: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """Opens the trials of `study`, which lies in `storage`; `ended` is called with those that others finish."""
        self.method, self.study, self.storage, self.settings, self.planned = method, study, storage, settings, planned
        self.space = objective.space
        self.distributions = distributions(self.space)
        self.points = grid(self.space) if method in EXHAUSTIVE else starts_of(self.space)
        self.trials = min(settings.trials, len(self.points)) if method in EXHAUSTIVE else settings.trials
        self.done = [trial for frozen in study.trials if (trial := recorded(frozen))]
        self.ended = ended
        self._known = {trial.number for trial in self.done}
        self._seen = 0
        self.ownership = Ownership(storage)
        self.spending = Spending.of(settings, objective)

    def next(self, wait: bool = False) -> RunningTrial | None:
        """Returns a trial to be evaluated now, or None; with `wait`, None only once all trials have ended."""
        while True:
            trial, over = self._look()
            if trial is not None or over or not wait:
                return trial
            time.sleep(POLL_SECONDS)

    def finished(self, trial: Trial) -> None:
        self._known.add(trial.number)
        self.ended(trial)

    def close(self) -> None:
        """Gives back what has been claimed and not ended, so that another process goes on with it at once."""
        for trial_id in self.ownership.close():
            if self.storage.get_trial(trial_id).state == TrialState.RUNNING:
                self.storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def _look(self) -> tuple[RunningTrial | None, bool]:
        """Returns (a trial that has been claimed or None, whether all trials have ended)."""
        while True:
            trials = self.study.get_trials(deepcopy=False)
            # What lies before the first trial that is open has been seen: a look costs what is under way, not all.
            while self._seen < min(len(trials), self.trials) and trials[self._seen].state.is_finished():
                self._hear(trials[self._seen])
                self._note(trials[self._seen])
                self._seen += 1
            ours = trials[self._seen : self.trials]
            for frozen in ours:
                self._hear(frozen)
                self._note(frozen)
            waiting = [f for f in ours if f.state == TrialState.WAITING or self._is_left_behind(f)]
            for frozen in waiting:
                self._note_lost(frozen)
            affordable = [frozen for frozen in waiting if self.spending.allows(frozen.number)]
            for frozen in affordable:
                claimed = self._claim(frozen)
                if claimed is not None:
                    self.spending.running.add(frozen.number)
                    return claimed, False
            if len(trials) >= self.trials or not self.spending.allows(len(trials)):
                break
            self.study.add_trial(create_trial(state=TrialState.WAITING))
        over = all(frozen.state.is_finished() or frozen in waiting for frozen in ours)
        return None, over and not affordable

    def _note(self, frozen: FrozenTrial) -> None:
        spent = frozen.user_attrs.get(SPENT)
        if spent is not None:
            running = not frozen.state.is_finished()
            steps = int(spent["gradient_steps"]) - int(spent.get("lost_steps", 0))
            seconds = float(spent["device_seconds"])
            whole = frozen.state.name == "COMPLETE"
            self.spending.note(frozen.number, steps, seconds, running=running, whole=whole)

    def _note_lost(self, frozen: FrozenTrial) -> None:
        """Takes the steps of a trial that begins anew out of what was spent: a search ends as if nothing was killed."""
        seconds = float(frozen.user_attrs.get(SPENT, {}).get("device_seconds", 0.0))
        self.spending.note(frozen.number, 0, seconds, running=False)

    def _hear(self, frozen: FrozenTrial) -> None:
        if frozen.state.is_finished() and frozen.number not in self._known:
            self._known.add(frozen.number)
            trial = recorded(frozen)
            if trial is not None:
                self.ended(trial)

    def _is_left_behind(self, frozen: FrozenTrial) -> bool:
        """Puts a running trial that nobody works on back; tells whether it was one."""
        trial_id = frozen._trial_id
        if frozen.state != TrialState.RUNNING or not self.ownership.is_lost(trial_id, frozen.user_attrs.get(OWNER)):
            return False
        now = self.storage.get_trial(trial_id)  # another process may just have taken it
        if now.state != TrialState.RUNNING or now.user_attrs.get(OWNER) != frozen.user_attrs.get(OWNER):
            return False
        try:
            # Or whoever looks between the next claim and its owner's name would take it for left behind once more. And
            # before the count: whoever has found it at the same time has read the same one, and writes the same.
            self.storage.set_trial_user_attr(trial_id, OWNER, None)
            self.storage.set_trial_user_attr(trial_id, LOSSES, int(now.user_attrs.get(LOSSES, 0)) + 1)
            self.storage.set_trial_state_values(trial_id, TrialState.WAITING)
        except UpdateFinishedTrialError:
            return False
        logger.debug("trial %d was left behind by %s", frozen.number, frozen.user_attrs.get(OWNER))
        return True

    def _claim(self, frozen: FrozenTrial) -> RunningTrial | None:
        """Returns a waiting trial as this process's own, or None where another one has it or it only had to be told."""
        trial_id = frozen._trial_id
        try:
            if not self.storage.set_trial_state_values(trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        self.ownership.take(trial_id)
        now = self.storage.get_trial(trial_id)
        if LOSSES in now.user_attrs and not self._is_settled(trial_id):
            self.ownership.let_go(trial_id)
            return None
        study = self._study(frozen.number)
        ended = recorded(now)
        if ended is not None:  # a process was killed between the record of a trial and its end
            tell(study, ended)
            self.ownership.let_go(trial_id)
            self._hear(self.storage.get_trial(trial_id))
            return None
        running = self._running(study, now)
        if int(now.user_attrs.get(LOSSES, 0)) > MAX_LOSSES:
            self.finished(running.give_up(f"{MAX_LOSSES + 1} processes were lost while they evaluated it"))
            return None
        return running

    def _is_settled(self, trial_id: int) -> bool:
        """Tells whether a trial that was lost stays this process's: two may find it lost, and both put it back."""
        time.sleep(SETTLE_SECONDS)
        return self.storage.get_trial(trial_id).state == TrialState.RUNNING and self.ownership.holds(trial_id)

    def _running(self, study: optuna.Study, frozen: FrozenTrial) -> RunningTrial:
        trial = optuna.Trial(study, frozen._trial_id)
        for p in self.space.parameters:
            # Returns what was proposed; proposes what a killed process had not come to.
            if p.integer:
                trial.suggest_int(p.name, int(p.low), int(p.high), log=p.log)
            else:
                trial.suggest_float(p.name, p.low, p.high, log=p.log)
        return RunningTrial(
            trial,
            dict(trial.params),
            self.settings.retries,
            self.ownership,
            self.spending,
            reports=self.method not in TWO_OBJECTIVES,
            reported=max(frozen.intermediate_values, default=0),
        )

    def _at_a_time(self) -> int:
        """Returns how many trials run side by side: here, and in other processes."""
        return max(self.settings.workers, len(self.spending.running))

    def _study(self, number: int) -> optuna.Study:
        """Returns the study with the sampler of one trial; a new object, because Optuna's keeps what it last read."""
        sampler: BaseSampler = SAMPLERS[self.method](
            proposal_seed(self.settings.seed, number), self.planned, self.space, self._at_a_time()
        )
        if number < len(self.points):
            fixed: dict[str, Any] = as_numbers(self.space, self.points[number])
            sampler = optuna.samplers.PartialFixedSampler(fixed, sampler)
        return optuna.load_study(
            study_name=self.study.study_name, storage=self.storage, sampler=sampler, pruner=self.study.pruner
        )
