"""The plug-in for any training loop: `step()` after each optimizer step, `finish()` at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from autocompress.admm import Admm
from autocompress.assemble import fill, filled_copy, side_tensors
from autocompress.codebooks import CompressedState
from autocompress.costs.channel_energy import ChannelEnergy
from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.finishing import Finishing, finishing_steps
from autocompress.live_network import check_copyable, unwrap
from autocompress.methods.base import Network, Projection
from autocompress.methods.choice import count_energy, make_method
from autocompress.methods.ending import finished_file, start_finishing
from autocompress.plain_numbers import whole_number
from autocompress.relative_rate import RelativeRate
from autocompress.result import Result
from autocompress.selection import Ignore, check_trainable, is_moderate, original_bytes, select
from autocompress.steering import SEARCH_FRACTION, Steering, make_steering
from autocompress.targets import Target, Targets, hold_together
from autocompress.training.checks import check_validation
from autocompress.training.evaluate import evaluate as evaluate_batches
from autocompress.training.evaluate import refit_batch_norm

logger = logging.getLogger(__name__)

# Updates of V and U in a long run, whatever its length: half as many lost 0.3 points of validation accuracy on LeNet-5
# at 2 KB, twice as many gained nothing (studies/results/constants.json).
UPDATES_PER_RUN = 60
# In a short one there are as many steps between two updates as there are updates, times this: W has to answer a pull
# before the next one comes. 60 updates in a run of 230 steps destroyed LeNet-5 on the digits, 15 did not.
LEAST_STEPS_FACTOR = 1.0


class Compressor:
    """Compresses a network while its user trains it.

    Call `step()` once after each real optimizer update and before the gradients are cleared, `total_steps` times, then
    `finish()`. There is nothing else to choose: the pull towards the compressed twin, the number of updates, the path
    of the budget and the phase of finishing follow from the target and `total_steps`.

    Attributes:
        steps: calls of `step()` so far.
        finishing: the last phase once it has begun, else None.
        steering: what moves the file size where the target is a promise, else None.
        history: one entry per projection: step, residual, error, price, nonzeros.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        target: str | Target | Targets | Sequence[str | Target],
        total_steps: int,
        ignore: Ignore = (),
        evaluate: Callable[[nn.Module], float] | None = None,
        refit: Callable[[nn.Module], None] | None = None,
        example: Any = None,
        energy_model: ChannelEnergy | None = None,
    ) -> None:
        """Checks everything that can be wrong before any training.

        Args:
            model: the trained network, wrapped or not.
            optimizer: the one that the loop steps; only its learning rates are read.
            target: what the result has to meet; several hold together.
            total_steps: how often `step()` will be called.
            ignore: globs over parameter or module names, or module types, not to compress.
            evaluate: score of a network, higher is better, on data kept for choices: decides between candidates. A
                promise cannot do without: the accuracy, a fraction of 1, for `drop:`; the loss for `loss:`, where
                lower is better. It scores the model as it is given here for the reference.
            refit: sets the batch norm statistics of a network to its weights, by a few training batches; used where a
                promise is measured. Without it a compressed network is scored with the statistics of the dense one.
            example: an input of the network with its batch dimension, a tensor, a tuple of several or a dict of keyword
                arguments: for targets of energy, which depends on the sizes of the layers' outputs.
            energy_model: for `energy-channels`; default: one fitted to the analytic model.

        Raises:
            InvalidInputError: a target, pattern or length that cannot be; nothing to compress; not finite weights.
            InfeasibleTargetError: naming the smallest target that can be met.
        """
        total_steps = whole_number("total_steps", total_steps, 1)
        self.target = hold_together(target)
        self.model, self.optimizer, self.total_steps, self.evaluate = model, optimizer, total_steps, evaluate
        self.network = Network(unwrap(model), select(model, ignore))
        check_copyable(self.network.model)
        check_trainable(self.network.selection)
        mine = {id(parameter) for parameter in self.network.model.parameters()}
        if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            raise InvalidInputError("the optimizer holds no parameter of the model; make it from model.parameters()")
        self.original_bytes = original_bytes(model)
        self.energy = count_energy(self.target, self.network, example, energy_model)
        self.method = make_method(self.target, self.network, self.original_bytes, self.energy)
        self.steering = make_steering(
            self.target.promise, self.network, self.method, self.original_bytes, evaluate, refit
        )
        fraction = None if self.steering is None else SEARCH_FRACTION
        self.admm_steps = total_steps - finishing_steps(total_steps, fraction)
        self.steps_per_update = steps_per_update(self.admm_steps)
        self.admm = Admm(self.network.weights, self.steps_per_update)
        self.rate = RelativeRate(optimizer, self.network.weights)
        self.steps = 0
        self.finishing: Finishing | None = None
        self.history: list[dict[str, float]] = []

    def step(self) -> None:
        """Follows one optimizer update: pulls, projects when it is time, or finishes.

        Raises:
            InvalidInputError: the gradients are already cleared, or all steps are done.
            TrainingDivergedError: a weight became NaN or infinite.
        """
        if self.steps >= self.total_steps:
            raise InvalidInputError(
                f"step() was called more often than total_steps={self.total_steps}; "
                "give the number of optimizer updates of the whole run"
            )
        if self.steps == 0 and all(p.grad is None for p in self.network.model.parameters()):
            raise InvalidInputError("the model has no gradients: call compressor.step() before optimizer.zero_grad()")
        self.steps += 1
        if self.finishing is None and self.steps > self.admm_steps:
            self._begin_finishing()
        if self.finishing is not None:
            self._finishing_step()
            return
        if self.steps == 1:
            if self.steering is not None:
                self.steering.find_start()
            self._update(0.0)
        self.admm.pull(self.rate.now())
        last = self.steps == self.admm_steps
        if not last and self.steps % self.steps_per_update == 0:
            self._update(self.steps / self.admm_steps)
        if last:
            self._begin_finishing()

    @torch.no_grad()
    def _update(self, fraction: float) -> None:
        targets = self._checked_targets()
        projection = self.method.project(self.admm.weights, targets, fraction)
        residual = self.admm.update(projection.coded, projection.pruned)
        self._record(projection, residual)
        if self.steering is not None:
            self.steering.watch(projection.coded, self.rate.now())

    def _checked_targets(self) -> list[torch.Tensor]:
        targets = self.admm.targets()
        for (name, _), x in zip(self.network.selection.weights, targets, strict=True):
            if not is_moderate(x):
                raise TrainingDivergedError(
                    f"{name} became NaN or infinite, or above 1e18, by step {self.steps}: the training diverged"
                )
        return targets

    def _record(self, projection: Projection, residual: float) -> None:
        nonzeros = sum(c.nonzeros for c in projection.coded)
        entry = {"step": self.steps, "residual": residual, "error": projection.error, "price": projection.price}
        self.history.append(entry | {"nonzeros": nonzeros})
        logger.debug("update %s", self.history[-1])

    def _finishing_step(self) -> None:
        """Trains the values of the assignment; where a promise decides the size, a stage's end begins the next one."""
        assert self.finishing is not None
        self.finishing.step()
        if self.steering is None or self.finishing.step_count < self.finishing.total_steps:
            return
        self._consider(self.steering)
        self.steering.end_stage()
        if self.steps < self.total_steps:
            self._begin_finishing()

    def _consider(self, steering: Steering) -> None:
        """Writes and scores the file of the network as it is now."""
        assert self.finishing is not None
        settings = self.method.state_dict()
        steering.refit(self.network.model)
        steering.consider(*finished_file(self.network, self.finishing, self.method))
        self.method.load_state_dict(settings)

    @torch.no_grad()
    def _begin_finishing(self) -> None:
        """Fixes the assignments: those of the better, by `evaluate`, of V and the projection of W."""
        steps = max(1, self.total_steps - self.steps)
        if self.steering is not None:
            steps = self.steering.begin_stage(steps)
        projection = self.method.close(self.admm.weights, self._checked_targets())
        # Batch norm statistics belong to W: without data to refit them here, a comparison would say nothing.
        if self.evaluate is not None and self.steps and not self.network.selection.folded:
            projection = self._better_projection(projection)
        self._record(projection, 0.0)
        self.finishing = start_finishing(self.network, projection.coded, self.method, steps)
        if self.steering is not None:
            self._consider(self.steering)

    def _better_projection(self, twin: Projection) -> Projection:
        """Returns the better, by `evaluate`, of V and the projection of W itself."""
        after_twin = self.method.state_dict()
        twin_score = self._score(twin)
        own = self.method.close(self.admm.weights, [w.detach().clone() for w in self.admm.weights])
        if self._score(own) > twin_score:
            return own
        self.method.load_state_dict(after_twin)
        return twin

    def _score(self, projection: Projection) -> float:
        assert self.evaluate is not None
        sides = side_tensors(self.network.selection)
        state, _ = self.method.fit(projection.coded, sides)
        score = self.evaluate(filled_copy(self.network.model, state))
        return score if self.steering is None else self.steering.margin(score)

    def finish(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
    ) -> Result:
        """Returns the compressed network, within its target, and puts its weights into the model.

        Args:
            train: batches on which batch norm statistics are refitted to the compressed weights.
            val: batches on which the finished network is compared with the one before finishing.
            evaluate: the same by a score of a network, higher is better.

        Where the target is a promise, all that is decided is decided during the run, by the compressor's own
        `evaluate`, and none of these is used.

        Raises:
            TrainingDivergedError: a weight became NaN or infinite.
        """
        if self.finishing is None:
            logger.warning(
                "finish() after %d of total_steps=%d calls of step(): the network is projected as it is and will have "
                "lost accuracy; total_steps is to be the number of optimizer updates",
                self.steps,
                self.total_steps,
            )
            self._begin_finishing()
        assert self.finishing is not None
        if self.steering is not None:
            return self._promised(self.steering)
        evaluate = evaluate or self.evaluate
        if val is not None and evaluate is None:
            check_validation(self.network.model, val, next(self.network.model.parameters()).device)
            evaluate = partial(_accuracy, batches=val)
        results = [self._result(train)]
        if evaluate is not None and self.finishing.step_count:
            settings = self.method.state_dict()
            self.finishing.rewind()
            results.append(self._result(train))
            self.method.load_state_dict(settings)
        best = results[0] if evaluate is None else max(results, key=lambda result: evaluate(result.model))
        fill(self.network.model, best.state)
        return best

    def _promised(self, steering: Steering) -> Result:
        """Returns the smallest network seen that keeps the promise, or the most accurate where none does."""
        assert self.finishing is not None
        if self.finishing.step_count < self.finishing.total_steps:
            self._consider(steering)
        result = self._result_of(*steering.outcome())
        result.promise = steering.report()
        fill(self.network.model, result.state)
        return result

    def _result(self, train: Iterable[Any] | None) -> Result:
        """Returns what the network is now, within the target."""
        assert self.finishing is not None
        if train is not None:
            refit_batch_norm(self.network.model, train, device=next(self.network.model.parameters()).device)
        return self._result_of(*finished_file(self.network, self.finishing, self.method))

    def _result_of(self, state: CompressedState, data: bytes) -> Result:
        """Returns the outcome of the run with this file."""
        return Result(
            state=state,
            data=data,
            model=filled_copy(self.network.model, state),
            target=self.target,
            selection=self.network.selection,
            gradient_steps=self.steps,
            history=self.history,
            energy=None if self.energy is None else self.energy.use(state),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs besides model and optimizer: tensors, numbers, containers."""
        return {
            "steps": self.steps,
            "total_steps": self.total_steps,
            "target": str(self.target),
            "peaks": self.rate.peaks,
            "history": self.history,
            "admm": self.admm.state_dict() if self.finishing is None or self.steering is not None else None,
            "method": self.method.state_dict(),
            "finishing": self.finishing.state_dict() if self.finishing is not None else None,
            "steering": self.steering.state_dict() if self.steering is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the model's own weights are the caller's to restore, first.

        Raises:
            InvalidInputError: the state is of a run with another target, length or network.
        """
        for key, own in (("total_steps", self.total_steps), ("target", str(self.target))):
            if state[key] != own:
                raise InvalidInputError(f"the saved run has {key} {state[key]!r}, this one {own!r}")
        finishing, admm = state["finishing"], state["admm"]
        saved = finishing["shapes"] if finishing is not None else [t.shape for t in admm["duals"]]
        shapes, mine = [tuple(shape) for shape in saved], [tuple(w.shape) for w in self.network.weights]
        if shapes != mine:
            raise InvalidInputError(
                f"the saved run is of another network: it compresses tensors of the shapes {shapes}, this one {mine}"
            )
        self.steps, self.rate.peaks, self.history = state["steps"], list(state["peaks"]), list(state["history"])
        self.method.load_state_dict(state["method"])
        if self.steering is not None:
            self.steering.load_state_dict(state["steering"])
        if state["admm"] is not None:
            self.admm.load_state_dict(state["admm"])
        if state["finishing"] is not None:
            self.finishing = Finishing.from_state_dict(self.network.weights, self.network.sides, state["finishing"])


def steps_per_update(admm_steps: int) -> int:
    """Returns how many optimizer steps there are between two updates of V and U."""
    return max(1, admm_steps // UPDATES_PER_RUN, int(LEAST_STEPS_FACTOR * math.sqrt(admm_steps)))


def check_target(
    model: nn.Module,
    target: str | Target | Targets | Sequence[str | Target],
    ignore: Ignore = (),
    *,
    example: Any = None,
    energy_model: ChannelEnergy | None = None,
) -> None:
    """Returns if a network can be compressed to a target: known before any training.

    Raises:
        InvalidInputError, InfeasibleTargetError: as a `Compressor` of them does.
    """
    parameters = list(model.parameters())
    if not parameters:
        raise InvalidInputError(f"the model {type(model).__name__} has no parameters; there is nothing to compress")
    Compressor(
        model,
        torch.optim.SGD(parameters, lr=1.0),  # takes no step
        target=target,
        total_steps=1,
        ignore=ignore,
        evaluate=lambda _: 1.0,
        example=example,
        energy_model=energy_model,
    )


def _accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    return evaluate_batches(model, batches, device=next(model.parameters()).device).metric
