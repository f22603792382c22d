"""Lazy projection: the network runs as what will be written, and its gradients move a hidden, dense W.

    minimise  loss(V)   subject to   V in C = { cost(V) <= budget }

    W <- W + D (x - V)          x: where the user's optimizer took the parameters from V
    V <- P(W)                   the projection, every few steps; in between, the nearest values on the support of V

Dual averaging through a projection (Courbariaux et al. 2015; Dockhorn et al. 2021, "ProxConnect"; of pruning alone Lin
et al. 2020, "dynamic model pruning with feedback"). D is diagonal: 1 where V is not zero and `pruned_rate` where it is.
A weight that is zero in V has no effect, so nothing answers its moves and W walks at random there; at the full rate the
largest of hundreds of thousands of such walks push out weights that the network uses.

| symbol | here | shape |
|---|---|---|
| W | `hidden` | any, per layer |
| V | `shown`, what the parameters hold between two optimizer steps | as W |
| P | the projection of the target, called by the compressor | |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.codebooks import CodedTensor, WeightTensor
from autocompress.kernel_codebooks import KernelTensor
from autocompress.projection.kernel_kmeans import nearest


class LazyProjection:
    """W, V and their two moves; knows nothing of costs.

    Attributes:
        hidden: W, float32.
    """

    def __init__(self, weights: Sequence[Tensor], pruned_rate: float) -> None:
        """Starts at V = W.

        Args:
            weights: the parameters; from the first `update` on they are overwritten by V.
            pruned_rate: D where V is zero.
        """
        self.weights, self.pruned_rate = list(weights), pruned_rate
        self.hidden = [w.detach().float().clone(memory_format=torch.contiguous_format) for w in self.weights]
        self.shown = [w.clone() for w in self.hidden]
        self.coded: list[WeightTensor] = []
        self._index: list[Tensor] = []

    @torch.no_grad()
    def follow(self, relative_lr: float) -> None:
        """Takes what the optimizer did to the parameters since the last call over into W, whatever the rate."""
        for number, (weight, hidden, shown) in enumerate(zip(self.weights, self.hidden, self.shown, strict=True)):
            move = torch.sub(weight, shown).flatten()
            flat, index = hidden.view(-1), self._index[number]
            flat.add_(move, alpha=self.pruned_rate)
            flat.index_add_(0, index, move[index], alpha=1 - self.pruned_rate)

    @torch.no_grad()
    def points(self) -> list[Tensor]:
        """Returns W, what a projection is applied to: up to the first update that is what the parameters hold."""
        if not self.coded:
            for hidden, weight in zip(self.hidden, self.weights, strict=True):
                hidden.copy_(weight)
        return self.hidden

    @torch.no_grad()
    def update(self, coded: Sequence[WeightTensor], pruned: Sequence[Tensor] | None = None) -> float:
        """Takes P(W) as V and puts it into the parameters; returns ||W - V||."""
        self.coded = list(coded)
        self._index = [_support(tensor).to(w.device) for tensor, w in zip(self.coded, self.weights, strict=True)]
        square = 0.0
        for hidden, shown, tensor in zip(self.hidden, self.shown, self.coded, strict=True):
            shown.copy_(tensor.dense())
            square += float((hidden - shown).square().sum())
        self._show()
        return float(square**0.5)

    @torch.no_grad()
    def between(self) -> None:
        """Moves V, on its support, to the codebook values nearest to W, and puts it into the parameters."""
        for hidden, shown, tensor, index in zip(self.hidden, self.shown, self.coded, self._index, strict=True):
            values = tensor.values.to(hidden.device)
            if isinstance(tensor, KernelTensor):
                vectors = hidden.view(-1, tensor.length)
                shown.copy_(values[nearest(vectors, values)[0]].view(shown.shape))
            elif index.numel():
                between = (values[1:] + values[:-1]) / 2
                shown.view(-1)[index] = values[torch.bucketize(hidden.view(-1)[index], between)]
        self._show()

    def _show(self) -> None:
        for weight, shown in zip(self.weights, self.shown, strict=True):
            weight.copy_(shown)

    @torch.no_grad()
    def end(self) -> None:
        """Puts W into the parameters: what is projected for the last time."""
        for weight, hidden in zip(self.weights, self.hidden, strict=True):
            weight.copy_(hidden)

    def state_dict(self) -> dict[str, Any]:
        """Returns W and V."""
        kernels = [isinstance(tensor, KernelTensor) for tensor in self.coded]
        return {
            "hidden": self.hidden,
            "shown": self.shown,
            "codes": [tensor.codes for tensor in self.coded],
            "values": [t.levels if isinstance(t, KernelTensor) else t.values for t in self.coded],
            "steps": [t.step if isinstance(t, KernelTensor) else 0.0 for t in self.coded],
            "kernels": kernels,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for mine, saved in zip(self.hidden + self.shown, state["hidden"] + state["shown"], strict=True):
            mine.copy_(saved)
        self.coded = [
            KernelTensor(codes, values, step, tuple(w.shape)) if kernel else CodedTensor(codes, values)
            for codes, values, step, kernel, w in zip(
                state["codes"], state["values"], state["steps"], state["kernels"], self.weights, strict=False
            )
        ]
        self._index = [_support(tensor).to(w.device) for tensor, w in zip(self.coded, self.weights, strict=False)]


def _support(tensor: WeightTensor) -> Tensor:
    """Returns the flat indices, int64, of the weights that V can move: those not zero, or all of a kernel codebook."""
    if isinstance(tensor, KernelTensor):
        return torch.arange(len(tensor.codes) * tensor.length)
    return tensor.codes.flatten().nonzero().flatten()
