"""Schemes: what compressing a network is, as small classes that can be composed.

    pi     compress:   weights -> theta       a projection onto the networks of this kind
    delta  decompress: theta -> weights       back to what the network computes with

(Joseph et al. 2020, section 3.) Both are pure. They see the weights of all layers at once. Those that prune are in
`pruning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.numerics.kmeans import fit_codebook, sort_values

# state_dict name -> tensor of two or more dimensions, the first of which counts the outputs of the layer
Weights = Mapping[str, Tensor]

MAX_BITS = 8  # the file's codebooks are fitted to 256 values at most


class Scheme(Protocol):
    """Compresses and decompresses the weights of a network; leaves what it is given as it is."""

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        """Returns theta = pi(weights), in the same shapes."""

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        """Returns delta(theta), in the same shapes."""


@dataclass(frozen=True)
class Quantize:
    """Rounds to a floating-point type.

    Attributes:
        dtype: what theta is stored in.
    """

    dtype: torch.dtype = torch.float16

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        return {name: weight.detach().to(self.dtype) for name, weight in weights.items()}

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        return {name: weight.float() for name, weight in theta.items()}


@dataclass(frozen=True)
class Codebook:
    """Replaces the nonzeros of each layer by the nearest of 2^bits values fitted to them by k-means.

    Attributes:
        bits: 1 to 8.
    """

    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= MAX_BITS:
            raise InvalidInputError(f"bits is {self.bits!r}; it must be a whole number from 1 to {MAX_BITS}")

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        return {name: self._quantized(weight.detach().float()) for name, weight in weights.items()}

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        """Returns theta: the values stand in their places."""
        return dict(theta)

    def _quantized(self, weight: Tensor) -> Tensor:
        mask = weight != 0
        kept = weight[mask]
        if not kept.numel():
            return weight.clone()
        centroids = fit_codebook(sort_values(kept), 2**self.bits).centroids.float()
        quantized = torch.zeros_like(weight)
        quantized[mask] = centroids[torch.bucketize(kept, (centroids[:-1] + centroids[1:]) / 2)]
        return quantized


@dataclass(frozen=True)
class Compose:
    """Compresses by one scheme after the other, and decompresses in reverse.

    Attributes:
        schemes: in the order in which they compress.
    """

    schemes: Sequence[Scheme]

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        theta = dict(weights)
        for scheme in self.schemes:
            theta = scheme.compress(theta)
        return theta

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        weights = dict(theta)
        for scheme in reversed(self.schemes):
            weights = scheme.decompress(weights)
        return weights
