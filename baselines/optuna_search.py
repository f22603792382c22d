"""Searches with Optuna: one loop of ask and tell for all its samplers, resumable, one process or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from autocompress.errors import InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings, Trial
from baselines.local_workers import evaluate_here, evaluate_in_processes
from baselines.optuna_samplers import (
    SAMPLERS,
    as_numbers,
    distributions,
    grid,
    make_pruner,
    proposal_seed,
    quiet_optuna,
)
from baselines.optuna_storage import check_storage, open_study
from baselines.optuna_trials import RunningTrial, recorded, tell
from baselines.progress import SearchDisplay

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

PRUNERS = ("none", "median", "hyperband")
# Only these learn from a trial that was stopped. The others would propose the like of it again and again.
PRUNED_BY_DEFAULT = ("random", "optuna-tpe")
EXHAUSTIVE = ("uniform", "magnitude")
TWO_OBJECTIVES = ("optuna-nsga2",)


@dataclass(frozen=True)
class OptunaSearcher:
    """A search of Optuna's by name.

    Every proposal depends on the settings, on the trials before it and on its number, on nothing else: a search that
    is killed and resumed proposes what it would have proposed, and one worker gives the same in every process.

    Attributes:
        name: of the method: the sampler.
        pruner: "none", "median" or "hyperband"; None = "median" for random search and TPE, else "none".
    """

    name: str
    pruner: str | None = None

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise InvalidInputError(f"method {self.name!r} is not one of {', '.join(SAMPLERS)}")
        if self.pruner is None:
            object.__setattr__(self, "pruner", "median" if self.name in PRUNED_BY_DEFAULT else "none")
        if self.pruner not in PRUNERS:
            close = get_close_matches(str(self.pruner), PRUNERS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidInputError(f"pruner {self.pruner!r} is not one of {', '.join(PRUNERS)}{hint}")
        if self.name in TWO_OBJECTIVES and self.pruner != "none":
            raise InvalidInputError(
                f"pruner {self.pruner!r} cannot be used with {self.name}, which has two objectives; use 'none'"
            )

    def check(self, settings: SearchSettings) -> None:
        """Returns if a search can be made with these settings.

        Raises:
            InvalidInputError: naming the value and what would be right.
        """
        check_numbers(settings)
        if settings.ray_address is not None:
            raise InvalidInputError(
                f"ray_address {settings.ray_address!r} cannot be used with {self.name}, which does not use Ray; "
                "choose a ray method, or leave it out"
            )
        with quiet_optuna():
            check_storage(settings.storage, settings.connect_seconds)

    def search(self, objective: Objective, settings: SearchSettings) -> SearchOutcome:
        """Returns the search; Ctrl-C ends it with what is finished.

        Raises:
            InvalidInputError: the settings cannot be used, or the storage holds another search.
        """
        check_numbers(settings)
        with quiet_optuna():
            study, planned = open_study(
                settings,
                self.identity(objective, settings),
                directions=["maximize", "minimize"] if self.name in TWO_OBJECTIVES else ["maximize"],
            )
            study.pruner = make_pruner(str(self.pruner), objective.epochs)
            proposals = _Proposals(self, study, objective, settings, planned)
            interrupted = False
            with SearchDisplay(proposals.trials, proposals.done, progress=settings.progress) as display:
                try:
                    _evaluate(objective, proposals.next, display.finished, settings.workers)
                except KeyboardInterrupt:
                    # What was running stays so in the storage; it is taken up again by a resumed search.
                    interrupted = True
            trials = [recorded(frozen) for frozen in study.trials]
        return SearchOutcome(tuple(trial for trial in trials if trial is not None), interrupted=interrupted)

    def identity(self, objective: Objective, settings: SearchSettings) -> dict[str, Any]:
        """Returns what a search must have in common with one that it goes on from."""
        own = {"method": self.name, "seed": settings.seed, "pruner": self.pruner, "space": objective.space.name}
        return own | {f"objective {name}": value for name, value in objective.identity.items()}


def check_numbers(settings: SearchSettings) -> None:
    """Raises InvalidInputError if the numbers of the settings cannot be used."""
    for name, least in (("trials", 1), ("workers", 1), ("retries", 0), ("seed", 0)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInputError(f"{name} is {value!r}, but must be a whole number of at least {least}")
    if not settings.connect_seconds > 0:
        raise InvalidInputError(f"connect_seconds is {settings.connect_seconds!r}, but must be more than 0")
    if settings.resume and settings.storage is None:
        raise InvalidInputError("resume needs a storage; name the one that holds the search")


def _evaluate(
    objective: Objective,
    next_trial: Callable[[], RunningTrial | None],
    ended: Callable[[Trial], None],
    workers: int,
) -> None:
    if workers == 1:
        evaluate_here(objective, next_trial, ended)
    else:
        evaluate_in_processes(objective, next_trial, ended, workers)


class _Proposals:
    """Hands out the trials of a study: first those that a killed process left behind, then new ones.

    Attributes:
        trials: of the whole search; fewer than asked for where a space has no more points.
        done: those that were finished before.
    """

    def __init__(
        self,
        searcher: OptunaSearcher,
        study: optuna.Study,
        objective: Objective,
        settings: SearchSettings,
        planned: int,
    ) -> None:
        self.searcher, self.study, self.settings, self.planned = searcher, study, settings, planned
        self.space = objective.space
        self.distributions = distributions(self.space)
        self.points = grid(self.space) if searcher.name in EXHAUSTIVE else None
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
        two = self.searcher.name in TWO_OBJECTIVES
        return RunningTrial(trial, dict(trial.params), self.settings.retries, reports=not two, reported=reported)

    def _sampler(self, number: int) -> None:
        """Gives the study the sampler of a trial."""
        make = SAMPLERS[self.searcher.name]
        self.study.sampler = make(proposal_seed(self.settings.seed, number), self.planned, self.space)
