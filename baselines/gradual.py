"""Gradual magnitude pruning (Zhu and Gupta 2017), then k-means codebooks, fine-tuned (Han et al. 2016): no search.

    keep fraction at a part s of the schedule = k + (1 - k) (1 - s)^3

The network trains with its weights below the threshold at zero, where they stay; the threshold rises until a part of
the steps is over. Then the codebooks are fitted and trained, as at the end of every run here, and written by our codec:
the file is what separates this from the published method, whose Huffman codes are larger.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.network.compressed_tensors import WeightTensor


def cubic_schedule(keep_fraction: float, share: float) -> float:
    """Returns the keep fraction when a part of the schedule is over.

    >>> [cubic_schedule(0.1, share) for share in (0.0, 0.5, 1.0)]
    [1.0, 0.2125, 0.1]
    """
    return keep_fraction + (1 - keep_fraction) * (1 - share) ** 3


class GradualPruning:
    """The iteration: an optimizer's own, with what is pruned put back to zero. In the place of `LazyProjection`."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self.masks = [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights]

    def after_step(self, relative_lr: float) -> None:
        self.reassign()

    def points(self) -> list[Tensor]:
        return [weight.detach().float().clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, quantized: Sequence[WeightTensor], pruned: Any = None, rules: Any = None) -> float:
        """Prunes what a projection has pruned; returns the norm of what went."""
        before = self.points()
        self.masks = [
            mask & (tensor.codes.to(mask.device) != 0) for tensor, mask in zip(quantized, self.masks, strict=True)
        ]
        self.reassign()
        return math.sqrt(sum(float((w - b).square().sum()) for w, b in zip(self.weights, before, strict=True)))

    @torch.no_grad()
    def reassign(self) -> None:
        """Puts what is pruned back to zero."""
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)

    def restore_dense(self) -> None:
        """Leaves the weights as they are."""

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state: dict[str, Any], rules: Any = None) -> None:
        self.masks = [mask.to(weight.device) for mask, weight in zip(state["masks"], self.weights, strict=True)]
