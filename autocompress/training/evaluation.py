"""What a network scores on a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.training.batch_norm import refit_batch_norm as refit_batch_norm
from autocompress.training.batches import autocast, check_repeatable, default_device, forward, to_device, uses_bfloat16
from autocompress.training.losses import carried_loss, classification_loss, correct_predictions


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a split.

    Attributes:
        loss: mean over the examples.
        metric: mean of `scores`; with the default metric the accuracy, a fraction of 1.
        scores: float32 [n] on the CPU, one per example in the order of the split.
    """

    loss: float
    metric: float
    scores: Tensor


def evaluate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Callable[[Any, Tensor], Tensor] = classification_loss,
    metric: Callable[[Any, Tensor], Tensor] = correct_predictions,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Evaluation:
    """Returns the mean loss and metric of the model over all batches; the mode the model was in is put back.

    Args:
        model: the network; moved to `device`.
        batches: what `training.batches` takes, in a fixed order.
        loss: (output, target) -> mean loss, a scalar.
        metric: (output, target) -> scores [n].
        device: default: CUDA where there is one.
        precision: "fp32", "bf16" or "auto".

    Raises:
        InvalidInputError: no batches, or a metric that does not give one score per example.
    """
    check_repeatable(batches, "the data to evaluate on")
    where = default_device(device)
    bfloat16 = uses_bfloat16(precision, where)
    model.to(where)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    losses: list[Tensor] = []
    scores: list[Tensor] = []
    try:
        with torch.inference_mode():
            for batch in batches:
                with autocast(bfloat16, where):
                    output, target = forward(model, to_device(batch, where), with_target=loss is carried_loss)
                score = metric(output, target).detach().float()
                if score.ndim != 1:
                    raise InvalidInputError(
                        f"the metric returned a tensor of shape {list(score.shape)}; it must be one score per example"
                    )
                losses.append(loss(output, target).detach().double() * len(score))
                scores.append(score)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not scores:
        raise InvalidInputError("the data to evaluate on gives no batch at all; it must give at least one")
    every = torch.cat(scores).cpu().clone()
    count = max(len(every), 1)
    return Evaluation(float(torch.stack(losses).sum()) / count, float(every.double().sum()) / count, every)
