"""How large the optimizer's learning rate is compared with its peak: all that is read of the user's optimizer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class RelativeRate:
    """Follows the learning rates of the parameter groups that hold compressed weights.

    The peak of a schedule is known where its scheduler notes it (`initial_lr`, `max_lr`); else it is the largest rate
    seen so far.

    Attributes:
        peaks: largest rate of each group.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
        """Watches the groups of `optimizer` that hold any of `weights`."""
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
