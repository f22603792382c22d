"""The feasibility repair: any proposal becomes one that fits, and no trial is spent on one that does not.

A proposal is a point z: the logarithms of the keep fractions that its space lets vary. What fits is left alone.
Otherwise z moves to the nearest point that fits,

    minimise  ||z' - z||^2   subject to   size(z') <= limit.

Kept weights cost their position and their code. An upper bound that is close where few are kept, and convex in z,

    cost(z) = sum over layers of  numel * p * (log2(e / p) + bits),   p = e^z

(without the logarithm for weight data) stands for the size, so the set is convex and the nearest point is unique and a
continuous function of the proposal that never moves two of them further apart. By the Lagrange conditions it is
z' = z - t * grad cost(z') with one t >= 0 for all coordinates: layers with many bytes give more of them. How far to go
is decided by real encodings, so that the result fits as it is written. Bits are whole numbers and stay.

In a file, a layer that is nearly full costs less for its positions than the bound says, and the true set is not convex
there: above about a third of the weights the result still fits, but a nearer point may, too, and two neighbours of the
border may part.

Repairing twice is repairing once; a searcher never sees an infeasible point, and none of its distances is stretched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from autocompress.errors import InfeasibleTargetError
from baselines.fitting import Budget, Fitted
from baselines.plan import LayerPlan, Plan

ROUNDS = 8  # real encodings at most, after which the largest that fits is taken
TOLERANCE_FRACTION = 0.002  # of the limit, that may be left unused
HALVINGS = 50
SMALLEST_LOG_KEEP = -40.0
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Group:
    """Layers that share a keep fraction and a number of bits.

    Attributes:
        layers: (name, number of weights).
        keep_fraction: of all of them.
        codebook: of all of them.
    """

    layers: tuple[tuple[str, int], ...]
    keep_fraction: float
    codebook: int


def repair(groups: Sequence[Group], weights: Sequence[tuple[str, Tensor]], budget: Budget) -> Fitted:
    """Returns the nearest plan that fits, applied to the weights.

    Args:
        groups: the proposal; its layers are those of `weights`.
        weights: (name, tensor) of every compressed tensor.
        budget: what the target asks.

    Raises:
        InfeasibleTargetError: one weight in every layer is too much already.
    """

    def plan_at(multiplier: float) -> Plan:
        layers: dict[str, LayerPlan] = {}
        for group in groups:
            keep = _shrunk(group, multiplier, budget)
            layers |= {name: LayerPlan(keep, group.codebook) for name, _ in group.layers}
        return Plan({name: layers[name] for name, _ in weights})

    return loosest(plan_at, weights, budget)


def loosest(plan_at: Callable[[float], Plan], weights: Sequence[tuple[str, Tensor]], budget: Budget) -> Fitted:
    """Returns the first plan that fits on a path from a proposal, at 0, to ever smaller ones.

    Args:
        plan_at: the plan at a multiplier >= 0; its estimated cost falls with the multiplier, at infinity to nothing.
        weights: (name, tensor) of every compressed tensor.
        budget: what the target asks.

    Raises:
        InfeasibleTargetError: the plan at infinity, one weight in each layer, does not fit.
    """
    numel = {name: tensor.numel() for name, tensor in weights}

    def estimate(multiplier: float) -> float:
        plans = plan_at(multiplier).layers.items()
        return sum(_cost(numel[name], plan.keep_fraction, plan.codebook, budget)[0] for name, plan in plans)

    def fitted(multiplier: float) -> Fitted:
        plan = plan_at(multiplier)
        coded = plan.apply(weights)
        size, writer = budget.measure(coded)
        return Fitted(coded, plan, size, writer)

    found = fitted(0.0)
    if found.size <= budget.limit:
        return found
    smallest = fitted(math.inf)
    if smallest.size > budget.limit:
        least = budget.target_for(smallest.size)
        raise InfeasibleTargetError(
            f"the target is {budget.asked} {budget.unit}, but for this network the smallest that a plan meets, with "
            f"one weight in each of {len(numel)} layers, is {least} {budget.unit}",
            least,
        )
    return _search(fitted, estimate, smallest, budget.limit)


def _search(
    fitted: Callable[[float], Fitted], estimate: Callable[[float], float], smallest: Fitted, limit: int
) -> Fitted:
    """Returns the largest that fits, by the ratio of true to estimated size, which changes little on the path."""
    low, high, best = 0.0, estimate(0.0), smallest
    tolerance = max(2, int(TOLERANCE_FRACTION * limit))
    goal = limit - tolerance / 2 - smallest.size
    guess = 8.0 * goal
    for _ in range(ROUNDS):
        # Where the ratio leads out of the bracket: between its ends, nearer to the one that fits.
        aim = guess if low < guess < high else low + 0.25 * (high - low)
        found = fitted(_multiplier_for(aim, estimate))
        if found.size > limit:
            high = aim
        else:
            low, best = aim, max(best, found, key=lambda f: f.size)
            if found.size >= limit - tolerance:
                break
        guess = aim * goal / max(found.size - smallest.size, 1)
    return best


def _multiplier_for(aim: float, estimate: Callable[[float], float]) -> float:
    """Returns the multiplier at which the estimate is `aim`, by bisection in its logarithm."""
    low, high = -60.0, 20.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if estimate(math.exp(middle)) > aim else (low, middle)
    return math.exp(high)


def _cost(numel: int, p: float, codebook: int, budget: Budget) -> tuple[float, float, float]:
    """Returns the estimated bits of a layer, and their first and second derivative by log p."""
    if p <= 0.0:
        return 0.0, 0.0, 0.0
    if not budget.positions_count:
        bits = numel * p * LayerPlan(p, codebook).bits
        return bits, bits, bits
    # A code of less than log2 e bits would make the cost of a nearly full layer fall with p.
    slope = numel * p * (max(math.log2(codebook), LOG2_E) - math.log2(p))
    return slope + numel * p * LOG2_E, slope, slope - numel * p * LOG2_E


def _shrunk(group: Group, multiplier: float, budget: Budget) -> float:
    """Returns the keep fraction e^z' of a group, z' + multiplier * cost'(z') = z; 0 at infinity.

    The left side rises with z', so there is one solution: by Newton's method, by halves where it leaves the bracket.
    """
    if multiplier == 0.0 or group.keep_fraction == 0.0:
        return group.keep_fraction
    if math.isinf(multiplier):
        return 0.0
    z = high = start = math.log(group.keep_fraction)
    low = SMALLEST_LOG_KEEP
    for _ in range(HALVINGS):
        parts = [_cost(numel, math.exp(z), group.codebook, budget) for _, numel in group.layers]
        over = z + multiplier * sum(part[1] for part in parts) - start
        low, high = (low, z) if over > 0 else (z, high)
        step = over / (1 + multiplier * sum(part[2] for part in parts))
        before, z = z, z - step
        if not low < z < high:
            z = (low + high) / 2
        if abs(z - before) < 1e-12:
            break
    return math.exp(z)
