"""The end of a search: the best proposal gets as many steps as the compressor has in all, and is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from autocompress.codec.file import decode_state
from autocompress.codec.layout import layout_of
from autocompress.constraints.constraint import Network
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.live_network import copy_network
from autocompress.network.network_state import filled_copy
from autocompress.network.selection import Ignore
from autocompress.solver.result import Outcome, Result, warn_of_loss
from autocompress.targets import Target, Targets
from autocompress.task import Task
from autocompress.training.batches import default_device
from autocompress.training.checks import name_of
from autocompress.training.evaluation import evaluate
from baselines.interface import Values
from baselines.objective import PlanObjective, PlanRun

BEST_TRIAL = "best trial"  # what was chosen, as in `Outcome`


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
    trial_file: bytes = b"",
) -> Result:
    """Returns the reference trained under a plan, or the best trial where that is better; within the target.

    As the compressor does, it chooses by validation loss between the trained network, the one before fine-tuning and
    the one pruned and quantized at once, and looks at the test split once, at the end.

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
        trial_file: what the best trial wrote: kept where the training came to nothing better.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    started = time.perf_counter()
    objective = PlanObjective(
        task, reference, target=target, space=space, epochs=epochs, seed=seed, device=device, ignore=ignore
    )
    run = PlanRun(objective, values, checkpoint=checkpoint, progress=progress)
    run.trainer.fit()
    trained = run.finish(lambda network: -objective.scores(network).loss)
    candidates = [(trained.state, trained.data)]
    if trial_file:
        candidates.append((decode_state(trial_file, layout_of(run.compressor.network.model)), trial_file))
    result = written(
        task,
        reference,
        run.compressor.network,
        candidates,
        score=lambda network: -objective.scores(network).loss,
        target=objective.target,
        gradient_steps=run.trainer.step,
        curve=run.trainer.log.curve,
        device=default_device(device),
        seed=seed,
        started=started,
    )
    kept = result.data == trained.data
    outcome = trained.outcome if kept else Outcome(BEST_TRIAL, judged_by="the loss on the validation data")
    result.history, result.outcome = trained.history, outcome
    return result


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
        score: of a network on the validation split, higher is better.
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
        validation_accuracy=evaluate(
            networks[best], task.validation, loss=task.loss, metric=task.metric, device=device
        ).metric,
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
