"""The two-sided repair: any proposal becomes one at the border of the target, and no trial is spent on another.

A proposal is a point z: the logarithms of the keep fractions that its space lets vary. One that is over moves to the
nearest point that fits,

    minimise  ||z' - z||^2   subject to   size(z') <= limit,

and one that leaves room grows: all its fractions by one factor, the shortest way that prefers no layer, full layers
staying full; where all are full, all codebooks. So the size never falls on the path from a proposal to its repair,
repairing twice is repairing once, and what a target allows is used, whatever was proposed.

Kept weights cost their position and their code. An upper bound that is close where few are kept, and convex in z,

    cost(z) = sum over layers of  numel * p * (log2(e / p) + bits),   p = e^z

(without the logarithm for weight data) stands for the size in the first case, so the set is convex and the nearest
point is unique and a continuous function of the proposal that never moves two of them further apart. By the Lagrange
conditions it is z' = z - t * grad cost(z') with one t >= 0 for all coordinates: layers with many bytes give more of
them. Bits are whole numbers and stay.

How far to go is looked for with the static estimate of the coder (`costs.code_length`), which knows where the kept
weights lie, and settled by one real encoding or two: an encoding takes as long as ten optimizer steps of LeNet-5.

In a file, a layer that is nearly full costs less for its positions than the bound says, and the true set is not convex
there: above about a third of the weights the result still fits, but a nearer point may, too, and two neighbours of the
border may part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from autocompress.constraints.rate_distortion.rates import Counts, as_matrix, code_length
from autocompress.errors import InfeasibleTargetError
from autocompress.network.compressed_tensors import QuantizedTensor
from baselines.fitting import Budget, Fitted
from baselines.plan import LayerPlan, Plan

ENCODINGS = 6  # real ones at most, after which the largest that fits is taken
TOLERANCE_FRACTION = 0.004  # of the limit, that may be left unused
HALVINGS = 50
MIN_LOG_KEEP = -40.0
LOG2_E = math.log2(math.e)
# Places on a path: 0 is the proposal, below it is looser, above it tighter.
LOOSEST, TIGHTEST = -20.0, 60.0
FIRST_MULTIPLIER = math.exp(-40.0)
PLACE_TOLERANCE = 1e-5
MAX_CODEBOOK = 256
# The proposal itself is encoded where its estimated size is so close to the limit, as a part of it.
WORTH_A_LOOK = 0.3
# An estimate so near an end of the bracket, as a part of it, would give the plan of that end once more.
NEAR = 0.02

Weights = Sequence[tuple[str, Tensor]]
PlanAt = Callable[[float], Plan]


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


def path_of(groups: Sequence[Group], names: Sequence[str], budget: Budget) -> PlanAt:
    """Returns the plans from the loosest to the tightest that a proposal may be repaired to; it is itself at 0.

    Args:
        groups: the proposal.
        names: of its layers, in the order of the network.
        budget: what the target counts.
    """

    def plan_at(place: float) -> Plan:
        layers: dict[str, LayerPlan] = {}
        factor = math.exp(max(-place, 0.0))
        beyond = factor * min(group.keep_fraction for group in groups)
        for group in groups:
            if place <= 0:
                keep = min(1.0, group.keep_fraction * factor)
            else:
                keep = 0.0 if place >= TIGHTEST else _shrunk(group, FIRST_MULTIPLIER * math.expm1(place), budget)
            layers |= {name: LayerPlan(keep, grown(group.codebook, beyond)) for name, _ in group.layers}
        return Plan({name: layers[name] for name in names})

    return plan_at


def grown(codebook: int, factor: float) -> int:
    """Returns a codebook's size times a factor above 1, as far as sizes go."""
    return min(MAX_CODEBOOK, int(codebook * max(factor, 1.0)))


def to_border(
    plan_at: PlanAt,
    weights: Weights,
    budget: Budget,
    start: float = 0.0,
    starts: Sequence[Tensor] | None = None,
    exact: bool = True,
) -> Fitted:
    """Returns the plan at the border of the budget on a path.

    Args:
        plan_at: the plan at a place between `LOOSEST` and `TIGHTEST`; its size never rises with the place.
        weights: (name, tensor) of every compressed tensor.
        budget: what the target asks.
        start: where to begin; a place that lies at the border already is kept.
        starts: codebooks to begin from, one per layer.
        exact: its real size is within the limit; otherwise about: nothing is encoded, and there is no writer.

    Raises:
        InfeasibleTargetError: the tightest plan, one weight in each layer, does not fit.
    """
    sizes, bracket = _Sizes(weights, budget), _Bracket()
    tolerance = max(4, int(TOLERANCE_FRACTION * budget.limit))

    def applied(place: float) -> Fitted:
        plan = plan_at(place)
        quantized = plan.apply(weights, starts)
        sizes.learn(plan, quantized)
        return Fitted(quantized, plan, int(sizes.of(plan, place)), None, place)

    def fitted(place: float) -> Fitted:
        found = applied(place)
        size, writer = budget.measure(found.quantized)
        sizes.correct(found.plan, place, size)
        return replace(found, size=size, writer=writer)

    goal = budget.limit - tolerance / 2
    if not exact:
        applied(sizes.place(plan_at, goal, bracket))
        return applied(sizes.place(plan_at, goal, bracket))
    best: Fitted | None = None
    place = start
    if abs(sizes.of(plan_at(start), start) - budget.limit) > WORTH_A_LOOK * budget.limit:
        place = sizes.place(plan_at, goal, bracket)
    for _ in range(ENCODINGS):
        found = fitted(place)
        bracket.add(place, found.size <= budget.limit)
        if found.size <= budget.limit:
            best = max(best or found, found, key=lambda f: f.size)
            if found.size >= budget.limit - tolerance or place <= LOOSEST:
                return best
        if bracket.high - bracket.low < PLACE_TOLERANCE:
            break
        place = bracket.inside(sizes.place(plan_at, goal, bracket))
    return best or _tightest(fitted, len(weights), budget)


