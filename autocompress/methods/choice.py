"""Which method meets which target."""

from __future__ import annotations

from autocompress.costs.energy import NetworkEnergy
from autocompress.errors import InvalidInputError
from autocompress.methods.base import Method, Network
from autocompress.methods.energy import EnergyMethod, energy_budget
from autocompress.methods.file_size import FileSizeMethod
from autocompress.methods.weight_bits import InPlaceWeightBitsMethod, WeightBitsMethod
from autocompress.targets import Energy, FileSize, FileSizeAndEnergy, Target


def counts_energy(target: Target) -> bool:
    """Tells whether a target needs the energy of the network."""
    return isinstance(target, Energy | FileSizeAndEnergy)


def make_method(target: Target, network: Network, original_bytes: int, energy: NetworkEnergy | None = None) -> Method:
    """Returns the method of a target.

    Args:
        target: what is asked.
        network: what is compressed.
        original_bytes: of the network's float32 tensors.
        energy: of the network, where the target needs it.

    Raises:
        InvalidInputError: the target needs the network's energy, or a layer cannot be counted.
        InfeasibleTargetError: naming the smallest target that can be met.
    """
    if isinstance(target, Energy | FileSizeAndEnergy):
        if energy is None:
            raise InvalidInputError(
                f"the target {str(target)!r} needs example=, an input of the network with its batch dimension"
            )
        if isinstance(target, Energy):
            return EnergyMethod(network, energy, target.fraction)
        budget = target.file.resolve(original_bytes, network.selection.compressible)
        limit = energy_budget(network, energy, target.energy.fraction)
        return FileSizeMethod(network, budget, original_bytes, limit)
    budget = target.resolve(original_bytes, network.selection.compressible)
    if isinstance(target, FileSize):
        return FileSizeMethod(network, budget, original_bytes)
    method = InPlaceWeightBitsMethod if target.in_place else WeightBitsMethod
    return method(network, budget)
