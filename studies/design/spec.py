"""What a study compares: tasks x methods x targets x seeds, how long they train, how much a search may spend."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import NoReturn

from autocompress.errors import InvalidInputError
from autocompress.targets import combined
from baselines.methods import METHODS
from studies.records.record import COMPRESSOR

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TaskSpec:
    """A network, its data, and where its reference comes from.

    Attributes:
        model, data: as on the command line of autocompress.
        weights: file of the trained network, in the data folder or an absolute path; None = it is trained, for each
            seed anew.
        reference_epochs: of that training; None = the recipe's.
    """

    model: str
    data: str
    weights: str | None = None
    reference_epochs: int | None = None

    @property
    def name(self) -> str:
        return f"{self.model}-{self.data}"


@dataclass(frozen=True)
class Variant:
    """A method under a name of its own, with settings that are not the study's.

    Attributes:
        name: in tables.
        method: "compressor" or one of `baselines.methods.METHODS`.
        constants: fields of `SolverConstants` -> value; of the compressor only.
        final_epochs: instead of the study's; 0 = of the compressor, no training at all.
        targets: those of the study's that it is run for; None = all.
        where: task -> targets that it is run for; None = all.
        seeds: task -> with how many of the study's seeds, from the first; default: all.
        budget, trial_epochs: of the search, instead of the study's.
        space: that is searched; None = the method's own, or the default.
        pruner: that stops trials of an Optuna method. With "none" a search spends what it is given.
        fold: inputs that the network classifies jointly (aggregated learning); of the compressor only. Its reference
            is then an aggregated network, trained from scratch by the same recipe.
        alpha: weight of the penalty on the information that the features of that network carry.
    """

    name: str
    method: str
    constants: Mapping[str, float | str] = field(default_factory=dict)
    targets: Sequence[str] | None = None
    where: Mapping[str, Sequence[str]] | None = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    budget: float | None = None
    trial_epochs: int | None = None
    space: str | None = None
    pruner: str = "none"
    fold: int = 1
    alpha: float = 0.0
    final_epochs: int | None = None

    def is_for(self, task: str, target: str) -> bool:
        """Returns whether the study has a cell of it for a task and target."""
        by_task = None if self.where is None else self.where.get(task, ())
        return all(some is None or target in some for some in (self.targets, by_task))


@dataclass(frozen=True)
class Smoke:
    """What a smoke run changes: one seed, few epochs, a search of about `budget * final_epochs / trial_epochs` trials.

    Attributes:
        targets: instead of the study's; None = all of them.
        reference_epochs, final_epochs, trial_epochs, budget: instead of the study's and of its variants'.
    """

    targets: tuple[str, ...] | None = None
    reference_epochs: int = 3
    final_epochs: int = 4
    trial_epochs: int = 2
    budget: float = 1.0


@dataclass(frozen=True)
class StudySpec:
    """A grid of cells: every method on every task, for every target, with every seed.

    Attributes:
        name: of the study and of the folder of its results.
        description: one line, or several; the first is shown by `list`.
        tasks, methods, targets, seeds: the grid. A method is a name or a `Variant`.
        final_epochs: of the compressor, and of the training of a search's best plan.
        trial_epochs: of one trial.
        budget: what a search may spend on its trials, as a factor of the compressor's gradient steps.
        budgets: the same by the name of the method, where it is another.
        workers: trials of a search at a time.
        smoke: what `--smoke` changes.
        modules: folders of packages that the nodes of a cluster lack and the study needs.
        resources: each finished network's energy, MACs and latency are measured, too, and the report has one more
            table, of all methods and targets together.

    Raises:
        InvalidInputError: something is unknown, empty, there twice or of the wrong kind; it is named.
    """

    name: str
    tasks: Sequence[TaskSpec]
    methods: Sequence[str | Variant]
    targets: Sequence[str]
    seeds: Sequence[int]
    final_epochs: int
    trial_epochs: int
    budget: float = 2.0
    budgets: Mapping[str, float] = field(default_factory=dict)
    smoke: Smoke = field(default_factory=Smoke)
    description: str = ""
    modules: Sequence[str] = ()
    resources: bool = False
    workers: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise InvalidInputError(f"study name {self.name!r} must be of letters, digits, '.', '_' and '-'")
        for kind in ("tasks", "methods", "targets", "seeds"):
            self._check_list(kind)
        _check_unique(self, "tasks", [task.name for task in map(self._checked_task, self.tasks)])
        _check_unique(self, "methods", [variant.name for variant in self.variants])
        _check_unique(self, "targets", [combined(target) for target in self.targets])
        for seed in self.seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
                self._refuse("seeds", seed, f"a whole number from 0 to {2**32 - 1}")
        _check_unique(self, "seeds", list(self.seeds))
        for variant in self.variants:
            self._check_variant(variant)
        for name in self.budgets:
            if name not in [variant.name for variant in self.variants]:
                self._refuse("budgets", name, "a method of the study")
        for name in ("final_epochs", "trial_epochs", "workers"):
            self._check_count(name, getattr(self, name))
        for budget in (self.budget, *self.budgets.values()):
            self._check_budget(budget)

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(Variant(each, each) if isinstance(each, str) else each for each in self.methods)

    def smoke_variant(self) -> StudySpec:
        """Returns the study that says within minutes whether everything works, under a name of its own."""
        small = self.smoke
        targets = self.targets if small.targets is None else small.targets
        return replace(
            self,
            name=f"{self.name}-smoke",
            tasks=[replace(task, reference_epochs=small.reference_epochs) for task in self.tasks],
            methods=[
                replace(
                    variant,
                    budget=None,
                    trial_epochs=None,
                    final_epochs=variant.final_epochs and small.final_epochs,
                    targets=_common(variant.targets, targets),
                    where=variant.where
                    and {task: _common(some, targets) or () for task, some in variant.where.items()},
                )
                for variant in self.variants
                if any(variant.is_for(task.name, target) for task in self.tasks for target in targets)
            ],
            targets=targets,
            seeds=self.seeds[:1],
            final_epochs=small.final_epochs,
            trial_epochs=small.trial_epochs,
            budget=small.budget,
            budgets={},
        )

    def only(self, names: Sequence[str]) -> StudySpec:
        """Returns the part of the study that these methods are.

        Raises:
            InvalidInputError: the study has no such method.
        """
        known = [variant.name for variant in self.variants]
        for name in names:
            if name not in known:
                raise InvalidInputError(f"method {name!r} is not in {self.name}, which has {', '.join(known)}")
        chosen = [variant for variant in self.variants if variant.name in names]
        return replace(self, methods=chosen, budgets={k: v for k, v in self.budgets.items() if k in names})

    def _check_list(self, kind: str) -> None:
        value = getattr(self, kind)
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            self._refuse(kind, value, "a list with at least one entry")

    def _checked_task(self, task: TaskSpec) -> TaskSpec:
        if not isinstance(task, TaskSpec):
            self._refuse("tasks", task, "a TaskSpec, such as TaskSpec('lenet5', 'digits')")
        if task.reference_epochs is not None:
            self._check_count("reference_epochs", task.reference_epochs)
        return task

    def _check_variant(self, variant: Variant) -> None:
        known = (COMPRESSOR, *METHODS)
        if not isinstance(variant, Variant) or variant.method not in known:
            method = getattr(variant, "method", variant)
            close = get_close_matches(str(method), known, 2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            self._refuse("method", method, f"one of {', '.join(known)}{hint}")
        if not variant.name or variant.name != variant.name.strip() or not variant.name.isprintable():
            self._refuse("method name", variant.name, "printable text without blanks at its ends")
        asked = {target: "target" for target in (*(variant.targets or ()), *itertools.chain(*_where(variant).values()))}
        known_tasks = [task.name for task in self.tasks]
        for one, what in (asked | dict.fromkeys(_where(variant), "task")).items():
            all_of = known_tasks if what == "task" else self.targets
            if one not in all_of:
                self._refuse(f"{what} of {variant.name}", one, f"one of the study's, {', '.join(all_of)}")
        if variant.constants and variant.method != COMPRESSOR:
            self._refuse("constants of", variant.name, f"those of the {COMPRESSOR}; other methods have none")
        if variant.final_epochs is not None and (variant.final_epochs != 0 or variant.method != COMPRESSOR):
            self._check_count(f"final_epochs of {variant.name}", variant.final_epochs)
        if not isinstance(variant.fold, int) or isinstance(variant.fold, bool) or variant.fold < 1:
            self._refuse(f"fold of {variant.name}", variant.fold, "a whole number of at least 1")
        if not isinstance(variant.alpha, int | float) or not 0 <= variant.alpha < float("inf"):
            self._refuse(f"alpha of {variant.name}", variant.alpha, "a number of at least 0")
        if variant.alpha and variant.method != COMPRESSOR:
            self._refuse(f"alpha of {variant.name}", variant.alpha, f"0 for all methods but the {COMPRESSOR}")
        if variant.fold > 1 and variant.method != COMPRESSOR:
            self._refuse(f"fold of {variant.name}", variant.fold, f"1 for all methods but the {COMPRESSOR}")
        if variant.trial_epochs is not None:
            self._check_count("trial_epochs", variant.trial_epochs)
        if variant.budget is not None:
            self._check_budget(variant.budget)

    def _check_count(self, name: str, value: object) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self._refuse(name, value, "a whole number of at least 1")

    def _check_budget(self, value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            self._refuse("budget", value, "a number above 0")

    def _refuse(self, what: str, value: object, right: str) -> NoReturn:
        raise InvalidInputError(f"study {self.name}: {what} {value!r} must be {right}")


def _where(variant: Variant) -> Mapping[str, Sequence[str]]:
    return variant.where or {}


def _common(some: Sequence[str] | None, targets: Sequence[str]) -> Sequence[str] | None:
    """Returns those of some targets that are among `targets`; None stays None, which is all."""
    return None if some is None else tuple(target for target in some if target in targets)


def _check_unique(spec: StudySpec, kind: str, values: Sequence[object]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise InvalidInputError(f"study {spec.name}: {kind} has {str(value)!r} twice")
