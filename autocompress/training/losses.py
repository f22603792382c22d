"""Losses and metrics, the default (classification) and those with a name; distillation, and a teacher's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network, tensors_in
from autocompress.training.batches import split_batch

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


def class_scores(output: Any, target: Any) -> Tensor:
    """Returns the logits [n, ..., classes] in a model's output, which may also come as [n, classes, ...].

    Where both would fit (as many places as classes) the classes are the last dimension.
    """
    logits = logits_of(output)
    shape = target.shape if isinstance(target, Tensor) else None
    second = logits.ndim > 2 and logits.shape[:-1] != shape and logits.shape[:1] + logits.shape[2:] == shape
    return logits.movedim(1, -1) if second else logits


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

    def __init__(self, loss: Callable[[Any, Tensor], Tensor], name: str = "the loss") -> None:
        self.loss, self.name = loss, f"minus {name}"

    def __call__(self, output: Any, target: Any) -> Tensor:
        counted = [part for part in [*tensors_in(target), *tensors_in(output)] if part.ndim]
        return -self.loss(output, target).detach().reshape(1).expand(len(counted[0]) if counted else 1)


def classification_loss(output: Any, target: Tensor) -> Tensor:
    """Returns the mean cross-entropy, a scalar.

    Args:
        output: logits [n, classes], of sequences [n, ..., classes], or of pixels [n, classes, ...].
        target: class numbers [n] or [n, ...]; -100 does not count.
    """
    logits = class_scores(output, target)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index=IGNORED_TARGET)


def correct_predictions(output: Any, target: Tensor) -> Tensor:
    """Returns, per example, 1.0 where the largest logit is the target's, else 0.0. Shape [n], float32.

    Of a sequence (target [n, ...]) the share of its counted elements that are right.
    """
    right = (class_scores(output, target).argmax(-1) == target).float()
    if target.ndim <= 1:
        return right
    counted = (target != IGNORED_TARGET).float().flatten(1)
    return (right.flatten(1) * counted).sum(1) / counted.sum(1).clamp(min=1)


def _alike(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a model's output and its targets as numbers in one shape.

    Raises:
        InvalidInputError: they have different numbers of elements.
    """
    numbers = logits_of(output)
    if not isinstance(target, Tensor) or target.numel() != numbers.numel():
        shape = list(target.shape) if isinstance(target, Tensor) else f"a {type(target).__name__}"
        raise InvalidInputError(f"the output {list(numbers.shape)} and the target {shape} are not equally many numbers")
    return numbers, target.to(numbers).view_as(numbers)


def mean_squared_error(output: Any, target: Tensor) -> Tensor:
    """Returns the mean squared error of outputs [n, ...] for as many targets, a scalar."""
    return F.mse_loss(*_alike(output, target))


def mean_absolute_error(output: Any, target: Tensor) -> Tensor:
    """Returns the mean absolute error of outputs [n, ...] for as many targets, a scalar."""
    return F.l1_loss(*_alike(output, target))


def binary_cross_entropy(output: Any, target: Tensor) -> Tensor:
    """Returns the mean binary cross-entropy, a scalar, of logits [n, ...] for as many targets of 0 and 1."""
    return F.binary_cross_entropy_with_logits(*_alike(output, target))


def binary_accuracy(output: Any, target: Tensor) -> Tensor:
    """Returns, per example, the share of its logits [n, ...] whose sign is that of the target, 0 or 1. Shape [n]."""
    logits, wanted = _alike(output, target)
    return ((logits > 0) == (wanted > 0.5)).float().reshape(len(logits), -1).mean(1)


def mean_iou(output: Any, target: Tensor) -> Tensor:
    """Returns, per example, intersection over union, the mean over the classes that occur in either. Shape [n].

    Args:
        output: logits [n, classes, ...] or [n, ..., classes].
        target: class numbers [n, ...]; -100 does not count.
    """
    scores = class_scores(output, target)
    counted = (target != IGNORED_TARGET).flatten(1)
    found, wanted = scores.argmax(-1).flatten(1), target.flatten(1)
    classes = torch.arange(scores.shape[-1], device=scores.device)[:, None]
    mine, theirs = ((each[:, None] == classes) & counted[:, None] for each in (found, wanted))
    union = (mine | theirs).sum(-1)
    share = (mine & theirs).sum(-1) / union.clamp(min=1)
    return share.sum(1) / (union > 0).sum(1).clamp(min=1)


# What may be asked for by name; "model": the loss that the model's own output carries.
LOSSES: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "cross_entropy": classification_loss,
    "mse": mean_squared_error,
    "l1": mean_absolute_error,
    "bce_with_logits": binary_cross_entropy,
    "model": carried_loss,
}
METRICS: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "accuracy": correct_predictions,
    "binary_accuracy": binary_accuracy,
    "iou": mean_iou,
}


