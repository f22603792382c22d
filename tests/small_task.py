"""A task that trains in a blink: three noisy clusters and a network of two or three layers."""

from __future__ import annotations

import torch
from torch import nn

from autocompress.task import Task
from autocompress.training.batches import TensorBatches
from autocompress.training.losses import classification_loss, correct_predictions
from autocompress.training.recipe import Recipe
from autocompress.training.trainer import Trainer

RECIPE = Recipe("sgd", 0.1, batch_size=32, reference_epochs=8, compress_epochs=6)


def make_model() -> nn.Module:
    """Returns the network, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def make_shallow_model() -> nn.Module:
    """Returns a network of two layers, the same at every call: what a run takes grows with their number."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))


def make_norm_model() -> nn.Module:
    """Returns a network with batch norm, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def batches(count: int, seed: int, *, shuffle: bool = False) -> TensorBatches:
    """Returns noisy points around three centres."""
    generator = torch.Generator().manual_seed(7)
    centres = torch.randn(3, 20, generator=generator)
    generator.manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    inputs = centres[labels] + 1.2 * torch.randn(count, 20, generator=generator)
    return TensorBatches(inputs, labels, batch_size=32 if shuffle else 500, shuffle=shuffle)


def make_task(*, norm: bool = False, recipe: Recipe = RECIPE) -> Task:
    """Returns the task."""
    return Task(
        name="clusters",
        make_model=make_norm_model if norm else make_model,
        train=batches(320, 1, shuffle=True),
        validation=batches(200, 2),
        test=batches(200, 3),
        loss=classification_loss,
        metric=correct_predictions,
        recipe=recipe,
        input_example=torch.zeros(1, 20),
    )


def train_reference(task: Task) -> nn.Module:
    """Returns the task's network, trained."""
    model = task.make_model()
    Trainer(model, task.train, recipe=task.recipe, epochs=task.recipe.reference_epochs, progress=False).fit()
    return model


def loaders() -> tuple[TensorBatches, TensorBatches, TensorBatches]:
    """Returns the task's data, as a function of one's own on the command line does."""
    task = make_task()
    return task.train, task.validation, task.test
