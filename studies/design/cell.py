"""One cell of a study: a task, a method, a target and a seed, with all that decides what comes of it."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from autocompress.errors import InvalidInputError
from autocompress.solver.constants import DEFAULTS, SolverConstants
from autocompress.targets import combined
from baselines.methods import GRACE_EPOCHS, METHODS, REDUCTION_FACTOR, find_method, find_space
from studies.design.spec import StudySpec, TaskSpec, Variant
from studies.records.record import COMPRESSOR, Key

# Of what a cell is made; part of every digest, so that records of another making are not taken for these.
FORMAT = 1
LATER: Mapping[str, object] = {"fold": 1, "alpha": 0.0, "resources": False, "workers": 1}
# These say of a cell where its numbers come from; they decide nothing.
TOLD = frozenset({"budget"})
# Halving stops most trials early, so that its longer ones cost less on average than the whole ones of the others.
ASHA_TRIAL_FACTOR = 2


@dataclass(frozen=True)
class Cell:
    """What one run of a study does.

    Attributes:
        task: network, data, reference.
        name: of the method in the study.
        method: "compressor" or a search.
        target: in the grammar of `autocompress.targets`.
        seed: of everything random.
        final_epochs: of the training that ends in the file.
        trials, trial_epochs: of the search; 0 for the compressor.
        space, pruner: of the search; empty for the compressor.
        constants: fields of `SolverConstants` -> value.
        fold: inputs that the network classifies jointly.
        alpha: weight of the penalty on the information that the features of the jointly trained network carry.
        resources: whether energy, MACs and latency are measured.
        workers: trials of the search at a time; they decide what it knows when it proposes.
        budget: of the search, from which `trials` follows, as a multiple of the compressor's steps.
    """

    task: TaskSpec
    name: str
    method: str
    target: str
    seed: int
    final_epochs: int
    trials: int = 0
    trial_epochs: int = 0
    space: str = ""
    pruner: str = ""
    constants: Mapping[str, float | str] = field(default_factory=dict)
    fold: int = 1
    alpha: float = 0.0
    resources: bool = False
    workers: int = 1
    budget: float = 0.0

    @property
    def key(self) -> Key:
        return self.task.name, self.name, self.target, self.seed

    @functools.cached_property
    def hash(self) -> str:
        """Digest of all that decides this cell's outcome but code and machine; not of the rest of its study."""
        content = {name: value for name, value in self.to_json().items() if name not in TOLD} | {"format": FORMAT}
        # Where these have their defaults the outcome is that of a cell from before there were any.
        content = {name: value for name, value in content.items() if LATER.get(name) != value}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def aggregated(self) -> bool:
        """Whether its reference is trained as an aggregated network."""
        return self.fold > 1 or self.alpha > 0

    @property
    def uses_ray(self) -> bool:
        return self.method != COMPRESSOR and METHODS[self.method].uses_ray

    @property
    def epochs(self) -> float:
        """Epochs of all its trainings, about: what its share of the whole study's time is."""
        return self.final_epochs + self.trials * _expected_epochs(self.method, self.trial_epochs)

    def __str__(self) -> str:
        return f"{self.task.name}, {self.name}, {self.target}, seed {self.seed}"


def cells_of(spec: StudySpec) -> list[Cell]:
    """Returns the cells of a study in the order of its tables, seeds last.

    So cells that begin together have different seeds, and each trains a reference of its own.
    """
    return [
        _cell(spec, task, variant, target, seed)
        for task in spec.tasks
        for target in spec.targets
        for variant in spec.variants
        if variant.is_for(task.name, target)
        for seed in spec.seeds[: variant.seeds.get(task.name)]
    ]


def check_methods(spec: StudySpec) -> None:
    """Returns if everything the methods name is there: packages, spaces, pruners, constants.

    Raises:
        InvalidInputError: naming what is not.
    """
    for variant in spec.variants:
        if variant.method != COMPRESSOR:
            find_method(variant.method).make(variant.pruner)
            find_space(variant.method, variant.space)
        solver_constants(variant.constants)


def solver_constants(changed: Mapping[str, float | str]) -> SolverConstants:
    """Returns the constants of the method with some of them changed.

    Raises:
        InvalidInputError: there is no such constant, or it is of another type.
    """
    known = asdict(DEFAULTS)
    for name, value in changed.items():
        if name not in known:
            raise InvalidInputError(f"constant {name!r} is not one of {', '.join(known)}")
        if isinstance(value, bool) or type(value) is not type(known[name]):
            raise InvalidInputError(f"constant {name!r} is {known[name]!r} and cannot be {value!r}, of another type")
    return replace(DEFAULTS, **changed)  # type: ignore[arg-type]


def _cell(spec: StudySpec, task: TaskSpec, variant: Variant, target: str, seed: int) -> Cell:
    final_epochs = spec.final_epochs if variant.final_epochs is None else variant.final_epochs
    common = (task, variant.name, variant.method, str(combined(target)), seed, final_epochs)
    if variant.method == COMPRESSOR:
        constants = dict(variant.constants)
        return Cell(*common, constants=constants, fold=variant.fold, alpha=variant.alpha, resources=spec.resources)
    epochs = variant.trial_epochs or spec.trial_epochs * (ASHA_TRIAL_FACTOR if METHODS[variant.method].halves else 1)
    budget = spec.budgets.get(variant.name, spec.budget if variant.budget is None else variant.budget)
    trials = max(1, round(budget * final_epochs / _expected_epochs(variant.method, epochs)))
    trials = max(trials, METHODS[variant.method].least_trials)
    trials = min(trials, METHODS[variant.method].most_trials or trials)
    space = find_space(variant.method, variant.space)
    return Cell(
        *common,
        trials,
        epochs,
        space,
        variant.pruner,
        resources=spec.resources,
        workers=spec.workers,
        budget=budget,
    )


def _expected_epochs(method: str, trial_epochs: int) -> float:
    """Returns what one trial takes on average: all its epochs, or what halving leaves of them.

    After r, r f, r f^2, ... epochs one trial of f goes on (Li et al. 2020, asynchronous successive halving); the
    first trials, which have nobody to be compared with, go on more often, so this is a little too low.
    """
    if method not in METHODS or not METHODS[method].halves:
        return trial_epochs
    factor = float(REDUCTION_FACTOR)
    rungs = math.floor(math.log(trial_epochs, factor) + 1e-9) + 1
    ends = [min(GRACE_EPOCHS * factor**rung, trial_epochs) for rung in range(rungs)] + [float(trial_epochs)]
    parts = [ends[0], *(after - before for before, after in itertools.pairwise(ends))]
    return sum(part / factor**rung for rung, part in enumerate(parts))
