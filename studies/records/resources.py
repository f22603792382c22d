"""What a compressed network takes to run, beside the uncompressed one: energy, MACs, latency.

Zeros cost a file nothing, but a processor multiplies by them all the same. What really falls away are whole channels:
those that no weight reads any more are removed first, so that MACs and latency are of the network as one would run it.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.energy.channel_graph import shrink
from autocompress.energy.network_energy import energy_of, layer_shapes, run_example
from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network
from autocompress.training.aggregated import AggregatedModel

logger = logging.getLogger(__name__)

INPUTS = 64  # that a pass is timed with
RUNS, WARM_UP = 50, 5  # of each network that is timed


def resources_of(network: nn.Module, dense: nn.Module, example: Tensor) -> dict[str, float]:
    """Returns {"energy", "macs", "latency"} for one input, each as a part of the dense network's, and {"smaller"}.

    Energy is that of the analytic model, which skips zeros; MACs count them. Latency is the median time in which
    64 inputs are served on the CPU, the two networks in turns. "smaller" is 1 where the channels could be followed,
    else 0. An aggregated network serves several inputs in a pass.

    Args:
        network: what is asked about.
        dense: the uncompressed network of single inputs; its weights do not matter.
        example: one of these, batch dimension 1.
    """
    fold = network.fold if isinstance(network, AggregatedModel) else 1
    body = copy_network(network.network if isinstance(network, AggregatedModel) else network, device="cpu").eval()
    row = torch.cat([example] * fold, 1)
    smaller, followed = _smaller(body, row)
    whole = copy_network(dense, device="cpu").eval()
    before, after = median_seconds([whole, _Jointly(smaller, fold)], torch.cat([example] * INPUTS))
    return {
        "energy": energy_of(smaller, row).used / energy_of(whole, example).dense / fold,
        "macs": count_macs(smaller, row) / count_macs(whole, example) / fold,
        "latency": after / before,
        "smaller": float(followed),
    }


def _smaller(network: nn.Module, row: Tensor) -> tuple[nn.Module, bool]:
    """Returns the network without the channels that nothing takes, and whether they could be followed."""
    try:
        return shrink(network, row), True
    except InvalidInputError as error:
        logger.info("the network runs as it is: %s", error)
        return network, False


class _Jointly(nn.Module):
    """Serves inputs [b, channels, ...] a few at a time."""

    def __init__(self, network: nn.Module, fold: int) -> None:
        super().__init__()
        self.network, self.fold = network, fold

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.reshape(len(inputs) // self.fold, -1, *inputs.shape[2:])
        outputs: Tensor = self.network(rows)
        return outputs


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