def loss_of(name: str) -> Callable[[Any, Tensor], Tensor]:
    """Returns the loss of a name.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if name not in LOSSES:
        raise InvalidInputError(f"loss {name!r} is unknown; the names are {', '.join(LOSSES)}")
    return LOSSES[name]


def metric_of(name: str) -> Callable[[Any, Tensor], Tensor]:
    """Returns the metric of a name, one score per example; of a loss's name: minus that loss.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if name in LOSSES:
        return MinusLoss(LOSSES[name], name)
    if name not in METRICS:
        raise InvalidInputError(f"metric {name!r} is unknown; the names are {', '.join([*METRICS, *LOSSES])}")
    return METRICS[name]


# Half of the loss, at temperature 2: at 4, ResNet-20 at 54 KB ended at 90.6 % in one epoch (at 2 at 90.3, without at
# 89.7), but LeNet-5 on MNIST at 2 KB lost 0.1 points and on the digits had more validation loss than without.
WEIGHT = 0.5
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Distillation:
    """Learning from a network's outputs beside the targets (Hinton, Vinyals & Dean 2015).

    Attributes:
        teacher: the network; left as it is.
        weight: of the teacher's part, in [0, 1]; the targets have the rest.
        temperature: T, by which the logits of both are divided.
    """

    teacher: nn.Module
    weight: float = WEIGHT
    temperature: float = TEMPERATURE

    def loss(self, output: Any, teacher_output: Any, hard_loss: Tensor, target: Any = None) -> Tensor:
        """Returns weight * T^2 * KL(teacher || student at T) + (1 - weight) * hard_loss, a scalar.

        T^2 keeps the gradient of the soft part on the scale of the hard one (Hinton et al., section 2).

        Args:
            output: the student's logits [n, ..., classes].
            teacher_output: the teacher's, in the same shape.
            hard_loss: the loss on the true targets, a scalar.
            target: those targets, [n, ...]: they tell logits [n, classes, ...].
        """
        student, teacher = (
            class_scores(each, target).flatten(0, -2) / self.temperature for each in (output, teacher_output)
        )
        soft = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean")
        return self.weight * self.temperature**2 * soft + (1 - self.weight) * hard_loss


@dataclass(frozen=True)
class OutputDistillation:
    """Learning to give a network's outputs, whatever the targets: where no loss is known.

    Attributes:
        teacher: the network; left as it is.
    """

    teacher: nn.Module

    def loss(self, output: Any, teacher_output: Any, hard_loss: Tensor, target: Any = None) -> Tensor:
        """Returns the distance to the teacher's output, a scalar; the rest is not used."""
        return output_distance(output, teacher_output)


def distillation_from(
    teacher: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    device: torch.device,
    weight: float = WEIGHT,
    temperature: float = TEMPERATURE,
) -> Distillation | OutputDistillation | None:
    """Returns what a network learns from another beside a loss; nothing where the loss is one of the user's own.

    Args:
        teacher: the other network; it is copied.
        loss: cross-entropy, or the distance to the teacher's outputs.
        device: where the copy lies.
        weight, temperature: see `Distillation`.
    """
    if loss is output_distance:
        return OutputDistillation(copy_network(teacher, device=device).eval())
    if loss is not classification_loss or not weight:
        return None
    return Distillation(copy_network(teacher, device=device).eval(), weight, temperature)


# What may be remembered of a teacher; a key and its place in a dict take about so many bytes themselves.
REMEMBERED_BYTES = 1 << 26
_KEY_BYTES = 200
# After the first epoch at least one example in so many has to be known, once so many were asked for.
_KNOWN_ONE_IN, _ASKED = 100, 200
# Outputs of one example in two batches agree to so much of the largest, in bfloat16, too.
_AGREEMENT = 0.05


