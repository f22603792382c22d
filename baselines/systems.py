"""What a search evaluates and how its best is trained: plans, or Condensa's schemes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.constraints.constraint import Network
from autocompress.solver.result import Result
from autocompress.targets import AccuracyDrop, FileSize, Target, combined
from baselines.condensa.final import train_density
from baselines.condensa.goal import parse_asked
from baselines.condensa.objective import CondensaObjective
from baselines.final import train_best
from baselines.fitting import FileBudget, make_budget
from baselines.interface import Objective
from baselines.methods import CONDENSA
from baselines.objective import PlanObjective
from baselines.space import make_space


@dataclass(frozen=True)
class System:
    """The parts of a search that depend on what is searched.

    Attributes:
        parse_target: returns what the words on the command line ask for.
        check_target: (network, target, space) -> None; raises where no proposal meets the target, before any training.
        objective: makes the objective of a task, a reference and choices.
        train: trains the best proposal to its end.
    """

    parse_target: Callable[[Sequence[str]], Any]
    check_target: Callable[[Network, Any, str], None]
    objective: Callable[..., Objective]
    train: Callable[..., Result]


def system_of(method: str) -> System:
    """Returns what a method searches."""
    if method == CONDENSA:
        return System(parse_asked, _check_asked, CondensaObjective, train_density)
    return System(_only_target, _check_plans, PlanObjective, train_best)


def _only_target(words: Sequence[str]) -> Target:
    return combined(words).only


def _check_plans(network: Network, target: Target, space: str) -> None:
    make_space(space, network, make_budget(network, target))


def _check_asked(network: Network, target: AccuracyDrop | FileSize, space: str) -> None:
    if isinstance(target, FileSize):
        FileBudget(network, target)
