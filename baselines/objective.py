"""What a proposal is worth: projected, fine-tuned for the trial's epochs, and scored on the validation split."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import copy_network, named_tensors
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Ignore, select
from autocompress.solver.fine_tuning import finished_file
from autocompress.targets import Target, parse_target
from autocompress.task import Task
from autocompress.training.batch_norm import refit_batch_norm
from autocompress.training.batches import default_device
from autocompress.training.checkpoint import Callback, run_state
from autocompress.training.evaluation import Evaluation as Scores
from autocompress.training.evaluation import evaluate
from autocompress.training.losses import distillation_from
from autocompress.training.random_state import seeded
from autocompress.training.tensor_batches import TensorBatches
from autocompress.training.trainer import Trainer
from baselines.fine_tuning import PlanTuning
from baselines.fitting import make_budget
from baselines.interface import Evaluation, Progress, Report, Values, go_on
from baselines.space import make_space


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
        """Takes what it needs of a task; the reference is copied."""
        self.name, self.epochs, self.seed, self.device, self.ignore = task.name, epochs, seed, device, ignore
        self.train, self.validation = task.train, task.validation
        self.loss, self.metric = task.loss, task.metric
        self.reference = copy_network(reference, device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to another process: data in main memory, because its device may be another."""
        state = dict(self.__dict__)
        return state | {"train": on_device(self.train, "cpu"), "validation": on_device(self.validation, "cpu")}

    def scores(self, network: nn.Module) -> Scores:
        """Returns the scores of a network on the validation split."""
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
        """What a search that goes on must have in common with the one before."""
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
        """Returns the evaluation of `values`, see `interface.Objective`."""
        started = time.perf_counter()
        run = PlanRun(self, values, state=state)
        reporter = _Reporter(self, run, report, started)
        run.trainer.callbacks.append(reporter)
        stopped = False
        try:
            run.trainer.fit()
        except _Stopped:
            stopped = True
        accuracy, size = reporter.last, 0
        if not stopped:
            compressed, data = run.finish()
            network = filled_copy(run.trainer.model, compressed)
            accuracy, size = self.score(network), run.budget.size_of(compressed, data)
        return Evaluation(
            accuracy=accuracy,
            size=size,
            gradient_steps=run.trainer.step - reporter.first_step,
            device_seconds=time.perf_counter() - started,
            curve=tuple(reporter.curve),
            plan=run.tuning.fitted.plan.to_json(),
            stopped=stopped,
        )

    def score(self, network: nn.Module) -> float:
        """Returns the validation accuracy of a network."""
        return self.scores(network).metric

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


class PlanRun:
    """One training of the reference under one plan.

    Attributes:
        trainer: to be fitted.
        tuning: keeps the plan.
        budget: what the target asks.
    """

    def __init__(self, objective: PlanObjective, values: Values, epochs: int | None = None, **options: Any) -> None:
        """Prepares the run; `options` are those of the trainer."""
        model = copy_network(objective.reference, device=default_device(objective.device))
        self.network = Network(model, select(model, objective.ignore))
        self.budget = make_budget(self.network, objective.target)
        self.trainer = objective._trainer(model, epochs, **options)
        self.tuning = PlanTuning(
            lambda: objective.space.fit(values, self.network, self.budget),
            values,
            self.network,
            self.trainer.total_steps,
        )
        self.trainer.callbacks.append(self.tuning)
        self.objective = objective

    def finish(self) -> tuple[CompressedState, bytes]:
        """Returns the network as it is now and its file, within the target; refits batch norm to it first."""
        assert self.tuning.finishing is not None, "the training has not come to its end"
        with seeded(self.objective.seed):
            refit_batch_norm(self.network.model, self.objective.train, device=self.trainer.device)
        return finished_file(self.network, self.tuning.finishing, self.tuning.fitted.writer)


class _Stopped(Exception):
    """A report asked for the end of an evaluation."""


class _Reporter(Callback):
    """Scores the network after each epoch and reports it."""

    def __init__(self, objective: PlanObjective, run: PlanRun, report: Report, started: float) -> None:
        self.objective, self.run, self.report, self.started = objective, run, report, started
        self.curve: list[tuple[int, float]] = []
        self.first_step, self.last = 0, 0.0

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Reports; raises `_Stopped` where that is the answer."""
        self.last = self.objective.score(trainer.model)
        steps = trainer.step - self.first_step
        self.curve.append((steps, self.last))
        seconds = time.perf_counter() - self.started
        if self.report(Progress(trainer.epoch, self.last, steps, seconds, lambda: run_state(trainer))):
            raise _Stopped

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: what was reported belongs to the evaluation that reported it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counts from here."""
        self.first_step = self.run.tuning.steps


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
