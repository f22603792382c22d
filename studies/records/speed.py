"""What a forward pass takes: multiplications, and time side by side with another network's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from autocompress.energy.network_energy import layer_shapes, run_example

RUNS = 50
WARM_UP = 5


def count_macs(model: nn.Module, example: Any) -> int:
    """Returns the multiplications of convolutions and linear layers for one example, zeros counted."""
    uses = layer_shapes(model, example).values()
    return sum(shape.weights * shape.positions for shapes in uses for shape in shapes)


def median_seconds(models: Sequence[nn.Module], example: Any, runs: int = RUNS) -> list[float]:
    """Returns the median time of a forward pass of each network.

    The networks take turns, so that what else the machine does meets them all alike.

    Args:
        models: on one device.
        example: what they take; the whole batch is one pass.
        runs: of each, after some to warm up.
    """
    times: list[list[float]] = [[] for _ in models]
    for number in range(WARM_UP + runs):
        for model, taken in zip(models, times, strict=True):
            began = time.perf_counter()
            run_example(model, example)
            if next(model.parameters()).is_cuda:
                torch.cuda.synchronize()
            if number >= WARM_UP:
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]
