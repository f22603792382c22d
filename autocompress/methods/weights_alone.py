"""What the methods share whose targets count something of the weights and leave the size of the file free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from autocompress.codec.file import encode_state
from autocompress.constraints.constraint import Network
from autocompress.network.compressed_tensors import CompressedState, SideGrid, WeightTensor
from autocompress.network.network_state import build_state, norm_parameters, side_grids


class WeightsAlone:
    """Writes files of any size: biases and norms, which are not counted, on their finest grids."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.norms = norm_parameters(network.model)

    def rules(self) -> None:
        """Returns nothing: V follows W by magnitude."""
        return None

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the finest grids: what is not counted is not rounded away."""
        return side_grids(sides, self.norms, 0.0, 0.0)

    def fit(self, coded: Sequence[WeightTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and its file; finishing changes values, not how many there are."""
        state = build_state(self.network.model, self.network.selection, coded, sides, self.side_grids(sides))
        return state, encode_state(state)
