"""What a density is worth: L-C for the trial's steps, then the compressor's own ending, scored on validation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from autocompress.constraints.constraint import Network
from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Ignore, original_bytes, select
from autocompress.targets import AccuracyDrop, FileSize
from autocompress.task import Task
from autocompress.training.batches import check_batches
from baselines.condensa.configurations import prune_and_codebook, schedule_for
from baselines.condensa.goal import Asked, FitSize, Goal, KeepAccuracy, parse_asked
from baselines.condensa.run import CondensaRun
from baselines.condensa.schedule import Schedule
from baselines.condensa.schemes import Scheme
from baselines.condensa.space import SPACE, START_DENSITY, CondensaSpace
from baselines.fitting import FileBudget
from baselines.interface import Evaluation, Progress, Report, Values, go_on
from baselines.objective import TaskObjective, digest_of

WHOLE = FileSize("100%")  # no limit: a file is measured as it comes


class CondensaObjective(TaskObjective):
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
        super().__init__(task, reference, epochs=epochs, seed=seed, device=device, ignore=ignore)
        self.scheme, self.schedule = scheme, schedule or schedule_for(task.name)
        self.asked = parse_asked(target)
        self.space = CondensaSpace(self._goal())

    def _goal(self) -> Goal:
        network = Network(self.reference, select(self.reference, self.ignore))
        if isinstance(self.asked, AccuracyDrop):
            return KeepAccuracy(self.asked.limit(self.scores(copy_network(self.reference)).metric))
        FileBudget(network, self.asked)  # raises what cannot be
        return FitSize(self.asked.resolve(original_bytes(self.reference), network.selection.compressible))

    @property
    def file_target(self) -> FileSize:
        """What the file that is written in the end may take."""
        return WHOLE if isinstance(self.asked, AccuracyDrop) else self.asked

    @property
    def identity(self) -> dict[str, Any]:
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

    def __call__(self, values: Values, report: Report = go_on, state: dict[str, Any] | None = None) -> Evaluation:
        """Returns the evaluation of a density; reports after C steps, once an epoch, and is never stopped."""
        if state is not None:
            raise InvalidInputError("an evaluation of Condensa's cannot go on from another's weights")
        started = time.perf_counter()
        run = CondensaRun(self, values, self.epochs, WHOLE)
        curve: list[tuple[int, float]] = []
        epochs = [0]

        def after() -> None:
            steps, epoch = run.solver.steps, run.solver.steps // run.solver.steps_per_epoch
            if epoch > epochs[-1]:
                epochs.append(epoch)
                curve.append((steps, self.scores(run.compressed()).metric))
                report(Progress(epoch, curve[-1][1], steps, time.perf_counter() - started, dict))

        run.fit(after)
        compressed, data = run.finish()
        accuracy = self.scores(filled_copy(run.network.model, compressed)).metric
        return Evaluation(
            accuracy=accuracy,
            size=len(data),
            gradient_steps=run.steps,
            device_seconds=time.perf_counter() - started,
            curve=(*curve, (run.steps, accuracy)),
            plan={
                name: {"keep_fraction": c.nonzeros / c.codes.numel(), "codebook": len(c.values)}
                for name, c in compressed.quantized.items()
            },
        )
