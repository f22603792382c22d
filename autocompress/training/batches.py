"""What a batch may be: a tuple whose last element is the target, or a dict with the target under a usual key."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError, InvalidInputError
from autocompress.network.live_network import accepted_arguments, tensors_in

logger = logging.getLogger(__name__)

COUNTING_SECONDS = 15.0  # after which it is said that a stream is being counted

TARGET_KEYS = ("labels", "label", "target", "targets", "y")


def split_batch(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """Returns (positional arguments of the model, keyword arguments, target).

    A tuple or list of at least two gives all but its last element as positional arguments and the last as the
    target; a dict gives all but the first of `TARGET_KEYS` that it has as keyword arguments.

    Raises:
        InvalidInputError: the batch is of another kind, or has no target.
    """
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is None:
            raise InvalidInputError(
                f"the batch is a dict with the keys {sorted(map(str, batch))}; its target must be under one of "
                f"{', '.join(TARGET_KEYS)}"
            )
        return (), {str(name): value for name, value in batch.items() if name != key}, batch[key]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    raise InvalidInputError(
        f"a batch is a {type(batch).__name__}{size}; it must be a tuple (inputs..., target) or a dict with a target"
    )


def holds_no_example(batch: Any) -> bool:
    """Tells whether the inputs of a batch are tensors of length 0: their mean loss would be NaN."""
    if isinstance(batch, Mapping):
        batch = [part for key, part in batch.items() if key not in TARGET_KEYS]
    elif isinstance(batch, (tuple, list)):
        batch = batch[:-1] or batch
    inputs = [part for part in (batch if isinstance(batch, (tuple, list)) else [batch]) if isinstance(part, Tensor)]
    inputs = [part for part in inputs if part.ndim]
    return bool(inputs) and not any(map(len, inputs))


def to_device(batch: Any, device: torch.device | str, memory_format: torch.memory_format | None = None) -> Any:
    """Returns the batch with every tensor in it on `device`; 4-d float tensors in `memory_format` where given."""
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
        images = memory_format is not None and batch.ndim == 4 and batch.is_floating_point()
        return batch.contiguous(memory_format=memory_format) if images and memory_format is not None else batch
    if callable(getattr(batch, "to", None)):  # a PackedSequence, a graph: it knows of its own tensors
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device, memory_format) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [to_device(value, device, memory_format) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


class TeacherTargets:
    """Batches whose targets are the outputs of a network."""

    def __init__(self, batches: Iterable[Any], teacher: nn.Module, device: torch.device) -> None:
        self.batches, self.teacher, self.device = batches, teacher, device

    def __len__(self) -> int:
        return check_batches(self.batches, "the data")

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            moved = to_device(batch, self.device)
            with torch.no_grad():
                output, _ = forward(self.teacher, moved)
            if isinstance(moved, Mapping):
                yield {**moved, next(key for key in TARGET_KEYS if key in moved): output}
            else:
                yield (*moved[:-1], output)


def target_field(model: nn.Module, batch: Any) -> str | None:
    """Returns the key of a dict batch's target where the model's `forward` takes it by that name, else None."""
    if not isinstance(batch, Mapping):
        return None
    key = next((key for key in TARGET_KEYS if key in batch), None)
    return key if key is not None and key in accepted_arguments(model, {key: None}) else None


def forward(model: nn.Module, batch: Any, *, with_target: bool = False) -> tuple[Any, Tensor]:
    """Returns (output of the model, target) for a batch that lies on the model's device.

    Of a dict go only the fields that the model's `forward` takes; `with_target`: the target as well.
    """
    args, kwargs, target = split_batch(batch)
    if with_target and (key := target_field(model, batch)) is not None:
        kwargs = kwargs | {key: target}
    return model(*args, **(accepted_arguments(model, kwargs) if kwargs else {})), target


def run_on(model: nn.Module, batch: Any) -> Any:
    """Returns the output for a batch with or without a target: `forward`'s, a dict of inputs, or one tensor."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping) and not any(key in batch for key in TARGET_KEYS):
        return model(**accepted_arguments(model, {str(name): value for name, value in batch.items()}))
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        return model(*batch)
    return forward(model, batch)[0]


def examples_in(batch: Any) -> int:
    """Returns the number of examples in a batch: the length of its last tensor, the target if there is one."""
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else [batch]
    tensors = [part for part in reversed([*parts]) if isinstance(part, Tensor) and part.ndim]
    return max(1, len(tensors[0])) if tensors else 1


def check_batches(batches: Iterable[Any], name: str) -> int:
    """Returns the number of batches, after checking that there are some and that they can be gone through again.

    Where the object has no length it is gone through once, to count; if that takes long, it is said.

    Raises:
        InvalidInputError: there is no batch, or `batches` is an iterator, which is spent after one epoch.
    """
    check_repeatable(batches, name)
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:  # none, or that of a DataLoader over an IterableDataset without one
        count = _counted(batches, name)
    if count == 0:
        raise InvalidInputError(f"{name} gives no batch at all; it must give at least one")
    return count


