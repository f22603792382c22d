"""One trial of an Optuna search while it runs, and what the storage remembers of it."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from baselines.interface import Evaluation, Progress, State, Trial

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

# Attributes of a trial. SPENT is written while it runs, so that a kill loses no cost; RECORD once, at its end.
SPENT, RECORD = "spent", "record"


@dataclass
class RunningTrial:
    """A trial that has been proposed and is evaluated until it ends or has failed too often.

    A trial that a killed process left behind is taken up again as it is, with its number and its values: every trial
    has one number for good, and all that depends on numbers is as if nothing had happened.

    Attributes:
        trial: as Optuna knows it.
        values: what is evaluated.
        retries: how often it is tried again after an error.
        reports: tell Optuna the accuracy after each epoch, and ask whether to stop.
        reported: the last epoch of which Optuna has been told, by an earlier attempt.
    """

    trial: optuna.Trial
    values: dict[str, float]
    retries: int
    reports: bool = True
    reported: int = 0

    def __post_init__(self) -> None:
        before = self.trial.user_attrs.get(SPENT, {})
        self.attempts = int(before.get("attempts", 0))
        self.failures = 0
        self.accuracy: float | None = None
        self.curve: tuple[tuple[int, float], ...] = ()
        self._steps, self._seconds = int(before.get("gradient_steps", 0)), float(before.get("device_seconds", 0.0))
        self._steps_before, self._seconds_before = self._steps, self._seconds

    @property
    def number(self) -> int:
        """Number of the trial, from 0."""
        return self.trial.number

    def begin(self) -> None:
        """Counts one more attempt."""
        self.attempts += 1
        self.curve, self.accuracy = (), None
        self._steps_before, self._seconds_before = self._steps, self._seconds
        self._note()

    def report(self, progress: Progress) -> bool:
        """Returns whether to stop; remembers what was spent so far."""
        self.accuracy = progress.accuracy
        self.curve = (*self.curve, (progress.gradient_steps, progress.accuracy))
        self._spend(progress.gradient_steps, progress.device_seconds)
        self._note()
        if not self.reports or progress.epoch < self.reported:
            return False
        # An earlier attempt may have come further; up to there all has been said and decided.
        if progress.epoch > self.reported:
            self.trial.report(progress.accuracy, step=progress.epoch)
            self.reported = progress.epoch
        return self.trial.should_prune()

    def finish(self, evaluation: Evaluation) -> Trial:
        """Returns the trial, complete or stopped; failed where its accuracy is no number."""
        self._spend(evaluation.gradient_steps, evaluation.device_seconds)
        self.curve, self.accuracy = evaluation.curve, evaluation.accuracy
        if not math.isfinite(evaluation.accuracy):
            return self._end("failed", error=f"the accuracy is {evaluation.accuracy}")
        return self._end("stopped" if evaluation.stopped else "complete", evaluation.size, evaluation.plan)

    def fail(self, error: str) -> Trial | None:
        """Returns the trial as failed, or None if it is to be tried again."""
        self.failures += 1
        if self.failures <= self.retries:
            return None
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
        )
        self.trial.set_user_attr(RECORD, done.to_json())
        tell(self.trial.study, done)
        return done

    def _spend(self, steps: int, seconds: float) -> None:
        self._steps, self._seconds = self._steps_before + steps, self._seconds_before + seconds

    def _note(self) -> None:
        spent = {"attempts": self.attempts, "gradient_steps": self._steps, "device_seconds": self._seconds}
        self.trial.set_user_attr(SPENT, spent)


def tell(study: optuna.Study, trial: Trial) -> None:
    """Tells Optuna how a trial ended."""
    from optuna.trial import TrialState

    if trial.state == "complete":
        values = [trial.accuracy or 0.0, float(trial.size)][: len(study.directions)]
        study.tell(trial.number, values, state=TrialState.COMPLETE)
    else:
        study.tell(trial.number, state=TrialState.PRUNED if trial.state == "stopped" else TrialState.FAIL)


def recorded(frozen: FrozenTrial) -> Trial | None:
    """Returns the trial that a storage holds, or None if it has not come to its end."""
    record = frozen.user_attrs.get(RECORD)
    if record is None:
        return None
    curve = tuple((int(steps), float(accuracy)) for steps, accuracy in record["curve"])
    return Trial(**(record | {"curve": curve}))
