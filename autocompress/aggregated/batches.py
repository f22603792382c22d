"""Batches for an aggregated network, made of batches of single examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError
from autocompress.training.batches import split_batch
from autocompress.training.random_state import set_epoch


class AggregatedBatches:
    """Batches of b rows of `fold` examples made of batches of b examples: each is once in each place.

    Attributes:
        batches: (inputs [b, channels, ...], targets [b]).
        fold: examples in a row.
        seed: of which stand together, drawn anew in each epoch; None = always an example and its successors.
        epoch: the number of the next pass.
    """

    def __init__(self, batches: Iterable[Any], fold: int, *, seed: int | None = None) -> None:
        self.batches, self.fold, self.seed, self.epoch = batches, fold, seed, 0

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(cast(Sized, self.batches))

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass that of epoch `epoch`."""
        self.epoch = epoch
        set_epoch(self.batches, epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Returns (inputs [b, fold * channels, ...], targets [b, fold]) of the next epoch.

        Raises:
            InvalidInputError: a batch is not one tensor of inputs and one of targets.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(((self.seed or 0) << 31) + epoch & (1 << 63) - 1)
        for batch in self.batches:
            args, kwargs, targets = split_batch(batch)
            if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
                raise InvalidInputError("aggregated learning takes batches of one tensor of inputs and one of targets")
            rows = torch.arange(len(targets))
            orders = [rows]
            for place in range(1, self.fold):
                fixed = self.seed is None
                orders.append(rows.roll(-place) if fixed else torch.randperm(len(rows), generator=generator))
            places = [order.to(args[0].device) for order in orders]
            yield (
                torch.cat([args[0][p] for p in places], 1),
                torch.stack([targets[p.to(targets.device)] for p in places], 1),
            )
