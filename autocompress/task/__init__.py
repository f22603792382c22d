"""What is trained: networks and data by name, or of one's own.

A `Task` is what a study or a compression starts from: a network, its data, its loss, its metric, its recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import accepted_arguments
from autocompress.task.named_data import DATA_NAMES, Splits, load_data
from autocompress.task.named_models import MODEL_NAMES, make_model
from autocompress.task.user_code import import_function
from autocompress.training.batches import check_batches, default_device, input_example, split_batch
from autocompress.training.checks import Loss, Metric, check_task
from autocompress.training.losses import (
    binary_cross_entropy,
    classification_loss,
    correct_predictions,
    loss_of,
    mean_absolute_error,
    mean_squared_error,
    metric_of,
)
from autocompress.training.random_state import seeded
from autocompress.training.recipe import Recipe, recipe_for

__all__ = ["Task", "load_task"]


@dataclass
class Task:
    """A network to be trained and compressed, on data in three splits.

    Attributes:
        name: "model-data", as on the command line.
        make_model: returns the network, freshly initialized, the same at every call.
        train: batches to train on.
        validation: batches that choices are made on.
        test: batches that are reported on once; None where there are none.
        loss: (output, target) -> scalar.
        metric: (output, target) -> one score per example, [n].
        recipe: how the network is trained.
        input_example: what the model takes for one example, batch dimension 1: a tensor, a tuple of several, or a
            dict of keyword arguments.
    """

    name: str
    make_model: Callable[[], nn.Module]
    train: Iterable[Any]
    validation: Iterable[Any]
    test: Iterable[Any] | None
    loss: Callable[[Any, Tensor], Tensor]
    metric: Callable[[Any, Tensor], Tensor]
    recipe: Recipe
    input_example: Any


def load_task(
    model: str,
    data: str,
    *,
    loss: str | None = None,
    metric: str | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    scored: bool = True,
) -> Task:
    """Returns the task of a network on a data set, both by name.

    Args:
        model: see `named_models.make_model`.
        data: see `named_data.load_data`.
        loss: a name of `training.losses.LOSSES`, or `package.module:function`, (output, target) -> scalar; default: the
            model's own where its output carries one, else cross-entropy.
        metric: a name of `METRICS` or `LOSSES` there, or `package.module:function`, (output, target) -> one score per
            example, higher is better; default: accuracy of class scores, else minus the loss.
        device: where small data sets lie; default: CUDA where there is one.
        seed: of the network's first weights and of the order of the training data; the splits do not depend on it.
        scored: whether loss and metric will be asked for; else they may not fit the data.

    Raises:
        InvalidInputError: an unknown name, data that cannot be had, or a network that does not take this data.
    """
    where = default_device(device)
    recipe = recipe_for(model, data)
    splits = load_data(data, batch_size=recipe.batch_size, device=where, seed=seed)
    for batches, split in ((splits.train, "training"), (splits.validation, "validation")):
        check_batches(batches, f"the {split} data of {data}")
    example = input_example(splits.validation)
    built_in = model in MODEL_NAMES or model.startswith(("torchvision:", "timm:"))
    chosen_loss = _named(loss, loss_of)
    outputs = _outputs(splits, chosen_loss)
    if built_in and (not isinstance(example, Tensor) or example.ndim != 4 or outputs is None):
        raise InvalidInputError(
            f"{model} takes images; {data} does not give batches (images [n, c, h, w], classes), nor numbers for a "
            "--loss mse, l1 or bce_with_logits"
        )
    channels = example.shape[1] if built_in else None
    make = partial(_seeded_model, model, outputs or 0, channels, seed)
    network = make()
    _check_fit(network, example, model, data)
    final_loss: Loss = classification_loss
    final_metric: Metric = correct_predictions
    if scored and (not built_in or data not in DATA_NAMES or loss is not None or metric is not None):
        named = {"the training data": splits.train, "the validation data": splits.validation}
        final_loss, final_metric = check_task(
            network,
            named | {"the test data": splits.test},
            loss=chosen_loss,
            metric=_named(metric, metric_of),
            device=where,
            seed=seed,
        )
    return Task(
        name=f"{model}-{data}",
        make_model=make,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        loss=final_loss,
        metric=final_metric,
        recipe=recipe,
        input_example=example,
    )


def _named(name: str | None, known: Callable[[str], Loss]) -> Loss | None:
    """Returns the loss or metric of a name, or the user's own function."""
    if name is None:
        return None
    return import_function(name, ("output", "target")) if ":" in name else known(name)


def _outputs(splits: Splits, loss: Loss | None) -> int | None:
    """Returns how many outputs a network needs for a data set, None where that is not known."""
    if loss not in (mean_squared_error, mean_absolute_error, binary_cross_entropy):
        return splits.num_classes
    target = split_batch(next(iter(splits.validation)))[2]
    if not isinstance(target, Tensor) or target.ndim > 2:
        return None
    return 1 if target.ndim < 2 else target.shape[1]


def _seeded_model(name: str, num_classes: int, in_channels: int | None, seed: int) -> nn.Module:
    with seeded(seed):
        return make_model(name, num_classes, in_channels)


def _check_fit(model: nn.Module, example: Any, name: str, data: str) -> None:
    """Passes one example through the model, so that a misfit shows before any training."""
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(example, dict):
                model(**accepted_arguments(model, example))
            else:
                model(*(example if isinstance(example, tuple) else (example,)))
    except (RuntimeError, ValueError, TypeError) as error:
        shape = f" of shape {list(example.shape)}" if isinstance(example, Tensor) else ""
        raise InvalidInputError(f"{name} does not take the inputs of {data}{shape}: {error}") from error
