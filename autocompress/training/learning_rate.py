"""A learning rate for a network that comes without one: a short range test."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TrainingDivergedError
from autocompress.training.batches import forward, to_device
from autocompress.training.recipe import Recipe, make_optimizer

logger = logging.getLogger(__name__)

STEPS = 100
_RANGES = {"sgd": (1e-5, 10.0), "adamw": (1e-6, 1.0)}
_SMOOTHING = 0.9


def _cycle(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def range_test(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    recipe: Recipe,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Returns (learning rates, smoothed losses) of a run on a copy of the model, the rate rising step by step.

    The rate rises exponentially over the optimizer's range; the run ends early where the loss has risen to four times
    its lowest value or is no longer finite. Smith 2017 ("Cyclical learning rates"), section 3.3.
    """
    lowest_rate, highest_rate = _RANGES[recipe.optimizer]
    trained = copy.deepcopy(model).to(device).train()
    optimizer = make_optimizer(trained, recipe, lowest_rate)
    rates: list[float] = []
    losses: list[float] = []
    average, best = 0.0, math.inf
    for step, batch in zip(range(STEPS), _cycle(batches), strict=False):
        rate = lowest_rate * (highest_rate / lowest_rate) ** (step / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        value = loss(*forward(trained, to_device(batch, device)))
        value.backward()  # type: ignore[no-untyped-call]
        average = _SMOOTHING * average + (1 - _SMOOTHING) * float(value.detach())
        smooth = average / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smooth) or smooth > 4 * best:
            break
        best = min(best, smooth)
        rates.append(rate)
        losses.append(smooth)
        optimizer.step()
    return rates, losses


def find_learning_rate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    recipe: Recipe,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
) -> float:
    """Returns the learning rate at which the loss fell most steeply in a range test of at most `STEPS` steps.

    Raises:
        TrainingDivergedError: the loss is not finite from the start.
    """
    rates, losses = range_test(model, batches, recipe=recipe, loss=loss, device=device)
    if not rates:
        raise TrainingDivergedError("the training loss is NaN or infinite before the first step; check the inputs")
    curve = torch.tensor(losses)
    slopes = torch.gradient(curve)[0] if len(losses) > 2 else curve
    chosen = rates[int(slopes.argmin())]
    logger.info("learning rate %.3g found in a range test of %d steps", chosen, len(rates))
    return chosen
