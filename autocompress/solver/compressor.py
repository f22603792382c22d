"""The plug-in for any training loop: `step()` after each optimizer step, `finish()` at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from autocompress.constraints.constraint import Method, Network
from autocompress.constraints.factory import count_energy, make_method
from autocompress.energy.channel_model import ChannelEnergy
from autocompress.errors import InvalidInputError, TrainingDivergedError, whole_number
from autocompress.network.live_network import check_copyable, copy_network, named_tensors, refuse_unfinished, unwrap
from autocompress.network.network_state import fill, filled_copy
from autocompress.network.selection import Ignore, check_trainable, original_bytes, select
from autocompress.solver.admm import Admm, RelativeRate
from autocompress.solver.constants import ADMM, DEFAULTS, SolverConstants
from autocompress.solver.fine_tuning import FineTuning, fine_tuning_steps
from autocompress.solver.lazy_projection import LazyProjection, dense_layers
from autocompress.solver.phases import FineTuningPhase, Phase, ProjectionPhase, Run, all_tensors, put_back
from autocompress.solver.quality_search import SEARCH_FRACTION, make_quality_search
from autocompress.solver.result import BEFORE_FINE_TUNING, ONE_SHOT, TRAINED, Candidates, Outcome, Result, zero_layers
from autocompress.targets import AccuracyDrop, Target, Targets, WeightBits, combined
from autocompress.training.checks import check_finite, check_validation
from autocompress.training.evaluation import evaluate as evaluate_batches
from autocompress.training.ranks import presence, ranks_of
from autocompress.training.recipe import real_number

logger = logging.getLogger(__name__)

# A gradient scaler skips a step now and then; of so many in fine-tuning at least one has to have been taken.
MIN_STEPS = 10
# Calibration divides the loss of a network that was pruned and quantized at once by no more than this: 2 (ResNet-20 at
# 54 KB), 3 (at 27 KB), 7 (LeNet-5 on digits at 10 KB).
MAX_CALIBRATION_GAIN = 10.0
# After training, networks of more weights are not calibrated as well: it takes minutes.
MAX_CALIBRATED_WEIGHTS = 5_000_000


class Compressor:
    """Compresses a network while its user trains it.

    Call `step()` once after each real optimizer update and before the gradients are cleared, `total_steps` times, then
    `finish()`. There is nothing else to choose: the number of updates, the path of the budget and the phase of
    fine-tuning follow from the target and `total_steps`. Between two optimizer steps the parameters hold V, the network
    that would be written now (see `solver.lazy_projection`).

    A model in `DistributedDataParallel` is one network on all ranks: each makes the same calls, on its own data, and
    gets the same result (see `training.ranks`).

    Attributes:
        steps: calls of `step()` so far.
        run: network, projection and solver, as all phases share them.
        phases: of the run, in order.
        quality: what moves the file size where the target is a promise, else None.
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
        group: ProcessGroup | None = None,
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
            group: the processes that train the network together, where it is only a part of what is wrapped in
                `DistributedDataParallel`; default: those of its own wrapper, or this one alone.
            constants: of the method, for studies.

        Raises:
            InvalidInputError: a target, pattern or length that cannot be; nothing to compress; not finite weights.
            InfeasibleTargetError: naming the smallest target that can be met.
        """
        self.started = time.perf_counter()
        refuse_unfinished(model)
        if not hasattr(optimizer, "param_groups"):  # a wrapper may be no torch.optim.Optimizer
            raise InvalidInputError(
                f"the optimizer is {optimizer!r}; give the torch.optim.Optimizer that the loop steps"
            )
        self.total_steps = whole_number("total_steps", total_steps, 0)
        self.target = combined(target)
        self.model, self.optimizer = model, optimizer
        self.ranks = ranks_of(model, group)
        self.ranks.check_same({"total_steps": self.total_steps, "target": str(self.target)})
        self.evaluate = None if evaluate is None else self.ranks.averaged(as_number(evaluate))
        refit = None if refit is None else self.ranks.sharing(refit)
        self.network = trained_network(model, optimizer, ignore)
        self.ranks.broadcast(list(self.network.model.parameters()))
        self.ranks.synchronize_buffers(self.network.model)
        self.original_bytes = original_bytes(model)
        self.energy = count_energy(self.target, self.network, example, energy_model)
        fraction = constants.fine_tuning_fraction if self.target.quality is None else SEARCH_FRACTION
        projected = max(0, self.total_steps - fine_tuning_steps(self.total_steps, fraction))
        self.constants = constants.for_steps(projected)
        self.method = self._make_method()
        self.quality = make_quality_search(
            self.target.quality, self.network, self.method, self.original_bytes, self.evaluate, refit
        )
        rate = RelativeRate(optimizer, self.network.weights)
        self.run = Run(self.network, self.method, self._make_solver(projected), rate, self.ranks, self.constants)
        self.run.phases = self._make_phases(projected)
        self._parameters = [
            (name, module, key, parameter)
            for name, module in self.network.model.named_modules()
            for key, parameter in module._parameters.items()
        ]

    def _make_method(self) -> Method:
        """Returns what meets the target; another class may meet it in another way."""
        return make_method(self.target, self.network, self.original_bytes, self.energy, self.constants)

    def _make_solver(self, steps: int) -> LazyProjection | Admm:
        """Returns the iteration: the published one where W itself is projected, and where the constants say so."""
        weights, constants = self.network.weights, self.constants
        if any(bits.in_place for bits in self.target.of_kind(WeightBits)) or constants.iteration == ADMM:
            return Admm(weights, constants.steps_per_update(steps), constants.admm_contraction)
        idle = dense_layers(self.network.model, weights)
        return LazyProjection(weights, constants.pruned_rate, constants.idle_decay, idle, constants.memory_steps)

    def _make_phases(self, projected: int) -> list[Phase]:
        """Returns projections and then fine-tuning; where a promise decides the size, it says how."""
        left = max(1, self.total_steps - projected)
        if self.quality is not None:
            return self.quality.phases(self.run, projected, left)
        last = FineTuningPhase(self.run, left)
        return [ProjectionPhase(self.run, projected), last] if projected else [last]

    @property
    def steps(self) -> int:
        return self.run.steps

    @property
    def history(self) -> list[dict[str, float]]:
        """One entry per projection: step, residual, error, price (the multiplier), nonzeros."""
        return self.run.history

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
        self._check_parameters()
        self.run.step()

    def _check_parameters(self) -> None:
        """Refuses a network whose parameters were replaced: what is trained then is not what is compressed."""
        for name, module, key, parameter in self._parameters:
            if module._parameters.get(key) is not parameter:
                full = f"{name}.{key}".removeprefix(".")
                raise InvalidInputError(
                    f"{full} is another tensor than when the Compressor was made; make it after all changes "
                    "to the network, and load weights without assign=True"
                )

    def finish(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        judged_by: str = "evaluate=",
    ) -> Result:
        """Returns the compressed network, within its target, with its scores, and puts its weights into the model.

        Args:
            train: batches on which batch norm statistics are refitted to the compressed weights, and that say what the
                network without training loses in its layers' outputs.
            val: batches that decide between the trained network, the one before fine-tuning and the one as it was
                given, pruned and quantized at once, by their loss (cross-entropy).
            evaluate: the same by a score of a network, higher is better.
            judged_by: what `evaluate` measures, in words, for the report.

        With neither, the trained network is what is returned, without scores. Where the target is a promise, all that
        is decided is decided during the run, by the compressor's own `evaluate`, and none of these is used.

        Raises:
            TrainingDivergedError: a weight became NaN or infinite.
        """
        result = self.compressed(train=train, val=val, evaluate=evaluate, judged_by=judged_by)
        result.device = str(next(self.network.model.parameters()).device)
        result.wall_seconds = time.perf_counter() - self.started
        given = copy_network(self.network.model)
        put_back(all_tensors(given), self.run.given)
        evaluate = self.evaluate if evaluate is None else self.ranks.averaged(as_number(evaluate))
        if result.promise is not None:
            if isinstance(self.target.quality, AccuracyDrop):
                result.reference_accuracy = result.promise["reference"]
                result.validation_accuracy = result.promise["measured"]
        elif evaluate is not None:
            assert result.outcome is not None
            result.validation_accuracy = result.outcome.scores[result.outcome.chosen]
            result.reference_accuracy = evaluate(given)
            result.metric = f"score {'of' if judged_by == 'evaluate=' else 'by'} {judged_by}"
        elif val is not None:
            device = next(self.network.model.parameters()).device
            scores = [evaluate_batches(network, val, device=device).metric for network in (given, result.model)]
            result.reference_accuracy, result.validation_accuracy = map(self.ranks.mean, scores)
        result.reference_split = None if result.validation_accuracy is None else "validation"
        return result

    def compressed(
        self,
        *,
        train: Iterable[Any] | None = None,
        val: Iterable[Any] | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        judged_by: str = "evaluate=",
    ) -> Result:
        """Returns what `finish` returns, but for scores, device and time."""
        self.ranks.check_same({"train": presence(train), "val": presence(val), "evaluate": presence(evaluate)})
        if self.total_steps and isinstance(self.run.phase, ProjectionPhase):
            logger.warning(
                "finish() after %d of total_steps=%d calls of step(): the network is projected as it is and will have "
                "lost accuracy; total_steps is to be the number of optimizer updates",
                self.steps,
                self.total_steps,
            )
        values = self.run.end() if self.steps else None
        if MIN_STEPS <= self.run.fine_tuning_steps == self.run.skipped_steps:
            raise TrainingDivergedError("no step of fine-tuning had a finite gradient: the training diverged")
        if self.quality is not None:
            self.quality.compress_at_once(self.run, train)
            candidates, judged_by = self.quality.files, "the promise"
        else:
            candidates, judged_by = self._candidates(values, train, val, evaluate, judged_by)
        chosen = candidates.chosen
        result = Result(
            state=chosen.state,
            data=chosen.data.numpy().tobytes(),
            model=filled_copy(self.network.model, chosen.state),
            target=self.target,
            selection=self.network.selection,
            gradient_steps=self.steps,
            history=self.run.history,
            energy=None if self.energy is None else self.energy.use(chosen.state),
            promise=None if self.quality is None else self.quality.report(trained=self.steps > 0),
        )
        constant = check_outputs(result.model, self.run, val if train is None else train)
        result.outcome = Outcome(
            candidates.origin if self.steps else ONE_SHOT,
            judged_by=judged_by,
            scores={} if self.quality is not None else candidates.scores,
            zero_layers=zero_layers(chosen.state),
            layers=len(chosen.state.quantized),
            skipped_steps=self.run.skipped_steps,
            greedy=self.run.greedy,
            promise_kept=None if result.promise is None else result.promise["kept"],
            steps=self.steps,
            total_steps=self.total_steps,
            constant=constant,
        )
        fill(self.network.model, result.state)
        return result

    def _candidates(
        self,
        values: FineTuning | None,
        train: Iterable[Any] | None,
        val: Iterable[Any] | None,
        evaluate: Callable[[nn.Module], float] | None,
        judged_by: str,
    ) -> tuple[Candidates, str]:
        """Returns the files that meet the target, with their scores, and what judged them."""
        evaluate = self.evaluate if evaluate is None else self.ranks.averaged(as_number(evaluate))
        if val is not None and evaluate is None:
            check_validation(self.network.model, val, next(self.network.model.parameters()).device)
            evaluate, judged_by = self.ranks.averaged(partial(_minus_loss, batches=val)), "the loss on val="
        candidates = Candidates(self.network.model, evaluate)
        if not self.steps and evaluate is None and train is not None and self._calibrated(candidates, train):
            return candidates, ""  # there is nothing to compare it by: the plain one need not be made
        values = self.run.end() if values is None else values
        if self.steps or evaluate is not None:
            first = TRAINED if self.steps else ONE_SHOT
            candidates.add(first, *self.run.file(values, self.method, train))  # what raises here leaves the values
        if values.step_count and evaluate is not None:
            values.rewind()
            candidates.add(BEFORE_FINE_TUNING, *self.run.file(values, self.method, train))
        if self.steps and evaluate is not None:
            candidates.add(ONE_SHOT, *self.run.one_shot(self._make_method(), train))
        few = sum(weight.numel() for weight in self.network.weights) <= MAX_CALIBRATED_WEIGHTS
        asked = evaluate is not None and (not self.steps or (few and not _hopeless(candidates)))
        if train is not None and asked:
            self._calibrated(candidates, train)
        if not candidates.best:
            values.write()
            candidates.add(ONE_SHOT, *self.run.file(values, self.method, train))
        return candidates, "" if evaluate is None else judged_by

    def _calibrated(self, candidates: Candidates, train: Iterable[Any]) -> bool:
        """Adds the network that is calibrated on data; returns whether it can be."""
        method, moments = self.run.calibrated(self._make_method(), train)
        if moments:
            candidates.add(ONE_SHOT, *self.run.one_shot(method, train, moments))
        return bool(moments)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs besides model and optimizer: tensors, numbers, containers."""
        shapes = [list(weight.shape) for weight in self.network.weights]
        quality = None if self.quality is None else self.quality.state_dict()
        asked = {"total_steps": self.total_steps, "target": str(self.target), "shapes": shapes}
        return {**asked, **self.run.state_dict(), "quality": quality}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the model's own weights are the caller's to restore, first.

        Raises:
            InvalidInputError: the state is of a run with another target, length or network, or no state of a run.
        """
        if not isinstance(state, dict) or "total_steps" not in state or "shapes" not in state:
            raise InvalidInputError("this is no state of a Compressor: give what its state_dict() returned")
        for key, own in (("total_steps", self.total_steps), ("target", str(self.target))):
            if state[key] != own:
                raise InvalidInputError(f"the saved run has {key} {state[key]!r}, this one {own!r}")
        shapes, mine = [tuple(s) for s in state["shapes"]], [tuple(w.shape) for w in self.network.weights]
        if shapes != mine:
            raise InvalidInputError(
                f"the saved run is of another network: it compresses tensors of the shapes {shapes}, this one {mine}"
            )
        if self.quality is not None:
            self.quality.load_state_dict(state["quality"])
        self.run.load_state_dict(state)


@torch.no_grad()
def trained_network(model: nn.Module, optimizer: torch.optim.Optimizer, ignore: Ignore) -> Network:
    """Returns what is compressed of a model that an optimizer trains; what a mask prunes is set to zero.

    A masked weight's gradient is zero, so it stays there, and nothing is spent on it.

    Raises:
        InvalidInputError: there is nothing to compress, or it cannot be copied or trained.
    """
    network = Network(unwrap(model), select(model, ignore))
    check_copyable(network.model)
    check_trainable(network.selection)
    mine = {id(parameter) for parameter in network.model.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise InvalidInputError("the optimizer holds no parameter of the model; make it from model.parameters()")
    tensors = named_tensors(network.model)
    for name, mask in network.selection.masks.items():
        tensors[name].mul_(tensors[mask].to(tensors[name].dtype))
    return network


def check_target(
    model: nn.Module,
    target: str | Target | Targets | Sequence[str | Target],
    ignore: Ignore = (),
    *,
    example: Any = None,
    energy_model: ChannelEnergy | None = None,
) -> None:
    """Checks that a network can be compressed to a target: known before any training.

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


