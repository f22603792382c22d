"""What a density is worth: L-C for the trial's steps, then the compressor's own ending, scored on validation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.assemble import filled_copy
from autocompress.codebooks import CodedTensor, CompressedState
from autocompress.errors import InvalidInputError
from autocompress.finishing import finishing_steps
from autocompress.methods.base import Network
from autocompress.methods.ending import finished_file, start_finishing
from autocompress.projection.kmeans import encode, fit_codebook
from autocompress.projection.sorted_values import sort_values
from autocompress.selection import Ignore, original_bytes, select
from autocompress.targets import FileSize
from autocompress.task import Task
from autocompress.training.batches import check_batches, default_device
from autocompress.training.evaluate import Evaluation as Scores
from autocompress.training.evaluate import evaluate, refit_batch_norm
from autocompress.training.random_state import seeded, set_epoch
from baselines.condensa.configurations import prune_and_codebook, schedule_for
from baselines.condensa.goal import Asked, Drop, FitSize, Goal, KeepAccuracy, parse_asked
from baselines.condensa.schedule import Schedule
from baselines.condensa.schemes import LARGEST_BITS, Scheme
from baselines.condensa.solver import Solver, batches_from
from baselines.fitting import FileBudget
from baselines.interface import Evaluation, Parameter, Progress, Report, Values, go_on
from baselines.objective import digest_of, on_device

SPACE = "condensa"
DENSITY = "density"
# Three decades: at the lowest, LeNet-5 keeps 430 weights. The first sample is their middle.
LOWEST_DENSITY, START_DENSITY = 0.001, 0.03
WHOLE = FileSize("100%")  # no limit: a file is measured as it comes


@dataclass(frozen=True)
class CondensaSpace:
    """One density for the whole network.

    Attributes:
        goal: what the search is to keep.
    """

    goal: Goal
    name: str = SPACE
    parameters: tuple[Parameter, ...] = (Parameter(DENSITY, LOWEST_DENSITY, 1.0, log=True),)

    @property
    def start(self) -> Values:
        """The middle."""
        return {DENSITY: START_DENSITY}


class CondensaObjective:
    """Evaluates densities for a network on its task. It is given no test split. May be pickled."""

    def __init__(
        self,
        task: Task,
        reference: nn.Module,
        *,
        target: str | Asked,
        space: str = SPACE,
        epochs: int = 5,
        seed: int = 0,
        device: str | torch.device | None = None,
        ignore: Ignore = (),
        scheme: Callable[[float], Scheme] = prune_and_codebook,
        schedule: Schedule | None = None,
    ) -> None:
        """Checks what can be wrong, and scores the reference where the target is a drop.

        Args:
            task: gives training and validation data, loss and metric.
            reference: the trained network; it is copied.
            target: `drop:0.5` (points of validation accuracy) or a file size.
            space: only Condensa's own.
            epochs: length of an evaluation.
            seed: of the training; the same for all densities.
            device: where trials run; default: CUDA where the process that evaluates has it.
            ignore: globs over parameter or module names, or module types, not to compress.
            scheme: as a function of the density.
            schedule: fitted into the steps of an evaluation; default: the published one for the network.

        Raises:
            InvalidInputError: an unknown target or space, too few epochs, or nothing to compress.
            InfeasibleTargetError: the file cannot be so small.
        """
        steps = epochs * check_batches(task.train, "the training data")
        if epochs < 1 or steps < 2:
            raise InvalidInputError(f"a trial of {epochs} epochs has {steps} gradient steps; it needs at least 2")
        if space != SPACE:
            raise InvalidInputError(f"condensa searches its own space {SPACE!r}, not {space!r}")
        self.name, self.epochs, self.seed, self.device, self.ignore = task.name, epochs, seed, device, ignore
        self.train, self.validation = task.train, task.validation
        self.loss, self.metric = task.loss, task.metric
        self.scheme, self.schedule = scheme, schedule or schedule_for(task.name)
        self.reference = copy.deepcopy(reference).cpu()
        self.asked = parse_asked(target)
        self.space = CondensaSpace(self._goal())

    def _goal(self) -> Goal:
        network = Network(self.reference, select(self.reference, self.ignore))
        if isinstance(self.asked, Drop):
            return KeepAccuracy(self.scores(copy.deepcopy(self.reference)).metric - self.asked.points / 100)
        FileBudget(network, self.asked)  # raises what cannot be
        return FitSize(self.asked.resolve(original_bytes(self.reference), network.selection.compressible))

    @property
    def file_target(self) -> FileSize:
        """What the file that is written in the end may take."""
        return WHOLE if isinstance(self.asked, Drop) else self.asked

    @property
    def identity(self) -> dict[str, Any]:
        """What a search that goes on must have in common with the one before."""
        return {
            "task": self.name,
            "target": str(self.asked),
            "space": self.space.name,
            "epochs": self.epochs,
            "seed": self.seed,
            "scheme": repr(self.scheme(START_DENSITY)),
            "schedule": repr(self.schedule),
            "ignore": ", ".join(map(str, self.ignore)),
            "reference": digest_of(self.reference),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is sent to another process: data in main memory, because its device may be another."""
        state = dict(self.__dict__)
        return state | {"train": on_device(self.train, "cpu"), "validation": on_device(self.validation, "cpu")}

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        """Returns the evaluation of a density; reports after the C steps that end an epoch, and is never stopped."""
        if state is not None:
            raise InvalidInputError("an evaluation of Condensa's cannot go on from another's weights")
        started = time.perf_counter()
        run = CondensaRun(self, values, self.epochs, WHOLE)
        curve: list[tuple[int, float]] = []

        def after() -> None:
            epoch = run.solver.steps // run.solver.steps_per_epoch
            if epoch > len(curve):
                curve.extend([(run.solver.steps, self.scores(run.compressed()).metric)] * (epoch - len(curve)))
                seconds = time.perf_counter() - started
                report(Progress(epoch, curve[-1][1], run.solver.steps, seconds, dict))

        run.fit(after)
        compressed, data = run.finish()
        accuracy = self.scores(filled_copy(run.network.model, compressed)).metric
        curve[self.epochs - 1 :] = [(run.steps, accuracy)]
        return Evaluation(
            accuracy=accuracy,
            size=len(data),
            gradient_steps=run.steps,
            device_seconds=time.perf_counter() - started,
            curve=tuple(curve),
            plan={
                name: {"keep_fraction": c.nonzeros / c.codes.numel(), "codebook": len(c.values)}
                for name, c in compressed.coded.items()
            },
        )

    def scores(self, network: nn.Module) -> Scores:
        """Returns the scores of a network on the validation split."""
        where = default_device(self.device)
        self.validation = on_device(self.validation, where)
        return evaluate(network, self.validation, loss=self.loss, metric=self.metric, device=where)


