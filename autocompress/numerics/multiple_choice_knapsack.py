"""Projection B: how many bits each layer gets when its nonzeros are fixed (a multiple-choice knapsack).

    minimise  sum_i error[i, choice_i]   subject to   sum_i cost[i, choice_i] <= budget      (Yang et al. 2020, step V)

The greedy climbs each layer's lower convex hull of (cost, error) in order of error saved per bit; a layer whose next
step does not fit is frozen, the others go on. Stopped at the first step that does not fit, with the fraction that
does, it is the linear relaxation, a lower bound. The exact solver extends partial choices layer by layer, keeps only
those not dominated and drops those that the relaxation's price proves worse than the greedy; with few layers, or when
the price decides most of them, that is cheap.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocompress.errors import InfeasibleTargetError, InvalidInputError

EXACT_STATES = 20_000  # partial choices kept at once before the exact solver gives up

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """A choice for every layer.

    Attributes:
        choices: column chosen in each row of the cost and error tables.
        cost: sum of their costs.
        error: sum of their errors.
        greedy_error: the same for the greedy's choices.
        bound: error of the linear relaxation, a lower bound.
        exact: whether `choices` are proved optimal.
    """

    choices: list[int]
    cost: int
    error: float
    greedy_error: float
    bound: float
    exact: bool


def allocate(costs: Integers, errors: Floats, budget: int, *, exact: bool = True) -> Allocation:
    """Returns the best choice found: the optimum where the exact solver finishes, else the greedy's.

    Args:
        costs: [layers, choices], integers >= 0.
        errors: [layers, choices], finite.
        budget: most that the chosen costs may sum to.
        exact: false returns the greedy's choice.

    Raises:
        InfeasibleTargetError: the cheapest choices do not fit.
        InvalidInputError: the tables have different shapes.
    """
    if costs.shape != errors.shape or costs.ndim != 2:
        raise InvalidInputError(f"costs and errors need one shape [layers, choices], got {costs.shape}, {errors.shape}")
    smallest = int(costs.min(1).sum()) if costs.size else 0
    if smallest > budget:
        raise InfeasibleTargetError(f"the budget is {budget}, but the cheapest choices cost {smallest}", smallest)
    greedy, bound, price = _greedy(costs, errors, budget)
    choices, greedy_error = greedy, _total(errors, greedy)
    found = _exact(costs, errors, budget, price, greedy_error) if exact else None
    if found:
        choices = found
    error = _total(errors, choices)
    return Allocation(choices, int(_total(costs, choices)), error, greedy_error, min(bound, error), found is not None)


def _total(table: Integers | Floats, choices: Sequence[int]) -> float:
    return float(sum(table[row, column].item() for row, column in enumerate(choices)))


def _hull(costs: Integers, errors: Floats) -> list[int]:
    """Returns the columns on the lower convex hull of one layer, from the cheapest to the most exact."""
    hull: list[int] = []
    for column in np.lexsort((errors, costs)).tolist():
        if hull and errors[column] >= errors[hull[-1]]:
            continue
        while len(hull) > 1:
            first, last = hull[-2], hull[-1]
            before = (errors[first] - errors[last]) * (costs[column] - costs[first])
            if (errors[first] - errors[column]) * (costs[last] - costs[first]) < before:
                break
            hull.pop()
        hull.append(column)
    return hull


def _greedy(costs: Integers, errors: Floats, budget: int) -> tuple[list[int], float, float]:
    """Returns (choices, lower bound of the error, price at which the relaxation stops)."""
    hulls = [_hull(costs[row], errors[row]) for row in range(len(costs))]
    choices = [hull[0] for hull in hulls]
    left = budget - sum(int(costs[row, column]) for row, column in enumerate(choices))
    steps = []
    for row, hull in enumerate(hulls):
        for position, (before, after) in enumerate(itertools.pairwise(hull)):
            extra, saved = int(costs[row, after] - costs[row, before]), float(errors[row, before] - errors[row, after])
            steps.append((-saved / extra, row, position, after, extra, saved))
    bound = error = _total(errors, choices)
    price = 0.0
    frozen: set[int] = set()
    for negated, row, _, after, extra, saved in sorted(steps):
        if row in frozen:
            continue
        if extra > left:
            if not frozen:
                price, bound = -negated, error + negated * left
            frozen.add(row)
            continue
        choices[row] = after
        left -= extra
        error -= saved
    return choices, bound if frozen else error, price


def _exact(costs: Integers, errors: Floats, budget: int, price: float, incumbent: float) -> list[int] | None:
    """Returns optimal choices, an empty list if none is better than `incumbent`, None if there are too many states."""
    # No completion of a partial choice is below its error plus what the price says of the rest and of the money left.
    rest = np.append(np.cumsum((errors + price * costs).min(1)[::-1])[::-1], 0.0)
    limit = incumbent - 1e-12 * abs(incumbent)
    spent, wrong = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[Integers, Integers]] = []
    cheapest = np.append(np.cumsum(costs.min(1)[::-1])[::-1], 0)
    for row in range(len(costs)):
        all_spent = (spent[:, None] + costs[row]).ravel()
        all_wrong = (wrong[:, None] + errors[row]).ravel()
        hopeful = np.maximum(all_wrong, all_wrong + rest[row + 1] - price * (budget - all_spent)) < limit
        kept = np.flatnonzero(hopeful & (all_spent + cheapest[row + 1] <= budget))
        kept = kept[np.lexsort((all_wrong[kept], all_spent[kept]))]
        values = all_wrong[kept]
        lowest_before = np.append(np.inf, np.minimum.accumulate(values)[:-1]) if kept.size else values
        kept = kept[values < lowest_before]
        if not kept.size:
            return []
        if kept.size > EXACT_STATES:
            return None
        spent, wrong = all_spent[kept], all_wrong[kept]
        trail.append((kept // costs.shape[1], kept % costs.shape[1]))
    state, choices = int(wrong.argmin()), []
    for parents, columns in reversed(trail):
        choices.append(int(columns[state]))
        state = int(parents[state])
    return choices[::-1]
