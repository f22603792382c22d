"""From targets to the constraint that holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autocompress.constraints.code_bits import CodeBitsConstraint
from autocompress.constraints.constraint import Constraint, Network, Projector
from autocompress.constraints.energy import EnergyConstraint, energy_budget
from autocompress.constraints.energy_channels import ChannelEnergyConstraint
from autocompress.constraints.file_size import FileSizeConstraint
from autocompress.constraints.file_writer import smallest_file
from autocompress.constraints.weight_bits import InPlaceWeightBitsConstraint, WeightBitsConstraint
from autocompress.energy.channel_graph import ChannelCount
from autocompress.energy.channel_model import ChannelEnergy
from autocompress.energy.network_energy import NetworkEnergy, network_energy
from autocompress.errors import InvalidInputError
from autocompress.solver.constants import DEFAULTS, SolverConstants, budget_at_once
from autocompress.targets import CodeBits, Energy, FileSize, Target, Targets, WeightBits


def needs_energy(targets: Targets) -> bool:
    """Tells whether targets need the energy of the network."""
    return bool(targets.of_kind(Energy))


def count_energy(
    targets: Targets, network: Network, example: Any, model: ChannelEnergy | None
) -> NetworkEnergy | ChannelCount | None:
    """Returns what counts the energy of a network for targets; None where they ask for none.

    Raises:
        InvalidInputError: there is no example, the network does not take it, its channels cannot be followed, or an
            energy model is given where none is used.
    """
    by_channels = any(energy.channels for energy in targets.of_kind(Energy))
    if model is not None and not by_channels:
        raise InvalidInputError(
            f"an energy model over channels has no use for the target {str(targets)!r}; it is for energy-channels: ones"
        )
    if not needs_energy(targets):
        return None
    if example is None:
        raise InvalidInputError(
            f"the target {str(targets)!r} needs example=, an input of the network with its batch dimension"
        )
    return ChannelCount(network.model, example, model) if by_channels else network_energy(network.model, example)


def make_method(
    targets: Targets,
    network: Network,
    original_bytes: int,
    energy: NetworkEnergy | ChannelCount | None = None,
    constants: SolverConstants = DEFAULTS,
) -> Projector[Any]:
    """Returns the constraint of targets at the start of a run; see `make_constraint`."""
    return Projector(make_constraint(targets, network, original_bytes, energy, constants))


def make_constraint(
    targets: Targets,
    network: Network,
    original_bytes: int,
    energy: NetworkEnergy | ChannelCount | None = None,
    constants: SolverConstants = DEFAULTS,
) -> Constraint[Any]:
    """Returns the constraint of targets together; of several of one kind the tightest applies.

    Args:
        targets: what is asked.
        network: what is compressed.
        original_bytes: of the network's float32 tensors.
        energy: what `count_energy` returned for these targets.
        constants: of the path of budgets.

    Raises:
        InvalidInputError: a layer cannot be counted.
        InfeasibleTargetError: naming the smallest target that can be met.
    """
    compressible = network.selection.compressible
    if targets.quality is not None:
        return size_under_quality(targets, network, original_bytes, constants)
    fraction = min((each.fraction for each in targets.of_kind(Energy)), default=None)
    if not targets.of_kind(FileSize):
        _check_reparametrized(targets, network)
    if sizes := targets.of_kind(FileSize):
        budget_bytes = min(size.resolve(original_bytes, compressible) for size in sizes)
        limit = None
        if fraction is not None:
            assert isinstance(energy, NetworkEnergy)
            limit = energy_budget(network, energy, fraction)
        return FileSizeConstraint(network, budget_bytes, original_bytes, energy=limit, constants=constants)
    if fraction is not None:
        assert energy is not None
        if isinstance(energy, ChannelCount):
            return ChannelEnergyConstraint(network, energy, fraction, constants)
        return EnergyConstraint(network, energy, fraction, constants)
    return ALONE[type(targets.each[0])](targets.each, network, original_bytes, constants)


def _weight_bits(
    each: Sequence[Any], network: Network, original_bytes: int, constants: SolverConstants
) -> Constraint[Any]:
    kind = InPlaceWeightBitsConstraint if each[0].in_place else WeightBitsConstraint
    return kind(network, _least(each, network, original_bytes), constants)


def _code_bits(
    each: Sequence[Any], network: Network, original_bytes: int, constants: SolverConstants
) -> Constraint[Any]:
    return CodeBitsConstraint(network, _least(each, network, original_bytes), constants)


def _least(each: Sequence[WeightBits | CodeBits], network: Network, original_bytes: int) -> int:
    return min(one.resolve(original_bytes, network.selection.compressible) for one in each)


# Targets that need the network alone and are given alone: (all of that kind, network, original bytes, constants).
ALONE: dict[type[Target], Callable[[Sequence[Any], Network, int, SolverConstants], Constraint[Any]]] = {
    WeightBits: _weight_bits,
    CodeBits: _code_bits,
}


def _check_reparametrized(targets: Targets, network: Network) -> None:
    """Checks that no weights are divided by norms of their rows, of which only a file's projection keeps one in each.

    Raises:
        InvalidInputError: naming the tensor; or a mask is to be folded into codebooks of kernels.
    """
    divided = next(iter(network.selection.normalized), None)
    if divided is not None:
        raise InvalidInputError(
            f"{divided} is divided by the norm of its rows (weight or spectral norm), and under the target "
            f"{str(targets)!r} a row may lose all its weights; give a file size (such as 50KB) as well or "
            "instead, or take the norm off first "
            "(torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.remove_weight_norm)"
        )
    if network.selection.masks and targets.of_kind(CodeBits):
        raise InvalidInputError(
            f"{next(iter(network.selection.masks))} is pruned by a mask, and codebooks of kernels have no zeros of "
            "their own; call torch.nn.utils.prune.remove on its module, or leave it out with ignore="
        )


def size_under_quality(
    targets: Targets, network: Network, original_bytes: int, constants: SolverConstants
) -> FileSizeConstraint:
    """Returns the constraint of a file whose size is to follow from a promise, at the largest size that is allowed.

    Raises:
        InfeasibleTargetError: the file size that was asked for, too, cannot be met.
    """
    sizes = [size.resolve(original_bytes, network.selection.compressible) for size in targets.of_kind(FileSize)]
    # Where nothing else is asked the file may become as large as the network was.
    largest = min(sizes) if sizes else original_bytes + smallest_file(network)
    return FileSizeConstraint(network, largest, original_bytes, path=budget_at_once, constants=constants)
