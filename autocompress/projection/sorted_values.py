"""Numbers sorted once, with prefix sums: the mean and the squared error of any interval of them in O(1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SortedValues:
    """Numbers prepared for k-means.

    Attributes:
        values: float64 [n], ascending.
        sums: float64 [n + 1], sum of the first i values at i.
        squares: float64 [n + 1], the same of their squares.
    """

    values: Tensor
    sums: Tensor
    squares: Tensor

    def distinct(self, limit: int) -> Tensor | None:
        """Returns the distinct values, ascending, or None where there are more than `limit`."""
        if self.values.numel() and int(torch.count_nonzero(self.values.diff())) + 1 > limit:
            return None
        distinct: Tensor = torch.unique_consecutive(self.values)
        return distinct


@dataclass(frozen=True)
class Codebook:
    """A fitted codebook.

    Attributes:
        centroids: float64 [k], ascending; fewer than asked where the data have fewer distinct values.
        squared_error: sum over the data of the squared distance to the centroid of their cluster.
    """

    centroids: Tensor
    squared_error: float


def sort_values(values: Tensor) -> SortedValues:
    """Returns the elements of `values` (any shape) prepared for k-means, in O(n log n)."""
    return prepare_sorted(values.detach().flatten().sort().values)


def prepare_sorted(values: Tensor) -> SortedValues:
    """Returns ascending `values` [n] prepared for k-means, in O(n)."""
    ordered = values.double()
    zero = ordered.new_zeros(1)
    return SortedValues(ordered, torch.cat([zero, ordered.cumsum(0)]), torch.cat([zero, ordered.square().cumsum(0)]))


def interval_errors(data: SortedValues, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (mean, squared error) of values[low:high], elementwise; the mean of an empty interval is NaN."""
    total = data.sums[high] - data.sums[low]
    mean = total / (high - low)
    return mean, (data.squares[high] - data.squares[low] - total * mean).clamp_min(0)
