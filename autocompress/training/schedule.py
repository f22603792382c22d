"""The learning rate over a run: a linear warm-up, then a cosine to zero, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class WarmupCosine:
    """The factor on the peak learning rate in step 0, 1, ..., total_steps - 1.

    >>> [round(WarmupCosine(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.04, 0.0]
    """

    total_steps: int
    warmup_fraction: float

    def __call__(self, step: int) -> float:
        """Returns the factor in step `step`, in [0, 1]."""
        warmup_steps = round(self.warmup_fraction * self.total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_scheduler(optimizer: torch.optim.Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Returns the scheduler of a run; it sets the rate of the first step at once."""
    return LambdaLR(optimizer, WarmupCosine(total_steps, warmup_fraction))
