"""One trial of an Optuna search while it runs, and what the storage remembers of it."""

from __future__ import annotations

import base64
import logging
import math
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from baselines.interface import Evaluation, Progress, State, Trial
from baselines.optuna_search.ownership import Ownership
from baselines.spending import Spending

logger = logging.getLogger(__name__)
# Attributes of a trial. SPENT is written while it runs, so that a kill loses no cost; RECORD once, at its end; LOSSES
# counts the processes that were lost while they evaluated it; FILE is what the
# best trials wrote.
SPENT, RECORD, LOSSES, FILE = "spent", "record", "losses", "file"


@dataclass
class RunningTrial:
    """A trial that has been proposed and is evaluated until it ends or has failed too often.

    Attributes:
        trial: as Optuna knows it.
        values: what is evaluated.
        retries: how often it is tried again after an error.
        ownership: says whether it is still this process's.
        spending: of the search.
        reports: tell Optuna the accuracy after each epoch, and ask whether to stop.
        reported: the last epoch of which Optuna has been told, by an earlier attempt.
    """

    trial: optuna.Trial
    values: dict[str, float]
    retries: int
    ownership: Ownership
    spending: Spending
    reports: bool = True
    reported: int = 0

    def __post_init__(self) -> None:
        before = self.trial.user_attrs.get(SPENT, {})
        self.attempts = int(before.get("attempts", 0))
        self.failures = 0
        self.accuracy: float | None = None
        self.loss: float | None = None
        self.curve: tuple[tuple[int, float], ...] = ()
        self._steps, self._seconds = int(before.get("gradient_steps", 0)), float(before.get("device_seconds", 0.0))
        self._steps_before, self._seconds_before = self._steps, self._seconds
        self._steps_lost = self._steps  # by processes that were killed: told, and not taken from what may be spent

    @property
    def number(self) -> int:
        return self.trial.number

    def begin(self) -> None:
        self.attempts += 1
        self.curve, self.accuracy, self.loss = (), None, None
        self._steps_before, self._seconds_before = self._steps, self._seconds
        self._note()

    def report(self, progress: Progress) -> bool:
        """Returns whether to stop; remembers what was spent so far."""
        self.accuracy, self.loss = progress.accuracy, progress.loss
        self.curve = (*self.curve, (progress.gradient_steps, progress.accuracy))
        self._spend(progress.gradient_steps, progress.device_seconds)
        self._note()
        self.spending.note(self.number, self._steps - self._steps_lost, self._seconds, running=True)
        if self.spending.seconds_are_over:
            return True
        if not self.reports or progress.epoch < self.reported:
            return False
        # An earlier attempt may have come further; up to there all has been said and decided.
        if progress.epoch > self.reported:
            with suppress(UpdateFinishedTrialError):
                self.trial.report(progress.score, step=progress.epoch)
            self.reported = progress.epoch
        return self.trial.should_prune()

    def finish(self, evaluation: Evaluation) -> Trial:
        """Returns the trial, complete or stopped; failed where its accuracy or its loss is no number."""
        self._spend(evaluation.gradient_steps, evaluation.device_seconds)
        self._note()
        self.curve, self.accuracy, self.loss = evaluation.curve, evaluation.accuracy, evaluation.loss
        for name, value in (("accuracy", self.accuracy), ("validation loss", self.loss)):
            if value is not None and not math.isfinite(value):
                self.loss = None
                return self._end("failed", error=f"the {name} is {value}")
        if not evaluation.stopped and evaluation.file and self._is_best(evaluation.score):
            with suppress(UpdateFinishedTrialError):
                self.trial.set_user_attr(FILE, base64.b64encode(evaluation.file).decode())
        return self._end("stopped" if evaluation.stopped else "complete", evaluation.size, evaluation.plan)

    def _is_best(self, score: float) -> bool:
        """Tells whether no trial that has ended is better; the search keeps the files of such trials alone."""
        try:
            return score >= float((self.trial.study.best_trials[0].values or [score])[0])
        except (ValueError, IndexError):  # none has ended
            return True

    def fail(self, error: str) -> Trial | None:
        self.failures += 1
        if self.failures <= self.retries:
            return None
        return self._end("failed", error=error)

    def give_up(self, error: str) -> Trial:
        return self._end("failed", error=error)

    def _end(self, state: State, size: int = 0, plan: dict[str, Any] | None = None, error: str | None = None) -> Trial:
        """Records the end: the record first, so that a kill between the two leaves a trial that only has to be told."""
        accuracy = None if self.accuracy is not None and math.isnan(self.accuracy) else self.accuracy
        done = Trial(
            number=self.number,
            state=state,
            values=self.values,
            accuracy=accuracy,
            size=size,
            gradient_steps=self._steps,
            device_seconds=self._seconds,
            curve=self.curve,
            plan=plan or {},
            node=socket.gethostname(),
            attempts=self.attempts,
            error=error,
            loss=self.loss,
        )
        trial_id = self.trial._trial_id
        if not self.ownership.holds(trial_id):
            logger.warning("trial %d was taken over by another process, whose result counts", self.number)
        else:
            with suppress(UpdateFinishedTrialError):
                self.trial.set_user_attr(RECORD, done.to_json())
            tell(self.trial.study, done)
        self.ownership.let_go(trial_id)
        return done

    def _spend(self, steps: int, seconds: float) -> None:
        self._steps, self._seconds = self._steps_before + steps, self._seconds_before + seconds

    def _note(self) -> None:
        spent = {"attempts": self.attempts, "gradient_steps": self._steps, "device_seconds": self._seconds}
        spent["lost_steps"] = self._steps_lost
        with suppress(UpdateFinishedTrialError):  # taken over and ended by another process; `_end` looks
            self.trial.set_user_attr(SPENT, spent)


def tell(study: optuna.Study, trial: Trial) -> None:
    """Tells Optuna how a trial ended, unless another process has told it already."""
    values = None
    state = TrialState.PRUNED if trial.state == "stopped" else TrialState.FAIL
    if trial.state == "complete":
        values, state = [trial.score or 0.0, float(trial.size)][: len(study.directions)], TrialState.COMPLETE
    with suppress(UpdateFinishedTrialError):
        study.tell(trial.number, values, state=state, skip_if_finished=True)


def recorded(frozen: FrozenTrial) -> Trial | None:
    """Returns the trial that a storage holds, or None if it has not come to its end."""
    record = frozen.user_attrs.get(RECORD)
    if record is None:
        return None
    curve = tuple((int(steps), float(accuracy)) for steps, accuracy in record["curve"])
    file = base64.b64decode(frozen.user_attrs.get(FILE, ""))
    return Trial(**(record | {"curve": curve, "file": file}))
