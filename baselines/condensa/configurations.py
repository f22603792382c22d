"""The published settings, and the one that searches here begin from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baselines.condensa.pruning import FilterPrune, Prune, StructurePrune
from baselines.condensa.schedule import ALEXNET_CIFAR10_SCHEDULE, LENET5_MNIST_SCHEDULE, Schedule
from baselines.condensa.schemes import Codebook, Compose, Quantize, Scheme

# The paper prunes and rounds to 16 bits. Our file holds codebooks, for which 16 bits would be a handicap.
SEARCH_BITS = 4


def prune_and_half(density: float) -> Scheme:
    """Returns the paper's scheme for memory: one threshold, then float16."""
    return Compose((Prune(density), Quantize()))


def prune_and_codebook(density: float) -> Scheme:
    """Returns the scheme of the searches: one threshold, then a codebook for each layer."""
    return Compose((Prune(density), Codebook(SEARCH_BITS)))


@dataclass(frozen=True)
class Configuration:
    """A setting.

    Attributes:
        schedule: of the solver.
        scheme: as a function of the density.
        density: published with it.
        batch_size: of the schedule's gradient steps.
    """

    schedule: Schedule
    scheme: Callable[[float], Scheme]
    density: float
    batch_size: int


ALEXNET_CIFAR10_MEMORY = Configuration(ALEXNET_CIFAR10_SCHEDULE, prune_and_half, density=0.02, batch_size=128)
ALEXNET_CIFAR10_FLOPS = Configuration(ALEXNET_CIFAR10_SCHEDULE, FilterPrune, density=0.5, batch_size=128)
LENET5_MNIST_MEMORY = Configuration(LENET5_MNIST_SCHEDULE, prune_and_half, density=0.007, batch_size=128)
LENET5_MNIST_LATENCY = Configuration(LENET5_MNIST_SCHEDULE, StructurePrune, density=0.3, batch_size=128)


def schedule_for(task_name: str) -> Schedule:
    """Returns the published schedule for a network: LeNet-5's own, AlexNet's for all others."""
    return LENET5_MNIST_SCHEDULE if task_name.startswith("lenet5") else ALEXNET_CIFAR10_SCHEDULE
