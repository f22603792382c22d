"""The phases of a run: W and V are trained by projections, then the values of the last V under fixed assignments.

A phase lasts a number of optimizer steps and follows each of them. A run to a size has one of each; a run to a promise
has one of the first and several of the second, each at the size that `quality_search` asks for next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Method, Network, Projection, Projector
from autocompress.constraints.file_size import FileSizeConstraint
from autocompress.errors import TrainingDivergedError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.selection import is_moderate
from autocompress.solver.admm import Admm, RelativeRate
from autocompress.solver.constants import SolverConstants
from autocompress.solver.fine_tuning import FineTuning, finished_file, start_fine_tuning
from autocompress.solver.lazy_projection import LazyProjection
from autocompress.training.layer_statistics import (
    InputMoments,
    has_batch_norm,
    input_moments,
    refit_batch_norm,
    row_weights,
)
from autocompress.training.ranks import Ranks

logger = logging.getLogger(__name__)

# Training batches that batch norm statistics are refitted on.
REFIT_BATCHES = 50

File = tuple[CompressedState, bytes]
Watch = Callable[[Projection, float], None]  # (V, learning rate as a part of its peak)


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

    def end(self) -> None:
        """Takes note of a run that ends within the phase."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what is this phase's alone."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""


class ProjectionPhase:
    """The iteration's move of W after each step; V <- P(X) at each update, in between by the target's rules."""

    def __init__(self, run: Run, steps: int, watch: Watch | None = None) -> None:
        """Prepares nothing yet; `watch` sees V after each update."""
        self.run, self.steps, self.step_count, self.watch = run, steps, 0, watch
        self.steps_per_update = run.constants.steps_per_update(steps)

    def begin(self) -> None:
        self._update()

    def step(self) -> None:
        self.step_count += 1
        self.run.solver.after_step(self.run.rate.now())
        if self.step_count == self.steps:
            return  # the next phase begins with a projection of its own
        if self.step_count % self.steps_per_update == 0:
            self._update()
        else:
            self.run.solver.reassign()

    def end(self) -> None:
        """Does nothing."""

    @torch.no_grad()
    def _update(self) -> None:
        run, x = self.run, self.run.points()
        fraction = self.step_count / self.steps
        projection = run.on_first_rank(run.method, lambda: run.method.project(run.network.weights, x, fraction))
        residual = run.solver.update(projection.quantized, projection.pruned, run.method.rules())
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
        self.run.solver.restore_dense()
        self.values = self.run.assign(self.run.method, x, self.steps)

    def step(self) -> None:
        if self.values is None:  # goes on from the weights of another run
            self.begin()
        assert self.values is not None
        self.run.fine_tuning_steps += 1
        self.run.skipped_steps += not self.values.step()
        if self.run.ranks.size > 1:
            self.run.ranks.broadcast(self.values.values + self.values.latents)
            self.values.write()

    def end(self) -> None:
        """Does nothing: the values are what they are."""

    def state_dict(self) -> dict[str, Any]:
        return {} if self.values is None else self.values.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.values = FineTuning.from_state_dict(self.run.network.weights, self.run.network.vectors, state)


