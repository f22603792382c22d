"""The end of a search: the best proposal gets as many steps as the compressor has in all, and is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from autocompress.constraints.constraint import Network
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import copy_network
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Ignore
from autocompress.solver.result import Result, warn_of_loss
from autocompress.targets import Target, Targets
from autocompress.task import Task
from autocompress.training.batches import default_device
from autocompress.training.checks import name_of
from autocompress.training.evaluation import evaluate
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
    return written(
        task,
        reference,
        run.network,
        candidates,
        score=objective.score,
        target=objective.target,
        gradient_steps=run.trainer.step,
        curve=run.trainer.log.curve,
        device=default_device(device),
        seed=seed,
        started=started,
    )


def written(
    task: Task,
    reference: nn.Module,
    network: Network,
    candidates: Sequence[tuple[CompressedState, bytes]],
    *,
    score: Callable[[nn.Module], float],
    target: Target,
    gradient_steps: int,
    curve: list[tuple[int, float]],
    device: torch.device,
    seed: int,
    started: float,
) -> Result:
    """Returns the result of a final training: the best candidate by validation, and one look at the test split.

    Args:
        task: gives the splits.
        reference: what was compressed; left as it is.
        network: what was trained.
        candidates: (state, file) of each; of equals the first is taken.
        score: validation accuracy of a network.
        target, gradient_steps, curve, seed: as of `Result`.
        device: where it was trained.
        started: `time.perf_counter()` at the beginning.
    """
    networks = [filled_copy(network.model, state) for state, _ in candidates]
    scores = [score(each) for each in networks]
    best = max(range(len(scores)), key=lambda i: scores[i])
    result = Result(
        state=candidates[best][0],
        data=candidates[best][1],
        model=networks[best],
        target=Targets((target,)),
        selection=network.selection,
        gradient_steps=gradient_steps,
        history=[],
        curve=curve,
        validation_accuracy=scores[best],
        device=str(device),
        seed=seed,
    )
    held_out = task.validation if task.test is None else task.test
    after, result.reference_accuracy = (
        evaluate(each, held_out, loss=task.loss, metric=task.metric, device=device).metric
        for each in (networks[best], copy_network(reference))
    )
    result.metric, result.reference_split = name_of(task.metric), "validation" if task.test is None else "test"
    warn_of_loss(result.reference_accuracy, after, result.metric)
    result.test_accuracy = None if task.test is None else after
    result.wall_seconds = time.perf_counter() - started
    return result
