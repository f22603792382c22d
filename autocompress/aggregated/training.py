"""An aggregated task, for the trainer and the compressor, and the training of its network from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from autocompress.aggregated.batches import AggregatedBatches
from autocompress.aggregated.information import FeatureTap, InformationPenalty, StatisticsNetwork
from autocompress.aggregated.model import AggregatedModel
from autocompress.errors import InvalidInputError
from autocompress.task import Task
from autocompress.training.batches import default_device
from autocompress.training.random_state import seeded
from autocompress.training.trainer import Trainer


def aggregated_task(task: Task, fold: int, *, seed: int = 0) -> Task:
    """Returns a task's aggregated form, for the trainer and the compressor: same data, recipe, loss and metric.

    Its metric is the mean over all places. `Replicated` and `Batched` score a network on the task's own splits.

    Args:
        task: of single inputs.
        fold: inputs that are classified together.
        seed: of the new weights and of which inputs stand together in training.

    Raises:
        InvalidInputError: the network cannot be aggregated, or takes more than one tensor.
    """
    make = partial(_seeded_model, task.make_model, fold, seed)
    make()
    if not isinstance(task.input_example, Tensor):
        raise InvalidInputError(f"{task.name} cannot be aggregated: its network does not take one tensor")
    return replace(
        task,
        name=f"{task.name}-fold{fold}",
        make_model=make,
        train=AggregatedBatches(task.train, fold, seed=seed),
        validation=AggregatedBatches(task.validation, fold),
        test=None if task.test is None else AggregatedBatches(task.test, fold),
        input_example=torch.cat([task.input_example] * fold, 1),
    )


def _seeded_model(make_model: Callable[[], nn.Module], fold: int, seed: int) -> AggregatedModel:
    with seeded(seed):
        return AggregatedModel(make_model(), fold)


def train_aggregated(
    task: Task,
    fold: int = 2,
    *,
    alpha: float = 0.0,
    epochs: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> AggregatedModel:
    """Returns an aggregated network, trained from scratch by the task's recipe.

    Args:
        task: of single inputs.
        fold: inputs that are classified together; a batch has as many rows as it has examples.
        alpha: weight of the information that the features keep of the inputs; the paper has 0.3 on CIFAR-10.
        epochs: default: those of the recipe's reference.
        seed: of everything random.
        device: default: CUDA where there is one.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        InvalidInputError: the network cannot be aggregated, or `alpha` is no number of at least 0.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    if not 0 <= alpha < math.inf:
        raise InvalidInputError(f"alpha is {alpha}; it must be a number of at least 0")
    joint = aggregated_task(task, fold, seed=seed)
    model = cast(AggregatedModel, joint.make_model())
    trained: nn.Module = model
    loss = task.loss
    if alpha:
        trained = FeatureTap(model, model.head)
        features = cast(nn.Linear, model.get_submodule(model.head)).in_features
        with seeded(seed):
            statistics = StatisticsNetwork(joint.input_example.numel(), features).to(default_device(device))
        loss = InformationPenalty(statistics, alpha, task.loss)
    Trainer(
        trained,
        joint.train,
        recipe=task.recipe,
        epochs=epochs or task.recipe.reference_epochs,
        loss=loss,
        device=device,
        seed=seed,
        progress=progress,
    ).fit()
    return model
