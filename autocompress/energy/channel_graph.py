"""The channels of a network: which belong together, how much each matters, and the network without some of them.

A channel of a group is one output of the layers that give it and one input of those that take it. Where the inputs are
zero it can go, whatever its producers do: the smaller network gives the same outputs.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.energy.accelerator import LayerShape
from autocompress.energy.channel_model import ChannelEnergy, Floats, fit_channel_energy, random_widths
from autocompress.energy.network_energy import EnergyUse, layer_shapes, run_example
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import copy_network, refuse_unfinished, tensors_in

# Random widths that the bilinear model is fitted to, where the analytic model takes no time.
ANALYTIC_SAMPLES = 400
# Largest difference of outputs, as a part of the largest output, that sums in another order may make.
TOLERANCE = 1e-3
# Names of layers in an error.
NAMES_SHOWN = 3

# (module, "in" or "out", index along that side of the module, channel of the group), one entry per slice.
Member = tuple[str, str, list[int], list[int]]


@dataclass(frozen=True)
class Slice:
    """Where the channels of a group lie in one weight tensor.

    Attributes:
        weight: name of the tensor.
        dim: 0 for a producer, 1 for a consumer.
        index: int64 [m], positions along `dim`.
        channel: int64 [m], the group's channel at each.
    """

    weight: str
    dim: int
    index: Tensor
    channel: Tensor


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together: root layer, how many, and where they lie."""

    root: str
    channels: int
    slices: tuple[Slice, ...]


