"""What one batch of every split tells before any training: whether network, loss and metric fit it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError, InvalidInputError, TrainingDivergedError
from autocompress.network.live_network import accepted_arguments, copy_network, tensors_in
from autocompress.training.batches import (
    autocast,
    cause_of,
    check_repeatable,
    default_device,
    described,
    forward,
    run_on,
    split_batch,
    target_field,
    to_device,
)
from autocompress.training.evaluation import Evaluation, evaluate
from autocompress.training.layer_statistics import forward_in_training
from autocompress.training.losses import (
    IGNORED_TARGET,
    METRICS,
    MinusLoss,
    binary_accuracy,
    binary_cross_entropy,
    carried_loss,
    class_scores,
    classification_loss,
    correct_predictions,
    logits_of,
    output_distance,
)
from autocompress.training.random_state import data_order_state, restore_data_order, seeded, set_epoch

logger = logging.getLogger(__name__)

Loss = Callable[[Any, Tensor], Tensor]
Metric = Callable[[Any, Tensor], Tensor]

# The network's own loss is cross-entropy at the targets as they are if they differ by no more, relatively; a causal
# language model's, at the next token, does.
SAME_LOSS = 1e-5
# Standard deviations above chance by which a trained network's accuracy is told from it.
ABOVE_CHANCE = 2.0


def check_task(
    model: nn.Module,
    splits: Mapping[str, Iterable[Any] | None],
    *,
    loss: Loss | None = None,
    metric: Metric | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    may_distil: bool = False,
) -> tuple[Loss, Metric]:
    """Returns loss and metric after taking one batch of every split through network, loss and metric.

    Where no loss is given it is the one that the network's output carries (`output.loss`), else cross-entropy. Where no
    metric is given it is the accuracy if the outputs are class scores for the targets, else minus the loss.

    Args:
        model: the network; left as it was, as are all random numbers.
        splits: name -> batches; the first is trained on, and goes through a step but for the optimizer's. None: absent.
        loss: (output, target) -> scalar.
        metric: (output, target) -> one score per example, higher is better.
        device: default: CUDA where there is one.
        seed: of the loaders' random numbers.
        may_distil: whether a network whose outputs are numbers like the targets (a regressor) may be trained to give
            the outputs of another where no loss is given; the loss returned is then `losses.output_distance`.

    Raises:
        InvalidInputError: naming what does not fit, its shape, and what would be right.
    """
    where = default_device(device)
    found: dict[str, Any] = {}
    for name, batches in splits.items():
        if batches is not None:
            found[name] = to_device(_first_batch(batches, seed, name), where)
    trained_on = next(iter(found), "")
    _say_what_is_left_out(model, found.get(trained_on))
    network = copy_network(model, device=where)
    with seeded(seed):
        default = loss is None
        if loss is None:
            loss = _default_loss(network, found[trained_on])
        given = metric
        for name, batch in found.items():
            network.train(name == trained_on)
            output, target = _output(network, batch, loss, name)
            if default and may_distil and name == trained_on and _are_numbers(output, target):
                loss = output_distance
            value = _loss_value(loss, output, target, name)
            if name == trained_on:
                _check_gradient(value, network, name)
                if given is None:
                    metric = _default_metric(loss, output, target)
            assert metric is not None
            with torch.no_grad():
                _check_metric(metric, output, target, name)
    assert metric is not None
    return loss, metric


def check_validation(model: nn.Module, batches: Iterable[Any], device: torch.device | str) -> None:
    """Checks that the accuracy of a network can be measured on a split, by its first batch; takes no more.

    Raises:
        InvalidInputError: otherwise.
    """
    batch = to_device(_first_batch(batches, 0, "val"), device)
    network = copy_network(model, device=device).eval()
    with torch.no_grad():
        output, target = _output(network, batch, classification_loss, "val")
    reason = _no_classes(output, target)
    if reason is not None:
        raise InvalidInputError(
            f"val= decides by the cross-entropy of class scores, and {reason}; give evaluate= instead, a function that "
            "returns the score of a network, higher is better (finish() can be called again)"
        )


def takes_bfloat16(
    model: nn.Module, batches: Iterable[Any], *, loss: Loss, device: torch.device, seed: int = 0
) -> bool:
    """Tells whether a step on the first batch goes through network and loss under bfloat16 autocast.

    Complex numbers and much of linear algebra know no bfloat16, and losses such as binary cross-entropy none beside
    float32 targets. The network and all random numbers are left as they were.
    """
    batch, network = to_device(_first_batch(batches, seed, "the training data"), device), copy_network(model)
    try:
        with seeded(seed):
            with autocast(True, device):
                output, target = forward_in_training(network.train(), batch, with_target=loss is carried_loss)
            loss(output, target).backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the user's operations; what float32 does not take either shows in the first step
        logger.info("trained in float32: network or loss does not take bfloat16 (%s)", cause_of(error))
        return False
    return True


def _say_what_is_left_out(model: nn.Module, batch: Any) -> None:
    """Says which fields of a dict batch the network never sees: one of them may be misspelt."""
    if isinstance(batch, Mapping):
        fields = split_batch(batch)[1]
        others = sorted(set(fields) - set(accepted_arguments(model, fields)))
        if others:
            logger.info("the network's forward does not take these fields of a batch: %s", ", ".join(others))


def _first_batch(batches: Iterable[Any], seed: int, name: str) -> Any:
    """Returns a loader's first batch; its random numbers are left as they were."""
    check_repeatable(batches, name)
    order, epoch = data_order_state(batches), getattr(batches, "epoch", None)
    with seeded(seed):
        batch = next(iter(batches), None)
    restore_data_order(batches, order)
    if epoch is not None:
        set_epoch(batches, epoch)
    if batch is None:
        raise InvalidInputError(f"{name} gives no batch at all; it must give at least one")
    return batch


