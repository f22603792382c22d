"""ADMM: the network W, the compressed network V, the scaled dual U, and one update of the three.

    minimise  loss(W)   subject to   W = V,   V in C = { cost(V) <= budget }

Scaled form of the augmented Lagrangian (Boyd et al. 2011, section 3.1.1; Yang et al. 2020, equations 5 to 8):

    W <- argmin  loss(W) + rho/2 ||W - V + U||^2      gradient steps by the user's optimizer, each with `follow`
    V <- argmin_{V in C}  ||V - (W + U)||^2           a projection
    U <- U + W - V

| symbol | here | shape |
|---|---|---|
| W | `weights`, the parameters being trained | any, per layer |
| V | `quantized`, values of a codebook or zero | as W |
| U | `duals` | as W |
| rho | never set: see `Admm` | |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from autocompress.network.compressed_tensors import WeightTensor


class Admm:
    """The state of the splitting and its two moves; knows nothing of costs.

    A gradient step on rho/2 ||W - V + U||^2, taken implicitly with step lr, is
    W <- (W + lr rho (V - U)) / (1 + lr rho) (Yang et al. 2020, the proximal step). What acts between two updates is
    the contraction 1 - exp(-rho sum lr), so that is what is fixed, and rho follows from it and the learning rates:
    lr rho = -log(1 - contraction) / steps_per_update * lr / peak lr. The scale of the learning rate cancels, so SGD
    and Adam need no different setting.
    """

    def __init__(self, weights: Sequence[Tensor], steps_per_update: int, contraction: float) -> None:
        """Starts at V = W, U = 0.

        Args:
            weights: the parameters; changed in place by `follow` and, where the projection wants it, by `update`.
            steps_per_update: optimizer steps between two updates.
            contraction: the share of the distance from W to V - U that the proximal steps between two updates take
                back, at the peak learning rate and without a gradient. The published LeNet-5 setting has 0.69 (lr 0.1,
                rho 0.05, 235 steps).
        """
        self.weights = list(weights)
        self.steps_per_update, self.contraction = steps_per_update, contraction
        self.duals = [torch.zeros_like(w) for w in self.weights]
        self.centers = [w.detach().clone() for w in self.weights]  # V - U, all that the proximal step needs

    @torch.no_grad()
    def after_step(self, relative_lr: float) -> None:
        """Moves W towards V - U by one implicit proximal step.

        Args:
            relative_lr: the current learning rate as a part of its peak, in [0, 1].
        """
        strength = proximal_strength(self.steps_per_update, self.contraction, relative_lr)
        torch._foreach_lerp_(self.weights, self.centers, strength / (1 + strength))

    @torch.no_grad()
    def points(self) -> list[Tensor]:
        """Returns W + U, what a projection is applied to."""
        return [w + u for w, u in zip(self.weights, self.duals, strict=True)]

    @torch.no_grad()
    def update(
        self, quantized: Sequence[WeightTensor], pruned: Sequence[Tensor] | None = None, rules: object = None
    ) -> float:
        """Takes the projection's V (and W), moves the dual: U <- U + W - V.

        Args:
            quantized: V, projections of `points()`.
            pruned: a new W where the method projects W, too (Yang et al. 2020 prune it in place).
            rules: not used: between two updates the network runs as W.

        Returns:
            The primal residual ||W - V||.
        """
        residual = 0.0
        for i, (weight, dual, tensor) in enumerate(zip(self.weights, self.duals, quantized, strict=True)):
            if pruned is not None:
                weight.copy_(pruned[i])
            v = tensor.dense().to(weight)
            dual.add_(weight - v)
            residual += float((weight - v).float().square().sum())
            self.centers[i].copy_(v - dual)
        return math.sqrt(residual)

    def reassign(self) -> None:
        """Does nothing: between two updates the network runs as W."""

    def restore_dense(self) -> None:
        """Does nothing: the parameters hold W."""

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Returns U and V - U; W is the model's."""
        return {"duals": self.duals, "centers": self.centers}

    def load_state_dict(self, state: dict[str, list[Tensor]], rules: object = None) -> None:
        for mine, saved in zip(self.duals + self.centers, state["duals"] + state["centers"], strict=True):
            mine.copy_(saved)


def proximal_strength(steps_per_update: int, contraction: float, relative_lr: float) -> float:
    """Returns lr * rho of one step."""
    return -math.log(1 - contraction) / steps_per_update * relative_lr


class RelativeRate:
    """Follows the learning rates of the parameter groups that hold compressed weights.

    The peak of a schedule is known where its scheduler notes it (`initial_lr`, `max_lr`); else it is the largest rate
    seen so far.

    Attributes:
        peaks: largest rate of each group.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
        self.optimizer, self.weights = optimizer, {id(weight) for weight in weights}
        self.peaks: list[float] = []

    def now(self) -> float:
        """Returns the present rate as a part of the peak, in [0, 1], averaged over the groups; 1 without any.

        A group whose rate is and was zero is frozen: it says nothing of the others.
        """
        groups = [g for g in self.optimizer.param_groups if any(id(p) in self.weights for p in g["params"])]
        if not groups:
            return 1.0
        known = [max(float(g["lr"]), float(g.get("initial_lr", 0)), float(g.get("max_lr", 0))) for g in groups]
        if len(self.peaks) != len(groups):
            self.peaks = known
        self.peaks = [max(peak, rate) for peak, rate in zip(self.peaks, known, strict=True)]
        parts = [float(group["lr"]) / peak for group, peak in zip(groups, self.peaks, strict=True) if peak]
        return sum(parts) / len(parts) if parts else 0.0