class ChannelGraph:
    """The groups of channels of a network that can be removed.

    Attributes:
        groups: those with a layer that takes them; the network's own inputs and outputs stay.
        shapes: the uses of each layer's weight.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        """Finds the groups and tries that the network without some of each does the same as with them at zero.

        Args:
            model: the network, unwrapped; left as it was.
            example: what it takes, with a batch dimension.

        Raises:
            InvalidInputError: torch-pruning is missing, or cannot follow a layer, which is named.
        """
        refuse_unfinished(model)
        difference(model, model, example)  # an output that cannot be compared is not the fault of any channel
        self.shapes = layer_shapes(model, example)
        self.example = _telling(model, _on(example, next(model.parameters()).device))
        layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, _LAYERS)} & set(self.shapes)
        self.groups: list[ChannelGroup] = []
        for members in channel_groups(model, self.example):
            root, _, _, channels = members[0]
            slices = tuple(
                Slice(f"{name}.weight", int(side == "in"), torch.tensor(index), torch.tensor(channel))
                for name, side, index, channel in members
                if f"{name}.weight" in layers
            )
            for part in slices:
                size = model.get_parameter(part.weight).shape[part.dim]
                if int(part.index.max()) >= size or int(part.channel.max()) >= len(channels):
                    raise InvalidInputError(
                        f"the channels of layer {root!r} cannot be followed to {part.weight.removesuffix('.weight')}: "
                        "something between them moves or mixes channels"
                    )
            if any(part.dim == 1 for part in slices):
                self.groups.append(ChannelGroup(root, len(channels), slices))
        if not self.groups:
            raise InvalidInputError(
                "the network has no channels that could be removed: no layer takes another's outputs"
            )
        self._check(model)

    def _check(self, model: nn.Module) -> None:
        halves = [torch.arange(group.channels) % 2 == 0 for group in self.groups]
        everything = [torch.ones(group.channels, dtype=torch.bool) for group in self.groups]
        if self._difference(model, halves) <= TOLERANCE:
            return
        for number, group in enumerate(self.groups):
            keep = [*everything[:number], halves[number], *everything[number + 1 :]]
            if self._difference(model, keep) > TOLERANCE:
                others = sorted({part.weight.removesuffix(".weight") for part in group.slices} - {group.root})
                more = f" and {len(others) - NAMES_SHOWN} others" if len(others) > NAMES_SHOWN else ""
                raise InvalidInputError(
                    f"the channels of layer {group.root!r} cannot be removed: the network without them does not give "
                    f"the same outputs; something between it and {', '.join(others[:NAMES_SHOWN])}{more} pads, moves "
                    "or mixes channels. A target such as energy:40%, of single weights, takes any network"
                )
        raise InvalidInputError(
            f"the channels of layers {', '.join(repr(g.root) for g in self.groups)} cannot be removed together"
        )

    def _difference(self, model: nn.Module, keep: Sequence[Tensor]) -> float:
        """Returns how far the smaller network's outputs are from the masked one's, relative to the largest."""
        masked = copy_network(model)
        with torch.no_grad():
            for weight, mask in self.masks(masked, keep).items():
                masked.get_parameter(weight).mul_(mask)
        try:
            return difference(masked, self.without(masked, keep), self.example)
        except Exception:  # shapes that no longer fit together: any error that a network's forward may raise
            return float("inf")

    def masks(self, model: nn.Module, keep: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns for each weight that has channels of a group a mask in its shape, 0 where a dropped one lies."""
        found: dict[str, Tensor] = {}
        for group, kept in zip(self.groups, keep, strict=True):
            for part in group.slices:
                weight = model.get_parameter(part.weight)
                along = torch.ones(weight.shape[part.dim], dtype=torch.bool)
                along[part.index] = kept.cpu()[part.channel]
                shape = [-1 if d == part.dim else 1 for d in range(weight.dim())]
                mask = found.get(part.weight, torch.ones(weight.shape, dtype=torch.bool, device=weight.device))
                found[part.weight] = mask & along.to(weight.device).view(shape)
        return found

    def saliencies(self, weights: Mapping[str, Tensor]) -> list[Floats]:
        """Returns for each group the squared norm [channels] of what goes with each channel."""
        found = []
        for group in self.groups:
            total = torch.zeros(group.channels, dtype=torch.float64)
            for part in group.slices:
                if part.weight in weights:
                    slices = weights[part.weight].detach().double().transpose(0, part.dim).flatten(1)
                    total.index_add_(0, part.channel, slices.square().sum(1).cpu()[part.index])
            found.append(total.numpy())
        return found

    def kept(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns for each group which channels [channels] are taken by a layer with a weight that is not zero."""
        found = []
        for group in self.groups:
            keep = torch.zeros(group.channels, dtype=torch.bool)
            for part in group.slices:
                if part.dim == 1:
                    used = (weights[part.weight].detach() != 0).transpose(0, 1).flatten(1).any(1).cpu()
                    keep[part.channel[used[part.index]]] = True
            if not keep.any():
                keep[0] = True  # a layer cannot have no channel at all
            found.append(keep)
        return found

    def without(self, model: nn.Module, keep: Sequence[Tensor]) -> nn.Module:
        """Returns a copy of the network that physically lacks the channels not kept."""
        drops = {g.root: (~kept).nonzero().flatten().tolist() for g, kept in zip(self.groups, keep, strict=True)}
        return without_channels(model, self.example, drops)

    def terms(self) -> list[tuple[int, int]]:
        """Returns the pairs of groups that some layer takes and gives."""
        ends = [(a, b) for a, b in self._ends().values() if a is not None and b is not None]
        return sorted({(min(a, b), max(a, b)) for a, b in ends})

    def _ends(self) -> dict[str, tuple[int | None, int | None]]:
        """Returns for each weight the groups of its inputs and outputs, None where these stay."""
        ends: dict[str, list[int | None]] = {weight: [None, None] for weight in self.shapes}
        for number, group in enumerate(self.groups):
            for part in group.slices:
                ends[part.weight][1 - part.dim] = number
        return {weight: (a, b) for weight, (a, b) in ends.items()}

    def analytic_energy(self, widths: Sequence[int]) -> float:
        """Returns the energy by the accelerator model with this many channels in each group."""
        part = [width / group.channels for width, group in zip(widths, self.groups, strict=True)]
        total = 0.0
        for weight, (a, b) in self._ends().items():
            for shape in self.shapes[weight]:
                outputs = shape.outputs if b is None else max(1, round(shape.outputs * part[b]))
                inputs = shape.inputs if a is None else max(1, round(shape.inputs * part[a]))
                total += _narrowed(shape, inputs, outputs).energy()
        return total

    def fitted_energy(self, seed: int = 0, samples: int = ANALYTIC_SAMPLES) -> ChannelEnergy:
        channels = [group.channels for group in self.groups]
        widths = random_widths(channels, samples, seed)
        energies = np.array([self.analytic_energy(row.tolist()) for row in widths])
        names = [group.root for group in self.groups]
        return fit_channel_energy(names, channels, self.terms(), widths, energies, "register accesses")


class ChannelCount:
    """The energy of a network by its channels.

    Attributes:
        graph: its channels.
        energy: what any number of them costs.
    """

    def __init__(self, model: nn.Module, example: Any, energy: ChannelEnergy | None = None) -> None:
        """Follows the channels and takes the energy model, by default one fitted to the accelerator model.

        Raises:
            InvalidInputError: the channels cannot be followed, or the energy model is of another network.
        """
        self.graph = ChannelGraph(model, example)
        self.energy = energy or self.graph.fitted_energy()
        mine = tuple((group.root, group.channels) for group in self.graph.groups)
        theirs = tuple(zip(self.energy.groups, self.energy.channels, strict=True))
        if theirs != mine:
            raise InvalidInputError(
                f"the energy model is of another network: its channels are {dict(theirs)}, this one's {dict(mine)}"
            )

    def use(self, state: CompressedState) -> EnergyUse:
        """Returns the energy before and after, by the channels that are still taken."""
        weights = {name: tensor.codes for name, tensor in state.quantized.items()}
        widths = [int(kept.sum()) for kept in self.graph.kept(weights)]
        return EnergyUse(self.energy.dense, float(self.energy.of(widths)), self.energy.unit)


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def _narrowed(shape: LayerShape, inputs: int, outputs: int) -> LayerShape:
    if shape.groups == shape.inputs > 1:  # depthwise: as many inputs as outputs, which are its one group
        return shape.narrowed(outputs * shape.inputs // shape.outputs, outputs)
    return shape.narrowed(inputs, outputs)


def shrink(model: nn.Module, example: Any) -> nn.Module:
    """Returns a physically smaller copy of a network: without the channels that no layer takes.

    Args:
        model: the network, as an `energy-channels` target left it.
        example: what it takes, with a batch dimension.

    Raises:
        InvalidInputError: torch-pruning is missing, or the network's channels cannot be followed.
    """
    graph = ChannelGraph(model, example)
    smaller = graph.without(model, graph.kept(dict(model.named_parameters())))
    if difference(model, smaller, graph.example) > TOLERANCE:
        raise InvalidInputError("the network without its unused channels does not give the same outputs")
    return smaller


def difference(first: nn.Module, second: nn.Module, example: Any) -> float:
    """Returns the largest difference of two networks' outputs, as a part of the first's largest."""
    pairs = zip(tensors_in(run_example(first, example)), tensors_in(run_example(second, example)), strict=True)
    gaps = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs if a.numel()]
    if not gaps:
        raise InvalidInputError("the network's output holds no tensor to compare; its forward must return some")
    return max(gaps)


def _telling(model: nn.Module, example: Any) -> Any:
    """Returns an example whose values differ: of zeros alone a network may do the same whatever becomes of channels.

    A floating-point input of one value all over is drawn from [0, 1) where the network's outputs are then finite.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: drawn(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            return tuple(map(drawn, value))
        constant = (
            isinstance(value, Tensor) and value.is_floating_point() and bool((value == value.flatten()[:1]).all())
        )
        return torch.rand(value.shape, generator=generator).to(value) if constant else value

    other = drawn(example)
    try:
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(run_example(model, other)))
    except InvalidInputError:
        return example
    return other if finite else example


