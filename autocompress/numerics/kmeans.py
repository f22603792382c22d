"""Scalar codebooks: one-dimensional k-means on sorted values.

The problem: choose k values so that the sum of squared distances of n numbers to their nearest value is least. In one
dimension clusters are intervals of the sorted numbers, so with prefix sums of the numbers and of their squares an
iteration of Lloyd's costs O(k log n), and one sort serves every k. It starts from the last codebook or near the
optimum: over `CELLS` cells of neighbouring values a recursion gives the best clusters, which is the exact optimum where
there are no more distinct values than cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import QuantizedTensor, round_codebook


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


CELLS = 256  # of the start's recursion, whose cost grows with the square; k-means then ends within 4 % of the optimum
EXACT_SIZE = 64  # largest codebook that starts from the recursion; larger ones start from point density
SAMPLE = 4096  # values from which the density is estimated


def cold_starts(data: SortedValues, sizes: Sequence[int]) -> list[Tensor]:
    """Returns starting centroids [size] for each size: optimal over cells if small, else by point density.

    The density of an optimal quantizer's points goes with the cube root of the data's (Panter & Dite 1951), so equal
    shares of the sum of spacing^(2/3) between sorted values hold one point each.
    """
    count = data.values.numel()
    picks = torch.linspace(0, count - 1, min(count, SAMPLE), device=data.values.device, dtype=torch.float64).long()
    sample = data.values[picks]
    share = torch.cat([sample.new_zeros(1), sample.diff().pow(2 / 3).cumsum(0)])
    share = share / share[-1].clamp_min(1e-300)

    def at(fractions: Tensor) -> Tensor:
        return sample[torch.searchsorted(share, fractions).clamp_max(sample.numel() - 1)]

    small = [size for size in sizes if size <= EXACT_SIZE]
    starts: list[Tensor] = []
    if small:
        distinct = data.distinct(CELLS)
        if distinct is None:
            distinct = torch.unique(at(torch.arange(CELLS, device=share.device, dtype=share.dtype) / CELLS))
        edges = torch.searchsorted(data.values, distinct)
        edges[0] = 0
        edges = torch.cat([edges, edges.new_tensor([count])])
        starts = [book.centroids for book in _optimal_codebooks(data, edges, small)]
    for size in sizes[len(small) :]:
        starts.append(at((torch.arange(size, device=share.device, dtype=share.dtype) + 0.5) / size))
    return starts


def _optimal_codebooks(data: SortedValues, edges: Tensor, sizes: Sequence[int]) -> list[Codebook]:
    """Returns for each size the best codebook whose clusters begin at `edges` (indices, 0 to n), by recursion.

    best(k, j) = min over i < j of best(k - 1, i) + error of the values between edges i and j.
    """
    means, errors = interval_errors(data, edges[:, None], edges[None, :])
    below = torch.ones_like(errors, dtype=torch.bool).tril()
    errors = errors.masked_fill(below, torch.inf)
    last = edges.numel() - 1
    best, choices = errors[0], []
    totals = {1: float(best[last])}
    for size in range(2, min(max(sizes), last) + 1):
        best, choice = (best[:, None] + errors).min(0)
        choices.append(choice)
        totals[size] = float(best[last])
    table = torch.stack(choices).tolist() if choices else []
    books = []
    for size in (min(size, last) for size in sizes):
        cuts = [last]
        for row in reversed(table[: size - 1]):
            cuts.append(row[cuts[-1]])
        cuts = [0, *reversed(cuts)]
        books.append(Codebook(means[cuts[:-1], cuts[1:]], totals[size]))
    return books


ITERATIONS = 60
TOLERANCE = 1e-4  # relative decrease of the error at which Lloyd stops


def fit_codebook(data: SortedValues, k: int, start: Tensor | None = None) -> Codebook:
    """Returns a codebook of at most k values for `data`, by Lloyd's iteration; see `fit_codebooks`."""
    return fit_codebooks(data, [k], None if start is None else [start])[0]


