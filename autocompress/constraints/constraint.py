"""What every target's method does for the compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autocompress.network.compressed_tensors import CompressedState, SideGrid, WeightTensor
from autocompress.network.selection import Selection


@dataclass(frozen=True)
class Projection:
    """V, and what became of W.

    Attributes:
        coded: V, one per compressed tensor.
        pruned: the new W where the method projects W, too, else None.
        error: ||V - X||^2, where X is what was projected: W, or W + U under ADMM.
        relative_error: ||V - X|| / ||X||.
        price: squared error per bit at the solution; 0 where the method has none.
        greedy: whether a greedy rule gave the answer where an exact one was looked for.
    """

    coded: Sequence[WeightTensor]
    pruned: list[Tensor] | None
    error: float
    relative_error: float
    price: float
    greedy: bool = False


class Rule(Protocol):
    """Which weights of one layer are not zero, and what they are, between two projections."""

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns flat indices, int64 [m], and values [m] of the nonzeros of V for W, a contiguous tensor."""


class Method(Protocol):
    """Meets one kind of target. `fraction` is how much of the run before fine-tuning is over, in [0, 1]."""

    def project(self, weights: Sequence[Tensor], targets: Sequence[Tensor], fraction: float) -> Projection:
        """Returns the projection of X (`targets`) onto the budget of this moment."""

    def rules(self) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables; None = by magnitude."""

    def close(self, weights: Sequence[Tensor], targets: Sequence[Tensor]) -> Projection:
        """Returns the last projection, the one that is finished: it meets the target itself, fully counted."""

    def fit(self, coded: Sequence[WeightTensor], sides: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and the file after finishing, tightened where finishing let it grow over the target."""

    def side_grids(self, sides: Mapping[str, Tensor]) -> dict[str, SideGrid]:
        """Returns the grids of the one-dimensional tensors that belong to the last projection."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""


@dataclass(frozen=True)
class Network:
    """The network that is compressed and what is compressed of it."""

    model: nn.Module
    selection: Selection

    @property
    def weights(self) -> list[nn.Parameter]:
        """The compressed parameters."""
        return [parameter for _, parameter in self.selection.weights]

    @property
    def sides(self) -> list[nn.Parameter]:
        """The one-dimensional parameters."""
        return [parameter for _, parameter in self.selection.sides]


def relative_error(error: float, targets: Sequence[Tensor]) -> float:
    """Returns sqrt(error) over the norm of the targets."""
    norm = sum(float(x.float().square().sum()) for x in targets)
    return float(torch.tensor(error / max(norm, 1e-30)).clamp(min=0).sqrt())