def _counted(batches: Iterable[Any], name: str) -> int:
    """Returns the number of batches; of a stream without an end there is none, so it is said how many there are."""
    count, told = 0, time.monotonic()
    for _ in batches:
        count += 1
        if time.monotonic() - told >= COUNTING_SECONDS:
            told = time.monotonic()
            logger.warning(
                "%s has no length and is counted: %d batches so far; one that has no end needs a __len__", name, count
            )
    return count


def check_repeatable(batches: Iterable[Any], name: str) -> None:
    """Checks that something gives batches and can be gone through again; takes none.

    Raises:
        InvalidInputError: it is no loader or list, or an iterator.
    """
    if not isinstance(batches, Iterable):
        raise InvalidInputError(f"{name} is a {type(batches).__name__}; it must be a loader or a list of batches")
    if isinstance(batches, Iterator):
        raise InvalidInputError(
            f"{name} is an iterator ({type(batches).__name__}), spent after one epoch; give a DataLoader or a list"
        )


def batches_of_epoch(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Yields exactly `count` batches: a loader that announced another number is begun anew, or cut short.

    A run has as many steps as it was planned for, whatever a loader over a stream gives in this epoch.

    Raises:
        InvalidInputError: there is no batch at all.
    """
    given = 0
    while given < count:
        before = given
        for batch in batches:  # to its end where it has no more: what a loader does last, it may count on
            if given == count:
                return
            given += 1
            yield batch
        if given == before:
            raise InvalidInputError("the training data gave no batch in this epoch; it must give at least one")
        if before == 0 and given < count:  # said once an epoch
            logger.warning(
                "the training data gave %d batches where %d were announced; they are gone through again", given, count
            )


def default_device(device: torch.device | str | None = None) -> torch.device:
    """Returns the device asked for, else the first CUDA device where there is one, else the CPU.

    Raises:
        InvalidInputError: the name is not one of a device, or this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
        if chosen.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'") from error
    return chosen


def input_example(batches: Iterable[Any]) -> Any:
    """Returns the model's arguments for the first example, on the CPU: a tensor, a tuple or a dict, batch size 1."""
    args, kwargs, _ = split_batch(to_device(next(iter(batches)), "cpu"))
    if kwargs:
        return {name: value[:1] if isinstance(value, Tensor) else value for name, value in kwargs.items()}
    first = tuple(value[:1] if isinstance(value, Tensor) else value for value in args)
    return first[0] if len(first) == 1 else first


PRECISIONS = ("auto", "fp32", "bf16")


def cpu_has_bfloat16_tiles() -> bool:
    """Returns whether this CPU multiplies bfloat16 matrices in hardware (Intel AMX); False where torch cannot tell."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe()) if probe is not None else False


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Returns whether training runs under bfloat16 autocast and channels-last.

    Elsewhere than on CUDA and AMX, "auto" means float32: bfloat16 is emulated there, and slower.

    Raises:
        InvalidInputError: `precision` is not one of "auto", "fp32", "bf16".
    """
    if precision not in PRECISIONS:
        raise InvalidInputError(f"precision {precision!r} is unknown; it may be {', '.join(PRECISIONS)}")
    if precision == "auto":
        return device.type == "cuda" or (device.type == "cpu" and cpu_has_bfloat16_tiles())
    return precision == "bf16"


@contextlib.contextmanager
def autocast(enabled: bool, device: torch.device) -> Iterator[None]:
    """Is the bfloat16 autocast context of `device`, or one that does nothing."""
    if not enabled:
        yield
        return
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention's kernels for evaluation take no autocast on a CPU
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


# What Python and torch raise for values that do not fit.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
# What it raises, as the same kinds, where the device is at fault; the second has no name before torch 2.9.
DEVICE_ERRORS = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


@contextlib.contextmanager
def blaming(name: str, batch: Any) -> Iterator[None]:
    """Is a block that takes a batch through network, loss or metric.

    Raises:
        InvalidInputError: they do not take it; the batch, `name`, is described.
    """
    try:
        yield
    except (AutocompressError, *DEVICE_ERRORS):
        raise
    except MISFITS as error:
        raise InvalidInputError(
            f"{name} does not go through network, loss and metric: {cause_of(error)}; it is {described(batch)}"
        ) from error


def cause_of(error: Exception) -> str:
    """Returns kind and first line of an error."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def described(value: Any) -> str:
    """Returns types and shapes of a batch or an output in a few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"({', '.join(described(part) for part in value)})"
    tensors = tensors_in(value)
    return f"a {type(value).__name__}" + (f" of {', '.join(map(described, tensors))}" if tensors else "")


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

    part: tuple[int, int] = (0, 1)  # of each batch: which of how many

    def part_of(self, rank: int, size: int) -> TensorBatches:
        """Returns the same batches, of each of which only a rank's examples are taken."""
        mine = copy.copy(self)
        mine.part = (rank, size)
        return mine

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
            mine = part_slice(len(chosen), *self.part)
            chosen = chosen[mine]
            inputs = self.inputs[chosen]
            if self.augment is not None and draws is not None:
                inputs = self.augment(inputs, draws[start : start + self.batch_size][mine])
            yield (self.transform(inputs) if self.transform is not None else inputs), self.targets[chosen]


def part_slice(count: int, rank: int, size: int) -> slice:
    """Returns which of `count` examples are a rank's; where there are fewer than ranks each takes all of them."""
    return slice(rank, None, size) if count >= size else slice(None)
