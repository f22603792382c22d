"""`Energy(channels=True)`: whole channels within an energy that is bilinear in their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection
from autocompress.constraints.energy import EnergyMethod
from autocompress.energy.channel_graph import ChannelCount
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.methods.weights_alone import WeightsAlone
from autocompress.projection.channel_widths import choose_widths, losses_of
from autocompress.solver.budget_path import left_of_path
from autocompress.solver.constants import DEFAULTS, SolverConstants


class ChannelEnergyMethod(EnergyMethod):
    """Keeps the energy of a forward pass within a budget by zeroing whole channels; the file's size is free."""

    def __init__(
        self, network: Network, count: ChannelCount, fraction: Fraction, constants: SolverConstants = DEFAULTS
    ) -> None:
        """Checks that the budget can be met.

        Raises:
            InvalidInputError: a tensor that holds channels is not compressed.
            InfeasibleTargetError: naming the smallest fraction, in percent.
        """
        WeightsAlone.__init__(self, network)
        self.constants = constants
        self.graph, self.energy = count.graph, count.energy
        self.limit = float(fraction) * self.energy.dense
        self.centroids: list[Tensor] | None = None
        names = {name for name, _ in network.selection.weights}
        for group in self.graph.groups:
            for part in group.slices:
                if part.weight not in names:
                    raise InvalidInputError(f"an energy-channels target needs {part.weight}, which is ignored")
        smallest = float(self.energy.of(np.ones(len(self.graph.groups))))
        if smallest > self.limit:
            percent = math.ceil(1e4 * smallest / self.energy.dense) / 100
            raise InfeasibleTargetError(
                f"the target is {float(100 * fraction):g}% of the dense energy, but the smallest is {percent}%, with "
                "one channel in each group",
                percent,
            )

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns V, its channels within the budget of this moment, which falls by equal factors."""
        ahead = left_of_path(fraction, self.constants)
        limit = self.limit * max(1.0, self.energy.dense / self.limit) ** ahead
        named = {name: x for (name, _), x in zip(self.network.selection.weights, targets, strict=True)}
        saliencies = self.graph.saliencies(named)
        widths = choose_widths(losses_of(saliencies), self.energy, limit)
        keep = []
        for saliency, width in zip(saliencies, widths, strict=True):
            kept = torch.zeros(len(saliency), dtype=torch.bool)
            kept[torch.from_numpy(saliency).argsort(descending=True, stable=True)[: int(width)]] = True
            keep.append(kept)
        masks = self.graph.masks(self.network.model, keep)
        whole = [masks.get(name, torch.ones_like(x, dtype=torch.bool)) for name, x in named.items()]
        return self._valued(targets, whole)
