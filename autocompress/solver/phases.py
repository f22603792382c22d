"""The phases of a run: W and V are trained by projections, then the values of the last V under fixed assignments.

A phase lasts a number of optimizer steps and follows each of them. A run to a size has one of each; a run to a promise
has one of the first and several of the second, each at the size that `quality_constraint` asks for next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from autocompress.constraints.constraint import Method, Network, Projection
from autocompress.errors import TrainingDivergedError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.selection import is_moderate
from autocompress.solver.admm import Admm, RelativeRate
from autocompress.solver.constants import SolverConstants
from autocompress.solver.fine_tuning import FineTuning, finished_file, start_fine_tuning
from autocompress.solver.lazy_projection import LazyProjection
from autocompress.training.ranks import Ranks

logger = logging.getLogger(__name__)

Watch = Callable[[Projection, float], None]  # (V, learning rate as a part of its peak)


@dataclass
class Run:
    """What all phases of a run work on.

    Attributes:
        network: in training; its parameters hold V.
        method: P, the projection of the target, and what writes its file.
        solver: W, V and their moves.
        rate: learning rate as a part of its peak.
        ranks: that train the network together.
        constants: of the method.
        history: one entry per projection: step, residual, error, price, nonzeros.
        steps: of the optimizer, so far.
        greedy: whether the last projection was a greedy rule's answer.
    """

    network: Network
    method: Method
    solver: LazyProjection | Admm
    rate: RelativeRate
    ranks: Ranks
    constants: SolverConstants
    history: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    greedy: bool = False

    def points(self) -> list[Tensor]:
        """Returns X, what a projection is applied to, the same on all ranks.

        Raises:
            TrainingDivergedError: a weight became NaN or infinite.
        """
        points = self.solver.points()
        self.ranks.share(points)
        self.ranks.share_buffers(self.network.model)
        for (name, _), x in zip(self.network.selection.weights, points, strict=True):
            if not is_moderate(x):
                raise TrainingDivergedError(
                    f"{name} became NaN or infinite, or above 1e18, by step {self.steps}: the training diverged"
                )
        return points

    def decided(self, method: Method, project: Callable[[], Projection]) -> Projection:
        """Returns a projection by a method, the first rank's on all of them."""
        if self.ranks.size == 1:
            return project()
        projection, settings = self.ranks.decided(lambda: (project(), method.state_dict()))
        method.load_state_dict(settings)
        return projection

    def record(self, projection: Projection, residual: float) -> None:
        """Takes note of a projection."""
        self.greedy = projection.greedy
        nonzeros = sum(tensor.nonzeros for tensor in projection.coded)
        entry = {"step": self.steps, "residual": residual, "error": projection.error, "price": projection.price}
        self.history.append(entry | {"nonzeros": nonzeros})
        logger.debug("update %s", self.history[-1])

    def fine_tuning(self, method: Method, x: Sequence[Tensor], steps: int) -> FineTuning:
        """Projects X onto the target itself, fixes the assignments and puts them into the network."""
        projection = self.decided(method, lambda: method.close(self.network.weights, x))
        if method is self.method:
            self.record(projection, 0.0)
        return start_fine_tuning(self.network, projection.coded, method, steps, self.constants.fine_tuning_step)

    def file(self, values: FineTuning, method: Method | None = None) -> tuple[CompressedState, bytes]:
        """Returns the state and the file, within the target, of a network with these values."""
        self.ranks.share_buffers(self.network.model)
        writer = self.method if method is None else method
        return self.ranks.decided(lambda: finished_file(self.network, values, writer))


class Phase(Protocol):
    """A part of a run.

    Attributes:
        steps: its length.
        step_count: steps taken.
    """

    steps: int

    @property
    def step_count(self) -> int:
        """Returns how many of them were taken."""

    def begin(self) -> None:
        """Prepares the first step; the gradients of that step may be there already."""

    def step(self) -> None:
        """Follows one step of the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what is this phase's alone."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class ProjectionPhase:
    """W <- M W + D (x - V) after each step; V <- P(W) at each update, and by the update's rules in between."""

    def __init__(self, run: Run, steps: int, watch: Watch | None = None) -> None:
        """Prepares nothing yet; `watch` sees V after each update."""
        self.run, self.steps, self.step_count, self.watch = run, steps, 0, watch
        self.steps_per_update = run.constants.steps_per_update(steps)

    def begin(self) -> None:
        self._update()

    def step(self) -> None:
        self.step_count += 1
        self.run.solver.follow(self.run.rate.now())
        if self.step_count == self.steps:
            return  # the next phase begins with a projection of its own
        if self.step_count % self.steps_per_update == 0:
            self._update()
        else:
            self.run.solver.between()

    @torch.no_grad()
    def _update(self) -> None:
        run, x = self.run, self.run.points()
        fraction = self.step_count / self.steps
        projection = run.decided(run.method, lambda: run.method.project(run.network.weights, x, fraction))
        residual = run.solver.update(projection.coded, projection.pruned, run.method.rules())
        run.record(projection, residual)
        if self.watch is not None:
            self.watch(projection, run.rate.now())

    def state_dict(self) -> dict[str, Any]:
        return {"step_count": self.step_count, "solver": self.run.solver.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]
        self.run.solver.load_state_dict(state["solver"], self.run.method.rules())


class FineTuningPhase:
    """The values of the last V, and the vectors, trained under fixed assignments."""

    def __init__(self, run: Run, steps: int) -> None:
        self.run, self.steps = run, steps
        self.values: FineTuning | None = None

    @property
    def step_count(self) -> int:
        return 0 if self.values is None else self.values.step_count

    @torch.no_grad()
    def begin(self) -> None:
        x = self.run.points()
        self.run.solver.end()
        self.values = self.run.fine_tuning(self.run.method, x, self.steps)

    def step(self) -> None:
        if self.values is None:  # goes on from the weights of another run
            self.begin()
        assert self.values is not None
        self.values.step()
        if self.run.ranks.size > 1:
            self.run.ranks.share(self.values.values + self.values.latents)
            self.values.write()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.values is None else self.values.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.values = FineTuning.from_state_dict(self.run.network.weights, self.run.network.sides, state)
