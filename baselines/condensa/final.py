"""The end of Condensa's search: the best density gets as many steps as the compressor has in all, and is written."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import nn

from autocompress.cli.console import percent
from autocompress.network.selection import Ignore
from autocompress.solver.result import Result
from autocompress.task import Task
from autocompress.training.batches import default_device
from baselines.condensa.goal import Asked
from baselines.condensa.objective import CondensaObjective
from baselines.condensa.run import CondensaRun
from baselines.condensa.space import DENSITY, SPACE
from baselines.final import written
from baselines.interface import Values

logger = logging.getLogger(__name__)


def train_density(
    task: Task,
    reference: nn.Module,
    values: Values,
    *,
    target: str | Asked,
    space: str = SPACE,
    epochs: int,
    seed: int = 0,
    device: str | torch.device | None = None,
    ignore: Ignore = (),
    checkpoint: Path | None = None,
    progress: bool = True,
    trial_file: bytes = b"",
) -> Result:
    """Returns the reference compressed at a density; says so where it no longer keeps what was asked.

    Arguments and errors are those of `baselines.final.train_best`; there is no bar.
    """
    started = time.perf_counter()
    objective = CondensaObjective(
        task, reference, target=target, space=space, epochs=epochs, seed=seed, device=device, ignore=ignore
    )
    run = CondensaRun(objective, values, epochs, objective.file_target)
    run.fit(checkpoint=checkpoint)
    candidates = [run.finish()]
    run.finishing.rewind()
    candidates.append(run.finish())
    result = written(
        task,
        reference,
        run.network,
        candidates,
        score=lambda network: objective.scores(network).metric,
        target=objective.file_target,
        gradient_steps=run.steps,
        curve=run.solver.curve,
        device=default_device(device),
        seed=seed,
        started=started,
    )
    assert result.validation_accuracy is not None
    kept = objective.space.goal.margin(result.validation_accuracy, result.file_bytes) >= 0
    result.extra = {"target": str(objective.asked), "density": values[DENSITY], "target_kept": kept}
    if not kept:
        logger.warning(
            "the target %s is not kept: validation accuracy %s, %d bytes",
            objective.asked,
            percent(result.validation_accuracy),
            result.file_bytes,
        )
    return result
