"""The search spaces: which numbers a searcher chooses, and the proposal that they mean.

per-layer   a keep fraction and a bit-width for each layer: what people search
block       the same for each block of layers: fewer numbers, for deep networks
global      one keep fraction and one bit-width
price       a price multiplier for each layer: the compressor's own projection, its trade between layers bent
uniform     a bit-width; every layer keeps the same fraction, the largest that fits
magnitude   a bit-width; what is kept is above one threshold over all layers, the lowest that fits
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError
from baselines.fitting import Budget, Fitted
from baselines.interface import Parameter, Values
from baselines.plan import LayerPlan, Plan
from baselines.repair import Group, loosest, repair

Layers = tuple[tuple[str, int], ...]  # (name, number of weights)

MOST_BITS = 6  # a codebook of 64 values; the entropy coder takes back most of what a larger one would cost
START_BITS = 3
# Keep fractions reach from that of the first proposal over this factor to it times this factor. Over the whole range,
# most random proposals empty some layer and no search of a few dozen trials comes back to where people begin.
KEEP_RANGE = 8.0
LOWEST_KEEP = 1e-5
# A layer's error may count this much more or less than another's in the price space.
LARGEST_MULTIPLIER = 16.0


@dataclass(frozen=True)
class GroupedSpace:
    """A keep fraction, in the logarithm, and a number of bits for each group of layers.

    Attributes:
        name: of the space.
        groups: (name, layers) of each.
        start_keeps: keep fraction of each group in the first proposal.
    """

    name: str
    groups: tuple[tuple[str, Layers], ...]
    start_keeps: tuple[float, ...]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Two numbers for each group."""
        found: list[Parameter] = []
        for (name, _), start in zip(self.groups, self.start_keeps, strict=True):
            low, high = max(start / KEEP_RANGE, LOWEST_KEEP), min(start * KEEP_RANGE, 1.0)
            found.append(Parameter(f"{name}.keep_fraction", low, high, log=True))
            found.append(Parameter(f"{name}.bits", 1, MOST_BITS, integer=True))
        return tuple(found)

    @property
    def start(self) -> Values:
        """What one magnitude threshold over all layers keeps, at `START_BITS`: where people begin."""
        keeps = {f"{name}.keep_fraction": keep for (name, _), keep in zip(self.groups, self.start_keeps, strict=True)}
        return {p.name: keeps.get(p.name, START_BITS) for p in self.parameters}

    def fit(self, values: Values, network: Network, budget: Budget) -> Fitted:
        """Returns the nearest plan that fits, applied to the network's weights."""
        groups = [
            Group(layers, values[f"{name}.keep_fraction"], 2 ** int(values[f"{name}.bits"]))
            for name, layers in self.groups
        ]
        return repair(groups, network.selection.weights, budget)


@dataclass(frozen=True)
class PriceSpace:
    """A multiplier, in the logarithm, on what each layer's error counts in the priced projection."""

    layers: Layers
    name: str = "price"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One number for each layer."""
        low, high = 1 / LARGEST_MULTIPLIER, LARGEST_MULTIPLIER
        return tuple(Parameter(f"{name}.multiplier", low, high, log=True) for name, _ in self.layers)

    @property
    def start(self) -> Values:
        """Plain squared error."""
        return {parameter.name: 1.0 for parameter in self.parameters}

    def fit(self, values: Values, network: Network, budget: Budget) -> Fitted:
        """Returns the projection at these multipliers; only their ratios count. It fits without a repair."""
        logs = [math.log(values[f"{name}.multiplier"]) for name, _ in self.layers]
        middle = sum(logs) / len(logs)
        return budget.priced([math.exp((log - middle) / 2) for log in logs])


@dataclass(frozen=True)
class _BitsSpace:
    """Only the bits are chosen, the same for all layers.

    Attributes:
        layers: of the network.
        name: of the space.
    """

    layers: Layers
    name: str

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One number."""
        return (Parameter("bits", 1, MOST_BITS, integer=True),)

    @property
    def start(self) -> Values:
        """`START_BITS`."""
        return {"bits": START_BITS}


