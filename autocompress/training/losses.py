"""The default loss and metric (classification), and the loss of distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import tensors_in

IGNORED_TARGET = -100  # torch's own convention for targets that do not count


def logits_of(output: Any) -> Tensor:
    """Returns the logits in a model's output: the tensor itself, or its field `logits`, float32 at least.

    Raises:
        InvalidInputError: the output holds no logits.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InvalidInputError(
            f"the model returned a {type(output).__name__}; the default loss and metric take a tensor of logits or an "
            "object with a field `logits`: give loss= and metric= of your own"
        )
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def carried_loss(output: Any, target: Any) -> Tensor:
    """Returns the loss that a model's output carries as its field `loss`, a scalar; the model was given the target.

    Raises:
        InvalidInputError: it carries none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InvalidInputError(f"the model returned a {type(output).__name__} without a loss: give loss=")
    return loss


def output_distance(output: Any, target: Any) -> Tensor:
    """Returns the mean squared difference of two outputs with equally many elements, a scalar."""
    return F.mse_loss(output.float(), target.to(output.device).float().view_as(output))


class MinusLoss:
    """A metric where outputs are no class scores: minus the loss of a batch, the same for each of its examples."""

    def __init__(self, loss: Callable[[Any, Tensor], Tensor]) -> None:
        """Measures by this loss."""
        self.loss = loss

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Returns scores [n]."""
        counted = [part for part in [*tensors_in(target), *tensors_in(output)] if part.ndim]
        return -self.loss(output, target).detach().reshape(1).expand(len(counted[0]) if counted else 1)


def classification_loss(output: Any, target: Tensor) -> Tensor:
    """Returns the mean cross-entropy, a scalar.

    Args:
        output: logits [n, classes] or, for sequences, [n, ..., classes].
        target: class numbers [n] or [n, ...]; -100 does not count.
    """
    logits = logits_of(output)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=IGNORED_TARGET)


def correct_predictions(output: Any, target: Tensor) -> Tensor:
    """Returns, per example, 1.0 where the largest logit is the target's, else 0.0. Shape [n], float32.

    Of a sequence (target [n, ...]) the share of its counted elements that are right.
    """
    right = (logits_of(output).argmax(-1) == target).float()
    if target.ndim <= 1:
        return right
    counted = (target != IGNORED_TARGET).float().flatten(1)
    return (right.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)
