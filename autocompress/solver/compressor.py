"""The plug-in for any training loop: `step()` after each optimizer step, `finish()` at the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.constraints.constraint import Method, Network, Projection
from autocompress.constraints.factory import count_energy, make_method
from autocompress.energy.channel_model import ChannelEnergy
from autocompress.errors import InvalidInputError, TrainingDivergedError, whole_number
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import check_copyable, copy_network, unwrap
from autocompress.network.network_state import fill, filled_copy
from autocompress.network.selection import Ignore, check_trainable, is_moderate, original_bytes, select
from autocompress.solver.admm import Admm, RelativeRate
from autocompress.solver.constants import ADMM, DEFAULTS, SolverConstants
from autocompress.solver.fine_tuning import Finishing, finished_file, finishing_steps, start_finishing
from autocompress.solver.lazy_projection import LazyProjection
from autocompress.solver.quality_constraint import SEARCH_FRACTION, Steering, make_steering
from autocompress.solver.result import BEFORE_FINE_TUNING, ONE_SHOT, TRAINED, Outcome, Result, zero_layers
from autocompress.targets import Target, Targets, WeightBits, hold_together
from autocompress.training.batch_norm import refit_batch_norm
from autocompress.training.checks import check_validation
from autocompress.training.evaluation import evaluate as evaluate_batches

logger = logging.getLogger(__name__)

# Training batches that batch norm statistics are refitted on.
REFIT_BATCHES = 50
# A gradient scaler skips a step now and then; of so many in fine-tuning at least one has to have been taken.
FEWEST_STEPS = 10
# A one-shot network whose score is below the best by more than this part of it is not written: it is not chosen.
CLEARLY_WORSE = 0.05


class Compressor:
    """Compresses a network while its user trains it.

    Call `step()` once after each real optimizer update and before the gradients are cleared, `total_steps` times, then
    `finish()`. There is nothing else to choose: the number of updates, the path of the budget and the phase of
    fine-tuning follow from the target and `total_steps`. Between two optimizer steps the parameters hold V, the network
    that would be written now (see `solver.lazy_projection`).

    Attributes:
        steps: calls of `step()` so far.
        solver: W, V and their moves.
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
        constants: SolverConstants = DEFAULTS,
    ) -> None:
        """Checks everything that can be wrong before any training.

        Args:
            model: the trained network, wrapped or not.
            optimizer: the one that the loop steps; only its learning rates are read.
            target: what the result has to meet; several hold together.
            total_steps: how often `step()` will be called; 0 = not at all: the network is pruned and quantized at once.
            ignore: globs over parameter or module names, or module types, not to compress.
            evaluate: score of a network, higher is better, on data kept for choices: decides between candidates. A
                promise cannot do without: the accuracy, a fraction of 1, for `drop:`; the loss for `loss:`, where
                lower is better. It scores the model as it is given here for the reference.
            refit: sets the batch norm statistics of a network to its weights, by a few training batches; used where a
                promise is measured. Without it a compressed network is scored with the statistics of the dense one.
            example: an input of the network with its batch dimension, a tensor, a tuple of several or a dict of keyword
                arguments: for targets of energy, which depends on the sizes of the layers' outputs.
            energy_model: for `energy-channels`; default: one fitted to the analytic model.
            constants: of the method, for studies.

        Raises:
            InvalidInputError: a target, pattern or length that cannot be; nothing to compress; not finite weights.
            InfeasibleTargetError: naming the smallest target that can be met.
        """
        total_steps = whole_number("total_steps", total_steps, 0)
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
        self.constants = constants
        self.method = self._make_method()
        self.steering = make_steering(
            self.target.promise, self.network, self.method, self.original_bytes, evaluate, refit
        )
        fraction = constants.fine_tuning_fraction if self.steering is None else SEARCH_FRACTION
        self.projected_steps = total_steps - finishing_steps(total_steps, fraction)
        self.steps_per_update = max(
            1, constants.min_steps_per_update, self.projected_steps // max(1, constants.updates)
        )
        self.solver: LazyProjection | Admm = self._make_solver()
        self.rate = RelativeRate(optimizer, self.network.weights)
        self.given = [tensor.detach().cpu().clone() for tensor in self._tensors]
        self.steps = 0
        self.finishing: Finishing | None = None
        self.history: list[dict[str, float]] = []
        self.greedy = False

    def _make_method(self) -> Method:
        """Returns what meets the target; another class may meet it in another way."""
        return make_method(self.target, self.network, self.original_bytes, self.energy, self.constants)

    def _make_solver(self) -> LazyProjection | Admm:
        """Returns the iteration: the published one where W itself is projected, and where the constants say so."""
        if any(bits.in_place for bits in self.target.of_kind(WeightBits)) or self.constants.iteration == ADMM:
            return Admm(self.network.weights, self.steps_per_update, self.constants.admm_contraction)
        dense = {
            id(parameter)
            for module in self.network.model.modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
            for parameter in module.parameters(recurse=False)
        }
        fading = [id(weight) in dense for weight in self.network.weights]
        constants = self.constants
        return LazyProjection(
            self.network.weights, constants.pruned_rate, constants.idle_decay, fading, constants.memory_steps
        )

    @property
    def _tensors(self) -> list[Tensor]:
        """All parameters and buffers, in one order."""
        return [*self.network.model.parameters(), *self.network.model.buffers()]

    def step(self) -> None:
        """Follows one optimizer update: moves W, projects it when it is time, or fine-tunes.

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
        if self.finishing is None and self.steps > self.projected_steps:
            self._begin_finishing()
        if self.finishing is not None:
            self._finishing_step()
            return
        if self.steps == 1:
            if self.steering is not None:
                self.steering.find_start()
            self._update(0.0)
        self.solver.follow(self.rate.now())
        if self.steps == self.projected_steps:
            self._begin_finishing()
        elif self.steps % self.steps_per_update == 0:
            self._update(self.steps / self.projected_steps)
        else:
            self.solver.between()

    @torch.no_grad()
    def _update(self, fraction: float) -> None:
        points = self._checked_points()
        projection = self.method.project(self.network.weights, points, fraction)
        residual = self.solver.update(projection.coded, projection.pruned, self.method.rules())
        self._record(projection, residual)
        if self.steering is not None:
            self.steering.watch(projection.coded, self.rate.now())

    def _checked_points(self) -> list[Tensor]:
        points = self.solver.points()
        for (name, _), x in zip(self.network.selection.weights, points, strict=True):
            if not is_moderate(x):
                raise TrainingDivergedError(
                    f"{name} became NaN or infinite, or above 1e18, by step {self.steps}: the training diverged"
                )
        return points

    def _record(self, projection: Projection, residual: float) -> None:
        self.greedy = projection.greedy
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
        steering.refit(self.network.model)
        steering.consider(*finished_file(self.network, self.finishing, self.method))

    @torch.no_grad()
    def _begin_finishing(self) -> None:
        """Projects onto the target itself and fixes the assignments."""
        steps = max(1, self.total_steps - self.steps)
        points = self._checked_points()
        self.solver.end()
        if self.steering is not None:
            steps = self.steering.begin_stage(steps)
            points = points if self.steering.stage == 1 else [w.detach().clone() for w in self.network.weights]
        projection = self.method.close(self.network.weights, points)
        self._record(projection, 0.0)
        self.finishing = self._fine_tuning(projection, self.method, steps)
        if self.steering is not None:
            self._consider(self.steering)

    def _fine_tuning(self, projection: Projection, method: Method, steps: int) -> Finishing:
        return start_finishing(self.network, projection.coded, method, steps, self.constants.fine_tuning_step)

    def finish(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        judged_by: str = "evaluate=",
    ) -> Result:
        """Returns the compressed network, within its target, and puts its weights into the model.

        Args:
            train: batches on which batch norm statistics are refitted to the compressed weights.
            val: batches that decide between the trained network, the one before fine-tuning and the one as it was
                given, pruned and quantized at once, by their loss (cross-entropy).
            evaluate: the same by a score of a network, higher is better.
            judged_by: what `evaluate` measures, in words, for the report.

        With neither, the trained network is what is returned. Where the target is a promise, all that is decided is
        decided during the run, by the compressor's own `evaluate`, and none of these is used.

        Raises:
            TrainingDivergedError: a weight became NaN or infinite.
        """
        if self.finishing is None and self.total_steps:
            logger.warning(
                "finish() after %d of total_steps=%d calls of step(): the network is projected as it is and will have "
                "lost accuracy; total_steps is to be the number of optimizer updates",
                self.steps,
                self.total_steps,
            )
        if self.finishing is None:
            self._begin_finishing()
        assert self.finishing is not None
        if self.steering is not None:
            return self._promised(self.steering)
        if FEWEST_STEPS <= self.finishing.step_count == self.finishing.skipped_steps:
            raise TrainingDivergedError("no step of fine-tuning had a finite gradient: the training diverged")
        evaluate = evaluate or self.evaluate
        if val is not None and evaluate is None:
            check_validation(self.network.model, val, next(self.network.model.parameters()).device)
            evaluate, judged_by = partial(_minus_loss, batches=val), "the loss on val="
        candidates = {TRAINED: self._file(self.finishing, self.method, train)}
        scores = {TRAINED: math.nan}
        if evaluate is not None:
            scores[TRAINED] = float(evaluate(filled_copy(self.network.model, candidates[TRAINED][0])))
            if self.steps:
                self._others(candidates, scores, evaluate, train)
        chosen = max(candidates, key=lambda name: _known(scores[name]))
        state = candidates[chosen][0]
        result = self._result_of(*candidates[chosen])
        result.outcome = Outcome(
            chosen if self.steps else ONE_SHOT,
            judged_by=judged_by if evaluate is not None else "",
            scores=scores if evaluate is not None else {},
            zero_layers=zero_layers(state),
            layers=len(state.coded),
            skipped_steps=self.finishing.skipped_steps,
            greedy=self.greedy,
        )
        fill(self.network.model, result.state)
        return result

    def _others(
        self,
        candidates: dict[str, tuple[CompressedState, bytes]],
        scores: dict[str, float],
        evaluate: Callable[[nn.Module], float],
        train: Iterable[Any] | None,
    ) -> None:
        """Adds the scores of the networks that may be better than the trained one, and the files of those that are."""
        assert self.finishing is not None
        if self.finishing.step_count:
            self.finishing.rewind()
            scores[BEFORE_FINE_TUNING] = self._score_now(evaluate, train)
            if _known(scores[BEFORE_FINE_TUNING]) > _known(scores[TRAINED]):
                candidates[BEFORE_FINE_TUNING] = self._file(self.finishing, self.method, train)
        best = max(map(_known, scores.values()))
        method = self._take_back()
        points = [w.detach().float().clone() for w in self.network.weights]
        self._fine_tuning(method.project(self.network.weights, points, 1.0), method, 1)
        scores[ONE_SHOT] = self._score_now(evaluate, train)
        if _known(scores[ONE_SHOT]) >= best - CLEARLY_WORSE * abs(best):  # before its real size is known
            candidates[ONE_SHOT] = self._one_shot(train)
            scores[ONE_SHOT] = float(evaluate(filled_copy(self.network.model, candidates[ONE_SHOT][0])))

    def _score_now(self, evaluate: Callable[[nn.Module], float], train: Iterable[Any] | None) -> float:
        """Returns the score of the network with the parameters that it has."""
        self._refit(train)
        return float(evaluate(copy_network(self.network.model)))

    @torch.no_grad()
    def _take_back(self) -> Method:
        """Makes the network what it was when it was given; returns a method that knows nothing yet."""
        for tensor, given in zip(self._tensors, self.given, strict=True):
            if not torch.equal(tensor, given.to(tensor.device)):  # an expanded buffer cannot be written to
                tensor.copy_(given)
        return self._make_method()

    def _one_shot(self, train: Iterable[Any] | None) -> tuple[CompressedState, bytes]:
        """Returns the file of the network as it was given, projected at once: no training need end below it."""
        method = self._take_back()
        weights = [w.detach().float().clone() for w in self.network.weights]
        phase = self._fine_tuning(method.close(self.network.weights, weights), method, 1)
        return self._file(phase, method, train)

    def _promised(self, steering: Steering) -> Result:
        """Returns the smallest network seen that keeps the promise, or the most accurate where none does."""
        assert self.finishing is not None
        if self.finishing.step_count < self.finishing.total_steps:
            self._consider(steering)
        result = self._result_of(*steering.outcome())
        result.promise = steering.report()
        result.outcome = Outcome(
            ONE_SHOT if steering.fell_back else TRAINED,
            judged_by="the promise",
            zero_layers=zero_layers(result.state),
            layers=len(result.state.coded),
            skipped_steps=self.finishing.skipped_steps,
            promise_kept=result.promise["kept"],
        )
        fill(self.network.model, result.state)
        return result

    def _file(self, phase: Finishing, method: Method, train: Iterable[Any] | None) -> tuple[CompressedState, bytes]:
        """Returns the network as a phase left it, within the target, its batch norms refitted where there is data."""
        self._refit(train)
        return finished_file(self.network, phase, method)

    def _refit(self, train: Iterable[Any] | None) -> None:
        """Sets the batch norms to the parameters as they are, where there is data."""
        if train is not None:
            model = self.network.model
            refit_batch_norm(model, train, device=next(model.parameters()).device, max_batches=REFIT_BATCHES)

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
            "given": self.given,
            "shapes": [list(weight.shape) for weight in self.network.weights],
            "solver": self.solver.state_dict() if self.finishing is None else None,
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
        shapes, mine = [tuple(s) for s in state["shapes"]], [tuple(w.shape) for w in self.network.weights]
        if shapes != mine:
            raise InvalidInputError(
                f"the saved run is of another network: it compresses tensors of the shapes {shapes}, this one {mine}"
            )
        self.steps, self.rate.peaks, self.history = state["steps"], list(state["peaks"]), list(state["history"])
        self.method.load_state_dict(state["method"])
        if self.steering is not None:
            self.steering.load_state_dict(state["steering"])
        self.given = list(state["given"])
        if state["solver"] is not None:
            self.solver.load_state_dict(state["solver"], self.method.rules())
        if state["finishing"] is not None:
            self.finishing = Finishing.from_state_dict(self.network.weights, self.network.sides, state["finishing"])


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


def _known(score: float) -> float:
    """Returns a score, below all others where it is none."""
    return score if math.isfinite(score) else -math.inf


def _minus_loss(model: nn.Module, batches: Iterable[Any]) -> float:
    return -evaluate_batches(model, batches, device=next(model.parameters()).device).loss
