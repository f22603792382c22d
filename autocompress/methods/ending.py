"""The end of every run, the compressor's and the baselines': from an assignment through finishing to the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from autocompress.constraints.constraint import Network
from autocompress.errors import TrainingDivergedError
from autocompress.network.compressed_tensors import CompressedState, SideGrid, WeightTensor
from autocompress.network.network_state import side_tensors
from autocompress.solver.constants import DEFAULTS
from autocompress.solver.fine_tuning import Finishing


class FileWriter(Protocol):
    """Turns assignments into a file within a target; every `Method` is one."""

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the grids of the one-dimensional tensors."""

    def fit(self, coded: Sequence[WeightTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and the file, within the target."""


def start_finishing(
    network: Network,
    coded: Sequence[WeightTensor],
    writer: FileWriter,
    total_steps: int,
    relative_step: float = DEFAULTS.fine_tuning_step,
) -> Finishing:
    """Returns the last phase of a run, with the assignments put into the network.

    Args:
        network: what is compressed.
        coded: one per compressed tensor.
        writer: says how the one-dimensional tensors are rounded. Those of a folded batch norm are not rounded before
            the end, because they change with its statistics.
        total_steps: length of the phase.
        relative_step: see `Finishing`.
    """
    grids = writer.side_grids(side_tensors(network.selection))
    folded = {f"{name}.{key}" if name else key for name, _ in network.selection.folded for key in ("weight", "bias")}
    side_grids = [None if name in folded else grids[name] for name, _ in network.selection.sides]
    return Finishing(network.weights, coded, network.sides, side_grids, total_steps, relative_step)


def finished_file(network: Network, finishing: Finishing, writer: FileWriter) -> tuple[CompressedState, bytes]:
    """Returns the state and the file, within the target, of a network as the last phase left it.

    Raises:
        TrainingDivergedError: a one-dimensional tensor became NaN or infinite.
    """
    sides = side_tensors(network.selection, finishing.latents)
    for name, values in sides.items():
        if not bool(torch.isfinite(values).all()):
            raise TrainingDivergedError(f"{name} became NaN or infinite: the training diverged")
    return writer.fit(finishing.coded, sides)