class TeacherOutputs:
    """A teacher's outputs by example: where training goes through the same inputs again they are computed once.

    Examples are known by a hash of their inputs, whatever loader gives them. Nothing is remembered of inputs that
    hardly ever come back (augmentation in many ways), of outputs that depend on the rest of the batch, of more than
    `REMEMBERED_BYTES`, and on a GPU, where the teacher takes less time than the hash. In another batch the last bits of
    an output may differ, so what is remembered belongs into a checkpoint.

    Attributes:
        active: whether outputs are remembered.
    """

    def __init__(self, compute: Callable[[Any], Any], device: torch.device) -> None:
        """Remembers nothing yet.

        Args:
            compute: returns the teacher's outputs for a batch, without a gradient.
            device: of the batches.
        """
        self.compute, self.active = compute, device.type == "cpu"
        self._rows: dict[bytes, int] = {}
        self._outputs: Tensor | None = None
        self._asked, self._known = 0, 0

    def __call__(self, batch: Any, *, again: bool) -> Any:
        """Returns the teacher's outputs for a batch; `again`: whether all inputs may have been seen before."""
        keys = _example_keys(batch) if self.active else None
        if keys is None:
            return self.compute(batch)
        if self._outputs is None:
            return self._begin(batch, keys)
        missing = [place for place, key in enumerate(keys) if key not in self._rows]
        if again:
            self._asked, self._known = self._asked + len(keys), self._known + len(keys) - len(missing)
        if self._asked >= _ASKED and self._known * _KNOWN_ONE_IN < self._asked:
            self._forget()
            return self.compute(batch)
        if missing and not self._remember(keys, missing, self.compute(_part_of(batch, missing))):
            self._forget()
            return self.compute(batch)
        return self._outputs[torch.tensor([self._rows[key] for key in keys])]

    def _begin(self, batch: Any, keys: list[bytes]) -> Any:
        """Returns the outputs of the first batch, and remembers them if every other example alone has the same."""
        output = self.compute(batch)
        rows = _rows_of(output, len(keys))
        chosen = list(range(0, len(keys), 2))
        alone = None if rows is None else _rows_of(self.compute(_part_of(batch, chosen)), len(chosen))
        if rows is None or alone is None or not rows.numel() or _differ(rows[::2], alone):
            self._forget()
            return output
        self._outputs = rows[:0]
        if not self._remember(keys, list(range(len(keys))), rows):
            self._forget()
        return output

    def _remember(self, keys: list[bytes], places: list[int], output: Any) -> bool:
        """Adds the outputs of the examples at some places; returns False where they cannot be kept."""
        rows = _rows_of(output, len(places))
        if rows is None or self._outputs is None or rows.shape[1:] != self._outputs.shape[1:]:
            return False
        new = {keys[place]: number for number, place in enumerate(places)}
        self._rows |= {key: len(self._outputs) + number for number, key in enumerate(new)}
        self._outputs = torch.cat([self._outputs, rows[torch.tensor(list(new.values()))]])
        return self._outputs.nbytes + _KEY_BYTES * len(self._rows) <= REMEMBERED_BYTES

    def _forget(self) -> None:
        self.active, self._rows, self._outputs = False, {}, None

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is remembered."""
        keys = torch.frombuffer(bytearray(b"".join(self._rows)), dtype=torch.uint8) if self._rows else None
        counted = [self._asked, self._known]
        return {"active": self.active, "keys": keys, "outputs": self._outputs, "counted": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.active = self.active and state["active"]
        self._outputs, (self._asked, self._known) = state["outputs"], state["counted"]
        keys = b"" if state["keys"] is None else state["keys"].numpy().tobytes()
        size = hashlib.sha1(usedforsecurity=False).digest_size
        self._rows = {keys[start : start + size]: start // size for start in range(0, len(keys), size)}


def _rows_of(output: Any, count: int) -> Tensor | None:
    """Returns the logits of so many examples, or None where an output has none, or not one row for each."""
    try:
        logits = logits_of(output)
    except InvalidInputError:
        return None
    return logits if logits.ndim and len(logits) == count else None


def _differ(outputs: Tensor, others: Tensor) -> bool:
    """Tells whether the outputs for the same examples are not the same, but for rounding."""
    if outputs.shape != others.shape:
        return True
    return not bool((outputs - others).abs().max() <= _AGREEMENT * outputs.abs().max())


def _part_of(batch: Any, places: list[int]) -> Any:
    """Returns a batch with the inputs of some of its examples, whose targets nobody reads."""
    args, kwargs, target = split_batch(batch)
    index = torch.tensor(places)
    if kwargs:
        return {name: value[index] for name, value in kwargs.items()} | {"target": target}
    return (*(value[index] for value in args), target)


def _example_keys(batch: Any) -> list[bytes] | None:
    """Returns a hash of the inputs of each example of a batch, or None where they cannot be told apart."""
    args, kwargs, _ = split_batch(batch)
    parts = [*args, *(kwargs[name] for name in sorted(kwargs))]
    if not all(isinstance(part, Tensor) and part.layout == torch.strided and part.ndim for part in parts):
        return None
    if not parts or any(len(part) != len(parts[0]) or not part.numel() for part in parts):
        return None
    kinds = [(part.dtype, part.shape[1:]) for part in parts]
    begun = hashlib.sha1(repr((sorted(kwargs), kinds)).encode(), usedforsecurity=False)
    rows = [part.contiguous().view(len(part), -1).view(torch.uint8).numpy() for part in parts]
    keys = []
    for example in zip(*rows, strict=True):
        digest = begun.copy()
        for row in example:
            digest.update(row)
        keys.append(digest.digest())
    return keys