def _output(network: nn.Module, batch: Any, loss: Loss, name: str) -> tuple[Any, Tensor]:
    run = forward_in_training if network.training else forward
    try:
        return run(network, batch, with_target=loss is carried_loss)
    except (AutocompressError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's network raises
        raise InvalidInputError(
            f"the network does not take the inputs of {name}: {cause_of(error)}; a batch is {described(batch)}"
        ) from error


def _default_loss(network: nn.Module, batch: Any) -> Loss:
    """Returns the loss that the network's output carries when it is given the target, else cross-entropy."""
    if target_field(network, batch) is None:
        return classification_loss
    try:
        output, _ = forward(network.eval(), batch, with_target=True)
        carried_loss(output, batch)
    except Exception:  # it takes a target and has no use for it: what is wrong shows without
        return classification_loss
    return carried_loss


def _loss_value(loss: Loss, output: Any, target: Any, name: str) -> Tensor:
    """Returns the loss of a batch, one number."""
    if loss is classification_loss and (reason := _no_classes(output, target)):
        raise InvalidInputError(
            f"the default loss, cross-entropy, does not fit {name}: {reason}. It takes class scores [n, ..., classes] "
            "or [n, classes, ...] and class numbers [n, ...]; give loss=, a function or a name such as 'mse' or "
            "'bce_with_logits', and metric=, one score per example, higher is better"
        )
    try:
        value = loss(output, target)
    except Exception as error:  # whatever the user's function raises
        raise InvalidInputError(
            f"the loss cannot be computed on {name}: {cause_of(error)}; the output is {described(output)}, the target "
            f"{described(target)}; loss= is a function (output, target) -> scalar"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        raise InvalidInputError(
            f"the loss of {name} is {described(value)}; it must be a tensor with one number, the mean over the batch"
        )
    _check_pairs("loss", loss, output, target, name)
    return value


def _check_gradient(value: Tensor, network: nn.Module, name: str) -> None:
    if not value.requires_grad:
        raise InvalidInputError(
            f"the loss of {name} has no gradient; loss= must be computed from the output by torch, without detach(), "
            "and some parameter of the network must require one"
        )
    try:
        value.backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the user's operations
        raise InvalidInputError(f"the loss of {name} cannot be differentiated: {cause_of(error)}") from error
    network.zero_grad(set_to_none=True)


def _check_metric(metric: Metric, output: Any, target: Any, name: str) -> None:
    if metric is correct_predictions and (reason := _no_classes(output, target)):
        raise InvalidInputError(
            f"the metric accuracy does not fit {name}: {reason}; give metric=, such as 'binary_accuracy' or 'mse' or a "
            "function, one score per example, higher is better"
        )
    try:
        scores = metric(output, target)
    except Exception as error:  # whatever the user's function raises
        raise InvalidInputError(
            f"the metric cannot be computed on {name}: {cause_of(error)}; the output is {described(output)}, the "
            f"target {described(target)}; metric= is a function (output, target) -> one score per example, higher is "
            "better"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 1 or scores.is_complex() or not len(scores):
        raise InvalidInputError(
            f"the metric of {name} is {described(scores)}; it must be a tensor with one score per example, [n]"
        )
    if not isinstance(metric, MinusLoss):  # the loss has been looked at
        _check_pairs("metric", metric, output, target, name)


@torch.no_grad()
def _check_pairs(kind: str, function: Loss | Metric, output: Any, target: Any, name: str) -> None:
    """Refuses a loss or metric that takes each output with the targets of all examples.

    That is what broadcasting does with outputs [n] and targets [n, 1]: the mean of n * n differences then does not
    change when the examples have one another's targets, even where the outputs are the targets themselves.
    """
    if not _are_numbers(output, target) or output.shape == target.shape or not target.ndim or len(target) < 2:
        return
    exact, others = target.reshape(output.shape).to(output.dtype), target.roll(1, 0)
    try:
        paired, unpaired, other = (
            float(function(exact, each).double().mean()) for each in (target, others, target / 2)
        )
    except Exception:  # what holds of the network's own outputs may not hold of these
        return
    depends = not math.isclose(paired, other, rel_tol=SAME_LOSS)
    if depends and not torch.equal(target, others) and math.isclose(paired, unpaired, rel_tol=SAME_LOSS):
        raise InvalidInputError(
            f"the {kind} of {name} does not depend on which target belongs to which example: the output is "
            f"{described(output)}, the target {described(target)}, and each is compared with all; give both one shape"
        )


def _default_metric(loss: Loss, output: Any, target: Any) -> Metric:
    """Returns the accuracy where the outputs are class scores of these targets, else minus the loss."""
    if loss is binary_cross_entropy:
        return binary_accuracy
    if _no_classes(output, target) is not None:
        return MinusLoss(loss)
    scores = logits_of(output)
    either = scores.shape[:-1] == target.shape and scores.shape[2:] == target.shape[1:]
    if loss is not classification_loss and scores.ndim > 2 and either:
        return MinusLoss(loss)  # [n, k, k] against [n, k]: a loss of one's own may take the classes in either place
    if loss is carried_loss:
        own, plain = (float(each(output, target).detach()) for each in (loss, classification_loss))
        if not math.isclose(own, plain, rel_tol=SAME_LOSS):
            return MinusLoss(loss)  # the classes are not those at the same place: the next token's
    return correct_predictions


def _are_numbers(output: Any, target: Any) -> bool:
    """Tells whether outputs and targets are floating-point tensors with equally many elements."""
    tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
    return tensors and target.is_floating_point() and target.numel() == output.numel()


def _no_classes(output: Any, target: Any) -> str | None:
    """Returns why an output is no class scores for a target, None where it is."""
    try:
        scores = class_scores(output, target)
    except InvalidInputError as error:
        return str(error)
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        return f"the target is {described(target)}, not whole numbers"
    if scores.ndim < 2 or scores.shape[:-1] != target.shape:
        return f"the output is {described(scores)}, the target {described(target)}"
    counted = target[target != IGNORED_TARGET]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < scores.shape[-1]:
        return (
            f"the target has classes {int(counted.min())} to {int(counted.max())}, the output {scores.shape[-1]}, "
            "counted from 0"
        )
    return None


def check_finite(
    compressed: nn.Module,
    reference: nn.Module,
    batches: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> bool:
    """Checks that a finished network's outputs are finite on a batch, or the given network's were not either.

    Returns:
        Whether they are the same for every example of the batch, where the given network's are not.

    Raises:
        TrainingDivergedError: naming the layer from which on they are not finite.
    """
    where = default_device(device)
    batch = to_device(_first_batch(batches, seed, "the data"), where)
    layer, constant = _first_not_finite(copy_network(compressed, device=where), batch)
    if layer is None and not constant:
        return False
    given, given_constant = _first_not_finite(copy_network(reference, device=where), batch)
    if layer is not None and given is None:
        raise TrainingDivergedError(
            f"the compressed network gives NaN or infinite outputs from layer {layer!r} on, where the given one gives "
            "none, and is not returned; a layer that divides by the norm of its weights must keep some of them: try a "
            "larger target, or ignore= this layer"
        )
    return constant and not given_constant


@torch.no_grad()
def _first_not_finite(network: nn.Module, batch: Any) -> tuple[str | None, bool]:
    """Returns the first module, innermost, whose output is not finite, and whether all examples have one output.

    None instead of a module where the network's own output is finite.
    """
    found: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output)):
                found.append(name or type(module).__name__)

        return hook

    for name, module in network.named_modules():
        module.register_forward_hook(look(name))
    output = run_on(network.eval(), batch)
    outputs = [tensor for tensor in tensors_in(output) if tensor.ndim]
    constant = bool(outputs) and all(len(tensor) > 1 and bool((tensor == tensor[:1]).all()) for tensor in outputs)
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in tensors_in(output))
    return None if finite else found[0], constant


def at_chance(accuracy: float, examples: int, classes: int) -> str | None:
    """Returns what to say of an accuracy that guessing reaches, None for one above it.

    Args:
        accuracy: a fraction of 1.
        examples: over how many.
        classes: how many there are to guess from.
    """
    chance = 1 / max(classes, 1)
    bound = chance + ABOVE_CHANCE * math.sqrt(chance * (1 - chance) / max(examples, 1))
    if classes < 2 or accuracy > bound:
        return None
    return (
        f"the network's own accuracy is {accuracy:.4f} on {examples} examples of {classes} classes, no more than "
        "guessing: are these its weights, its data, and the loss that it was trained with?"
    )


def guesses(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss,
    metric: Metric,
    device: torch.device | str | None = None,
    seed: int = 0,
    scores: Evaluation | None = None,
) -> str | None:
    """Returns what to say of a classifier that scores no better than guessing on a split, else None.

    Another metric than the default accuracy has no chance that is known. `scores`: of the model, where it has been
    evaluated on the batches.
    """
    if metric is not correct_predictions:
        return None
    where = default_device(device)
    network = copy_network(model, device=where).eval()
    batch = to_device(_first_batch(batches, seed, "the data"), where)
    with torch.no_grad():
        output, target = forward(network, batch, with_target=loss is carried_loss)
    scores = scores or evaluate(network, batches, loss=loss, metric=metric, device=where)
    return at_chance(scores.metric, len(scores.scores), class_scores(output, target).shape[-1])


def name_of(metric: Metric) -> str:
    """Returns what a metric is called in reports and records."""
    named = next((name for name, function in METRICS.items() if function is metric), None)
    if named is not None:
        return named
    return metric.name if isinstance(metric, MinusLoss) else getattr(metric, "__name__", type(metric).__name__)
