"""How a network is trained: a Recipe, and the ones that are known by the name of their network."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from autocompress.errors import InvalidInputError, whole_number

# Longer gradients are scaled down to this global norm: without it LeNet-5 on the digits, which has no normalization,
# diverges at the learning rates at which it trains best.
MAX_GRADIENT_NORM = 1.0


def real_number(name: str, value: Any) -> float:
    """Returns a number of any library as a float.

    Raises:
        InvalidInputError: it is none; `name` says of what.
    """
    one = isinstance(value, Tensor) and value.numel() == 1
    if isinstance(value, bool) or not (one or isinstance(value, numbers.Real)):
        raise InvalidInputError(f"{name} is {value!r}; it must be a number")
    return float(value)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, from scratch and while it is compressed.

    Attributes:
        optimizer: "sgd" (heavy-ball momentum) or "adamw".
        learning_rate: the peak of the schedule; None = found by itself (`training.learning_rate`).
        momentum: of SGD; AdamW keeps its usual (0.9, 0.999).
        weight_decay: on tensors of two or more dimensions only; biases and norm parameters have none.
        batch_size: examples per optimizer step.
        warmup_fraction: share of all steps in which the rate rises linearly to its peak; a cosine to 0 follows.
        reference_epochs: length of the training of a reference network.
        compress_epochs: default length of a compression run.
        compress_learning_rate: peak of the schedule while a trained network is compressed; None = `learning_rate`.
    """

    optimizer: str = "adamw"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.01
    batch_size: int = 128
    warmup_fraction: float = 0.1
    reference_epochs: int = 30
    compress_epochs: int = 30
    compress_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise InvalidInputError(f"optimizer {self.optimizer!r} is unknown; it may be 'sgd' or 'adamw'")
        for each in fields(self):  # frozen, and every number Python's own: they go into checkpoints
            value = getattr(self, each.name)
            if each.type == "int":
                object.__setattr__(self, each.name, whole_number(each.name, value, 1))
            elif each.name != "optimizer" and value is not None:
                object.__setattr__(self, each.name, real_number(each.name, value))
        for name in ("learning_rate", "compress_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < float("inf"):
                raise InvalidInputError(f"{name} is {rate}; it must be above 0, or None")
        if not 0 <= self.warmup_fraction < 1:
            raise InvalidInputError(f"warmup_fraction is {self.warmup_fraction}; it must be in [0, 1)")

    def key(self) -> str:
        """Returns what decides a reference training as one line of text, equal only for recipes that train alike."""
        names = [field.name for field in fields(self) if not field.name.startswith("compress_")]
        return " ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def for_compression(self) -> Recipe:
        """Returns the recipe by which a network that is already trained is compressed."""
        return replace(self, learning_rate=self.compress_learning_rate or self.learning_rate)


# While it is compressed a trained ResNet gets a rate of fine-tuning; neither was tuned here.
_RESNET = Recipe(
    "sgd",
    0.1,
    weight_decay=5e-4,
    batch_size=128,
    warmup_fraction=0.05,
    reference_epochs=160,
    compress_learning_rate=0.03,
)
_RECIPES = {
    "lenet5": Recipe(
        "sgd", 0.1, momentum=0.93, weight_decay=5e-4, batch_size=256, reference_epochs=20, compress_epochs=30
    ),
    # about a thousand images: small batches and many epochs, for as many steps as learning takes
    "lenet5-digits": Recipe(
        "sgd", 0.05, momentum=0.93, weight_decay=5e-4, batch_size=64, reference_epochs=60, compress_epochs=120
    ),
    # without normalization: half the rate of a ResNet, not tuned here either
    "alexnet": replace(_RESNET, learning_rate=0.05, reference_epochs=100, compress_learning_rate=0.02),
    "resnet20": _RESNET,
    "resnet32": _RESNET,
    "resnet44": _RESNET,
    "resnet56": _RESNET,
    "resnet50": _RESNET,
}


def recipe_for(model: str, data: str = "") -> Recipe:
    """Returns the recipe of a network on a data set; unknown ones get the default, which finds its learning rate."""
    return _RECIPES.get(f"{model}-{data}", _RECIPES.get(model, Recipe()))


def make_optimizer(model: nn.Module, recipe: Recipe, learning_rate: float) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer over the trainable parameters: one group with weight decay, one without.

    Raises:
        InvalidInputError: the model has no parameter that requires a gradient.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InvalidInputError(f"the model {type(model).__name__} has no parameter that requires a gradient")
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=learning_rate)


@dataclass(frozen=True)
class WarmupCosine:
    """The factor on the peak learning rate in step 0, 1, ..., total_steps - 1.

    >>> [round(WarmupCosine(10, 0.2)(step), 2) for step in (0, 1, 2, 6, 9, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.04, 0.0]
    """

    total_steps: int
    warmup_fraction: float

    def __call__(self, step: int) -> float:
        """Returns the factor in step `step`, in [0, 1]."""
        warmup_steps = round(self.warmup_fraction * self.total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(1, self.total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def make_scheduler(optimizer: torch.optim.Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Returns the scheduler of a run; it sets the rate of the first step at once."""
    return LambdaLR(optimizer, WarmupCosine(total_steps, warmup_fraction))
