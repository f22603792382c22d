"""The priced projection: entropy-constrained quantization of all layers at one price per bit.

Problem:  minimise  sum_l ||V_l - X_l||^2   subject to   sum_l bits(V_l) <= budget_bits,
where X = W + U (the network plus the scaled dual), V_l takes values in a codebook of its layer or zero, and bits() is
the static code length of `costs.code_length`: positions, codes and codebooks.

With the code tables (codebook values, code lengths, row and column odds) held fixed, the Lagrangian separates over
weights: each takes the value of least `error + price * bits`, and the used bits fall as the price rises, so the price
follows by bisection, exactly. Where the energy of the nonzeros is limited, too, it has a price of its own, found by a
bisection around that one (`energy_price`). The tables are then re-estimated from the assignment (Lloyd's algorithm for
entropy-constrained quantization, Chou, Lookabaugh and Gray 1989) and the two are alternated. The alternation is a
heuristic for a non-convex problem; of its last two candidates, both within the budget, the better is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.codebooks import CodedTensor, coded_tensor
from autocompress.costs.code_length import Counts, as_matrix, code_length, estimate_code_lengths
from autocompress.projection.code_tables import cold_tables, grown_tables, re_estimate
from autocompress.projection.energy_price import find_prices
from autocompress.projection.energy_pruning import EnergyBudget
from autocompress.projection.priced_assignment import (
    Layer,
    LayerTables,
    bits_of_assignment,
    bits_under_tables,
    codes_at,
    find_price,
)

WARM_ROUNDS = 2  # re-estimations of the tables per projection, before the last
COLD_ROUNDS = 8  # the same, without tables to start from
LARGEST_PRICE_MOVE = 2.0  # factor per round


@dataclass(frozen=True)
class PricedState:
    """Warm start of the next projection: the prices of a bit and of energy, and every layer's tables."""

    price: float
    tables: list[LayerTables]
    energy_price: float = 0.0


@dataclass(frozen=True)
class PricedProjection:
    """Outcome of `project_priced`.

    Attributes:
        coded: V, one tensor per layer, with codebooks as the file reproduces them.
        bits: estimated code length of all layers, <= the budget.
        error: ||V - X||^2 over all layers.
        state: warm start for the next call.
    """

    coded: list[CodedTensor]
    bits: float
    error: float
    state: PricedState


@dataclass(frozen=True)
class _Candidate:
    """An assignment at its prices: codes int16 [R, C] of each layer, and the tables that fit them."""

    price: float
    codes: list[Tensor]
    tables: list[LayerTables]
    energy_price: float = 0.0

    def within(self, budget_bits: float, energy: EnergyBudget | None) -> bool:
        """Tells whether both budgets hold."""
        if self.bits > budget_bits:
            return False
        return energy is None or energy.holds([int(torch.count_nonzero(codes)) for codes in self.codes])

    @property
    def bits(self) -> float:
        return sum(
            code_length(Counts.of_codes(c, t.values.numel())) for c, t in zip(self.codes, self.tables, strict=True)
        )


def _re_assign(
    matrices: list[Tensor],
    tables: list[LayerTables],
    budget_bits: float,
    energy: EnergyBudget | None,
    start: tuple[float, float],
    *,
    last: bool,
) -> _Candidate:
    """Returns the assignment at the prices that fit the budgets under these tables, and the tables that fit it.

    The last time the bits are counted as they come out, and codebooks keep their sizes. Before, the price that decides
    over sizes moves by `LARGEST_PRICE_MOVE` at most: tables too small for the budget make bits look free, and what is
    bought then at once would be thrown away in the next round.
    """
    bits_at = bits_of_assignment if last else bits_under_tables
    if energy is None:
        layers = [Layer(matrix, table) for matrix, table in zip(matrices, tables, strict=True)]
        price, energy_price = find_price(layers, budget_bits, start[0], bits_at), 0.0
    else:
        layers = [Layer(*parts) for parts in zip(matrices, tables, energy.costs, strict=True)]
        price, energy_price = find_prices(layers, budget_bits, energy.limit, start, bits_at)
    damped = min(max(price, start[0] / LARGEST_PRICE_MOVE), start[0] * LARGEST_PRICE_MOVE)
    pairs = [
        re_estimate(layer.matrix, codes_at(layer, price), layer.tables.values.numel(), damped, merge=not last)
        for layer in layers
    ]
    return _Candidate(damped, [codes for codes, _ in pairs], [table for _, table in pairs], energy_price)


def _error(matrices: list[Tensor], found: _Candidate) -> float:
    error = 0.0
    for matrix, codes, table in zip(matrices, found.codes, found.tables, strict=True):
        values = torch.cat([table.values.new_zeros(1), table.values])
        error += float((matrix - values[codes.long()]).square().sum())
    return error


def _nothing(matrices: list[Tensor], price: float) -> _Candidate:
    """Returns the all-zero assignment: what is left when not even one nonzero per tensor fits."""
    codes = [torch.zeros(m.shape, dtype=torch.int16, device=m.device) for m in matrices]
    tables = [
        LayerTables(m.new_zeros(0), estimate_code_lengths(Counts.of_codes(c, 0)))
        for m, c in zip(matrices, codes, strict=True)
    ]
    return _Candidate(price, codes, tables)


def project_priced(
    targets: Sequence[Tensor],
    budget_bits: float,
    previous: PricedState | None = None,
    energy: EnergyBudget | None = None,
) -> PricedProjection:
    """Projects X onto the networks whose estimated code length is at most `budget_bits`, their energy in its budget.

    Each tensor keeps at least one nonzero as long as the budgets have room for that; below, all become zero.

    Args:
        targets: X = W + U, float tensors of two or more dimensions each.
        budget_bits: for positions, codes and codebooks of all tensors together.
        previous: state of the last projection, for a warm start.
        energy: of the nonzeros, where that is limited, too; one nonzero per tensor fits.
    """
    matrices = [as_matrix(x.detach().float()) for x in targets]
    warm = previous is not None and all(table.values.numel() for table in previous.tables)
    price, tables = (previous.price, previous.tables) if warm and previous else cold_tables(matrices, budget_bits)
    energy_price = previous.energy_price if previous else 0.0
    grown = tables
    for _ in range(WARM_ROUNDS if warm else COLD_ROUNDS):
        found = _re_assign(matrices, grown, budget_bits, energy, (price, energy_price), last=False)
        price, tables, energy_price = found.price, found.tables, found.energy_price
        grown = [grown_tables(m, c, t, price) for m, c, t in zip(matrices, found.codes, tables, strict=True)]
    prices = (price, energy_price)
    ends = [_re_assign(matrices, start, budget_bits, energy, prices, last=True) for start in (tables, grown)]
    feasible = [end for end in ends if end.within(budget_bits, energy)] or [_nothing(matrices, price)]
    best = min(feasible, key=lambda end: _error(matrices, end))
    coded = [
        coded_tensor(codes.view(x.shape), table.values)
        for codes, table, x in zip(best.codes, best.tables, targets, strict=True)
    ]
    return PricedProjection(
        coded,
        bits=sum(code_length(Counts.of_codes(as_matrix(c.codes), c.values.numel())) for c in coded),
        error=sum(float((c.dense() - x).square().sum()) for c, x in zip(coded, targets, strict=True)),
        state=PricedState(best.price, best.tables, best.energy_price),
    )
