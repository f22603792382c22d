"""The schemes that prune: one threshold for the whole network.

The k = floor(density * n) largest of n things are kept, things being weights, rows or blocks, measured by their
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
        return {
            name: self._masked(w.detach(), masks[name]) if name in masks else w.detach().clone()
            for name, w in weights.items()
        }

    def decompress(self, theta: Weights) -> dict[str, Tensor]:
        """Returns theta: zeros are weights."""
        return dict(theta)

    def _norms(self, weight: Tensor) -> Tensor | None:
        """Returns the norm of each thing of a layer, or None where the layer has none of this kind."""
        raise NotImplementedError

    def _masked(self, weight: Tensor, mask: Tensor) -> Tensor:
        """Returns the layer with the things outside the mask (in the shape of the norms) at zero."""
        return weight * mask.view(*mask.shape, *[1] * (weight.ndim - mask.ndim))


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


@dataclass(frozen=True)
class NeuronPrune(StructurePrune):
    """Keeps whole rows of linear layers; other layers stay as they are. Give it no layer of the network's outputs."""

    def _norms(self, weight: Tensor) -> Tensor | None:
        return super()._norms(weight) if weight.ndim == 2 else None


@dataclass(frozen=True)
class BlockPrune(_Pruning):
    """Keeps whole blocks of the matrix [outputs, all others] of each layer.

    Attributes:
        block: rows and columns of a block; those at the lower and right edge may be smaller.
    """

    block: tuple[int, int] = (2, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.block) != 2 or min(self.block) < 1:
            raise InvalidInputError(f"block is {self.block}; it must be two whole numbers of at least 1")

    def _norms(self, weight: Tensor) -> Tensor | None:
        matrix = weight.flatten(1).float()
        rows, columns = self.block
        padding = (0, -matrix.shape[1] % columns, 0, -matrix.shape[0] % rows)
        padded = torch.nn.functional.pad(matrix, padding)
        blocks = padded.view(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
        return blocks.square().sum((1, 3)).sqrt()

    def _masked(self, weight: Tensor, mask: Tensor) -> Tensor:
        rows, columns = self.block
        whole = mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return weight * whole[: weight.shape[0], : weight[0].numel()].reshape(weight.shape)
