"""A network for several inputs at once, made of one for a single input, and how it classifies single ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sized
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InvalidInputError
from autocompress.network.live_network import copy_network
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
        return len(cast(Sized, self.batches))

    def set_epoch(self, epoch: int) -> None:
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


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class AggregatedModel(nn.Module):
    """A network with the inputs of its first layer and the outputs of its last one `fold` times as many.

    The base is copied. With `fold` 1 nothing is changed; else the two layers are drawn anew, with the spread of the
    base's weights, so that the network is to be trained from here.

    Attributes:
        fold: inputs that are classified together.
        network: the widened copy.
        head: name of its last layer.
    """

    def __init__(self, base: nn.Module, fold: int = 2) -> None:
        """Widens a copy of the base.

        Args:
            base: a classifier whose first layer, in the order of its modules, takes the images and whose last one is
                linear and gives the logits.
            fold: at least 1.

        Raises:
            InvalidInputError: `fold` is no such number, or the base has no such layers.
        """
        super().__init__()
        if not isinstance(fold, int) or isinstance(fold, bool) or fold < 1:
            raise InvalidInputError(f"fold is {fold!r}; it must be a whole number of at least 1")
        self.fold, self.network = fold, copy_network(base)
        names = [name for name, module in self.named_modules() if isinstance(module, _LAYERS)]
        if not names or not isinstance(self.get_submodule(names[-1]), nn.Linear):
            raise InvalidInputError(f"{type(base).__name__} cannot be aggregated: its last layer must be linear")
        self.head = names[-1]
        if fold > 1:
            self._replace(names[0], _more_inputs(self.get_submodule(names[0]), fold))
            self._replace(names[-1], _more_outputs(cast(nn.Linear, self.get_submodule(names[-1])), fold))

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(parent), leaf, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits [b, fold, classes] of inputs [b, fold * channels, ...]: each row jointly."""
        logits: Tensor = self.network(inputs)
        return logits.view(len(logits), self.fold, -1)


def _more_inputs(layer: nn.Module, fold: int) -> nn.Module:
    """Returns a layer of `fold` times the inputs, whose outputs vary as before."""
    if getattr(layer, "groups", 1) != 1:
        raise InvalidInputError(f"a network that begins with a grouped convolution ({layer}) cannot be aggregated")
    wider = copy_network(layer)
    weight = cast(Tensor, layer.weight).detach()
    for name in ("in_channels", "in_features"):
        if hasattr(layer, name):
            setattr(wider, name, fold * getattr(layer, name))
    wider.weight = _drawn((weight.shape[0], fold * weight.shape[1], *weight.shape[2:]), weight, fold)
    return wider


def _more_outputs(layer: nn.Linear, fold: int) -> nn.Linear:
    wider = cast(nn.Linear, copy_network(layer))
    wider.out_features = fold * layer.out_features
    wider.weight = _drawn((wider.out_features, layer.in_features), layer.weight.detach(), 1)
    if layer.bias is not None:
        wider.bias = nn.Parameter(layer.bias.detach().repeat(fold))
    return wider


def _drawn(shape: tuple[int, ...], like: Tensor, inputs: int) -> nn.Parameter:
    """Returns normal weights with the spread of `like`, for so many times the inputs."""
    scale = float(like.float().square().mean().sqrt()) / math.sqrt(inputs)
    return nn.Parameter(scale * torch.randn(shape, dtype=like.dtype, device=like.device))


class Replicated(nn.Module):
    """Classifies single inputs, each copied into all places; the mean of the predicted probabilities counts."""

    def __init__(self, model: AggregatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns log probabilities [b, classes] of inputs [b, channels, ...]."""
        copies = torch.cat([inputs] * self.model.fold, 1)
        return F.log_softmax(self.model(copies).float(), -1).logsumexp(1) - math.log(self.model.fold)


class Batched(nn.Module):
    """Classifies single inputs, `fold` neighbours of the batch at a time: each is computed once."""

    def __init__(self, model: AggregatedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns logits [b, classes] of inputs [b, channels, ...]; the last row is filled up from the beginning."""
        count, fold = len(inputs), self.model.fold
        index = torch.arange(-(-count // fold) * fold, device=inputs.device) % count
        rows = inputs[index].reshape(-1, fold * inputs.shape[1], *inputs.shape[2:])
        logits: Tensor = self.model(rows)
        return logits.flatten(0, 1)[:count]
