"""The rate-distortion projection: entropy-constrained quantization of all layers at one multiplier per bit.

Problem:  minimise  sum_l ||V_l - X_l||^2   subject to   sum_l bits(V_l) <= budget_bits,
where X is the network (under ADMM, the network plus the scaled dual), V_l takes values in a codebook of its layer or
zero, and bits() is the static code length of `rates`: positions, codes and codebooks.

With the code tables (codebook values, code lengths, row and column odds) held fixed, the Lagrangian separates over
weights: each takes the value of least `error + multiplier * bits`, and the used bits fall as the multiplier rises, so
the multiplier follows by a search, exactly. Where the energy of the nonzeros is limited, too, it has a multiplier of
its own, found by a bisection around that one (`energy_multiplier`). The tables are then re-estimated from the
assignment (Lloyd's algorithm for entropy-constrained quantization, Chou, Lookabaugh and Gray 1989), with codebooks
merged and grown at the multiplier.

The alternation is a heuristic for a non-convex problem, but a descent: new tables are taken only where the error at
the budget falls by more than `MIN_IMPROVEMENT`, and the search goes on until none do. So a projection with the
state it has returned is the same projection, and nearly the same X has nearly the same answer.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.rate_distortion.assignment import (
    Assignment,
    Layer,
    LayerTables,
    Weights,
    bits_of_assignment,
    bits_under_tables,
    lower_envelope,
    used_length,
)
from autocompress.constraints.rate_distortion.codebooks import cold_tables, grown_tables, re_estimate, used_tables
from autocompress.constraints.rate_distortion.energy_multiplier import find_multipliers
from autocompress.constraints.rate_distortion.rates import (
    Counts,
    as_matrix,
    code_length,
    estimate_code_lengths,
)
from autocompress.energy.accelerator import EnergyBudget
from autocompress.network.compressed_tensors import QuantizedTensor, round_codebook

ROUNDS = 40  # of new tables in one projection, at most
MAX_MULTIPLIER_MOVE = 2.0  # factor per step towards another budget
ADAPTED_MULTIPLIER = 1.05  # a multiplier that has moved by more than this factor asks for tables made for it
MERGED_AT = (1.0, 0.25, 0.0)  # parts of the multiplier at which codes are merged
COLD_STEPS, WARM_STEPS = 8, 2  # of the tables towards another budget
MIN_IMPROVEMENT = 1e-3  # of the error, for which tables are changed


@dataclass(frozen=True)
class WarmStart:
    """Warm start of the next projection: the multipliers of a bit and of energy, and every layer's tables."""

    multiplier: float
    tables: list[LayerTables]
    energy_multiplier: float = 0.0


@dataclass(frozen=True)
class BitsProjection:
    """Outcome of `project_to_bits`.

    Attributes:
        quantized: V, one tensor per layer, with codebooks as the file reproduces them.
        bits: estimated code length of all layers, <= the budget.
        error: ||V - X||^2 over all layers.
        state: warm start for the next call.
    """

    quantized: list[QuantizedTensor]
    bits: float
    error: float
    state: WarmStart


@dataclass(frozen=True)
class _Problem:
    """The weights X_l and both budgets."""

    weights: list[Weights]
    budget_bits: float
    energy: EnergyBudget | None

    @cached_property
    def square(self) -> float:
        """||X||^2."""
        return sum(weights.square for weights in self.weights)

    def layers(self, tables: Sequence[LayerTables]) -> list[Layer]:
        """Returns the layers under these tables."""
        costs = [None] * len(self.weights) if self.energy is None else self.energy.costs
        return [x.layer(table, cost) for x, table, cost in zip(self.weights, tables, costs, strict=True)]

    def multipliers(
        self, layers: Sequence[Layer], start: tuple[float, float], bits_at: Callable[[Sequence[Layer], float], float]
    ) -> tuple[float, float]:
        """Returns the multipliers of a bit and of energy at which the budgets hold; the layers keep the latter."""
        if self.energy is None:
            return self.weights[0].find_multiplier(layers, self.budget_bits, start[0], bits_at), 0.0
        return find_multipliers(layers, self.budget_bits, self.energy.limit, start, bits_at)

    def solve(self, layers: list[Layer], start: tuple[float, float]) -> _Candidate | None:
        """Returns the assignment at the multipliers that fit the budgets under the layers' tables; None: nothing fits.

        Values that come out unused go, as they are not written; the multipliers are then looked for again.
        """
        while True:
            multipliers = self.multipliers(layers, start, bits_of_assignment)
            found = _Candidate(layers, [layer.assign(multipliers[0]) for layer in layers], *multipliers)
            used = [used_tables(*pair) for pair in zip(layers, found.assigned, strict=True)]
            if all(torch.equal(new.values, layer.tables.values) for new, layer in zip(used, layers, strict=True)):
                return found if self.holds(found) else None
            layers = [layer.with_tables(tables) for layer, tables in zip(layers, used, strict=True)]
            start = multipliers

    def unchanged_if_feasible(self, layers: list[Layer], start: tuple[float, float]) -> _Candidate | None:
        """Returns X itself where all its elements are values of the tables, or zero, and it is within the budgets."""
        for layer in layers:
            if not np.isin(layer.weights.matrix.cpu().numpy(), np.append(layer.values, np.float32(0))).all():
                return None
        found = _Candidate(layers, [layer.assign(0.0) for layer in layers], *start)
        used = all((assigned.counts.codes > 0).all() for assigned in found.assigned)
        return found if used and self.holds(found) else None

    def holds(self, found: _Candidate) -> bool:
        """Tells whether both budgets hold."""
        if found.bits > self.budget_bits:
            return False
        return self.energy is None or self.energy.holds([assigned.counts.nonzeros for assigned in found.assigned])

    def error(self, found: _Candidate) -> float:
        """Returns ||V - X||^2."""
        return max(self.square - found.gain, 0.0)


