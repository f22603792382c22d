"""Searches with Optuna: one loop of ask and tell for all its samplers, resumable, one process or several."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from autocompress.errors import InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings, check_numbers
from baselines.optuna_search.local_workers import evaluate_here, evaluate_in_processes
from baselines.optuna_search.proposals import TWO_OBJECTIVES, Proposals
from baselines.optuna_search.samplers import MIN_TRIALS, SAMPLERS, make_pruner, quiet_optuna
from baselines.optuna_search.storage import check_storage, close_storage, open_study
from baselines.optuna_search.trials import recorded
from baselines.progress import SearchDisplay

PRUNERS = ("none", "median", "hyperband")
# Only these learn from a trial that was stopped. The others would propose the like of it again and again.
PRUNED_BY_DEFAULT = ("random", "optuna-tpe")


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
        check_numbers(settings)
        if settings.ray_address is not None:
            raise InvalidInputError(
                f"ray_address {settings.ray_address!r} cannot be used with {self.name}, which does not use Ray; "
                "choose a ray method, or leave it out"
            )
        least = MIN_TRIALS.get(self.name, 1)
        if settings.trials < least:
            raise InvalidInputError(
                f"trials is {settings.trials}, but {self.name} is an evolution and needs at least {least}, five "
                "generations of four; give more, or take optuna-tpe"
            )
        with quiet_optuna():
            check_storage(settings.storage, settings.connect_seconds)

    def search(self, objective: Objective, settings: SearchSettings) -> SearchOutcome:
        check_numbers(settings)
        with quiet_optuna():
            storage, study, planned = open_study(
                settings,
                self.identity(objective, settings),
                directions=["maximize", "minimize"] if self.name in TWO_OBJECTIVES else ["maximize"],
            )
            study.pruner = make_pruner(str(self.pruner), objective.epochs)
            proposals = Proposals(self.name, study, storage, objective, settings, planned)
            interrupted = False
            try:
                with SearchDisplay(proposals.trials, proposals.done, progress=settings.progress) as display:
                    proposals.ended = display.finished
                    if settings.workers == 1:
                        evaluate_here(objective, proposals.next, proposals.finished)
                    else:
                        evaluate_in_processes(objective, proposals.next, proposals.finished, settings.workers)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                proposals.close()  # what was running is taken up again by a resumed search, or by another process
            trials = [recorded(frozen) for frozen in study.trials]
            close_storage(storage)
        return SearchOutcome(tuple(trial for trial in trials if trial is not None), interrupted=interrupted)

    def identity(self, objective: Objective, settings: SearchSettings) -> dict[str, Any]:
        own = {"method": self.name, "seed": settings.seed, "pruner": self.pruner, "space": objective.space.name}
        return own | {f"objective {name}": value for name, value in objective.identity.items()}