class CondensaRun:
    """One training of the reference at one density.

    Attributes:
        network: what is trained.
        solver: of the first part, nine tenths of the steps.
        steps: gradient steps done.
    """

    def __init__(self, objective: CondensaObjective, values: Values, epochs: int, target: FileSize) -> None:
        """Prepares the run; the file that it ends in is to fit `target`."""
        where = default_device(objective.device)
        model = copy.deepcopy(objective.reference).to(where)
        objective.train = on_device(objective.train, where)
        self.objective, self.epochs, self.target = objective, epochs, target
        self.network = Network(model, select(model, objective.ignore))
        self.total_steps = epochs * check_batches(objective.train, "the training data")
        self.solver = Solver(
            self.network,
            objective.scheme(values[DENSITY]),
            objective.schedule,
            max(1, self.total_steps - finishing_steps(self.total_steps)),
            train=objective.train,
            loss=objective.loss,
            validation_loss=lambda network: objective.scores(network).loss,
            device=where,
            seed=objective.seed,
        )
        self.steps = 0

    def fit(self, after: Callable[[], None] = lambda: None, checkpoint: Path | None = None) -> None:
        """Solves, then trains the values of the best theta with its codes fixed, as every method here ends."""
        self.solver.fit(after, checkpoint)
        self.steps = self.solver.steps
        coded = [_coded(weight.detach().float()) for weight in self.network.weights]
        _, self.writer = FileBudget(self.network, self.target).measure(coded)
        left = self.total_steps - self.steps
        self.finishing = start_finishing(self.network, coded, self.writer, left)
        self.network.model.train()
        with seeded(self.objective.seed):
            batches = batches_from(self.objective.train, self.steps, self.solver.steps_per_epoch)
            for _, batch in zip(range(left), batches, strict=False):
                self.solver.gradient_step(batch)
                self.finishing.step()
                self.steps += 1
        set_epoch(self.objective.train, self.epochs)

    def compressed(self) -> nn.Module:
        """Returns a copy of the network as the last C step compressed it."""
        network = copy.deepcopy(self.network.model)
        network.load_state_dict(network.state_dict() | self.solver.state.twins)
        return network

    def finish(self) -> tuple[CompressedState, bytes]:
        """Returns the network as it is now and its file, within the target; refits batch norm to it first."""
        with seeded(self.objective.seed):
            refit_batch_norm(self.network.model, self.objective.train, device=self.solver.device)
        return finished_file(self.network, self.finishing, self.writer)


def _coded(weight: torch.Tensor) -> CodedTensor:
    """Returns a layer of delta(theta) as the file holds it; more than 256 values are fitted to as many."""
    mask = weight != 0
    if not bool(mask.any()):
        return CodedTensor(torch.zeros(weight.shape, dtype=torch.int16, device=weight.device), weight.new_zeros(0))
    values = torch.unique(weight[mask])
    if values.numel() > 2**LARGEST_BITS:
        values = fit_codebook(sort_values(weight[mask]), 2**LARGEST_BITS).centroids
    return encode(weight, mask, values)