@dataclass(frozen=True)
class _Candidate:
    """An assignment at its multipliers."""

    layers: list[Layer]
    assigned: list[Assignment]
    multiplier: float
    energy_multiplier: float

    @property
    def bits(self) -> float:
        return sum(map(used_length, self.assigned))

    @cached_property
    def gain(self) -> float:
        """What the nonzeros take off the squared error."""
        return sum(assigned.gain for assigned in self.assigned)

    @property
    def state(self) -> WarmStart:
        return WarmStart(self.multiplier, [layer.tables for layer in self.layers], self.energy_multiplier)

    def quantized(self) -> list[QuantizedTensor]:
        codes = [assigned.codes() for assigned in self.assigned]
        return [QuantizedTensor(c, y.tables.values.to(c.device)) for c, y in zip(codes, self.layers, strict=True)]


def _refitted(found: Sequence[Layer], assigned_at: float, multiplier: float) -> list[Layer]:
    """Returns layers with tables that fit the assignment at one multiplier, codebooks merged at another."""
    return [layer.with_tables(re_estimate(layer, layer.assign(assigned_at), multiplier)) for layer in found]


def _grown(found: Sequence[Layer], assigned_at: float, multiplier: float) -> list[Layer]:
    """Returns layers with codebooks grown at a multiplier; the same layer where nothing is worth its place."""
    layers = []
    for layer in found:
        tables = grown_tables(layer, layer.assign(assigned_at), multiplier)
        layers.append(layer if tables is layer.tables else layer.with_tables(tables))
    return layers


def _proposals(found: _Candidate) -> Iterator[list[Layer]]:
    """Yields tables that may be better: those that fit the assignment, merged ever less, and codebooks grown.

    Under tables that do not fit yet the multiplier is too high, and so is what is merged at it.
    """
    multiplier = found.multiplier
    fitted = [_refitted(found.layers, multiplier, part * multiplier) for part in MERGED_AT]
    sizes = [[layer.values.size for layer in layers] for layers in fitted]
    for i, layers in enumerate(fitted):
        if sizes[i] not in sizes[:i]:
            yield layers
    grown = _grown(fitted[0], multiplier, multiplier)
    if any(new is not old for new, old in zip(grown, fitted[0], strict=True)):
        yield _refitted(grown, multiplier, multiplier)


def _adapted(
    problem: _Problem, layers: list[Layer], multiplier: float, steps: int
) -> Iterator[tuple[list[Layer], float]]:
    """Yields tables made for another budget, and a multiplier, from tables and a multiplier that are not; two of them.

    The multiplier that decides over sizes moves by `MAX_MULTIPLIER_MOVE` a step at most: under tables made for another
    budget only a far too high multiplier fits, or bits look free, and what is merged or bought then at once would be
    missed later.
    """
    grown = layers
    for _ in range(steps):
        layers = grown
        fits = problem.multipliers(layers, (multiplier, layers[0].energy_multiplier), bits_under_tables)[0]
        multiplier = min(max(fits, multiplier / MAX_MULTIPLIER_MOVE), multiplier * MAX_MULTIPLIER_MOVE)
        layers = _refitted(layers, fits, multiplier)
        grown = _grown(layers, multiplier, multiplier)
    yield layers, multiplier
    yield grown, multiplier


