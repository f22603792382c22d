"""The end of a search: the best proposal gets as many steps as the compressor has in all, and is written."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import torch
from torch import nn

from autocompress.assemble import filled_copy
from autocompress.result import Result, warn_of_loss
from autocompress.selection import Ignore
from autocompress.targets import Target, Targets
from autocompress.task import Task
from autocompress.training.batches import default_device
from autocompress.training.evaluate import evaluate
from baselines.interface import Values
from baselines.objective import PlanObjective, PlanRun


def train_best(
    task: Task,
    reference: nn.Module,
    values: Values,
    *,
    target: str | Target,
    space: str,
    epochs: int,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Ignore = (),
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Result:
    """Returns the reference trained under a plan, within the target.

    As the compressor does, it chooses by validation between the network before and after finishing, and looks at the
    test split once, at the end.

    Args:
        task: gives the data, loss, metric and recipe.
        reference: the trained network; left as it is.
        values: the proposal.
        target, space: as of the search.
        epochs: of the training: those of the compressor.
        seed: of everything random.
        device: default: CUDA where there is one.
        ignore: as of the search.
        checkpoint: file to resume from where it exists; rewritten after each epoch.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        InvalidInputError, InfeasibleTargetError: as `PlanObjective`.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    started = time.perf_counter()
    objective = PlanObjective(
        task, reference, target=target, space=space, epochs=epochs, seed=seed, device=device, ignore=ignore
    )
    run = PlanRun(objective, values, checkpoint=checkpoint, progress=progress)
    run.trainer.fit()
    assert run.tuning.finishing is not None
    candidates = [run.finish()]
    run.tuning.finishing.rewind()
    candidates.append(run.finish())
    networks = [filled_copy(run.trainer.model, state) for state, _ in candidates]
    scores = [objective.score(network) for network in networks]
    best = max(range(len(scores)), key=lambda i: scores[i])
    result = Result(
        state=candidates[best][0],
        data=candidates[best][1],
        model=networks[best],
        target=Targets((objective.target,)),
        selection=run.network.selection,
        gradient_steps=run.trainer.step,
        history=[],
        curve=run.trainer.log.curve,
        validation_accuracy=scores[best],
        device=str(default_device(device)),
        seed=seed,
    )
    held_out = task.validation if task.test is None else task.test
    after, result.reference_accuracy = (
        evaluate(network, held_out, loss=task.loss, metric=task.metric, device=device).metric
        for network in (networks[best], copy.deepcopy(reference))
    )
    warn_of_loss(result.reference_accuracy, after)
    result.test_accuracy = None if task.test is None else after
    result.wall_seconds = time.perf_counter() - started
    return result
