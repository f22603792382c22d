"""What the parts of a search know of each other: parameters, one evaluation, one trial, a whole search.

Searcher --values--> Objective --Progress--> report --True: stop--> Objective --Evaluation--> Searcher --Trial-->
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from autocompress.errors import InvalidInputError

Values = Mapping[str, float]
State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True)
class Parameter:
    """One number to be chosen.

    Attributes:
        name: unique in its space.
        low, high: both ends included.
        log: uniform in the logarithm.
        integer: whole numbers only.
    """

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False


class Space(Protocol):
    """What a searcher sees of the plans: numbers in their ranges, and a point to start from."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The numbers to be chosen, in a fixed order."""

    @property
    def start(self) -> Values:
        """A reasonable point: every searcher evaluates it first. A space may have more such points, `starts`."""


def starts_of(space: Space) -> list[dict[str, float]]:
    """Returns the points that every searcher evaluates first, each once."""
    starts: list[dict[str, float]] = []
    for values in getattr(space, "starts", (space.start,)):
        if dict(values) not in starts:
            starts.append(dict(values))
    return starts


def score_of(accuracy: float, loss: float | None) -> float:
    """Returns what trials are compared by, higher is better: minus the validation loss.

    The accuracy of a few hundred examples moves in steps, on which many trials are equal.
    """
    return accuracy if loss is None else -loss


@dataclass(frozen=True)
class Progress:
    """How far an evaluation has come; reported after each epoch.

    Attributes:
        epoch: epochs done, from 1.
        accuracy: validation accuracy of the network under its plan, a fraction of 1.
        gradient_steps: optimizer steps of this evaluation so far, those before a resume not included.
        device_seconds: seconds for which this evaluation has held its device so far, likewise.
        state: returns all that is needed to go on from here, tensors, numbers, strings and containers of them.
        loss: on the validation split, by which trials are compared; None where only the accuracy is.
    """

    epoch: int
    accuracy: float
    gradient_steps: int
    device_seconds: float
    state: Callable[[], dict[str, Any]]
    loss: float | None = None

    @property
    def score(self) -> float:
        """What is compared, higher is better."""
        return score_of(self.accuracy, self.loss)


Report = Callable[[Progress], bool]


def go_on(progress: Progress) -> bool:
    """Returns False: nothing is to be stopped."""
    return False