def fit_codebooks(data: SortedValues, sizes: Sequence[int], starts: Sequence[Tensor] | None = None) -> list[Codebook]:
    """Returns one codebook per size, all fitted together by Lloyd's iteration.

    Args:
        data: the numbers, at least one.
        sizes: ascending numbers of values, each at least 1.
        starts: warm starts, [at most size] each; without them the start described above.

    Returns:
        Codebooks whose errors never increase with the size; a size that covers the distinct values gets exactly those.

    Raises:
        InvalidInputError: no data, or a size below 1.
    """
    if not data.values.numel() or min(sizes) < 1:
        raise InvalidInputError(
            f"k-means needs a value and sizes of at least 1, got {data.values.numel()} values and sizes {list(sizes)}"
        )
    distinct = data.distinct(max(sizes))
    covered = data.values.numel() + 1 if distinct is None else distinct.numel()
    fitted = [size for size in sizes if size < covered]
    books: list[Codebook] = []
    if fitted:
        cold = starts is None or any(start.numel() == 0 for start in starts[: len(fitted)])
        begin = cold_starts(data, fitted) if cold or starts is None else list(starts[: len(fitted)])
        for book in _lloyd(data, [centroids.to(data.values) for centroids in begin], fitted):
            # A local optimum may be worse than that of a smaller codebook, which is then used in its place.
            books.append(book if not books or book.squared_error <= books[-1].squared_error else books[-1])
    if distinct is not None:
        books += [Codebook(distinct, 0.0)] * (len(sizes) - len(fitted))
    return books


def encode(target: Tensor, mask: Tensor, centroids: Tensor) -> QuantizedTensor:
    """Returns `target` with each element under `mask` replaced by its nearest codebook value, the others by zero.

    Args:
        target: any shape, floating.
        mask: bool, the same shape.
        centroids: [k] values before rounding to what the file can hold; those not used are left out.
    """
    kept = target.detach()[mask].to(torch.float32)
    values = centroids.to(torch.float32)
    while True:
        # The grid of a codebook depends on its values: when some go unused, the others are rounded again.
        size = values.numel()
        values = torch.unique(round_codebook(values))
        nearest = torch.bucketize(kept, (values[:-1] + values[1:]) / 2)
        values = values[torch.bincount(nearest, minlength=values.numel()) > 0]
        if values.numel() == size:
            break
    codes = torch.zeros(target.shape, dtype=torch.int16, device=target.device)
    codes[mask] = (nearest + 1).to(torch.int16)
    return QuantizedTensor(codes, values)


def _lloyd(data: SortedValues, starts: list[Tensor], sizes: Sequence[int]) -> list[Codebook]:
    """Returns one converged codebook per start; all are iterated together as one flat list of centroids."""
    full = [torch.cat([c, c[-1:].expand(size - c.numel())]) for c, size in zip(starts, sizes, strict=True)]
    device, count = data.values.device, data.values.numel()
    ends = torch.tensor(sizes, device=device).cumsum(0)
    first = torch.cat([ends.new_zeros(1), ends[:-1]])
    owner = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
    centroids = torch.cat(full)
    previous = torch.full((len(sizes),), torch.inf, dtype=torch.float64, device=device)
    for _ in range(ITERATIONS):
        edges = torch.searchsorted(data.values, (centroids[:-1] + centroids[1:]) / 2, right=True)
        low = torch.cat([edges.new_zeros(1), edges]).index_fill_(0, first, 0)
        high = torch.cat([edges, edges.new_zeros(1)]).index_fill_(0, ends - 1, count)
        means, errors = interval_errors(data, low, high)
        empty = low >= high
        totals = torch.zeros_like(previous).index_add_(0, owner, errors.nan_to_num(0.0))
        done = bool((totals >= previous * (1 - TOLERANCE)).all())
        if not done and bool(empty.any()):
            means = _reseed(data, low, high, means, errors, sizes)
        elif done:
            break
        centroids, previous = means, totals
    parts = zip(torch.split(means, list(sizes)), torch.split(empty, list(sizes)), totals.tolist(), strict=True)
    return [Codebook(mean[~gone], total) for mean, gone, total in parts]


def _reseed(
    data: SortedValues, low: Tensor, high: Tensor, means: Tensor, errors: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Returns `means` with those of empty clusters moved to the far end of the clusters with the largest errors.

    The split cluster's mean stays, and the moved centroid served nothing: the error cannot rise.
    """
    bottom, top = data.values[low.clamp_max(data.values.numel() - 1)], data.values[(high - 1).clamp_min(0)]
    far_end = torch.where(top - means > means - bottom, top, bottom)
    worth = torch.where((low < high) & (top > bottom), errors, -1.0)
    parts = []
    for mean, end, gain in zip(
        torch.split(means, list(sizes)), torch.split(far_end, list(sizes)), torch.split(worth, list(sizes)), strict=True
    ):
        holes = mean.isnan().nonzero().flatten()
        donors = gain.argsort(descending=True, stable=True)[: holes.numel()]
        filled = mean.clone()
        filled[holes] = torch.where(gain[donors] >= 0, end[donors], mean.nan_to_num(-torch.inf).max())
        parts.append(filled.sort().values)
    return torch.cat(parts)
