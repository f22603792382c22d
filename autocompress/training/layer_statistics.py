"""Statistics of what goes through layers: batch norm's, refitted to a network's weights, and moments of inputs."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional

from autocompress.network.live_network import modes_put_back, tensors_in
from autocompress.training.batches import (
    blaming,
    check_repeatable,
    default_device,
    examples_in,
    forward,
    holds_no_example,
    run_on,
    to_device,
)

logger = logging.getLogger(__name__)

# What torch says where a batch gives a norm one value per channel, which has no variance.
_TOO_SMALL = "more than 1 value per channel"
# Examples that are looked at, and inputs of a layer per batch: positions of one image or text say nearly the same.
EXAMPLES = 512
INPUTS_PER_BATCH = 8192
# Examples whose gradients are taken, and what a row's gradients count at least, as a part of its layer's mean.
GRADIENT_EXAMPLES, LEAST_ROW = 128, 1e-3
# How often each token is taken to have been seen beside the times that it was.
UNSEEN_TOKENS = 0.3
# Layers are looked at together as long as their moments take no more than so many numbers; then once more.
NUMBERS_AT_ONCE = 1 << 26

_BatchNorm = nn.modules.batchnorm._BatchNorm
Layer = nn.Linear | nn.Conv1d | nn.Conv2d


def forward_in_training(model: nn.Module, batch: Any, *, with_target: bool = False) -> tuple[Any, Tensor]:
    """Returns (output, target) of a network in training mode, whatever the size of the batch.

    A batch of one, the last of many an epoch, has no variance: its norms use their running statistics, as they do in
    evaluation.
    """
    try:
        return forward(model, batch, with_target=with_target)
    except ValueError as error:
        if _TOO_SMALL not in str(error):
            raise
    logger.info("a batch of one example goes through the batch norms with their running statistics")
    with modes_put_back(model):
        for norm in _norms(model):
            norm.eval()
        return forward(model, batch, with_target=with_target)


def refit_batch_norm(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    max_batches: int = 200,
    device: torch.device | str | None = None,
) -> None:
    """Sets the running statistics of every batch norm to their mean over the examples of the first `max_batches`.

    Each batch counts by its examples. One that a norm cannot take, because it holds a single value per channel, is left
    out, and so it is said. Only the batch norms are in training mode meanwhile (dropout would bend the statistics); no
    gradient is taken. Does nothing for a model without running statistics.
    """
    norms = [norm for norm in _norms(model) if norm.track_running_stats]
    if not norms:
        return
    check_repeatable(batches, "the data to refit batch norm on")
    where = default_device(device)
    model.to(where)
    momenta = {norm: norm.momentum for norm in norms}
    counted, left_out, given = 0, 0, _statistics(norms)
    with modes_put_back(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        try:
            for number, batch in enumerate(batches):
                if number >= max_batches:
                    break
                if holds_no_example(batch):
                    continue
                size = examples_in(batch)
                for norm in norms:  # a running mean, weighted by examples
                    norm.momentum = size / (counted + size)
                before = _statistics(norms) if size == 1 else []
                with blaming(f"batch {number} of the data to refit batch norm on", batch):
                    try:
                        run_on(model, to_device(batch, where))
                        counted += size
                    except ValueError as error:
                        if _TOO_SMALL not in str(error):
                            raise
                        left_out += 1
                        _put_back(before)
        except BaseException:
            _put_back(given)
            raise
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    if not counted:
        _put_back(given)
        logger.warning("batch norm keeps its statistics: no batch of the data has more than one example")
    elif left_out:
        logger.info("%d batches of one example were left out when batch norm was refitted", left_out)


def has_batch_norm(model: nn.Module) -> bool:
    """Tells whether there are running statistics to refit."""
    return any(norm.track_running_stats for norm in _norms(model))


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _statistics(norms: list[_BatchNorm]) -> list[tuple[Tensor, Tensor]]:
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]


@torch.no_grad()
def _put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in statistics:
        tensor.copy_(value)


@dataclass(frozen=True)
class InputMoments:
    """Of the inputs x of one layer, each a column of its weight matrix [out, n], by groups of its outputs.

    Attributes:
        mean: E[x], float32 [groups, n]; of an embedding, whose x is one-hot, the share of each token, [1, n].
        second: E[x x^T], float32 [groups, n, n]; None for an embedding, of which it is the diagonal matrix of `mean`.
        bias: the layer's own, or None.
    """

    mean: Tensor
    second: Tensor | None
    bias: Tensor | None


def input_moments(
    model: nn.Module, weights: Sequence[Tensor], batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[int, InputMoments]]:
    """Yields (place among `weights`, moments) of linear layers, convolutions and embeddings that inputs reach.

    In evaluation mode, over the first `EXAMPLES` examples. Left out are weights that no such layer applies itself
    (recurrent layers, attention's fused projections), and convolutions over volumes.

    Args:
        model: the network; not changed.
        weights: its parameters of two or more dimensions.
        batches: of its data.
        device: where the network lies.
    """
    layers = _layers(model, weights)
    while layers:
        numbers = itertools.accumulate(_numbers(module) for _, module in layers)
        taken = max(1, sum(number <= NUMBERS_AT_ONCE for number in numbers))
        yield from _moments(model, layers[:taken], batches, device)
        layers = layers[taken:]


@torch.no_grad()
def _moments(
    model: nn.Module, layers: Sequence[tuple[int, Layer | nn.Embedding]], batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[int, InputMoments]]:
    sums: dict[int, tuple[Tensor | float, Tensor | float, int]] = {}
    last: list[tuple[Tensor, int, tuple[Tensor, Tensor, int]]] = []  # of a linear layer: others take the same tensor

    def sums_of(module: Layer | nn.Embedding, given: Tensor) -> tuple[Tensor, Tensor, int]:
        if isinstance(module, nn.Embedding):
            tokens = torch.bincount(given.flatten(), minlength=module.num_embeddings)[None]
            return tokens.float(), tokens.float(), given.numel()
        linear = isinstance(module, nn.Linear)
        if linear and last and last[0][0] is given and last[0][1] == given._version:
            return last[0][2]
        x = layer_inputs(module, given.float())
        found = x.sum(1), x.mT @ x, x.shape[1]
        last[:] = [(given, given._version, found)] if linear else []
        return found

    def seen(place: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                assert isinstance(module, Layer | nn.Embedding)
                mean, second, count = sums.get(place, (0.0, 0.0, 0))
                more = sums_of(module, inputs[0])
                sums[place] = mean + more[0], second + more[1], count + more[2]

        return hook

    with contextlib.ExitStack() as stack:
        for place, module in layers:
            stack.callback(module.register_forward_pre_hook(seen(place)).remove)
        stack.enter_context(modes_put_back(model))
        model.eval()
        examples = 0
        for batch in batches:
            moved = to_device(batch, device)
            run_on(model, moved)
            examples += examples_in(moved)
            if examples >= EXAMPLES:
                break
    for place, module in layers:
        mean, second, count = sums.get(place, (0.0, 0.0, 0))
        if isinstance(module, nn.Embedding):
            if isinstance(mean, Tensor):
                mean = mean + UNSEEN_TOKENS
                yield place, InputMoments(mean / mean.sum(), None, None)
        elif (
            isinstance(mean, Tensor)
            and isinstance(second, Tensor)
            and bool(torch.isfinite(second).all())
            and bool(second.any())
        ):
            yield place, InputMoments(mean / count, second / count, module.bias)


def row_weights(
    model: nn.Module, weights: Sequence[Tensor], batches: Iterable[Any], device: torch.device
) -> dict[int, Tensor]:
    """Returns, by place among `weights`, how much the network's output moves with each row of a layer's weight matrix.

    That is E sum (d u^T f / d y_r)^2 over the positions of an output y_r of the layer, for the network's outputs f and
    random directions u; of an embedding the mean over y, as each row makes all of it. In evaluation mode, over the
    first examples. Empty where the outputs have no gradients, or some are not finite.

    Args:
        model: the network; not changed.
        weights: its parameters of two or more dimensions.
        batches: of its data.
        device: where the network lies.

    Returns:
        float32 [R] each, > 0, of linear layers, convolutions and embeddings.
    """
    layers = _layers(model, weights)
    edges: list[tuple[int, Layer | nn.Embedding, Any]] = []
    squares: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def keep(place: int, module: Layer | nn.Embedding) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                edges.append((place, module, get_gradient_edge(output)))

        return hook

    with contextlib.ExitStack() as stack:
        for place, layer in layers:
            stack.callback(layer.register_forward_hook(keep(place, layer)).remove)
        for weight in weights:
            stack.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)
        stack.enter_context(modes_put_back(model))
        stack.enter_context(torch.enable_grad())
        model.eval()
        examples = 0
        for batch in batches:
            moved = to_device(batch, device)
            edges.clear()
            outputs = [each for each in tensors_in(run_on(model, moved)) if each.requires_grad]
            if not outputs or not edges:
                return {}
            directions = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
            found = torch.autograd.grad(outputs, [edge for *_, edge in edges], directions, allow_unused=True)
            for (place, module, _), gradient in zip(edges, found, strict=True):
                if gradient is not None:
                    squares[place] = squares.get(place, 0.0) + _squares(module, gradient.float())
            examples += examples_in(moved)
            if examples >= GRADIENT_EXAMPLES:
                break
    if not all(bool(torch.isfinite(each).all()) for each in squares.values()):
        return {}
    return {place: each.clamp_min(LEAST_ROW * float(each.mean())) for place, each in squares.items() if each.any()}


def _squares(module: Layer | nn.Embedding, gradient: Tensor) -> Tensor:
    """Returns the squares of the gradients of a layer's outputs by row, summed over examples and positions, [R]."""
    if isinstance(module, nn.Embedding):
        return (gradient.square().sum() / gradient.shape[-1]).expand(module.num_embeddings)
    axis = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
    return gradient.square().movedim(axis, -1).flatten(0, -2).sum(0)


def layer_inputs(module: Layer, x: Tensor) -> Tensor:
    """Returns what the rows of a layer's weight matrix are multiplied with, or some of it: [groups, inputs, n]."""
    if isinstance(module, nn.Linear):
        return _some(x.reshape(-1, x.shape[-1]), 1)[None]
    size = module.kernel_size
    x = x if x.dim() == len(size) + 2 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis, (k, stride, dilation) in enumerate(zip(size, module.stride, module.dilation, strict=True), start=2):
        x = x.unfold(axis, (k - 1) * dilation + 1, stride)[..., ::dilation]  # windows, not copied
    x = _some(x.movedim(1, -1 - len(size)), 1 + len(size))  # [inputs, channels, *kernel]
    return x.reshape(x.shape[0], module.groups, -1).transpose(0, 1)


def _some(x: Tensor, axes: int) -> Tensor:
    """Returns at most `INPUTS_PER_BATCH` entries of the first axes together, the same ones each time."""
    count = x.shape[:axes].numel()
    if count <= INPUTS_PER_BATCH:
        return x.flatten(0, axes - 1)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:INPUTS_PER_BATCH].to(x.device)
    return x[torch.unravel_index(chosen, x.shape[:axes])]


def _layers(model: nn.Module, weights: Sequence[Tensor]) -> list[tuple[int, Layer | nn.Embedding]]:
    """Returns the layers whose inputs are looked at, with their places; one that shares its weight with an embedding
    stands for both."""
    places = {id(weight): place for place, weight in enumerate(weights)}
    found = [
        (places[id(module.weight)], module)
        for module in model.modules()
        if isinstance(module, Layer | nn.Embedding) and id(module.weight) in places
    ]
    linear = {place for place, module in found if isinstance(module, Layer)}
    return [(place, module) for place, module in found if isinstance(module, Layer) or place not in linear]


def _numbers(module: Layer | nn.Embedding) -> int:
    """Returns how many numbers the moments of a layer's inputs are."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    groups = 1 if isinstance(module, nn.Linear) else module.groups
    return int(groups * module.weight[0].numel() ** 2)
