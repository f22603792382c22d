"""Lazy projection: the network runs as what will be written, and its gradients move a hidden, dense W.

    minimise  loss(V)   subject to   V in C = { cost(V) <= budget }

    W <- V + m (W - V) + D (x - V)    x: where the user's optimizer took the parameters from V
    V <- P(W)                         the projection, every few steps; in between, the nearest V that its tables allow

Dual averaging through a projection (Courbariaux et al. 2015; Dockhorn et al. 2021, "ProxConnect"; of pruning alone Lin
et al. 2020, "dynamic model pruning with feedback"), with two changes. D is diagonal: 1 where V is nonzero,
`pruned_rate` where V is zero. And W - V is forgotten within `memory_steps`, where V is zero in proportion to the
learning rate. A weight that is zero in V has no effect, so nothing answers its moves and W walks at random there: at
the full rate and without end the largest of hundreds of thousands of such walks push out weights that the network uses.
A weight that cannot be what it should be, because few values are left to it, is moved the same way for ever: it would
ask for more and more bits. Where V is zero moves and memory have one clock, the sum of the learning rates: W tends to
`memory_steps` mean moves whatever the rate, and still says which weights are missed when the rate has come down.

| symbol | meaning | in the code |
|---|---|---|
| W | dense weights, hidden while the network runs as V | `LazyProjection.hidden`; under ADMM the parameters |
| V | compressed network: the parameters, except under ADMM | `Projection.quantized`, `LazyProjection.values` |
| U | scaled dual variable of ADMM | `Admm.duals` |
| X | what is projected: W, under ADMM W + U | `LazyProjection.points`, `Admm.points` |
| C | the networks within the budget | `Constraint` |
| P | projection onto C | `Constraint.project` |
| lambda | Lagrange multiplier: squared error per bit | `Projection.multiplier` |
| rho | weight of the proximal term, set by 1 - exp(-rho sum lr) | = `SolverConstants.admm_contraction` |
| D | diagonal: 1 where V is nonzero, less than 1 where V is zero | `SolverConstants.pruned_rate` |
| m | left of W - V: 1 - r min(t / T, 1) / T; r = 1, where V is 0 lr / peak | T = `SolverConstants.memory_steps` |
| b, n | bits and nonzeros of a layer | `QuantizedTensor.bits`, `QuantizedTensor.nonzeros` |
| K | size of a layer's codebook | length of `QuantizedTensor.values` |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Rule
from autocompress.constraints.rate_distortion.projection import squares_beyond
from autocompress.network.compressed_tensors import WeightTensor
from autocompress.network.kernel_tensor import KernelTensor
from autocompress.numerics.vector_kmeans import nearest


class LazyProjection:
    """W, V and their two moves; knows nothing of costs.

    Attributes:
        hidden: W, float32.
        index, values: int64 [n] and float32 [n] of each tensor: the nonzeros of V, by their place in contiguous memory.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        pruned_rate: float,
        idle_decay: float = 1.0,
        fading: Sequence[bool] = (),
        memory_steps: float = math.inf,
    ) -> None:
        """Starts at V = W.

        Args:
            weights: the parameters; from the first `update` on they are overwritten by V.
            pruned_rate: D where V is zero.
            idle_decay: what is left, after each update, of a weight whose gradient was exactly zero since the last:
                it reads a unit that is never active or feeds one that nothing reads, and would be written for nothing.
            fading: whether each tensor may have such weights; not those that most batches do not touch (embeddings).
            memory_steps: the steps in which all but 1/e of W - V is forgotten; in the first ones, and of pruned weights
                at a low learning rate, less.
        """
        self.weights, self.pruned_rate, self.idle_decay = list(weights), pruned_rate, idle_decay
        self.memory_steps, self.steps = max(1.0, memory_steps), 0
        self.fading = list(fading) or [False] * len(self.weights)
        self.activity = [  # the sum of the gradient's squares since the last update
            torch.zeros(weight.numel() if fades else 0, device=weight.device)
            for weight, fades in zip(self.weights, self.fading, strict=True)
        ]
        self.hidden = [w.detach().float().clone(memory_format=torch.contiguous_format) for w in self.weights]
        self.rules: list[Rule] = []
        self.index: list[Tensor] = []
        self.values: list[Tensor] = []

    @torch.no_grad()
    def after_step(self, relative_lr: float) -> None:
        """Takes what the optimizer did to the parameters since the last call over into W.

        Args:
            relative_lr: learning rate as a part of its peak.
        """
        for weight, activity in zip(self.weights, self.activity, strict=True):
            if activity.numel() and weight.grad is not None and not weight.grad.is_sparse:
                gradient = weight.grad.flatten()
                activity.addcmul_(gradient, gradient)
        self.steps += 1
        # At first W - V is not of moves but of the weights as they were given, which a short run cannot learn anew.
        forgotten = min(self.steps / self.memory_steps, 1) / self.memory_steps
        memory = 1 - forgotten
        # Its moves, too, are in proportion to the rate: else nothing would be left of them when the rate has come down.
        memory_of_pruned = 1 - relative_lr * forgotten
        for weight, hidden, index, values in zip(self.weights, self.hidden, self.index, self.values, strict=True):
            now, flat = weight.detach().flatten(), hidden.view(-1)
            kept = torch.lerp(values, flat[index], memory) + (now[index] - values).float()
            flat.mul_(memory_of_pruned).add_(now, alpha=self.pruned_rate)  # elsewhere V is zero
            flat.index_copy_(0, index, kept)

    @torch.no_grad()
    def points(self) -> list[Tensor]:
        """Returns W, what a projection is applied to: up to the first update that is what the parameters hold."""
        if not self.rules:
            for hidden, weight in zip(self.hidden, self.weights, strict=True):
                hidden.copy_(weight)
            return self.hidden
        for hidden, activity in zip(self.hidden, self.activity, strict=True):
            if self.idle_decay < 1 and bool(activity.any()):
                hidden.view(-1)[activity == 0] *= self.idle_decay
                activity.zero_()
        return self.hidden

    @torch.no_grad()
    def update(
        self,
        quantized: Sequence[WeightTensor],
        pruned: Sequence[Tensor] | None = None,
        rules: Sequence[Rule] | None = None,
    ) -> float:
        """Takes P(W) as V and puts it into the parameters.

        Args:
            quantized: V.
            pruned: not used: W stays dense.
            rules: of the target, for the steps in between; default: by magnitude, see `Nearest`.

        Returns:
            ||W - V||.
        """
        square = 0.0
        self.rules = (
            list(rules)
            if rules is not None
            else [nearest_rule(tensor, hidden) for tensor, hidden in zip(quantized, self.hidden, strict=True)]
        )
        self.index, self.values = [], []
        for hidden, tensor in zip(self.hidden, quantized, strict=True):
            shown = tensor.dense().to(hidden).view(-1)
            self.index.append(shown.nonzero().view(-1))
            self.values.append(shown[self.index[-1]])
            square += float((hidden.view(-1) - shown).square().sum())
        self._show()
        return math.sqrt(square)

    @torch.no_grad()
    def reassign(self) -> None:
        """Moves V to what the rules make of W, and puts it into the parameters."""
        for number, (hidden, rule) in enumerate(zip(self.hidden, self.rules, strict=True)):
            self.index[number], self.values[number] = rule.assign(hidden)
        self._show()

    def _show(self) -> None:
        for number, (weight, index) in enumerate(zip(self.weights, self.index, strict=True)):
            weight, in_place = weight.detach(), weight.is_contiguous()
            flat = (weight if in_place else torch.zeros_like(weight, memory_format=torch.contiguous_format)).view(-1)
            flat.zero_().index_copy_(0, index, self.values[number].to(flat))
            if not in_place:
                weight.copy_(flat.view(weight.shape))
            if weight.dtype != torch.float32:  # what is rounded here is not a move of the optimizer's
                self.values[number] = flat[index].float()

    @torch.no_grad()
    def restore_dense(self) -> None:
        """Puts W into the parameters: what is projected for the last time."""
        for weight, hidden in zip(self.weights, self.hidden, strict=True):
            weight.copy_(hidden)

    def state_dict(self) -> dict[str, Any]:
        """Returns W, V and the rules that are not the target's own."""
        own = [rule.state_dict() if isinstance(rule, Nearest | NearestKernel) else {} for rule in self.rules]
        return {
            "steps": self.steps,
            "hidden": self.hidden,
            "index": self.index,
            "values": self.values,
            "activity": self.activity,
            "rules": own,
        }

    def load_state_dict(self, state: dict[str, Any], rules: Sequence[Rule] | None = None) -> None:
        """Restores what `state_dict` returned; `rules` are the target's, where it has its own."""
        for tensor, value in zip(self.hidden + self.activity, state["hidden"] + state["activity"], strict=True):
            tensor.copy_(value)
        self.steps, self.index, self.values = state["steps"], list(state["index"]), list(state["values"])
        own: list[Rule] = [
            NearestKernel(**each) if "codewords" in each else Nearest(**each) for each in state["rules"] if each
        ]
        self.rules = own if own or rules is None or not state["rules"] else list(rules)


