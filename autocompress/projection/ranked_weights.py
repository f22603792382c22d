"""A layer's weights ordered by magnitude: what keeping any number of them costs in squared error, and their mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankedWeights:
    """A layer's weights ordered by magnitude.

    Attributes:
        squares: float64 [n], ascending.
        order: int64 [n], flat position of each in the tensor.
        dropped: float64 [n + 1], sum of the smallest i squares at i.
    """

    squares: Tensor
    order: Tensor
    dropped: Tensor

    def mask(self, nonzeros: int, shape: torch.Size) -> Tensor:
        """Returns a bool tensor of `shape`, true at the `nonzeros` largest magnitudes."""
        kept = torch.zeros(self.order.numel(), dtype=torch.bool, device=self.order.device)
        kept[self.order[self.order.numel() - nonzeros :]] = True
        return kept.view(shape)

    def dropped_square(self, nonzeros: int) -> float:
        """Returns the squared error of keeping only the `nonzeros` largest magnitudes."""
        return float(self.dropped[self.order.numel() - nonzeros])


def rank_weights(weight: Tensor) -> RankedWeights:
    """Returns the elements of `weight` (any shape) ordered by magnitude; equal ones keep their order."""
    magnitudes, order = weight.detach().flatten().abs().sort(stable=True)
    squares = magnitudes.double().square()
    return RankedWeights(squares, order, torch.cat([squares.new_zeros(1), squares.cumsum(0)]))
