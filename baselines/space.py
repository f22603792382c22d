"""The search spaces: which numbers a searcher chooses, and the proposal that they mean.

per-layer   a keep fraction and a bit-width for each layer: what people search
block       the same for each block of layers: fewer numbers, for deep networks
global      one keep fraction and one bit-width
price       a price multiplier for each layer: the compressor's own projection, its trade between layers bent
uniform     a bit-width; every layer keeps the same fraction, the largest that fits
magnitude   a bit-width; what is kept is above one threshold over all layers, the lowest that fits
gradual     the same, trained by gradual magnitude pruning and quantized in the end: what people do without a search
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import scalar_tensors
from autocompress.solver.constants import DEFAULTS
from baselines.fitting import Budget, Fitted
from baselines.interface import Parameter, Values
from baselines.plan import LayerPlan, Plan
from baselines.repair import Group, PlanAt, Weights, grown, path_of, to_border

Layers = tuple[tuple[str, int], ...]  # (name, number of weights)

MAX_BITS = 6  # a codebook of 64 values; the entropy coder takes back most of what a larger one would cost
START_BITS = 3
# Keep fractions reach from that of the first proposal over this factor to it times this factor. Over the whole range,
# most random proposals empty some layer and no search of a few dozen trials comes back to where people begin.
KEEP_RANGE = 8.0
MIN_KEEP = 1e-5
# A layer's error may count this much more or less than another's in the price space.
MAX_MULTIPLIER = 16.0


@dataclass(frozen=True)
class GroupedSpace:
    """A keep fraction, in the logarithm, and a number of bits for each group of layers.

    Attributes:
        name: of the space.
        groups: (name, layers) of each.
        start_keeps: keep fraction of each group in the first proposal.
        more_starts: other points that are evaluated first.
    """

    name: str
    groups: tuple[tuple[str, Layers], ...]
    start_keeps: tuple[float, ...]
    more_starts: tuple[Values, ...] = ()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        found: list[Parameter] = []
        for (name, _), start in zip(self.groups, self.start_keeps, strict=True):
            low, high = max(start / KEEP_RANGE, MIN_KEEP), min(start * KEEP_RANGE, 1.0)
            found.append(Parameter(f"{name}.keep_fraction", low, high, log=True))
            found.append(Parameter(f"{name}.bits", 1, MAX_BITS, integer=True))
        return tuple(found)

    @property
    def start(self) -> Values:
        """What one magnitude threshold over all layers keeps, at `START_BITS`: where people begin."""
        keeps = {f"{name}.keep_fraction": keep for (name, _), keep in zip(self.groups, self.start_keeps, strict=True)}
        return {p.name: keeps.get(p.name, START_BITS) for p in self.parameters}

    @property
    def starts(self) -> tuple[Values, ...]:
        """One magnitude threshold, one keep fraction for all, and what the compressor would do at one price."""
        return (self.start, *self.more_starts)

    def clipped(self, plan: Plan) -> Values:
        """Returns the point of this space that is nearest to a plan."""
        values: dict[str, float] = {}
        for name, members in self.groups:
            numel = sum(count for _, count in members)
            keep = sum(plan.layers[layer].keep_fraction * count for layer, count in members) / numel
            bits = sum(math.log2(plan.layers[layer].codebook or 1) * count for layer, count in members) / numel
            values |= {f"{name}.keep_fraction": keep, f"{name}.bits": round(bits)}
        return {p.name: min(max(values[p.name], p.low), p.high) for p in self.parameters}

    def path(self, values: Values, weights: Weights, budget: Budget) -> PlanAt:
        groups = [
            Group(layers, values[f"{name}.keep_fraction"], 2 ** int(values[f"{name}.bits"]))
            for name, layers in self.groups
        ]
        return path_of(groups, [name for name, _ in weights], budget)


@dataclass(frozen=True)
class MultiplierSpace:
    """A multiplier, in the logarithm, on what each layer's error counts in the projection."""

    layers: Layers
    name: str = "price"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        low, high = 1 / MAX_MULTIPLIER, MAX_MULTIPLIER
        return tuple(Parameter(f"{name}.multiplier", low, high, log=True) for name, _ in self.layers)

    @property
    def start(self) -> Values:
        return {parameter.name: 1.0 for parameter in self.parameters}

    def scales(self, values: Values) -> list[float]:
        """Returns the square root of each layer's multiplier, by which its weights are scaled; only ratios count."""
        logs = [math.log(values[f"{name}.multiplier"]) for name, _ in self.layers]
        middle = sum(logs) / len(logs)
        return [math.exp((log - middle) / 2) for log in logs]


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
        return (Parameter("bits", 1, MAX_BITS, integer=True),)

    @property
    def start(self) -> Values:
        return {"bits": START_BITS}


