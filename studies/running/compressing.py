"""The compressor on a task, as the command line runs it."""

from __future__ import annotations

from typing import Any

from torch import nn

from autocompress.solver.compression import compress
from autocompress.solver.result import Result
from autocompress.targets import Target
from autocompress.task import Task


def compress_task(task: Task, network: nn.Module, target: str | Target, **settings: Any) -> Result:
    """Returns what `compress` makes of a task's trained network, silently; without its test split.

    Args:
        task: gives data, loss, metric and recipe.
        network: trained.
        target: what the result has to meet.
        settings: of `compress`, instead of the task's own or in addition.
    """
    own: dict[str, Any] = {
        "train": task.train,
        "val": task.validation,
        "loss": task.loss,
        "metric": task.metric,
        "recipe": task.recipe,
        "progress": False,
    }
    return compress(network, target=target, **own | settings)
