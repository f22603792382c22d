"""How a network is trained: a Recipe, those known by the name of their network, and a learning rate for the others.

A network that comes without a learning rate gets one by a short range test: the rate rises exponentially, step by step,
over the range of the optimizer; the loss falls, turns and rises again. The rate of the schedule is the one where the
smoothed loss was lowest, divided by `MARGIN`. `studies/results/learning_rate.json` compares this rule with others and
with a parameter-free optimizer.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from autocompress.errors import InvalidInputError, TrainingDivergedError, whole_number
from autocompress.network.live_network import copy_network, dense_gradients
from autocompress.training.batches import autocast, blaming, holds_no_example, to_device
from autocompress.training.layer_statistics import forward_in_training
from autocompress.training.losses import carried_loss
from autocompress.training.progress import Progress

logger = logging.getLogger(__name__)

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
        learning_rate: the peak of the schedule; None = found by itself (`find_learning_rate`).
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


STEPS = 100
MARGIN = 4.0  # the lowest loss lies close before divergence
_RANGES = {"sgd": (1e-4, 10.0), "adamw": (1e-6, 0.1)}
_SMOOTHING = 0.9  # of the running mean of the loss
_DIVERGED = 4.0  # times the lowest loss: the test ends there


def find_learning_rate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    recipe: Recipe,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    bfloat16: bool = False,
    progress: bool = False,
) -> float:
    """Returns the peak learning rate for a network, from a range test of at most `STEPS` steps on a fresh copy of it.

    Fresh, because a trained network cannot show it: its loss is as low as it gets at every rate that is small enough,
    and rises first at the rates at which it trains best.

    Args:
        model: the network, trained or not; not changed.
        batches: of the training data.
        recipe: optimizer, momentum and weight decay.
        loss: (output, target) -> scalar.
        device: where the model lies.
        bfloat16: whether training runs under autocast.
        progress: a bar in a terminal or notebook, elsewhere a line now and then.

    Raises:
        TrainingDivergedError: the loss is NaN or infinite from the start.
    """
    settings: dict[str, Any] = {"recipe": recipe, "loss": loss, "device": device, "bfloat16": bfloat16}
    with Progress(STEPS, "looking for a learning rate", shown=progress) as bar:
        rates, losses = range_test(fresh_copy(model), batches, **settings, steps=STEPS, bar=bar)
    if not rates:
        raise TrainingDivergedError("the training loss is NaN or infinite before the first step; check the inputs")
    chosen = rates[losses.index(min(losses))] / MARGIN
    if progress:
        logger.info("learning rate %.3g found in a range test of %d steps", chosen, len(rates))
    return chosen


def fresh_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of the model, initialized anew wherever its modules know how (`reset_parameters`)."""
    copied = copy_network(model)
    for module in copied.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
    return copied


def range_test(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    recipe: Recipe,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    bfloat16: bool = False,
    steps: int = STEPS,
    bar: Progress | None = None,
) -> tuple[list[float], list[float]]:
    """Returns (learning rates, smoothed losses before the step at that rate); trains `model` in place meanwhile.

    Ends early where the smoothed loss is four times its lowest value or no longer finite. After Smith 2017 ("Cyclical
    learning rates for training neural networks"), section 3.3.
    """
    lowest, highest = _RANGES[recipe.optimizer]
    model.to(device).train()
    optimizer = make_optimizer(model, recipe, lowest)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, batch in zip(range(steps), _cycle(batches), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lowest * (highest / lowest) ** (step / (steps - 1))
        optimizer.zero_grad(set_to_none=True)
        with blaming(f"the batch of step {step + 1} of the range test", batch):
            if holds_no_example(batch):
                raise ValueError("it holds no example")
            with autocast(bfloat16, device):
                output, target = forward_in_training(model, to_device(batch, device), with_target=loss is carried_loss)
            value = loss(output, target)
            value.backward()  # type: ignore[no-untyped-call]
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(value.detach())
        smooth = mean / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or smooth > _DIVERGED * min(losses, default=math.inf):
            break
        rates.append(optimizer.param_groups[0]["lr"])
        losses.append(smooth)
        dense_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        if bar is not None:
            bar.update()
    return rates, losses


def _cycle(batches: Iterable[Any]) -> Iterator[Any]:
    given = True
    while given:
        given = False
        for batch in batches:
            given = True
            yield batch
    raise InvalidInputError(
        "the training data gives no batch when it is gone through again: its __iter__ must begin anew each time"
    )