def _improved(problem: _Problem, found: _Candidate) -> _Candidate | None:
    """Returns a candidate of less error, or None where no proposal has one."""
    error = problem.error(found)
    if error <= 1e-12 * problem.square:
        return None
    multiplier, least = found.multiplier, MIN_IMPROVEMENT * error
    present = _lagrangian(found.layers, multiplier)
    for layers in _proposals(found):
        if _lagrangian(layers, multiplier) > present - least:
            continue
        other = problem.solve(layers, (multiplier, found.energy_multiplier))
        if other is not None and problem.error(other) < error - least:
            return other
    return None


def _lagrangian(layers: Sequence[Layer], multiplier: float) -> float:
    """Returns what the nonzeros cost in bits and energy, at their multipliers, less what they take off the error.

    What it falls by at the same multipliers the error at the budget falls by, to the first order.
    """
    assigned = [layer.assign(multiplier) for layer in layers]
    bits, gain = sum(map(used_length, assigned)), sum(each.gain for each in assigned)
    pairs = zip(layers, assigned, strict=True)
    energy = sum(y.energy_multiplier * y.energy.of(each.counts.nonzeros) for y, each in pairs if y.energy)
    return multiplier * bits + energy - gain


def _nothing(matrices: list[Tensor], multiplier: float) -> tuple[list[QuantizedTensor], WarmStart]:
    """Returns the all-zero assignment: what is left when not even one nonzero per tensor fits."""
    quantized = [
        QuantizedTensor(torch.zeros(m.shape, dtype=torch.int16, device=m.device), m.new_zeros(0)) for m in matrices
    ]
    tables = [LayerTables(torch.zeros(0), estimate_code_lengths(Counts.of_codes(c.codes, 0))) for c in quantized]
    return quantized, WarmStart(multiplier, tables)


def project_to_bits(
    points: Sequence[Tensor],
    budget_bits: float,
    previous: WarmStart | None = None,
    energy: EnergyBudget | None = None,
) -> BitsProjection:
    """Projects X onto the networks whose estimated code length is at most `budget_bits`, their energy in its budget.

    Each tensor keeps at least one nonzero as long as the budgets have room for that; below, all become zero.

    Args:
        points: X, float tensors of two or more dimensions each.
        budget_bits: for positions, codes and codebooks of all tensors together.
        previous: state of the last projection, for a warm start.
        energy: of the nonzeros, where that is limited, too; one nonzero per tensor fits.
    """
    matrices = [as_matrix(x.detach().float()) for x in points]
    problem = _Problem(_weights(matrices, energy), budget_bits, energy)
    try:
        found = _search(problem, previous)
    except OSError:  # numba has no room on the disk for what it compiles
        found = _search(replace(problem, weights=[Weights(matrix) for matrix in matrices]), previous)
    if isinstance(found, float):
        quantized, state = _nothing(matrices, found)
    else:
        quantized, state = found.quantized(), found.state
    quantized = [QuantizedTensor(c.codes.view(x.shape), c.values) for c, x in zip(quantized, points, strict=True)]
    return BitsProjection(
        quantized,
        bits=sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in quantized),
        error=sum(float((c.dense() - x).square().sum()) for c, x in zip(quantized, points, strict=True)),
        state=state,
    )


def _search(problem: _Problem, previous: WarmStart | None) -> _Candidate | float:
    """Returns the best candidate found, or where not even one nonzero per tensor fits the multiplier of the start."""
    warm = previous is not None and all(table.values.numel() for table in previous.tables)
    if warm and previous is not None:
        multiplier, tables, energy_multiplier = previous.multiplier, previous.tables, previous.energy_multiplier
    else:
        (multiplier, tables), energy_multiplier = cold_tables(problem.weights, problem.budget_bits), 0.0
    layers = problem.layers(_rounded(tables))
    found = (warm and problem.unchanged_if_feasible(layers, (multiplier, energy_multiplier))) or problem.solve(
        layers, (multiplier, energy_multiplier)
    )
    if not warm or found is None or abs(math.log(found.multiplier / multiplier)) > math.log(ADAPTED_MULTIPLIER):
        for adapted, at in _adapted(problem, layers, multiplier, WARM_STEPS if warm else COLD_STEPS):
            other = problem.solve(adapted, (at, adapted[0].energy_multiplier))
            if found is None or (other is not None and problem.error(other) < problem.error(found)):
                found = other
    for _ in range(ROUNDS):
        better = _improved(problem, found) if found else None
        if better is None:
            break
        found = better
    return found or multiplier


# Loading the compiled assignment costs about as much as projecting so many weights without it.
COMPILED_FROM = 1 << 20