@dataclass(frozen=True)
class UniformSpace(_BitsSpace):
    """Every layer keeps the largest same fraction that fits."""

    name: str = "uniform"

    def path(self, values: Values, weights: Weights, budget: Budget) -> PlanAt:
        return path_of([Group(self.layers, 1.0, 2 ** int(values["bits"]))], [name for name, _ in weights], budget)


@dataclass(frozen=True)
class MagnitudeSpace(_BitsSpace):
    """All weights above the lowest threshold that fits are kept, in whatever layer."""

    name: str = "magnitude"

    def path(self, values: Values, weights: Weights, budget: Budget) -> PlanAt:
        magnitudes = {name: weight.detach().abs().flatten().sort().values for name, weight in weights}
        every = torch.cat(list(magnitudes.values())).sort(descending=True).values

        def plan_at(place: float) -> Plan:
            codebook = grown(2 ** int(values["bits"]), math.exp(max(-place, 0.0)))
            count = int(every.numel() * math.exp(-max(place, 0.0)))
            threshold = every[count - 1] if count else torch.tensor(math.inf, device=every.device)
            return Plan({name: LayerPlan(_above(m, threshold), codebook) for name, m in magnitudes.items()})

        return plan_at


@dataclass(frozen=True)
class GradualSpace(MagnitudeSpace):
    """As `MagnitudeSpace`; trained by gradual magnitude pruning, quantized in the end (see `baselines.gradual`)."""

    name: str = "gradual"


def _above(magnitudes: Tensor, threshold: Tensor) -> float:
    """Returns the fraction of ascending magnitudes that are at least the threshold."""
    below = int(torch.searchsorted(magnitudes, threshold.to(magnitudes)))
    return 1 - below / magnitudes.numel()


PathSpace = GroupedSpace | UniformSpace | MagnitudeSpace
PlanSpace = PathSpace | MultiplierSpace


def fit(space: PathSpace, values: Values, network: Network, budget: Budget) -> Fitted:
    """Returns the proposal at the border of the budget, applied to the network's weights."""
    weights = network.selection.weights
    return to_border(space.path(values, weights, budget), weights, budget)


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
        assert isinstance(space, UniformSpace | MagnitudeSpace)
        fit(space, space.start, network, budget)
    return space


def one_multiplier_plan(network: Network, budget: Budget) -> Plan:
    """Returns the compressor's own plan for a network as it is: the same price of a bit in every layer."""
    weights = [weight.detach().float().clone() for weight in network.weights]
    found = scalar_tensors(budget.method(DEFAULTS).project_last(weights, weights).quantized)
    return Plan.of(dict(zip([name for name, _ in network.selection.weights], found, strict=True)))


def _grouped(name: str, grouping: Callable[[Layers], Mapping[str, Layers]]) -> Callable[..., PlanSpace]:
    def make(layers: Layers, network: Network, budget: Budget) -> PlanSpace:
        magnitude = fit(MagnitudeSpace(layers), {"bits": START_BITS}, network, budget).plan.layers
        groups = tuple(grouping(layers).items())
        starts = [
            sum(magnitude[name].keep_fraction * numel for name, numel in members) / sum(numel for _, numel in members)
            for _, members in groups
        ]
        space = GroupedSpace(name, groups, tuple(min(max(keep, MIN_KEEP), 1.0) for keep in starts))
        uniform = fit(UniformSpace(layers), {"bits": START_BITS}, network, budget).plan
        return replace(space, more_starts=(space.clipped(uniform), space.clipped(one_multiplier_plan(network, budget))))

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
    "price": lambda layers, network, budget: MultiplierSpace(layers),
    "uniform": lambda layers, network, budget: UniformSpace(layers),
    "magnitude": lambda layers, network, budget: MagnitudeSpace(layers),
    "gradual": lambda layers, network, budget: GradualSpace(layers),
}
SPACES = tuple(_MAKERS)
