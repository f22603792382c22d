"""A learning rate for a network that comes without one: a short range test.

The rate rises exponentially, step by step, over the range of the optimizer; the loss falls, turns and rises again. The
rate of the schedule is the one where the smoothed loss was lowest, divided by `MARGIN`. `studies/results/
learning_rate.json` compares this rule with others and with a parameter-free optimizer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError, TrainingDivergedError
from autocompress.network.live_network import copy_network, dense_gradients
from autocompress.training.batches import autocast, blaming, holds_no_example, to_device
from autocompress.training.layer_statistics import forward_in_training
from autocompress.training.losses import carried_loss
from autocompress.training.progress import Progress
from autocompress.training.recipe import MAX_GRADIENT_NORM, Recipe, make_optimizer

logger = logging.getLogger(__name__)

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