def compiles(tensors: Sequence[Tensor]) -> bool:
    """Says whether there can be compiled code for these weights: they are on the CPU, and numba is there."""
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    try:
        importlib.import_module("autocompress.constraints.rate_distortion.compiled_assignment")
    except (ImportError, RuntimeError):  # the latter where numba finds no folder to keep code in
        return False
    return True


def _weights(matrices: Sequence[Tensor], energy: EnergyBudget | None) -> list[Weights]:
    """Returns weights for the compiled assignment where there is one, which knows no energy."""
    few = sum(matrix.numel() for matrix in matrices) < COMPILED_FROM
    if few or energy is not None or not compiles(matrices):
        return [Weights(matrix) for matrix in matrices]
    from autocompress.constraints.rate_distortion.compiled_assignment import LargeWeights

    return [LargeWeights(matrix) for matrix in matrices]


def _rounded(tables: Sequence[LayerTables]) -> list[LayerTables]:
    """Returns tables with their values as they are written."""
    return [LayerTables(round_codebook(table.values.cpu()), table.lengths) for table in tables]


class FixedTables:
    """The assignment rule of one layer between two projections: the least `error + multiplier * bits` under its tables.

    Nothing is searched, so the cost is O(n) a call with a small constant. The bits that come out are about those of the
    budget as long as the weights have moved little.
    """

    def __init__(self, tables: LayerTables, multiplier: float, nonzero_cost: float, device: torch.device) -> None:
        """Prepares what does not depend on W.

        Args:
            tables: of the last projection.
            multiplier: squared error per bit.
            nonzero_cost: what a nonzero costs beside its bits, in squared error: its energy at the multiplier of
                energy.
            device: where W lies.
        """
        lengths = tables.lengths
        values, offsets = tables.values.cpu().numpy(), multiplier * lengths.code_bits.cpu().numpy()
        kept, between = lower_envelope(values.astype(float), offsets.astype(float))
        self.values = tables.values.to(device)[torch.as_tensor(kept, device=device)]
        self.thresholds = torch.as_tensor(between, dtype=torch.float32, device=device)
        code_cost = multiplier * lengths.code_bits.to(device)[torch.as_tensor(kept, device=device)] + nonzero_cost
        # What the cheapest nonzero costs at each place, and how much more each code does.
        self.cheapest = torch.full((0, 0), math.inf, device=device)
        self.code_cost = code_cost
        if len(self.values):
            self.code_cost = code_cost - code_cost.min()
            rows, columns = (multiplier * bits.to(device) for bits in (lengths.row_bits, lengths.column_bits))
            self.cheapest = (rows + code_cost.min())[:, None] + columns

    @property
    def smallest(self) -> float:
        """The minimum magnitude of a nonzero."""
        return float(self.values.abs().min()) if len(self.values) else 1.0

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the flat indices, int64 [m], and the values, float32 [m], of the nonzeros of W, a contiguous tensor.

        At least one, the largest, where there is any value to give it.
        """
        flat, cheapest = weights.view(-1), self.cheapest.view(-1)
        if not len(self.values):
            return torch.zeros(0, dtype=torch.int64, device=flat.device), self.values
        # Whatever its code, a nonzero takes at most the square of its weight off the error.
        index = squares_beyond(flat, cheapest)
        x = flat[index]
        code = torch.bucketize(x, self.thresholds)
        value = self.values[code]
        worth = value * (2 * x - value) > self.code_cost[code] + cheapest[index]
        index, value = index[worth], value[worth]
        if not index.numel():
            index = flat.abs().argmax().view(1)
            value = self.values[torch.bucketize(flat[index], self.thresholds)]
        return index, value


def squares_beyond(weights: Tensor, least: Tensor | float) -> Tensor:
    """Returns indices, int64 [m] ascending: the elements of a vector whose square is above `least`, or each its own."""
    if weights.device.type == "cpu":  # numpy looks through them in a fifth of the time
        limit = least.numpy() if isinstance(least, Tensor) else least
        return torch.from_numpy(np.flatnonzero(np.square(weights.numpy()) > limit))
    return (weights.square() > least).nonzero().view(-1)


def fixed_tables(state: WarmStart, energy: EnergyBudget | None, device: torch.device) -> list[FixedTables]:
    """Returns the rule of each layer after a projection."""
    costs = [0.0] * len(state.tables) if energy is None else [cost.each for cost in energy.costs]
    return [
        FixedTables(tables, state.multiplier, state.energy_multiplier * cost, device)
        for tables, cost in zip(state.tables, costs, strict=True)
    ]
