"""The schemes that prune: one threshold for the whole network.

The k = floor(density * n) largest of n things are kept, things being weights or rows, measured by their
Euclidean norm. The published code keeps everything at the threshold; here ties are broken by order, so that the count
is exact. Where all things are equally large this is the exact projection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from baselines.condensa.schemes import Weights


@dataclass(frozen=True)
class _Pruning:
    """One threshold over the things of all layers.

    Attributes:
        density: part of the things that is kept, in (0, 1].
    """

    density: float

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InvalidInputError(f"density is {self.density}; it must be above 0 and at most 1")

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        norms = {name: norm for name, w in weights.items() if (norm := self._norms(w.detach())) is not None}
        if not norms:
            raise InvalidInputError(
                f"{type(self).__name__} finds nothing to prune in {', '.join(weights) or 'nothing'}"
            )
        every = torch.cat([norm.flatten() for norm in norms.values()])
        kept = torch.zeros_like(every, dtype=torch.bool)
        kept[every.argsort(descending=True, stable=True)[: max(1, math.floor(self.density * every.numel()))]] = True
        parts = torch.split(kept, [norm.numel() for norm in norms.values()])
        masks = {name: part.view(norms[name].shape) for name, part in zip(norms, parts, strict=True)}
        theta = {}
        for name, w in weights.items():
            mask = masks.get(name, torch.ones((), dtype=torch.bool, device=w.device))
            theta[name] = w.detach() * mask.view(*mask.shape, *[1] * (w.ndim - mask.ndim))
        return theta

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        """Returns theta: zeros are weights."""
        return dict(theta)

    def _norms(self, weight: Tensor) -> Tensor | None:
        """Returns the norm of each thing of a layer, or None where the layer has none of this kind."""
        raise NotImplementedError


@dataclass(frozen=True)
class Prune(_Pruning):
    """Keeps single weights."""

    def _norms(self, weight: Tensor) -> Tensor | None:
        return weight.abs()


@dataclass(frozen=True)
class StructurePrune(_Pruning):
    """Keeps whole outputs of layers, filters and neurons, under one threshold. Give it no layer of the outputs.

    A bias that is among the weights goes with the filter or neuron of its layer, so that nothing of these is left.
    """

    def compress(self, weights: Weights) -> dict[str, Tensor]:
        theta = super().compress(weights)
        for name, bias in weights.items():
            owner = theta.get(name.removesuffix("bias") + "weight") if name.endswith("bias") else None
            if owner is not None:
                theta[name] = bias.detach() * owner.flatten(1).any(1)
        return theta

    def _norms(self, weight: Tensor) -> Tensor | None:
        return weight.flatten(1).float().square().sum(1).sqrt() if weight.ndim > 1 else None


@dataclass(frozen=True)
class FilterPrune(StructurePrune):
    """Keeps whole filters of convolutions; other layers stay as they are."""

    def _norms(self, weight: Tensor) -> Tensor | None:
        return super()._norms(weight) if weight.ndim > 2 else None
