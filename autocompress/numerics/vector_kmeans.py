"""Vector codebooks: k-means on the kernels of a layer, entries rounded to 6 bits.

The problem: choose K vectors so that the sum of squared distances of n vectors to their nearest one is least. It is
NP-hard in more than one dimension; Lloyd's iteration finds a local optimum at a cost of O(n K d) each. From nothing,
codebooks are grown by splitting (Linde, Buzo & Gray 1980): every vector of the next smaller one becomes two, a standard
deviation of its cluster's widest coordinate to either side. There is nothing random in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.network.kernel_tensor import KernelTensor, kernel_code_bits, kernel_levels, kernel_tensor

# Lloyd's iterations of a codebook from nothing, and of one from the last update, where little has moved.
COLD_ITERATIONS = 10
WARM_ITERATIONS = 2
# Codebooks are fitted to at most about this many vectors; all of them are assigned once a codebook is chosen.
SAMPLE = 8192
# Distances held at once: 16 MB of float32.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class KernelBook:
    """A fitted codebook of kernels.

    Attributes:
        values: float32 [K, d], rounded to 6 bits; as many as asked or fewer, all in use.
        centroids: float32 [K, d], means of their clusters, for a warm start.
        squared_error: of all vectors to their nearest value, estimated from the sample where one was taken.
        cost_bits: N ceil(log2 K) + 6 K d.
    """

    values: Tensor
    centroids: Tensor
    squared_error: float
    cost_bits: int


def fit_kernels(
    vectors: Tensor, sizes: Sequence[int], starts: Mapping[int, Tensor] | None = None, iterations: int | None = None
) -> list[KernelBook]:
    """Returns a codebook for each size; a larger one never errs by more.

    Args:
        vectors: float [n, d], at least one.
        sizes: ascending powers of two from 2 on.
        starts: centroids by size, to start from where there are; any number of them up to the size.
        iterations: of Lloyd's; by default `WARM_ITERATIONS` or `COLD_ITERATIONS`.
    """
    stride = -(-len(vectors) // SAMPLE)
    sample = vectors[::stride].float()
    scale = len(vectors) / len(sample)
    books: list[KernelBook] = []
    codes, centroids = sample.new_zeros(len(sample), dtype=torch.long), sample.mean(0, keepdim=True)
    for size in sizes:
        start = None if starts is None else starts.get(size)
        rounds = iterations or (COLD_ITERATIONS if start is None else WARM_ITERATIONS)
        while start is None:
            centroids = _split(sample, codes, centroids)
            start = centroids if len(centroids) >= size else None
            codes = codes if start is not None else nearest(sample, centroids)[0]
        values, codes, error = _lloyd(sample, start.to(sample), rounds)
        centroids = _means(sample, codes, values)
        cost_bits = kernel_code_bits(len(vectors), len(values), vectors.shape[1])
        book = KernelBook(values, centroids, error * scale, cost_bits)
        # A local optimum may be worse than that of a smaller codebook, which is then used in its place.
        books.append(book if not books or book.squared_error <= books[-1].squared_error else books[-1])
    return books


def encode_kernels(target: Tensor, values: Tensor, iterations: int = 0) -> KernelTensor:
    """Returns `target` with each of its vectors replaced by the nearest of `values`.

    Args:
        target: any shape, floating, n d elements.
        values: [K, d].
        iterations: of Lloyd's on all vectors, from `values`.
    """
    vectors = target.detach().reshape(-1, values.shape[1]).float()
    if iterations:
        values = _lloyd(vectors, values, iterations)[0]
    return kernel_tensor(nearest(vectors, values)[0], values, tuple(target.shape))


def nearest(vectors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (index int64 [n] of the nearest of `values` [K, d], squared distance float64 [n]) of vectors [n, d]."""
    norms = values.square().sum(1) / 2
    step = max(1, _BLOCK // len(values))
    codes = torch.cat([(norms - block @ values.T).argmin(1) for block in torch.split(vectors, step)])
    return codes, (vectors - values[codes]).double().square().sum(1)


def _lloyd(vectors: Tensor, start: Tensor, iterations: int) -> tuple[Tensor, Tensor, float]:
    """Returns (rounded values [K, d] in use, codes [n], squared error) of the best iteration from `start`."""
    centroids = start
    best: tuple[Tensor, Tensor, float] | None = None
    for _ in range(iterations):
        values = _rounded(centroids)
        codes, distances = nearest(vectors, values)
        error = float(distances.sum())
        if best is None or error < best[2]:
            best = values, codes, error
        centroids = _reseeded(vectors, codes, values, distances, len(start))
    assert best is not None
    used, codes = torch.unique(best[1], return_inverse=True)
    return best[0][used], codes, best[2]


def _rounded(centroids: Tensor) -> Tensor:
    """Returns the distinct values of a codebook after rounding, float32."""
    levels, step = kernel_levels(centroids)
    distinct: Tensor = torch.unique(levels, dim=0)
    return distinct.float() * step


def _means(vectors: Tensor, codes: Tensor, values: Tensor) -> Tensor:
    """Returns the mean of each cluster, float32 [K, d]; a value that nothing uses stays."""
    count = torch.bincount(codes, minlength=len(values))[:, None]
    total = torch.zeros(values.shape, dtype=torch.float64, device=values.device).index_add_(0, codes, vectors.double())
    return torch.where(count > 0, total / count.clamp(min=1), values.double()).float()


def _reseeded(vectors: Tensor, codes: Tensor, values: Tensor, distances: Tensor, size: int) -> Tensor:
    """Returns the means of the clusters in use, and the vectors farthest from theirs up to `size` centroids."""
    used = torch.bincount(codes, minlength=len(values)) > 0
    means = _means(vectors, codes, values)[used]
    holes = min(size, len(vectors)) - len(means)
    if holes <= 0:
        return means
    far = distances.argsort(descending=True, stable=True)[:holes]
    return torch.cat([means, vectors[far[distances[far] > 0]]])


def _split(vectors: Tensor, codes: Tensor, centroids: Tensor) -> Tensor:
    """Returns twice as many centroids: each a standard deviation of its widest coordinate to either side."""
    spread = (vectors - centroids[codes]).double().square()
    total = torch.zeros(centroids.shape, dtype=torch.float64, device=vectors.device).index_add_(0, codes, spread)
    count = torch.bincount(codes, minlength=len(centroids)).clamp(min=1)
    widest = total.argmax(1, keepdim=True)
    deviation = (total.gather(1, widest) / count[:, None]).sqrt().to(centroids)
    offset = torch.zeros_like(centroids).scatter_(1, widest, deviation)
    return torch.cat([centroids - offset, centroids + offset])