@dataclass(frozen=True)
class UniformSpace(_BitsSpace):
    """Every layer keeps the largest same fraction that fits."""

    name: str = "uniform"

    def fit(self, values: Values, network: Network, budget: Budget) -> Fitted:
        """Returns the dense plan at these bits, repaired as one group."""
        return repair([Group(self.layers, 1.0, 2 ** int(values["bits"]))], network.selection.weights, budget)


@dataclass(frozen=True)
class MagnitudeSpace(_BitsSpace):
    """All weights above the lowest threshold that fits are kept, in whatever layer."""

    name: str = "magnitude"

    def fit(self, values: Values, network: Network, budget: Budget) -> Fitted:
        """Returns the plan of one magnitude threshold over all layers."""
        weights = network.selection.weights
        magnitudes = {name: weight.detach().abs().flatten().sort().values for name, weight in weights}
        every = torch.cat(list(magnitudes.values())).sort(descending=True).values
        codebook = 2 ** int(values["bits"])

        def plan_at(multiplier: float) -> Plan:
            count = int(every.numel() * math.exp(-multiplier))
            threshold = every[count - 1] if count else torch.tensor(math.inf, device=every.device)
            return Plan({name: LayerPlan(_above(m, threshold), codebook) for name, m in magnitudes.items()})

        return loosest(plan_at, weights, budget)


def _above(magnitudes: Tensor, threshold: Tensor) -> float:
    """Returns the fraction of ascending magnitudes that are at least the threshold."""
    below = int(torch.searchsorted(magnitudes, threshold.to(magnitudes)))
    return 1 - below / magnitudes.numel()


PlanSpace = GroupedSpace | PriceSpace | UniformSpace | MagnitudeSpace


def make_space(name: str, network: Network, budget: Budget) -> PlanSpace:
    """Returns a search space over the plans of a network.

    Args:
        name: one of `SPACES`.
        network: gives the layers.
        budget: gives the magnitude threshold that fits, from which the start and the ranges follow.

    Raises:
        InvalidInputError: the name is unknown.
        InfeasibleTargetError: no plan fits.
    """
    layers = tuple((layer, weight.numel()) for layer, weight in network.selection.weights)
    if name not in _MAKERS:
        raise InvalidInputError(f"the search space {name!r} is unknown; it may be {', '.join(SPACES)}")
    space = _MAKERS[name](layers, network, budget)
    if isinstance(space, _BitsSpace):  # the others were made from a plan that fits, or need none
        space.fit(space.start, network, budget)
    return space


def _grouped(name: str, grouping: Callable[[Layers], Mapping[str, Layers]]) -> Callable[..., PlanSpace]:
    def make(layers: Layers, network: Network, budget: Budget) -> PlanSpace:
        magnitude = MagnitudeSpace(layers).fit({"bits": START_BITS}, network, budget).plan.layers
        groups = tuple(grouping(layers).items())
        starts = [
            sum(magnitude[name].keep_fraction * numel for name, numel in members) / sum(numel for _, numel in members)
            for _, members in groups
        ]
        return GroupedSpace(name, groups, tuple(min(max(keep, LOWEST_KEEP), 1.0) for keep in starts))

    return make


def blocks(layers: Sequence[tuple[str, int]]) -> dict[str, Layers]:
    """Returns the layers by the block they lie in: the module two levels above the tensor.

    `layer1.0.conv1.weight` is of block `layer1.0`. What lies at the top of the network, such as the first convolution
    and the classifier, is a block of its own.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for name, numel in layers:
        parts = name.split(".")
        found.setdefault(".".join(parts[:-2]) if len(parts) > 2 else name, []).append((name, numel))
    return {block: tuple(members) for block, members in found.items()}


_MAKERS: dict[str, Callable[[Layers, Network, Budget], PlanSpace]] = {
    "per-layer": _grouped("per-layer", lambda layers: {name: ((name, numel),) for name, numel in layers}),
    "block": _grouped("block", blocks),
    "global": _grouped("global", lambda layers: {"all": layers}),
    "price": lambda layers, network, budget: PriceSpace(layers),
    "uniform": lambda layers, network, budget: UniformSpace(layers),
    "magnitude": lambda layers, network, budget: MagnitudeSpace(layers),
}
SPACES = tuple(_MAKERS)
