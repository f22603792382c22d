"""Which method meets which target."""

from __future__ import annotations

from typing import Any

from autocompress.channels import ChannelCount
from autocompress.costs.channel_energy import ChannelEnergy
from autocompress.costs.energy import NetworkEnergy, network_energy
from autocompress.errors import InvalidInputError
from autocompress.methods.base import Method, Network
from autocompress.methods.energy import EnergyMethod, energy_budget
from autocompress.methods.energy_channels import ChannelEnergyMethod
from autocompress.methods.file_size import FileSizeMethod
from autocompress.methods.weight_bits import InPlaceWeightBitsMethod, WeightBitsMethod
from autocompress.targets import Energy, FileSize, FileSizeAndEnergy, Target


def counts_energy(target: Target) -> bool:
    """Tells whether a target needs the energy of the network."""
    return isinstance(target, Energy | FileSizeAndEnergy)


def count_energy(
    target: Target, network: Network, example: Any, model: ChannelEnergy | None
) -> NetworkEnergy | ChannelCount | None:
    """Returns what counts the energy of a network for a target; None where it asks for none.

    Raises:
        InvalidInputError: there is no example, the network does not take it, its channels cannot be followed, or an
            energy model is given where none is used.
    """
    by_channels = isinstance(target, Energy) and target.channels
    if model is not None and not by_channels:
        raise InvalidInputError(f"an energy model over channels has no use for the target {str(target)!r}")
    if not counts_energy(target):
        return None
    if example is None:
        raise InvalidInputError(
            f"the target {str(target)!r} needs example=, an input of the network with its batch dimension"
        )
    return ChannelCount(network.model, example, model) if by_channels else network_energy(network.model, example)


def make_method(
    target: Target, network: Network, original_bytes: int, energy: NetworkEnergy | ChannelCount | None = None
) -> Method:
    """Returns the method of a target.

    Args:
        target: what is asked.
        network: what is compressed.
        original_bytes: of the network's float32 tensors.
        energy: what `count_energy` returned for this target.

    Raises:
        InvalidInputError: a layer cannot be counted.
        InfeasibleTargetError: naming the smallest target that can be met.
    """
    if isinstance(target, Energy):
        if isinstance(energy, ChannelCount):
            return ChannelEnergyMethod(network, energy, target.fraction)
        assert energy is not None
        return EnergyMethod(network, energy, target.fraction)
    if isinstance(target, FileSizeAndEnergy):
        assert isinstance(energy, NetworkEnergy)
        budget = target.file.resolve(original_bytes, network.selection.compressible)
        limit = energy_budget(network, energy, target.energy.fraction)
        return FileSizeMethod(network, budget, original_bytes, limit)
    budget = target.resolve(original_bytes, network.selection.compressible)
    if isinstance(target, FileSize):
        return FileSizeMethod(network, budget, original_bytes)
    method = InPlaceWeightBitsMethod if target.in_place else WeightBitsMethod
    return method(network, budget)