def _on(example: Any, device: torch.device) -> Any:
    if isinstance(example, Mapping):
        return {key: _on(value, device) for key, value in example.items()}
    if isinstance(example, tuple | list):
        return tuple(_on(value, device) for value in example)
    return example.to(device) if isinstance(example, Tensor) else example


# What follows is all that knows of torch-pruning, an optional package.


def channel_groups(model: nn.Module, example: Any) -> list[list[Member]]:
    """Returns for each group of channels that can only go together where they are; the first entry is its root.

    Args:
        model: the network, on the device of the example; left as it was.
        example: what it takes.

    Raises:
        InvalidInputError: torch-pruning is not installed, or cannot trace the network.
    """
    model = _traceable_copy(model)
    graph = _graph(model, example)
    names = {id(module): name for name, module in model.named_modules()}
    roots = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear]
    found = []
    for group in graph.get_all_groups(ignored_layers=[], root_module_types=roots):
        members = []
        for item in group:
            name = names.get(id(item.dep.target.module))
            if name is not None:
                side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
                members.append((name, side, [int(i) for i in item.idxs], [int(i) for i in item.root_idxs]))
        found.append(members)
    return found


def without_channels(model: nn.Module, example: Any, drops: Mapping[str, list[int]]) -> nn.Module:
    """Returns a copy of the network, physically smaller.

    Args:
        model: the network.
        example: what it takes.
        drops: of groups, by the name of their root: the channels that go.

    Raises:
        InvalidInputError: see `channel_groups`.
    """
    smaller = _traceable_copy(model)
    graph = _graph(smaller, example)
    for name, channels in drops.items():
        root = smaller.get_submodule(name)
        if channels:
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(trained[name])
    return smaller


def _traceable_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in evaluation mode whose parameters are all trained: torch-pruning follows their gradients."""
    copied = copy_network(model).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _graph(model: nn.Module, example: Any) -> Any:
    try:
        library = importlib.import_module("torch_pruning")
    except ImportError as error:
        raise InvalidInputError(
            "removing channels needs the package torch-pruning: pip install torch-pruning"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return library.DependencyGraph().build_dependency(
                model, example_inputs=example, output_transform=tensors_in
            )
    except Exception as error:  # whatever a traced network may raise
        raise InvalidInputError(f"torch-pruning cannot follow the channels of this network: {error}") from error