@dataclass
class _Bracket:
    """What is known of where the border lies: below `high`, which fits, and above `low`, which does not."""

    low: float = LOOSEST
    high: float = TIGHTEST
    low_seen: bool = False
    high_seen: bool = False

    def add(self, place: float, fits: bool) -> None:
        if fits:
            self.high, self.high_seen = place, True
        else:
            self.low, self.low_seen = place, True

    def inside(self, place: float) -> float:
        """Returns a place that has not been seen: the middle where the estimate leads to an end that has."""
        width = max(PLACE_TOLERANCE, NEAR * (self.high - self.low) if self.low_seen and self.high_seen else 0.0)
        seen = (place <= self.low + width and self.low_seen) or (place >= self.high - width and self.high_seen)
        return (self.low + self.high) / 2 if seen else place


def _tightest(fitted: Callable[[float], Fitted], layers: int, budget: Budget) -> Fitted:
    found = fitted(TIGHTEST)
    if found.size > budget.limit:
        least = budget.target_for(found.size)
        raise InfeasibleTargetError(
            f"the target is {budget.asked} {budget.unit}, but for this network the smallest that a plan meets, with "
            f"one weight in each of {layers} layers, is {least} {budget.unit}",
            least,
        )
    return found


class _Sizes:
    """The size of a plan without coding it: where its weights lie is known, how its codes are spread is remembered."""

    def __init__(self, weights: Weights, budget: Budget) -> None:
        self._budget = budget
        self._shapes = {name: tuple(as_matrix(tensor).shape) for name, tensor in weights}
        self._order = {  # places of the weights, the largest first
            name: tensor.detach().abs().flatten().argsort(descending=True, stable=True).cpu().numpy()
            for name, tensor in weights
        }
        self._shares: dict[tuple[str, int], NDArray[np.floating[Any]]] = {}  # by layer and size of its codebook
        self._known: dict[float, float] = {}  # place -> true size over estimate, both without what is fixed

    def learn(self, plan: Plan, quantized: Sequence[QuantizedTensor]) -> None:
        for (name, layer), tensor in zip(plan.layers.items(), quantized, strict=True):
            counts = Counts.of_codes(as_matrix(tensor.codes), len(tensor.values)).codes
            self._shares[name, layer.codebook] = counts / max(counts.sum(), 1)

    def correct(self, plan: Plan, place: float, size: int) -> None:
        """Takes in the true size of a plan: the estimates near its place are corrected by its factor."""
        estimate = self._estimate(plan)
        if estimate > 0 and size > self._budget.fixed:
            self._known[place] = (size - self._budget.fixed) / estimate

    def place(self, plan_at: PlanAt, goal: float, bracket: _Bracket) -> float:
        """Returns the place in the bracket at which the estimated size is `goal`, by bisection, up to a tolerance."""
        low, high = bracket.low, bracket.high
        for _ in range(HALVINGS):
            if high - low < PLACE_TOLERANCE:
                break
            middle = (low + high) / 2
            low, high = (middle, high) if self.of(plan_at(middle), middle) > goal else (low, middle)
        return low if low == bracket.low else high

    def of(self, plan: Plan, place: float) -> float:
        """Returns the estimated size of the plan at a place."""
        places = sorted(self._known)
        factor = float(np.interp(place, places, [self._known[each] for each in places])) if places else 1.0
        return self._budget.fixed + factor * self._estimate(plan)

    def _estimate(self, plan: Plan) -> float:
        total = 0.0
        for name, layer in plan.layers.items():
            order, (rows, columns) = self._order[name], self._shapes[name]
            index = order[: max(1, round(layer.keep_fraction * order.size))]
            if not self._budget.positions_count:
                total += index.size * layer.bits
                continue
            shares = self._shares.get((name, layer.codebook), np.full(layer.codebook, 1 / layer.codebook))
            codes = np.maximum(np.round(shares * index.size), 1).astype(np.int64)
            row, column = np.divmod(index, columns)
            total += code_length(Counts(_counted(row, rows), _counted(column, columns), codes)) / 8
        return total


def _counted(numbers: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.bincount(numbers, minlength=size)


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
    """Returns the keep fraction e^z' of a group, z' + multiplier * cost'(z') = z.

    The left side rises with z', so there is one solution: by Newton's method, by halves where it leaves the bracket.
    """
    if group.keep_fraction == 0.0:
        return group.keep_fraction
    z = high = start = math.log(group.keep_fraction)
    low = MIN_LOG_KEEP
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
