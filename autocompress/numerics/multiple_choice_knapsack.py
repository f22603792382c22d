"""Projection B: how many bits each layer gets when its nonzeros are fixed (a multiple-choice knapsack).

    minimise  sum_i error[i, choice_i]   subject to   sum_i cost[i, choice_i] <= budget      (Yang et al. 2020, step V)

The greedy climbs each layer's lower convex hull of (cost, error) in order of error saved per bit; a layer whose next
step does not fit is frozen, the others go on. Stopped at the first step that does not fit, with the fraction that
does, it is the linear relaxation, a lower bound. What its multiplier leaves in doubt is decided exactly by scipy's MILP
solver; where too much is in doubt (many layers with many choices), the greedy's answer stands, and says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autocompress.errors import InfeasibleTargetError, InvalidInputError

EXACT_VARIABLES = 4_000  # choices that are left in doubt, above which the greedy's answer is taken
EXACT_NODES = 2_000  # of branch and bound

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Allocation:
    """A choice for every layer.

    Attributes:
        choices: column chosen in each row of the cost and error tables.
        cost: sum of their costs.
        error: sum of their errors.
        bound: error of the linear relaxation, a lower bound.
        exact: whether `choices` are proved optimal.
    """

    choices: list[int]
    cost: int
    error: float
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
    greedy, bound, multiplier = _greedy(costs, errors, budget)
    choices, greedy_error = greedy, _total(errors, greedy)
    gap = greedy_error - bound
    proved = exact and gap <= 1e-12 * abs(greedy_error)  # as good as the relaxation
    if exact and not proved:
        found = _exact(costs, errors, budget, multiplier, gap)
        proved = found is not None
        if found is not None and _total(errors, found) < greedy_error - 1e-12 * abs(greedy_error):
            choices = found
    error = _total(errors, choices)
    return Allocation(choices, int(_total(costs, choices)), error, min(bound, error), proved)


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
    """Returns (choices, lower bound of the error, multiplier at which the relaxation stops)."""
    hulls = [_hull(costs[row], errors[row]) for row in range(len(costs))]
    choices = [hull[0] for hull in hulls]
    left = budget - sum(int(costs[row, column]) for row, column in enumerate(choices))
    steps = []
    for row, hull in enumerate(hulls):
        for position, (before, after) in enumerate(itertools.pairwise(hull)):
            extra, saved = int(costs[row, after] - costs[row, before]), float(errors[row, before] - errors[row, after])
            steps.append((-saved / extra, row, position, after, extra, saved))
    bound = error = _total(errors, choices)
    multiplier = 0.0
    frozen: set[int] = set()
    for negated, row, _, after, extra, saved in sorted(steps):
        if row in frozen:
            continue
        if extra > left:
            if not frozen:
                multiplier, bound = -negated, error + negated * left
            frozen.add(row)
            continue
        choices[row] = after
        left -= extra
        error -= saved
    return choices, bound if frozen else error, multiplier


def _exact(costs: Integers, errors: Floats, budget: int, multiplier: float, gap: float) -> list[int] | None:
    """Returns optimal choices; None where the problem is too large.

    At the multiplier of the relaxation a choice whose error + multiplier * cost is above the layer's least by more than
    `gap`, the distance of the greedy's error from the relaxation's, is in no solution that is better than the greedy's:
    what is left is solved by branch and bound (HiGHS).
    """
    from scipy import optimize, sparse  # here because it takes a second to import

    reduced = errors + multiplier * costs
    owner, column = np.nonzero(reduced - reduced.min(1, keepdims=True) <= gap * (1 + 1e-6))
    if owner.size > EXACT_VARIABLES:
        return None
    cost, error = costs[owner, column], errors[owner, column]
    scale = max(float(np.ptp(error)), 1e-300)  # the solver's own tolerances are absolute
    one_each = sparse.csr_array((np.ones(owner.size), (owner, np.arange(owner.size))), (len(costs), owner.size))
    found = optimize.milp(
        1e3 * error / scale,
        integrality=np.ones(owner.size),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(cost[None].astype(float), ub=float(budget)),
        ],
        options={"mip_rel_gap": 0, "node_limit": EXACT_NODES},
    )
    if found.status != 0:  # stopped by the limit: of nodes, not of seconds, so that it is the same on every machine
        return None
    choices = [0] * len(costs)
    for variable in np.flatnonzero(found.x > 0.5):
        choices[int(owner[variable])] = int(column[variable])
    return choices if _total(costs, choices) <= budget else None