class Run:
    """One compression: its phases, and what all of them work on.

    Attributes:
        network: in training; its parameters hold V.
        method: P, the projection of the target, and what writes its file.
        solver: W, V and their moves.
        rate: learning rate as a part of its peak.
        ranks: that train the network together.
        constants: of the method.
        phases: in order; `number` is the index of the present one.
        history: one entry per projection: step, residual, error, price (the multiplier), nonzeros, and where
            they are what is limited file_bytes, by the projection's estimate.
        steps: of the optimizer, so far.
        greedy: whether the last projection was a greedy rule's answer.
        fine_tuning_steps: of all phases of fine-tuning, so far.
        skipped_steps: those of them whose gradients were not finite.
        given: all parameters and buffers as they were given.
    """

    def __init__(
        self,
        network: Network,
        method: Method,
        solver: LazyProjection | Admm,
        rate: RelativeRate,
        ranks: Ranks,
        constants: SolverConstants,
    ) -> None:
        """Starts before the first step; `phases` are to be set."""
        self.network, self.method, self.solver = network, method, solver
        self.rate, self.ranks, self.constants = rate, ranks, constants
        self.phases: list[Phase] = []
        self.number = self.steps = self.fine_tuning_steps = self.skipped_steps = 0
        self.history: list[dict[str, float]] = []
        self.greedy = False
        self.given = [tensor.detach().cpu().clone() for tensor in all_tensors(network.model)]

    @property
    def phase(self) -> Phase:
        """The one that the next step belongs to."""
        return self.phases[self.number]

    @property
    def fine_tuning(self) -> FineTuning | None:
        """The values of the last V once its assignments are fixed, else None."""
        return self.phase.values if isinstance(self.phase, FineTuningPhase) else None

    def step(self) -> None:
        """Follows one optimizer update; where that was a phase's last, the next one begins."""
        self.steps += 1
        if self.steps == 1:
            self.phase.begin()
        self.phase.step()
        if self.phase.step_count == self.phase.steps and self.number + 1 < len(self.phases):
            self.number += 1
            self.phase.begin()

    def end(self) -> FineTuning:
        """Returns the values that the run ended with; one that was cut short is projected as it is."""
        if self.fine_tuning is None:
            self.number = next(n for n, phase in enumerate(self.phases) if isinstance(phase, FineTuningPhase))
            self.phase.begin()
        if self.phase.step_count < self.phase.steps:
            self.phase.end()
        assert self.fine_tuning is not None
        return self.fine_tuning

    def points(self) -> list[Tensor]:
        """Returns X, what a projection is applied to, the same on all ranks.

        Raises:
            TrainingDivergedError: a weight became NaN or infinite.
        """
        points = self.solver.points()
        self.ranks.broadcast(points)
        self.ranks.synchronize_buffers(self.network.model)
        for (name, _), x in zip(self.network.selection.weights, points, strict=True):
            if not is_moderate(x):
                raise TrainingDivergedError(
                    f"{name} became NaN or infinite, or above 1e18, by step {self.steps}: the training diverged"
                )
        return points

    def on_first_rank(self, method: Method, project: Callable[[], Projection]) -> Projection:
        """Returns a projection by a method, the first rank's on all of them."""
        if self.ranks.size == 1:
            return project()
        projection, settings = self.ranks.from_first(lambda: (project(), method.state_dict()))
        method.load_state_dict(settings)
        return projection

    def record(self, projection: Projection, residual: float) -> None:
        """Takes note of a projection."""
        self.greedy = projection.greedy
        nonzeros = sum(tensor.nonzeros for tensor in projection.quantized)
        entry = {"step": self.steps, "residual": residual, "error": projection.error, "price": projection.multiplier}
        size = {} if projection.file_bytes is None else {"file_bytes": projection.file_bytes}
        self.history.append(entry | {"nonzeros": nonzeros} | size)
        logger.debug("update %s", self.history[-1])

    def assign(self, method: Method, x: Sequence[Tensor], steps: int) -> FineTuning:
        """Projects X onto the target itself, fixes the assignments and puts them into the network."""
        projection = self.on_first_rank(method, lambda: method.project_last(self.network.weights, x))
        if method is self.method:
            self.record(projection, 0.0)
        return start_fine_tuning(self.network, projection.quantized, method, steps, self.constants.fine_tuning_step)

    def file(self, values: FineTuning, method: Method, train: Iterable[Any] | None = None) -> File:
        """Returns the network with these values, within the target; on `train` its batch norms are refitted."""
        if train is not None:
            model = self.network.model
            refit_batch_norm(model, train, device=next(model.parameters()).device, max_batches=REFIT_BATCHES)
        self.ranks.synchronize_buffers(self.network.model)
        return self.ranks.from_first(lambda: finished_file(self.network, values, method))

    @torch.no_grad()
    def calibrated(self, method: Method, batches: Iterable[Any]) -> tuple[Method, dict[int, InputMoments]]:
        """Returns a method that goes by what layers' outputs lose, on data, and the moments, by layer.

        The same method and no moments where that cannot be: the target is of another kind, or no inputs are seen.

        Args:
            method: for the target.
            batches: of the network's inputs, with or without targets.
        """
        constraint = method.constraint if isinstance(method, Projector) else None
        if not isinstance(constraint, FileSizeConstraint) or not constraint.takes_feedback:
            return method, {}
        model, weights = self.network.model, self.network.weights
        put_back(all_tensors(model), self.given)
        try:
            moments = dict(input_moments(model, weights, batches, weights[0].device))
        except Exception as error:  # a network that was trained is worth more than this one
            logger.warning("what the layers' outputs lose is not made up for: %s: %s", type(error).__name__, error)
            return method, {}
        if not moments:
            return method, {}
        rows: dict[int, Tensor] = {}
        try:
            if not has_batch_norm(model):  # gradients do not see that it is refitted
                rows = row_weights(model, weights, batches, weights[0].device)
        except Exception as error:  # such as a layer that has no gradient in evaluation mode
            logger.info("all layers count the same: %s: %s", type(error).__name__, error)
        layers = [_layer_error(moments.get(n), rows.get(n)) for n in range(len(weights))]
        return Projector(constraint.with_feedback(layers)), moments

    @torch.no_grad()
    def one_shot(
        self,
        method: Method,
        train: Iterable[Any] | None,
        moments: Mapping[int, InputMoments] | None = None,
        *,
        fill: bool = True,
    ) -> File:
        """Returns the file of the network as it was given, projected at once: no run returns a worse one.

        Args:
            method: one that was not used yet.
            train: batches that batch norms are refitted on.
            moments: as `calibrated` returned them: biases make up for the mean error of their layer's outputs.
            fill: whether the file is to have the size asked for, else about that size.
        """
        put_back(all_tensors(self.network.model), self.given)
        x = [weight.detach().float().clone() for weight in self.network.weights]
        weights = self.network.weights
        projection = self.on_first_rank(
            method, lambda: method.project_last(weights, x) if fill else method.project(weights, x, 1.0)
        )
        for place, of in (moments or {}).items():
            if of.bias is not None:
                off = x[place] - projection.quantized[place].dense().to(x[place])
                groups, columns = of.mean.shape
                of.bias.add_((off.view(groups, -1, columns) @ of.mean[:, :, None]).flatten())
        self.ranks.broadcast(list(self.network.vectors))
        values = start_fine_tuning(self.network, projection.quantized, method, 1, self.constants.fine_tuning_step)
        return self.file(values, method, train)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs besides model and optimizer: tensors, numbers, containers."""
        return {
            "steps": self.steps,
            "fine_tuning": [self.fine_tuning_steps, self.skipped_steps],
            "peaks": self.rate.peaks,
            "history": self.history,
            "given": self.given,
            "method": self.method.state_dict(),
            "number": self.number,
            "phase": self.phase.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the model's own weights are the caller's to restore, first."""
        self.steps, self.rate.peaks = state["steps"], list(state["peaks"])
        self.fine_tuning_steps, self.skipped_steps = state["fine_tuning"]
        self.history, self.given = list(state["history"]), list(state["given"])
        self.method.load_state_dict(state["method"])
        self.number = state["number"]
        self.phase.load_state_dict(state["phase"])


def _layer_error(of: InputMoments | None, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None] | None:
    """Returns what `FileSizeConstraint.with_feedback` takes of a layer."""
    if of is None:
        return None
    if of.second is None:  # an embedding: a row's errors count as often as its token comes
        return None, of.mean[0] / of.mean.mean() if rows is None else rows * of.mean[0]
    return of.second, None if rows is None else rows * of.second.diagonal(dim1=1, dim2=2).mean()


def all_tensors(model: nn.Module) -> list[Tensor]:
    """Returns all parameters and buffers, in one order."""
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Sets a network's tensors to what they were."""
    for tensor, value in zip(tensors, given, strict=True):
        if not torch.equal(tensor, value.to(tensor.device)):  # an expanded buffer cannot be written to
            tensor.copy_(value)
