"""Batch norm: statistics refitted to a network's weights, and batches that are too small for it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.training.batches import check_repeatable, default_device, examples_in, forward, run_on, to_device

logger = logging.getLogger(__name__)

# What torch says where a batch gives a norm one value per channel, which has no variance.
_TOO_SMALL = "more than 1 value per channel"
_BatchNorm = nn.modules.batchnorm._BatchNorm


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
                size = examples_in(batch)
                for norm in norms:  # a running mean, weighted by examples
                    norm.momentum = size / (counted + size)
                before = _statistics(norms) if size == 1 else []
                try:
                    run_on(model, to_device(batch, where))
                    counted += size
                except ValueError as error:
                    if _TOO_SMALL not in str(error):
                        raise
                    left_out += 1
                    _put_back(before)
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


@contextlib.contextmanager
def modes_put_back(model: nn.Module) -> Iterator[None]:
    """Leaves every module in the mode, of training or evaluation, in which it was."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
