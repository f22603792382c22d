"""The energy of one forward pass of a network, by the analytic model of `accelerator`.

The sizes of a network's layers are found by one pass of an example; from them follow what each nonzero weight costs and
what inputs and outputs cost whatever the weights are. Convolutions (not transposed) and linear layers are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.energy.accelerator import LayerShape, WeightEnergy
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import accepted_arguments, modes_put_back, refuse_unfinished

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class NetworkEnergy:
    """What a forward pass of one example costs.

    Attributes:
        weights: of each weight tensor that is counted, by its name: what its nonzeros cost.
        sizes: number of elements of each.
        activations: what inputs and outputs of all layers cost together.
        uncounted: weight tensors of two or more dimensions that the model cannot count, with the kind of their module.
        shapes: the uses of each weight tensor, by its name.
    """

    weights: dict[str, WeightEnergy]
    sizes: dict[str, int]
    activations: float
    uncounted: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, tuple[LayerShape, ...]] = field(default_factory=dict)

    @property
    def dense(self) -> float:
        return self.used({})

    def used(self, nonzeros: Mapping[str, int]) -> float:
        """Returns the energy of a network with these nonzeros; tensors not named are dense."""
        return self.activations + sum(
            cost.of(nonzeros.get(name, self.sizes[name])) for name, cost in self.weights.items()
        )

    def use(self, state: CompressedState) -> EnergyUse:
        """Returns the energy before and after, counted on what a network's file holds."""
        return EnergyUse(self.dense, self.used({name: tensor.nonzeros for name, tensor in state.quantized.items()}))


@dataclass(frozen=True)
class EnergyUse:
    """Energy before and after.

    Attributes:
        dense: of the network as it was.
        used: of the compressed one.
        unit: of both.
    """

    dense: float
    used: float
    unit: str = "register accesses"

    @property
    def fraction(self) -> float:
        return self.used / self.dense

    def to_json(self) -> dict[str, float | str]:
        return {
            "dense_energy": self.dense,
            "energy": self.used,
            "energy_fraction": self.fraction,
            "energy_unit": self.unit,
        }

    def __str__(self) -> str:
        return f"energy       {self.used:>12.4g} of {self.dense:.4g} {self.unit}, {100 * self.fraction:.2f} %"


def network_energy(model: nn.Module, example: Any) -> NetworkEnergy:
    """Returns what a forward pass of one example costs.

    Args:
        model: the network, unwrapped; left as it was.
        example: what it takes: a tensor with a batch dimension, a tuple of several, or a dict of keyword arguments.

    Raises:
        InvalidInputError: the network does not take the example, or has no layer that can be counted.
    """
    uses = layer_shapes(model, example)
    if not uses:
        raise InvalidInputError("energy: the network has no convolution or linear layer that the example goes through")
    weights = {name: _total(shapes) for name, shapes in uses.items()}
    parameters = dict(model.named_parameters())
    kinds = {
        f"{name}.{key}" if name else key: type(module).__name__
        for name, module in model.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    }
    return NetworkEnergy(
        weights=weights,
        sizes={name: parameters[name].numel() for name in weights},
        activations=sum(shape.activation_energy() for shapes in uses.values() for shape in shapes),
        uncounted={n: kinds[n] for n, p in parameters.items() if p.dim() > 1 and p.numel() and n not in weights},
        shapes=uses,
    )


def energy_of(model: nn.Module, example: Any) -> EnergyUse:
    """Returns the energy of a network with its zeros, and what it would be without them; see `network_energy`."""
    refuse_unfinished(model)
    energy = network_energy(model, example)
    counts = {name: int(torch.count_nonzero(model.get_parameter(name))) for name in energy.weights}
    return EnergyUse(energy.dense, energy.used(counts))


def _total(shapes: tuple[LayerShape, ...]) -> WeightEnergy:
    return sum((shape.weight_energy() for shape in shapes), WeightEnergy(0.0, 0.0))


@torch.no_grad()
def layer_shapes(model: nn.Module, example: Any) -> dict[str, tuple[LayerShape, ...]]:
    """Returns the uses of each weight of a convolution or linear layer in one forward pass, by parameter name.

    Raises:
        InvalidInputError: the network does not take the example.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, tuple[LayerShape, ...]] = {}
    batch = _batch_size(example)

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        name = names.get(id(module.weight))
        if name is not None and inputs and isinstance(inputs[0], Tensor):
            found[name] = (*found.get(name, ()), _shape(module, inputs[0], output, batch))

    counted = [m for m in model.modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear))]
    handles = [module.register_forward_hook(note) for module in counted]
    try:
        run_example(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def run_example(model: nn.Module, example: Any) -> Any:
    """Returns the network's output for an example, in evaluation mode on its own device; its mode is put back.

    Raises:
        InvalidInputError: the network does not take the example.
    """
    device = next(model.parameters()).device
    try:
        with modes_put_back(model):
            model.eval()
            if isinstance(example, Mapping):
                fields = accepted_arguments(model, example)
                return model(**{key: _moved(value, device) for key, value in fields.items()})
            parts = example if isinstance(example, tuple | list) else (example,)
            return model(*(_moved(part, device) for part in parts))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInputError(f"the network does not take the example given: {reason}") from error


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _batch_size(example: Any) -> int:
    if isinstance(example, Mapping):
        example = tuple(example.values())
    parts = example if isinstance(example, tuple | list) else (example,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if not tensors or not tensors[0].dim() or not tensors[0].numel():
        raise InvalidInputError(
            "an energy target needs example=, an input of the network with its batch dimension: a tensor, a tuple of "
            "several, or a dict of keyword arguments"
        )
    return tensors[0].shape[0]


def _shape(module: Any, x: Tensor, output: Tensor, batch: int) -> LayerShape:
    """Returns one use of a layer; all that is not a channel and not the batch is a position."""
    if isinstance(module, nn.Linear):
        return LayerShape(
            module.in_features, module.out_features, max(1, output.numel() // module.out_features // batch)
        )
    return LayerShape(
        module.in_channels,
        module.out_channels,
        max(1, output.numel() // module.out_channels // batch),
        kernel=module.weight[0, 0].numel(),
        groups=module.groups,
        input_size=tuple(x.shape[-len(module.kernel_size) :]),
        overlap=max(0, module.dilation[0] * (module.kernel_size[0] - 1) + 1 - module.stride[0]),
    )
