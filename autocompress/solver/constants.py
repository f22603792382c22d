"""Every constant of the method, and the path of the budget that follows from them.

None is set by a user, a study varies them as fields. The budget is loose at first and falls to the target, so that no
layer is emptied before it could adapt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from autocompress.energy.accelerator import EnergyBudget
from autocompress.errors import InvalidInputError

LAZY, ADMM = "lazy", "admm"
BOTH, SCALAR, KERNEL = "both", "scalar", "kernel"
CHOICES = {"iteration": (LAZY, ADMM), "codebooks": (BOTH, SCALAR, KERNEL)}


@dataclass(frozen=True)
class SolverConstants:
    """The constants of a compression run; `docs/decisions.md` has the figures that each was chosen by.

    Attributes:
        iteration: "lazy" (lazy projection) or "admm" (Yang et al. 2020, with the path of budgets).
        updates: projections of a run, in which tables and multiplier are estimated anew, whatever its length.
        min_steps_per_update: ... but not more often than once in so many optimizer steps.
        pruned_rate: the part of the optimizer's move that reaches a weight which is zero in V.
        memory_steps: the steps in which all but 1/e of W - V is forgotten, once there have been as many: a pruned
            weight, without effect on the loss, walks at random, and a kept one is moved away from the few values that
            it may take. Of pruned weights more steps at a learning rate below its peak.
        idle_decay: what is left, after each update, of a weight whose gradient was exactly zero since the last.
        path_start: the budget begins at so many times the target ...
        path_fraction: ... and falls to it, geometrically, over this part of the steps before fine-tuning ...
        path_steps: ... but over at least so many of them, as far as these are no more than half.
        path_ceiling: no budget on the path is above this part of the original float32 weights.
        fine_tuning_fraction: the last part of a run: assignments are fixed, codebook values and vectors are trained.
        fine_tuning_step: its peak step as a part of the root mean square of a layer's codebook.
        distillation_weight: in `compress`, where the loss is the default: the part of the loss that is the distance to
            the outputs of the network as it was given, in [0, 1].
        distillation_temperature: of that distance.
        codebooks: what a layer may have under a `codes:` target, codebooks of scalars, of kernels or either, whichever
            has less error; "both" never has more than one alone.
        admm_contraction: of "admm", the share of the distance from W to V - U that is taken back between two updates.
    """

    iteration: str = LAZY
    updates: int = 30
    min_steps_per_update: int = 3
    pruned_rate: float = 0.4
    memory_steps: float = 1000.0
    idle_decay: float = 0.5
    path_start: float = 8.0
    path_fraction: float = 0.3
    path_steps: float = 30.0
    path_ceiling: float = 0.08
    fine_tuning_fraction: float = 0.1
    fine_tuning_step: float = 0.002
    distillation_weight: float = 0.5
    distillation_temperature: float = 2.0
    admm_contraction: float = 0.5
    codebooks: str = BOTH

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), CHOICES.get(field.name)
            if known and value not in known:
                raise InvalidInputError(f"{field.name} is {value!r}; it may be {' or '.join(map(repr, known))}")
            if not known and not value >= 0:
                raise InvalidInputError(f"{field.name} is {value!r}; it must be a number of at least 0")

    def steps_per_update(self, steps: int) -> int:
        """Returns the optimizer steps from one projection to the next, in so many of them."""
        return max(1, self.min_steps_per_update, steps // max(1, self.updates))

    def for_steps(self, steps: int) -> SolverConstants:
        """Returns the constants of a run of so many optimizer steps before fine-tuning: its path is a part of them."""
        least = min(0.5, self.path_steps / max(steps, 1))
        return replace(self, path_fraction=max(self.path_fraction, least))


DEFAULTS = SolverConstants()


# (target, ceiling, fraction of the steps before fine-tuning, constants) -> budget of that moment.
Path = Callable[[float, float, float, SolverConstants], float]


def budget_at_once(target: float, ceiling: float, fraction: float, constants: SolverConstants) -> float:
    """Returns the target: the path of a budget that something else moves."""
    return target


def budget_on_path(target: float, ceiling: float, fraction: float, constants: SolverConstants) -> float:
    """Returns the budget when a part of the steps before fine-tuning is over.

    At once, the largest layer would be emptied first and not come back.

    Args:
        target: where the path ends.
        ceiling: no budget is above this, unless the target is.
        fraction: of those steps, in [0, 1].
        constants: where the path begins and how long it is.
    """
    return min(target * math.pow(constants.path_start, remaining_path(fraction, constants)), max(ceiling, target))


def remaining_path(fraction: float, constants: SolverConstants) -> float:
    """Returns how much of the path lies ahead, in [0, 1]."""
    return 1 - min(1.0, fraction / constants.path_fraction) if constants.path_fraction else 0.0


def bits_on_path(budget_bits: int, compressible: int, fraction: float, constants: SolverConstants) -> int:
    """Returns the budget in bits at a moment of the run; `compressible` weights have 32 bits each."""
    ceiling = constants.path_ceiling * 32 * compressible
    return int(budget_on_path(budget_bits, ceiling, fraction, constants))


def energy_on_path(
    budget: EnergyBudget, sizes: Sequence[int], fraction: float, constants: SolverConstants
) -> EnergyBudget:
    """Returns the budget of energy at a moment of the run: from dense to its limit, by equal factors.

    Args:
        budget: the one at the end.
        sizes: elements of each tensor.
        fraction: of the steps before fine-tuning, in [0, 1].
        constants: how long the path is.
    """
    ahead = remaining_path(fraction, constants)
    return budget.at(budget.limit * max(1.0, budget.used(sizes) / budget.limit) ** ahead)