def as_number(evaluate: Callable[[nn.Module], Any]) -> Callable[[nn.Module], float]:
    """Returns a score that is a number of Python's own, whatever library the user's is of.

    It raises an InvalidInputError where that is no number.
    """
    return lambda network: real_number("the score that evaluate= returns", evaluate(network))


def check_outputs(compressed: nn.Module, run: Run, batches: Iterable[Any] | None) -> bool:
    """Checks that a compressed network's outputs are finite where the given one's were, or where nothing can tell.

    Returns:
        Whether they are the same for every example, where the given one's were not.

    Raises:
        TrainingDivergedError: they are not finite; the layer is named.
    """
    if batches is None or iter(batches) is batches:  # an iterator would lose what is looked at
        return False
    reference = copy_network(run.network.model)
    put_back(all_tensors(reference), run.given)
    try:
        return check_finite(compressed, reference, batches, device=next(run.network.model.parameters()).device)
    except TrainingDivergedError:
        raise
    except Exception as error:  # whatever a network raises that does not take these batches as they are
        logger.warning("whether all outputs are finite was not looked at: %s: %s", type(error).__name__, error)
    return False


def _hopeless(candidates: Candidates) -> bool:
    """Tells whether the network without training is so much worse than the others that calibration cannot change it."""
    at_once = candidates.best.get(ONE_SHOT)
    best = max((each.score for each in candidates.best.values()), default=math.nan)
    return at_once is not None and at_once.score < MAX_CALIBRATION_GAIN * best < 0


def _minus_loss(model: nn.Module, batches: Iterable[Any]) -> float:
    return -evaluate_batches(model, batches, device=next(model.parameters()).device).loss
