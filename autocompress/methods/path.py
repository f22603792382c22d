"""The path of the budget: loose at first, falling to the target, so that no layer is emptied before it could adapt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from autocompress.projection.energy_pruning import EnergyBudget

# The budget starts at this many times the target and falls geometrically to it over this part of the ADMM phase: at
# once, the largest layer is emptied first and does not come back. Of 0.35, 0.5 and 0.7 of the phase, 0.5 kept most
# validation accuracy on LeNet-5 at 2 KB (studies/results/constants.json).
PATH_START = 8.0
PATH_FRACTION = 0.5
# ... but never above this part of the original float32 weights (2.6 bits each), where little is left to decide.
PATH_CEILING = 0.08


Path = Callable[[float, float, float], float]


def budget_at_once(target: float, ceiling: float, fraction: float) -> float:
    """Returns the target: the path of a budget that something else moves."""
    return target


def budget_on_path(target: float, ceiling: float, fraction: float) -> float:
    """Returns the budget when a part of the ADMM phase is over.

    Args:
        target: where the path ends.
        ceiling: no budget is above this, unless the target is.
        fraction: of the phase, in [0, 1].
    """
    left = 1 - min(1.0, fraction / PATH_FRACTION)
    return min(target * math.pow(PATH_START, left), max(ceiling, target))


def bits_on_path(budget_bits: int, compressible: int, fraction: float) -> int:
    """Returns the budget in bits when a part of the ADMM phase is over; `compressible` weights have 32 bits each."""
    return int(budget_on_path(budget_bits, PATH_CEILING * 32 * compressible, fraction))


def energy_on_path(budget: EnergyBudget, sizes: Sequence[int], fraction: float) -> EnergyBudget:
    """Returns the budget of energy when a part of the ADMM phase is over: from dense to its limit, by equal factors.

    Args:
        budget: the one at the end.
        sizes: elements of each tensor.
        fraction: of the phase, in [0, 1].
    """
    left = 1 - min(1.0, fraction / PATH_FRACTION)
    return budget.at(budget.limit * max(1.0, budget.used(sizes) / budget.limit) ** left)
