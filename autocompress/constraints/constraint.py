"""What a target is to the compressor: a constraint, as pure functions, and the state of a run beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from autocompress.network.compressed_tensors import CompressedState, VectorGrid, WeightTensor
from autocompress.network.selection import Selection

State = TypeVar("State")


@dataclass(frozen=True)
class Projection:
    """V, and what became of W.

    Attributes:
        quantized: V, one per compressed tensor.
        pruned: the new W where the method projects W, too, else None.
        error: ||V - X||^2, where X is what was projected: W, or W + U under ADMM.
        relative_error: ||V - X|| / ||X||.
        multiplier: squared error per bit at the solution; 0 where the method has none.
        greedy: whether a greedy rule gave the answer where an exact one was looked for.
        file_bytes: about what the file of V takes; None where the target counts something else.
    """

    quantized: Sequence[WeightTensor]
    pruned: list[Tensor] | None
    error: float
    relative_error: float
    multiplier: float
    greedy: bool = False
    file_bytes: float | None = None


class Rule(Protocol):
    """Which weights of one layer are not zero, and what they are, between two projections."""

    def assign(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns flat indices, int64 [m], and values [m] of the nonzeros of V for W, a contiguous tensor."""


class FileWriter(Protocol):
    """Turns assignments into a file within a target; asking it changes nothing."""

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        """Returns the grids of the one-dimensional tensors."""

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and the file, tightened where the values have grown over the target."""


class Constraint(Protocol[State]):
    """C = { V : cost(V) <= budget }: one kind of target for one network, as pure functions.

    What a projection leaves for the next one (a warm start, a calibration) is a state, which goes in and comes out;
    none of these changes it or the constraint.
    """

    def start(self) -> State:
        """Returns the state before any projection."""

    def budget(self, fraction: float) -> Any:
        """Returns the budget when so much of the run before fine-tuning is over, in [0, 1]."""

    def project(
        self, x: Sequence[Tensor], budget: Any, state: State, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, State]:
        """Returns P(X) = argmin ||V - X||^2 over the V within the budget; `w` where W itself is pruned as well."""

    def project_last(
        self, x: Sequence[Tensor], budget: Any, state: State, w: Sequence[Tensor] | None = None
    ) -> tuple[Projection, State]:
        """Returns the projection that is fine-tuned: it meets the target itself, fully counted."""

    def writer(self, state: State) -> FileWriter:
        """Returns what writes the file of the last projection."""

    def rules(self, state: State) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables; None = by magnitude."""

    def to_plain(self, state: State) -> dict[str, Any]:
        """Returns a state as tensors, numbers and containers, for a checkpoint."""

    def from_plain(self, saved: dict[str, Any]) -> State:
        """Returns the state of `to_plain`."""


class Method(Protocol):
    """A constraint in the course of one run. `fraction` is how much of it before fine-tuning is over, in [0, 1]."""

    def project(self, weights: Sequence[Tensor], points: Sequence[Tensor], fraction: float) -> Projection:
        """Returns the projection of X onto the budget of this moment."""

    def rules(self) -> Sequence[Rule] | None:
        """Returns how V follows W between two projections, by the last one's tables; None = by magnitude."""

    def project_last(self, weights: Sequence[Tensor], points: Sequence[Tensor]) -> Projection:
        """Returns the last projection, the one that is fine-tuned."""

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and the file after fine-tuning."""

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        """Returns the grids of the one-dimensional tensors that belong to the last projection."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a resumed run needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""


class Projector(Generic[State]):
    """A `Method`: a constraint and the state of its last projection, which a projection replaces and nothing changes.

    Attributes:
        constraint: what is held.
        state: after the last projection.
        budget_at: the budget of a moment; the constraint's own, unless something else moves it.
    """

    def __init__(self, constraint: Constraint[State]) -> None:
        self.constraint, self.state = constraint, constraint.start()
        self.budget_at: Callable[[float], Any] = constraint.budget

    def project(self, weights: Sequence[Tensor], points: Sequence[Tensor], fraction: float) -> Projection:
        """Returns P(X) at this moment."""
        found, self.state = self.constraint.project(points, self.budget_at(fraction), self.state, weights)
        return found

    def project_last(self, weights: Sequence[Tensor], points: Sequence[Tensor]) -> Projection:
        """Returns the projection that is fine-tuned."""
        found, self.state = self.constraint.project_last(points, self.budget_at(1.0), self.state, weights)
        return found

    def rules(self) -> Sequence[Rule] | None:
        return self.constraint.rules(self.state)

    def fit(self, quantized: Sequence[WeightTensor], vectors: Mapping[str, Tensor]) -> tuple[CompressedState, bytes]:
        """Returns the state and the file."""
        return self.constraint.writer(self.state).fit(quantized, vectors)

    def vector_grids(self, vectors: Mapping[str, Tensor]) -> dict[str, VectorGrid]:
        """Returns the grids of the one-dimensional tensors."""
        return self.constraint.writer(self.state).vector_grids(vectors)

    def state_dict(self) -> dict[str, Any]:
        return self.constraint.to_plain(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = self.constraint.from_plain(state)


@dataclass(frozen=True)
class Network:
    """The network that is compressed and what is compressed of it."""

    model: nn.Module
    selection: Selection

    @property
    def weights(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.selection.weights]

    @property
    def vectors(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.selection.vectors]


def relative_error(error: float, points: Sequence[Tensor]) -> float:
    """Returns sqrt(error) over the norm of X."""
    norm = sum(float(x.float().square().sum()) for x in points)
    return float(torch.tensor(error / max(norm, 1e-30)).clamp(min=0).sqrt())