@dataclass(frozen=True)
class Evaluation:
    """What came of one proposal.

    Attributes:
        accuracy: validation accuracy, a fraction of 1; of a network within the target unless it was stopped.
        size: what the target counts, of that network: bytes of the file, or bits of weight data; 0 if stopped.
        gradient_steps: optimizer steps taken, stopped evaluations included.
        device_seconds: seconds for which the device was held.
        curve: (gradient steps, validation accuracy) after each epoch.
        plan: the plan after its repair, as `Plan.to_json` returns it.
        stopped: `report` asked for it.
        loss: as in `Progress`, of the same network.
        file: that network as it is written; empty if stopped.
    """

    accuracy: float
    size: int
    gradient_steps: int
    device_seconds: float
    curve: tuple[tuple[int, float], ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False
    loss: float | None = None
    file: bytes = b""

    @property
    def score(self) -> float:
        return score_of(self.accuracy, self.loss)


class Objective(Protocol):
    """Evaluates proposals; may be pickled, and called any number of times in any process."""

    @property
    def space(self) -> Space:
        """What is proposed."""

    @property
    def epochs(self) -> int:
        """Epochs of a whole evaluation, so reports at most."""

    @property
    def identity(self) -> dict[str, Any]:
        """What two searches must have in common for one to go on from the other: strings and numbers."""

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        """Returns the evaluation of `values`.

        Args:
            values: one number for each parameter of the space, in its range.
            report: called after each epoch; True stops the evaluation.
            state: of a `Progress`, perhaps of other values: training goes on from its epoch and weights, under the
                plan of `values`.
        """


@dataclass(frozen=True)
class Trial:
    """One trial of a search in its final state.

    Attributes:
        number: from 0, unique in its search.
        state: "complete", "stopped" (by a pruner or scheduler) or "failed" (after all retries).
        values: what was proposed.
        accuracy: as in `Evaluation`; None if it failed before the first report.
        size: as in `Evaluation`.
        gradient_steps, device_seconds: of all attempts together.
        curve: as in `Evaluation`.
        plan: as in `Evaluation`; empty where the trial did not come so far.
        node: where it ran: host name, or a Ray node id.
        attempts: times it was started.
        error: traceback of the last attempt, if it failed.
        loss: as in `Evaluation`.
        file: as in `Evaluation`, kept of those trials that were the best when they ended; no part of the record.
    """

    number: int
    state: State
    values: dict[str, float]
    accuracy: float | None
    size: int
    gradient_steps: int
    device_seconds: float
    curve: tuple[tuple[int, float], ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    attempts: int = 1
    error: str | None = None
    loss: float | None = None
    file: bytes = field(default=b"", repr=False, compare=False)

    @property
    def score(self) -> float | None:
        """What is compared, higher is better; None of a trial that failed before the first report."""
        return None if self.accuracy is None else score_of(self.accuracy, self.loss)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "file"}


@dataclass(frozen=True)
class SearchOutcome:
    """A search, finished or interrupted.

    Attributes:
        trials: in the order of their numbers, each in a final state.
        interrupted: by Ctrl-C; what is here is what was finished by then.
    """

    trials: tuple[Trial, ...]
    interrupted: bool = False

    @property
    def best(self) -> Trial | None:
        """The complete trial of least validation loss, of equals the first; or None."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.score is not None]
        return min(complete, key=lambda t: (-(t.score or 0.0), -(t.accuracy or 0.0), t.number), default=None)

    @property
    def front(self) -> tuple[Trial, ...]:
        """The complete trials that no other beats in accuracy and in size, from the smallest to the largest."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.accuracy is not None]
        front: list[Trial] = []
        for trial in sorted(complete, key=lambda t: (t.size, -(t.accuracy or 0.0), t.number)):
            if not front or (trial.accuracy or 0.0) > (front[-1].accuracy or 0.0):
                front.append(trial)
        return tuple(front)

    @property
    def gradient_steps(self) -> int:
        return sum(trial.gradient_steps for trial in self.trials)

    @property
    def device_seconds(self) -> float:
        return sum(trial.device_seconds for trial in self.trials)


@dataclass(frozen=True)
class SearchSettings:
    """How a search is run.

    Attributes:
        trials: proposals in all, those of an earlier run that is resumed included; at least 1.
        seed: of the proposals.
        storage: where the search is kept: an Optuna URL (`sqlite:///search.db`), or a folder for Ray; None = nowhere.
        resume: go on with the search in `storage`; otherwise finding one there is an error.
        workers: trials at a time.
        ray_address: of a running Ray cluster; None = one is started on this machine, where one is needed.
        cpus_per_trial, gpus_per_trial: what a Ray trial holds; fractions may be given.
        retries: how often a trial that failed is started again.
        max_gradient_steps, max_seconds: of device time, that all trials together may take; None = no limit.
        connect_seconds: how long an unreachable cluster is waited for.
        progress: show trials done, the best so far and the time left on stderr.
    """

    trials: int
    seed: int = 0
    storage: str | None = None
    resume: bool = False
    workers: int = 1
    ray_address: str | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    retries: int = 2
    max_gradient_steps: int | None = None
    max_seconds: float | None = None
    connect_seconds: float = 10.0
    progress: bool = True


def check_numbers(settings: SearchSettings) -> None:
    """Checks what can be checked of settings without knowing the searcher.

    Raises:
        InvalidInputError: naming the value and what would be right.
    """
    for name, least in (("trials", 1), ("workers", 1), ("retries", 0), ("seed", 0)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInputError(f"{name} is {value!r}, but must be a whole number of at least {least}")
    for name in ("cpus_per_trial", "gpus_per_trial"):
        value = getattr(settings, name)
        if not 0 <= value < float("inf"):
            raise InvalidInputError(f"{name} is {value!r}, but must be a number of at least 0")
    if settings.gpus_per_trial > 1 and settings.gpus_per_trial != int(settings.gpus_per_trial):
        raise InvalidInputError(f"gpus_per_trial is {settings.gpus_per_trial}, but above 1 must be a whole number")
    for name in ("max_gradient_steps", "max_seconds"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise InvalidInputError(f"{name} is {value!r}, but must be more than 0")
    if not settings.connect_seconds > 0:
        raise InvalidInputError(f"connect_seconds is {settings.connect_seconds!r}, but must be more than 0")
    if settings.resume and settings.storage is None:
        raise InvalidInputError("resume needs a storage; name the one that holds the search")


class Searcher(Protocol):
    """Proposes values and learns from what comes of them."""

    @property
    def name(self) -> str:
        """Name on the command line."""

    def check(self, settings: SearchSettings) -> None:
        """Finds out within seconds what is wrong with the settings, before anything is trained.

        Raises:
            InvalidInputError: naming the value and what would be right.
        """

    def search(self, objective: Objective, settings: SearchSettings) -> SearchOutcome:
        """Returns the search; Ctrl-C ends it with what is finished.

        Raises:
            InvalidInputError: the settings cannot be used, or the storage holds another search.
        """
