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
from torch.nn import functional

from autocompress.network.live_network import modes_put_back
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
        mean: E[x], float32 [groups, n].
        second: E[x x^T], float32 [groups, n, n].
        bias: the layer's own, or None.
    """

    mean: Tensor
    second: Tensor
    bias: Tensor | None


def input_moments(
    model: nn.Module, weights: Sequence[Tensor], batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[int, InputMoments]]:
    """Yields (place among `weights`, moments) of the weights of linear layers and convolutions that inputs reach.

    In evaluation mode, over the first `EXAMPLES` examples. Left out are weights that no such layer applies itself
    (recurrent and embedding layers, attention's fused projections), and convolutions over volumes.

    Args:
        model: the network; not changed.
        weights: its parameters of two or more dimensions.
        batches: of its data.
        device: where the network lies.
    """
    places = {id(weight): place for place, weight in enumerate(weights)}
    layers = [
        (places[id(module.weight)], module)
        for module in model.modules()
        if isinstance(module, Layer) and id(module.weight) in places
    ]
    while layers:
        numbers = itertools.accumulate(_groups(module) * module.weight[0].numel() ** 2 for _, module in layers)
        taken = max(1, sum(number <= NUMBERS_AT_ONCE for number in numbers))
        yield from _moments(model, layers[:taken], batches, device)
        layers = layers[taken:]


@torch.no_grad()
def _moments(
    model: nn.Module, layers: Sequence[tuple[int, Layer]], batches: Iterable[Any], device: torch.device
) -> Iterator[tuple[int, InputMoments]]:
    sums: dict[int, tuple[Tensor | float, Tensor | float, int]] = {}

    def seen(place: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                assert isinstance(module, Layer)
                x = layer_inputs(module, inputs[0].float())
                mean, second, count = sums.get(place, (0.0, 0.0, 0))
                sums[place] = mean + x.sum(1), second + x.mT @ x, count + x.shape[1]

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
        if (
            isinstance(mean, Tensor)
            and isinstance(second, Tensor)
            and bool(torch.isfinite(second).all())
            and bool(second.any())
        ):
            yield place, InputMoments(mean / count, second / count, module.bias)


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


def _groups(module: Layer) -> int:
    return 1 if isinstance(module, nn.Linear) else module.groups
