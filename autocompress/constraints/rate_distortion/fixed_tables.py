"""Between two projections: the nearest of the networks that the last one's tables and multiplier allow.

With tables and multiplier fixed each weight takes the value of least `error + multiplier * bits` (see `projection`);
nothing is searched, so the cost is O(n) a call with a small constant. The bits that come out are about those of the
budget as long as the weights have moved little.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.rate_distortion.assignment import LayerTables, lower_envelope
from autocompress.constraints.rate_distortion.projection import WarmStart
from autocompress.energy.accelerator import EnergyBudget


class FixedTables:
    """The assignment rule of one layer."""

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
        self.between = torch.as_tensor(between, dtype=torch.float32, device=device)
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
        code = torch.bucketize(x, self.between)
        value = self.values[code]
        worth = value * (2 * x - value) > self.code_cost[code] + cheapest[index]
        index, value = index[worth], value[worth]
        if not index.numel():
            index = flat.abs().argmax().view(1)
            value = self.values[torch.bucketize(flat[index], self.between)]
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
