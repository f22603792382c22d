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
from autocompress.task.named_data import DATA_NAMES, load_data
from autocompress.task.named_models import MODEL_NAMES, make_model
from autocompress.training.batches import check_batches, default_device, input_example
from autocompress.training.checks import Loss, Metric, check_task
from autocompress.training.losses import classification_loss, correct_predictions
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


def load_task(model: str, data: str, *, device: str | torch.device | None = None, seed: int = 0) -> Task:
    """Returns the task of a network on a data set, both by name.

    Args:
        model: see `named_models.make_model`.
        data: see `named_data.load_data`.
        device: where small data sets lie; default: CUDA where there is one.
        seed: of the network's first weights and of the order of the training data; the splits do not depend on it.

    Raises:
        InvalidInputError: an unknown name, data that cannot be had, or a network that does not take this data.
    """
    where = default_device(device)
    recipe = recipe_for(model, data)
    splits = load_data(data, batch_size=recipe.batch_size, device=where, seed=seed)
    for batches, split in ((splits.train, "training"), (splits.validation, "validation")):
        check_batches(batches, f"the {split} data of {data}")
    example = input_example(splits.validation)
    built_in = model in MODEL_NAMES or model.startswith("torchvision:")
    if built_in and (not isinstance(example, Tensor) or example.ndim != 4 or splits.num_classes is None):
        raise InvalidInputError(
            f"{model} classifies images; {data} does not give batches (images [n, c, h, w], classes)"
        )
    channels = example.shape[1] if built_in else None
    make = partial(_seeded_model, model, splits.num_classes or 0, channels, seed)
    network = make()
    _check_fit(network, example, model, data)
    loss: Loss = classification_loss
    metric: Metric = correct_predictions
    if not built_in or data not in DATA_NAMES:
        named = {"the training data": splits.train, "the validation data": splits.validation}
        loss, metric = check_task(network, named | {"the test data": splits.test}, device=where, seed=seed)
    return Task(
        name=f"{model}-{data}",
        make_model=make,
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        loss=loss,
        metric=metric,
        recipe=recipe,
        input_example=example,
    )


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
