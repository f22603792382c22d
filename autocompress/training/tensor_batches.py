"""A data set that lies whole on the device, gone through in batches; no worker processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.errors import InvalidInputError


@dataclass(frozen=True)
class Normalize:
    """Turns uint8 images into float32 ones: divided by 255, minus the mean, over the standard deviation by channel."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Returns float32 [n, c, h, w] of uint8 [n, c, h, w]."""
        shape = (1, -1, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).mul_(255).view(shape)
        deviation = torch.tensor(self.deviation, device=images.device).mul_(255).view(shape)
        return (images.float() - mean) / deviation


@dataclass(frozen=True)
class CropAndFlip:
    """Moves each image by up to `padding` pixels, black coming in, and mirrors every second one where `flip` is set.

    All images of a batch at once, on their device.
    """

    padding: int = 4
    flip: bool = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Returns what decides for `count` images, int64 [count, 3]: row offset, column offset, mirrored or not."""
        offsets = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        return torch.cat([offsets, torch.randint(0, 1 + self.flip, (count, 1), generator=generator)], 1)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Returns images of the same shape [n, c, h, w]; `draws` [n, 3] is from `draw`."""
        height, width = images.shape[-2:]
        padded = torch.nn.functional.pad(images, (self.padding,) * 4)
        rows = draws[:, :1] + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = draws[:, 1:2] + torch.where(draws[:, 2:] == 1, width - 1 - columns, columns)
        number = torch.arange(len(images), device=images.device)[:, None, None]
        # Indices around the slice put the channels last in memory: what the convolutions want.
        return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class TensorBatches:
    """Batches (inputs, targets) of tensors that lie on one device; may be gone through again and again.

    A shuffled set is in an order of its own in every epoch, a function of (seed, epoch) alone: `set_epoch` makes any
    epoch repeatable, and without it each pass takes the next. The random numbers are drawn on the CPU, so that all
    devices see the same.

    Attributes:
        inputs: [n, ...], uint8 or float.
        targets: [n, ...].
        epoch: the number of the next pass.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        augment: CropAndFlip | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Holds the tensors; `augment`, then `transform`, are applied to the inputs of each batch.

        Raises:
            InvalidInputError: no examples, not as many targets as inputs, or a batch size below 1.
        """
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise InvalidInputError(f"there are {len(inputs)} inputs and {len(targets)} targets; they must be as many")
        if batch_size < 1:
            raise InvalidInputError(f"batch_size is {batch_size}; it must be at least 1")
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.augment, self.transform = augment, transform
        self.epoch = 0

    def to(self, device: torch.device | str) -> TensorBatches:
        if self.inputs.device == torch.device(device):
            return self
        moved = copy.copy(self)
        moved.inputs, moved.targets = self.inputs.to(device), self.targets.to(device)
        return moved

    def __len__(self) -> int:
        """Returns the number of batches; the last may be smaller."""
        return -(-len(self.inputs) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        count, device = len(self.inputs), self.inputs.device
        # Distinct for all seeds and epochs below 2^31; torch mixes the bits of a seed itself.
        generator = torch.Generator().manual_seed((self.seed << 31) + epoch & (1 << 63) - 1)
        order = (torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)).to(device)
        draws = self.augment.draw(count, generator).to(device) if self.augment is not None else None
        for start in range(0, count, self.batch_size):
            chosen = order[start : start + self.batch_size]
            inputs = self.inputs[chosen]
            if self.augment is not None and draws is not None:
                inputs = self.augment(inputs, draws[start : start + self.batch_size])
            yield (self.transform(inputs) if self.transform is not None else inputs), self.targets[chosen]
