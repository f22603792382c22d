"""Ranks that agree: under `DistributedDataParallel` every process holds the same V, tables, candidates and file.

Gradients are averaged by torch and the optimizers take equal steps from them. What else decides is made equal here: the
first rank projects and writes and tells the others what came of it; the running statistics of batch norms and the
scores of networks, which each rank measures on its own data, are averaged.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from autocompress.errors import InvalidInputError
from autocompress.training.batches import TensorBatches, check_batches, examples_in, part_slice

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Ranks:
    """The processes that train one network together; with one process every method does nothing.

    They wait for each other: every rank has to call the same methods in the same order.

    Attributes:
        size: how many there are.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        """Takes the group of a wrapper, None for one process, and the device that its tensors are exchanged on."""
        self.group, self.device = group, device
        self.size = 1 if group is None else dist.get_world_size(group)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that decides, and writes."""
        return self.size == 1 or dist.get_rank(self.group) == 0

    def check_same(self, settings: dict[str, Any]) -> None:
        """Checks that these are the same on every rank.

        Raises:
            InvalidInputError: on every rank, naming the first that differs; a run of them would never end.
        """
        if self.size == 1:
            return
        given: list[dict[str, Any]] = [{} for _ in range(self.size)]
        dist.all_gather_object(given, settings, group=self.group)
        for name in settings:
            values = [each[name] for each in given]
            if any(value != values[0] for value in values):
                raise InvalidInputError(
                    f"{name} differs between the ranks: {', '.join(map(str, values))}; every rank has to take equally "
                    "many steps towards one target"
                )

    def from_first(self, decide: Callable[[], T]) -> T:
        """Returns on every rank what `decide` returns on the first, or raises there what it raised.

        Tensors come to lie on this rank's device.
        """
        if self.size == 1:
            return decide()
        outcome: Any = None
        if self.is_first:
            try:
                outcome = (decide(), None)
            except Exception as raised:  # the others wait for an answer, whatever it is
                outcome = (None, raised)
        value, error = self._of_first(outcome)
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def _of_first(self, outcome: Any) -> Any:
        buffer = io.BytesIO()
        if self.is_first:
            torch.save(outcome, buffer)
        size = torch.tensor([buffer.tell()], device=self.device)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_first:
            data.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        self._broadcast(data)
        if self.is_first:
            return outcome
        # From a process of this very run, so it may be any object.
        return torch.load(io.BytesIO(data.cpu().numpy().tobytes()), map_location=self._place, weights_only=False)

    def _place(self, storage: Any, location: str) -> Any:
        """Returns a storage of the first rank's where this rank has its own: on the CPU, or on its device."""
        return storage if location == "cpu" else storage.to(device=self.device)

    def _broadcast(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, group=self.group, group_src=0)

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Sets tensors, of equal shapes on all ranks, to those of the first."""
        if self.size == 1:
            return
        for tensor in tensors:
            value = tensor.detach().to(self.device, copy=True, memory_format=torch.contiguous_format)
            self._broadcast(value)
            _set(tensor, value)

    @torch.no_grad()
    def synchronize_buffers(self, model: nn.Module) -> None:
        """Sets the buffers of a network to those of the first rank, the statistics of batch norms to their mean.

        A batch norm's running statistics are averages over batches, so their mean over the ranks is what one process
        would have that had seen the batches of all.
        """
        if self.size == 1:
            return
        means = [
            buffer
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in (module.running_mean, module.running_var)
            if buffer is not None
        ]
        if means:
            total = torch.cat([buffer.detach().flatten().to(self.device, torch.float32) for buffer in means])
            dist.all_reduce(total, group=self.group)
            parts = torch.split(total / self.size, [buffer.numel() for buffer in means])
            for buffer, value in zip(means, parts, strict=True):
                _set(buffer, value.view(buffer.shape))
        averaged = {id(buffer) for buffer in means}
        self.broadcast([buffer for buffer in model.buffers() if id(buffer) not in averaged and buffer.numel()])

    def mean(self, value: float, weight: float = 1.0) -> float:
        """Returns the mean of a number over all ranks, of each with its weight (such as its number of examples)."""
        if self.size == 1:
            return value
        total = torch.tensor([value * weight, weight], dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group)
        return float(total[0] / total[1])

    def averaged(self, score: Callable[[nn.Module], float]) -> Callable[[nn.Module], float]:
        """Returns a score that is the mean over all ranks' data, the same number on each."""
        return score if self.size == 1 else lambda network: self.mean(float(score(network)))

    def sharing(self, refit: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        """Returns a refit of batch norm statistics to all ranks' data."""
        if self.size == 1:
            return refit

        def refit_and_share(network: nn.Module) -> None:
            refit(network)
            self.synchronize_buffers(network)

        return refit_and_share


@torch.no_grad()
def _set(tensor: Tensor, value: Tensor) -> None:
    value = value.to(tensor.device, tensor.dtype)
    if not torch.equal(tensor, value):  # an expanded buffer cannot be written to
        tensor.copy_(value)


def presence(value: Any) -> str:
    """Returns what ranks tell one another of an argument that each has its own of: whether it is given at all."""
    return "none" if value is None else "given"


def ranks_of(model: nn.Module, group: dist.ProcessGroup | None = None) -> Ranks:
    """Returns the ranks that a network is trained on: of a group, else of its `DistributedDataParallel` wrapper."""
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    if group is not None:
        return Ranks(group, device)
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            return Ranks(module.process_group, device)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        logger.warning(
            "this is one of %d ranks, but the network is no DistributedDataParallel: each rank compresses for itself; "
            "wrap the network for them to train one together",
            dist.get_world_size(),
        )
    return Ranks(None, device)


class Part:
    """One rank's part of every batch of a loader: together the ranks see each batch of the loader as it is."""

    def __init__(self, batches: Iterable[Any], rank: int, size: int) -> None:
        """Takes batches that every rank has in the same order, with random numbers of their own or of equal seeds."""
        self.rank, self.size, self.batches = rank, size, batches
        self._own: Iterable[Any] | None = None
        if isinstance(batches, TensorBatches):
            self.batches = self._own = batches.part_of(rank, size)
        elif isinstance(batches, DataLoader) and batches.batch_sampler is not None:
            self._own = _partial_loader(batches, rank, size)

    def __len__(self) -> int:
        return check_batches(self.batches, "the data")

    def __getattr__(self, name: str) -> Any:
        if name in ("batches", "_own"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)  # generators and epochs are the loader's

    def __iter__(self) -> Iterator[Any]:
        if self._own is not None:
            return iter(self._own)
        return (part_of(batch, self.rank, self.size) for batch in self.batches)


class _PartialBatches:
    """The indices of one rank in every batch of a batch sampler."""

    def __init__(self, batches: Iterable[list[int]], rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.batches:
            yield indices[part_slice(len(indices), self.rank, self.size)]


def _partial_loader(loader: DataLoader[Any], rank: int, size: int) -> DataLoader[Any]:
    """Returns a loader that reads one rank's examples of every batch alone."""
    if isinstance(loader.sampler, RandomSampler) and loader.sampler.generator is None:
        loader.sampler.generator = torch.Generator()  # which ranks seed alike, whatever else they draw
    settings: dict[str, Any] = {
        name: getattr(loader, name) for name in ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn")
    }
    if loader.num_workers:
        settings |= {name: getattr(loader, name) for name in ("prefetch_factor", "persistent_workers")}
        settings["multiprocessing_context"] = loader.multiprocessing_context
    sampler: Any = _PartialBatches(loader.batch_sampler, rank, size)  # type: ignore[arg-type]
    return DataLoader(loader.dataset, batch_sampler=sampler, generator=loader.generator, **settings)


def part_of(batch: Any, rank: int, size: int) -> Any:
    """Returns one rank's examples of a batch: of all tensors and lists in it that have an entry for each example.

    Raises:
        InvalidInputError: the batch holds something that cannot be divided.
    """
    count = examples_in(batch)
    mine = part_slice(count, rank, size)

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[mine] if value.ndim and len(value) == count else value
        if isinstance(value, Mapping):
            return {key: part(each) for key, each in value.items()}
        if (
            (isinstance(value, tuple) and hasattr(value, "_fields"))
            or value is None
            or isinstance(value, str | int | float)
        ):
            if isinstance(value, tuple):
                raise InvalidInputError(f"a {type(value).__name__} in a batch cannot be divided among workers")
            return value
        if isinstance(value, list | tuple):
            return type(value)(part(each) for each in value)
        raise InvalidInputError(f"a {type(value).__name__} in a batch cannot be divided among workers")

    return part(batch)
