"""What a proposal is worth: projected, fine-tuned for the trial's epochs, and scored on the validation split."""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.constraints.constraint import Method, Network
from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network, named_tensors
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Ignore, select
from autocompress.solver.compression import CompressorCallback
from autocompress.solver.compressor import Compressor
from autocompress.solver.phases import FineTuningPhase
from autocompress.solver.result import Result
from autocompress.targets import Target, parse_target
from autocompress.task import Task
from autocompress.training.batches import TensorBatches, check_batches, default_device
from autocompress.training.checkpoint import Callback, run_state
from autocompress.training.evaluation import Evaluation as Scores
from autocompress.training.evaluation import evaluate
from autocompress.training.losses import distillation_from
from autocompress.training.random_state import seeded
from autocompress.training.trainer import Trainer
from baselines.fitting import make_budget
from baselines.gradual import GradualPruning
from baselines.interface import Evaluation, Progress, Report, Values, go_on
from baselines.plan import Plan
from baselines.plan_method import PlanMethod, make_plan_method
from baselines.space import GradualSpace, PlanSpace, make_space


class TaskObjective:
    """What every objective has of its task: a trained network, data without a test split, loss and metric."""

    def __init__(
        self,
        task: Task,
        reference: nn.Module,
        *,
        epochs: int,
        seed: int,
        device: str | torch.device | None,
        ignore: Ignore,
    ) -> None:
        self.name, self.epochs, self.seed, self.device, self.ignore = task.name, epochs, seed, device, ignore
        self.train, self.validation = task.train, task.validation
        self.steps_per_epoch = check_batches(task.train, "the training data")
        self.loss, self.metric = task.loss, task.metric
        self.reference = copy_network(reference, device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to another process: data in main memory, because its device may be another.

        As numpy arrays, which Ray's actors of one node read from one place: a tensor would be copied into each of them.
        """
        state = dict(self.__dict__)
        return state | {"train": _packed(self.train), "validation": _packed(self.validation)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"train": _unpacked(state["train"]), "validation": _unpacked(state["validation"])}

    def scores(self, network: nn.Module) -> Scores:
        where = default_device(self.device)
        self.validation = on_device(self.validation, where)
        return evaluate(network, self.validation, loss=self.loss, metric=self.metric, device=where)


class PlanObjective(TaskObjective):
    """Evaluates plans for a network on its task. It is given no test split, so that no search can see one.

    May be pickled and called in any process. It trains by the task's recipe for compression, as the compressor does.
    """

    def __init__(
        self,
        task: Task,
        reference: nn.Module,
        *,
        target: str | Target,
        space: str = "per-layer",
        epochs: int = 5,
        seed: int = 0,
        device: str | torch.device | None = None,
        ignore: Ignore = (),
    ) -> None:
        """Checks what can be wrong; where the recipe has no learning rate, it is found here, once for all trials.

        Args:
            task: gives training and validation data, loss, metric and recipe.
            reference: the trained network; it is copied.
            target: what every proposal is fitted to.
            space: name of the search space, see `baselines.space`.
            epochs: length of an evaluation.
            seed: of the fine-tuning; the same for all proposals.
            device: where trials run; default: CUDA where the process that evaluates has it.
            ignore: globs over parameter or module names, or module types, not to compress.

        Raises:
            InvalidInputError: an unknown space or target, no epochs, or nothing to compress.
            InfeasibleTargetError: no plan fits.
        """
        if epochs < 1:
            raise InvalidInputError(f"epochs of a trial is {epochs}; it must be at least 1")
        super().__init__(task, reference, epochs=epochs, seed=seed, device=device, ignore=ignore)
        self.target = parse_target(target)
        network = Network(self.reference, select(self.reference, ignore))
        self.space = make_space(space, network, make_budget(network, self.target))
        self.recipe = task.recipe.for_compression()
        if self.recipe.learning_rate is None:
            self.recipe = replace(self.recipe, learning_rate=self._trainer(copy_network(reference)).learning_rate)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "target": str(self.target),
            "space": self.space.name,
            "epochs": self.epochs,
            "seed": self.seed,
            "recipe": self.recipe.key(),
            "ignore": ", ".join(map(str, self.ignore)),
            "reference": digest_of(self.reference),
        }

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        started = time.perf_counter()
        run = PlanRun(self, values, state=state)
        reporter = _Reporter(self, run, report, started)
        run.trainer.callbacks.append(reporter)
        try:
            run.trainer.fit()
        except _Stopped:
            return self._evaluation(run, reporter, started, reporter.last, stopped=True)
        result = run.finish()
        network = filled_copy(run.trainer.model, result.state)
        found = self._evaluation(run, reporter, started, self.scores(network))
        size = run.compressor.budget.size_of(result.state, result.data)
        return replace(found, size=size, plan=Plan.of(result.state.quantized).to_json(), file=result.data)

    def _evaluation(
        self, run: PlanRun, reporter: _Reporter, started: float, scores: Scores, stopped: bool = False
    ) -> Evaluation:
        return Evaluation(
            accuracy=scores.metric,
            size=0,
            gradient_steps=run.trainer.step - reporter.first_step,
            device_seconds=time.perf_counter() - started,
            curve=tuple(reporter.curve),
            plan=run.compressor.plan,
            stopped=stopped,
            loss=scores.loss,
        )

    def _trainer(self, model: nn.Module, epochs: int | None = None, **options: Any) -> Trainer:
        where = default_device(self.device)
        self.train = on_device(self.train, where)
        return Trainer(
            model,
            self.train,
            recipe=self.recipe,
            epochs=epochs or self.epochs,
            loss=self.loss,
            device=where,
            seed=self.seed,
            distillation=distillation_from(self.reference, self.loss, where),  # as the compressor's
            **{"progress": False, **options},
        )


class PlanCompressor(Compressor):
    """The compressor with a proposal in place of its own projection: the same solver, path, fine-tuning and choice.

    Attributes:
        budget: what the target asks.
        values: the proposal.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, space: PlanSpace, values: Values, **settings: Any
    ) -> None:
        self.space, self.values = space, dict(values)
        super().__init__(model, optimizer, **settings)

    def _make_method(self) -> Method:
        self.budget = make_budget(self.network, self.target.only)
        return make_plan_method(self.network, self.budget, self.space, self.values, self.constants)

    def _make_solver(self, steps: int) -> Any:
        """Returns the compressor's iteration, or that of a method that brings its own."""
        if isinstance(self.space, GradualSpace):
            return GradualPruning(self.network.weights)
        return super()._make_solver(steps)

    @property
    def plan(self) -> dict[str, Any]:
        """The plan after its last repair, as `Plan.to_json` returns it; empty where there is none yet."""
        fitted = self.method.fitted if isinstance(self.method, PlanMethod) else None
        return {} if fitted is None else fitted.plan.to_json()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, perhaps of another proposal: its weights are then projected anew."""
        if state["method"]["values"] != self.values and isinstance(self.run.phases[state["number"]], FineTuningPhase):
            state = state | {"phase": {}}
        super().load_state_dict(state)


class PlanRun:
    """One training of the reference under one proposal.

    Attributes:
        trainer: to be fitted.
        compressor: keeps the proposal.
    """

    def __init__(self, objective: PlanObjective, values: Values, epochs: int | None = None, **options: Any) -> None:
        """Prepares the run; `options` are those of the trainer."""
        model = copy_network(objective.reference, device=default_device(objective.device))
        self.trainer = objective._trainer(model, epochs, **options)
        self.compressor = PlanCompressor(
            model,
            self.trainer.optimizer,
            space=objective.space,
            values=values,
            target=objective.target,
            total_steps=self.trainer.total_steps,
            ignore=objective.ignore,
        )
        self.trainer.callbacks.append(CompressorCallback(self.compressor))
        self.objective = objective

    def finish(self, evaluate: Callable[[nn.Module], float] | None = None) -> Result:
        """Returns the network and its file, within the target, batch norm refitted to it.

        Args:
            evaluate: score of a network: chooses between the trained one, the one before fine-tuning and the one that
                was pruned and quantized at once. None = the trained one.
        """
        with seeded(self.objective.seed):
            return self.compressor.finish(
                train=self.objective.train, evaluate=evaluate, judged_by="the loss on the validation data"
            )


class _Stopped(Exception):
    """A report asked for the end of an evaluation."""


class _Reporter(Callback):
    """Scores the network after each epoch and reports it."""

    def __init__(self, objective: PlanObjective, run: PlanRun, report: Report, started: float) -> None:
        self.objective, self.run, self.report, self.started = objective, run, report, started
        self.curve: list[tuple[int, float]] = []
        self.first_step, self.last = 0, Scores(math.nan, math.nan, torch.zeros(0))

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.last = self.objective.scores(trainer.model)
        steps, seconds = trainer.step - self.first_step, time.perf_counter() - self.started
        self.curve.append((steps, self.last.metric))
        scores = self.last
        if self.report(Progress(trainer.epoch, scores.metric, steps, seconds, lambda: run_state(trainer), scores.loss)):
            raise _Stopped

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counts from here."""
        self.first_step = self.run.compressor.steps


