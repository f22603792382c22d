"""The path of the budget: loose at first, falling to the target, so that no layer is emptied before it could adapt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autocompress.energy.accelerator import EnergyBudget
from autocompress.solver.constants import SolverConstants

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
    return min(target * math.pow(constants.path_start, left_of_path(fraction, constants)), max(ceiling, target))


def left_of_path(fraction: float, constants: SolverConstants) -> float:
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
    ahead = left_of_path(fraction, constants)
    return budget.at(budget.limit * max(1.0, budget.used(sizes) / budget.limit) ** ahead)
