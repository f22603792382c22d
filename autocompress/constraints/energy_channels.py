"""`Energy(channels=True)`: whole channels within an energy that is bilinear in their numbers.

    minimise  sum_g D_g(s_g)   subject to   psi(s) <= limit,   1 <= s_g <= c_g integers        (Yang et al. 2019, CVPR)

D_g(s) is what group g loses when only its s channels of largest saliency stay: convex, falling. Two methods, neither
exact, because the constraint is bilinear:

    multiplier  at a multiplier of energy, each group in turn takes its best width given the others (exact, by trying
                all), until none moves; the multiplier by bisection; the rest of the limit to the channels worth most
    greedy      all channels at first; the one that loses least per energy it saves goes, until the limit holds

The first is the multiplier of the paper with its gradient steps replaced by exact ones. The better of both is improved
by exchanges: 1, 2, 4, ... channels of a group go, and what is then free is filled again.
Cost: O(multipliers * sweeps * channels), and O(channels * groups) for the greedy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.constraints.constraint import Network, Projection
from autocompress.constraints.energy import ValuedMasks
from autocompress.energy.channel_graph import ChannelCount
from autocompress.energy.channel_model import ChannelEnergy, Floats
from autocompress.errors import InfeasibleTargetError, InvalidInputError
from autocompress.solver.constants import DEFAULTS, SolverConstants, remaining_path

Widths = npt.NDArray[np.int64]
MULTIPLIER_TOLERANCE = 0.01  # relative width of the bracket at which the bisection stops
SWEEPS = 30


def lost_saliency(saliencies: Sequence[Floats]) -> list[Floats]:
    """Returns for each group what it loses at 0 ... c kept channels, [c + 1], falling to 0."""
    return [np.concatenate([np.cumsum(np.sort(s))[::-1], [0.0]]) for s in saliencies]


def loss_at(losses: Sequence[Floats], widths: Widths) -> float:
    """Returns what is lost at these widths."""
    return float(sum(loss[width] for loss, width in zip(losses, widths, strict=True)))


def choose_widths(losses: Sequence[Floats], energy: ChannelEnergy, limit: float) -> Widths:
    """Returns the better of the two methods' widths, improved by exchanges.

    Args:
        losses: of each group at 0 ... c kept channels.
        energy: psi.
        limit: most energy.

    Raises:
        InfeasibleTargetError: one channel per group is too much.
    """
    smallest = float(energy.of(np.ones(len(losses))))
    if smallest > limit:
        raise InfeasibleTargetError(f"one channel per group takes {smallest:.6g}, more than {limit:.6g}", smallest)
    found = [method(losses, energy, limit) for method in (widths_by_multiplier, widths_by_greedy)]
    return _exchanged(losses, energy, limit, min(found, key=lambda widths: loss_at(losses, widths)))


def _exchanged(losses: Sequence[Floats], energy: ChannelEnergy, limit: float, widths: Widths) -> Widths:
    """Returns widths that no exchange makes better."""
    best, improved = loss_at(losses, widths), True
    while improved:
        improved = False
        for group in range(len(losses)):
            gone = 1
            while gone < widths[group]:
                tried = widths.copy()
                tried[group] -= gone
                tried = _filled(losses, energy, limit, tried)
                if loss_at(losses, tried) < best * (1 - 1e-9):
                    widths, best, improved = tried, loss_at(losses, tried), True
                gone *= 2
    return widths


def widths_by_multiplier(losses: Sequence[Floats], energy: ChannelEnergy, limit: float) -> Widths:
    """Returns widths within the limit, by a multiplier of energy."""
    full = np.array(energy.channels)
    if energy.of(full) <= limit:
        return full
    best = np.ones(len(losses), dtype=np.int64)
    low, high = 1e-12, 1e12  # of the whole loss per dense energy
    scale = max(sum(float(loss[0]) for loss in losses), 1e-30) / energy.dense
    while high / low > 1 + MULTIPLIER_TOLERANCE:
        multiplier = float(np.sqrt(low * high))
        widths = _descend(losses, energy, multiplier * scale, full)
        if energy.of(widths) <= limit:
            high = multiplier
            if loss_at(losses, widths) < loss_at(losses, best):
                best = widths
        else:
            low = multiplier
    return _filled(losses, energy, limit, best)


def _descend(losses: Sequence[Floats], energy: ChannelEnergy, multiplier: float, start: Widths) -> Widths:
    """Returns widths none of which alone has a smaller loss + multiplier * energy."""
    widths = start.copy()
    for _ in range(SWEEPS):
        before = widths.copy()
        for group, loss in enumerate(losses):
            tried = np.repeat(widths[None], len(loss) - 1, axis=0)
            tried[:, group] = np.arange(1, len(loss))
            widths = tried[int(np.argmin(loss[1:] + multiplier * energy.of(tried)))]
        if np.array_equal(before, widths):
            break
    return widths


def _filled(losses: Sequence[Floats], energy: ChannelEnergy, limit: float, widths: Widths) -> Widths:
    """Returns the widths with channels added, the most saved loss first, while any fits."""
    while True:
        tried = widths + np.eye(len(widths), dtype=np.int64)
        fits = (tried <= np.array(energy.channels)).all(axis=1) & (energy.of(tried) <= limit)
        if not fits.any():
            return widths
        gains = [loss[w] - loss[w + 1] if f else -1.0 for loss, w, f in zip(losses, widths, fits, strict=True)]
        widths = tried[int(np.argmax(gains))]


def widths_by_greedy(losses: Sequence[Floats], energy: ChannelEnergy, limit: float) -> Widths:
    """Returns widths within the limit, by dropping one channel after the other."""
    widths = np.array(energy.channels)
    while float(energy.of(widths)) > limit:
        tried = widths - np.eye(len(widths), dtype=np.int64)
        saved = energy.of(widths) - energy.of(tried)
        lost = np.array([loss[max(w - 1, 0)] - loss[w] for loss, w in zip(losses, widths, strict=True)])
        rate = np.where((widths > 1) & (saved > 0), lost / np.maximum(saved, 1e-300), np.inf)
        if not np.isfinite(rate).any():
            return np.ones(len(losses), dtype=np.int64)
        widths = tried[int(np.argmin(rate))]
    return _filled(losses, energy, limit, widths)


class ChannelEnergyConstraint(ValuedMasks):
    """Keeps the energy of a forward pass within a budget by zeroing whole channels; the file's size is free."""

    def __init__(
        self, network: Network, count: ChannelCount, fraction: Fraction, constants: SolverConstants = DEFAULTS
    ) -> None:
        """Checks that the budget can be met.

        Raises:
            InvalidInputError: a tensor that holds channels is not compressed.
            InfeasibleTargetError: naming the smallest fraction, in percent.
        """
        super().__init__(network)
        self.constants = constants
        self.graph, self.energy = count.graph, count.energy
        self.limit = float(fraction) * self.energy.dense
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

    def budget(self, fraction: float) -> float:
        """Returns the energy of this moment, which falls by equal factors."""
        ahead = remaining_path(fraction, self.constants)
        return float(self.limit * max(1.0, self.energy.dense / self.limit) ** ahead)

    def project(
        self, x: Sequence[Tensor], budget: float, state: list[Tensor] | None, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, list[Tensor] | None]:
        """Returns V."""
        named = {name: each for (name, _), each in zip(self.network.selection.weights, x, strict=True)}
        saliencies = self.graph.saliencies(named)
        widths = choose_widths(lost_saliency(saliencies), self.energy, budget)
        keep = []
        for saliency, width in zip(saliencies, widths, strict=True):
            kept = torch.zeros(len(saliency), dtype=torch.bool)
            kept[torch.from_numpy(saliency).argsort(descending=True, stable=True)[: int(width)]] = True
            keep.append(kept)
        masks = self.graph.masks(self.network.model, keep)
        whole = [masks.get(name, torch.ones_like(each, dtype=torch.bool)) for name, each in named.items()]
        return self.valued(x, whole, state)

    project_last = project