def dense_layers(model: nn.Module, weights: Sequence[Tensor]) -> list[bool]:
    """Tells of which weights every batch has a gradient: those of linear layers and convolutions, not of embeddings."""
    dense = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        for parameter in module.parameters(recurse=False)
    }
    return [id(weight) in dense for weight in weights]


@dataclass(frozen=True)
class Nearest:
    """The value nearest to each weight that is kept: those above a magnitude, or those that V kept.

    Attributes:
        values: float32 [K], ascending.
        threshold: magnitude above which a weight is kept; None = `support` says which.
        support: int64 [n], flat indices.
    """

    values: Tensor
    threshold: float | None
    support: Tensor

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns indices and values of the nonzeros."""
        flat = weights.view(-1)
        index = self.support if self.threshold is None else squares_beyond(flat, self.threshold**2)
        if not index.numel() or not self.values.numel():
            return self.support, self.values.new_zeros(self.support.shape)
        return index, self.values[torch.bucketize(flat[index], (self.values[1:] + self.values[:-1]) / 2)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the fields."""
        return {"values": self.values, "threshold": self.threshold, "support": self.support}


@dataclass(frozen=True)
class NearestKernel:
    """The codeword nearest to each kernel.

    Attributes:
        codewords: float32 [K, d].
    """

    codewords: Tensor

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the indices of all weights, and their values: a zero kernel is a codeword like any other."""
        chosen = nearest(weights.view(-1, self.codewords.shape[1]), self.codewords)[0]
        return torch.arange(weights.numel(), device=weights.device), self.codewords[chosen].view(-1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the field."""
        return {"codewords": self.codewords}


def nearest_rule(tensor: WeightTensor, weights: Tensor) -> Nearest | NearestKernel:
    """Returns the rule that V follows by, a projection of W: by a threshold where V kept the largest weights."""
    values = tensor.values.to(weights.device)
    if isinstance(tensor, KernelTensor):
        return NearestKernel(values)
    kept = tensor.codes.to(weights.device).view(-1) != 0
    magnitudes = weights.view(-1).abs()
    support = kept.nonzero().view(-1)
    if not support.numel() or support.numel() == kept.numel():
        return Nearest(values, None, support)
    least, most = float(magnitudes[kept].min()), float(magnitudes[~kept].max())
    return Nearest(values, (least + most) / 2 if least >= most else None, support)