def digest_of(model: nn.Module) -> str:
    """Returns what tells a network on the CPU from every other."""
    digest = hashlib.sha256()
    for name, tensor in named_tensors(model).items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def on_device(batches: Iterable[Any], device: torch.device | str) -> Iterable[Any]:
    """Returns the batches, on a device where they are tensors in memory."""
    return batches.to(device) if isinstance(batches, TensorBatches) else batches


@dataclass(frozen=True)
class _Packed:
    """Batches in memory with their tensors as arrays."""

    batches: TensorBatches
    arrays: tuple[NDArray[Any], ...]


def _packed(batches: Iterable[Any]) -> Any:
    if type(batches) is not TensorBatches:
        return on_device(batches, "cpu")
    tensors = batches.inputs.cpu(), batches.targets.cpu()
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors):  # numpy has no such type
        return batches.to("cpu")
    empty = copy.copy(batches)
    empty.inputs = empty.targets = torch.zeros(0)
    return _Packed(empty, tuple(tensor.contiguous().numpy() for tensor in tensors))


def _unpacked(batches: Any) -> Any:
    if not isinstance(batches, _Packed):
        return batches
    whole = copy.copy(batches.batches)
    with warnings.catch_warnings():
        # The arrays may lie in Ray's shared memory, where nothing can be written; nothing writes into data.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        whole.inputs, whole.targets = (torch.from_numpy(array) for array in batches.arrays)
    return whole
