"""The published settings (Joseph et al. 2020), and the one that searches here begin from."""

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
    """A published setting.

    Attributes:
        model, data: the network and the data set, by name.
        schedule: of the solver.
        scheme: as a function of the density.
        density: published with it.
        batch_size: of the schedule's gradient steps.
        ignore: what is not compressed, as globs over names.
    """

    model: str
    data: str
    schedule: Schedule
    scheme: Callable[[float], Scheme]
    density: float
    batch_size: int = 128
    ignore: tuple[str, ...] = ()


# By what is to become smaller. Filters and neurons are those of inner layers: a row of the last layer is a class.
CONFIGURATIONS = {
    "alexnet-cifar10-memory": Configuration("alexnet", "cifar10", ALEXNET_CIFAR10_SCHEDULE, prune_and_half, 0.02),
    "alexnet-cifar10-flops": Configuration("alexnet", "cifar10", ALEXNET_CIFAR10_SCHEDULE, FilterPrune, 0.5),
    "lenet5-mnist-memory": Configuration("lenet5", "mnist", LENET5_MNIST_SCHEDULE, prune_and_half, 0.007),
    "lenet5-mnist-latency": Configuration(
        "lenet5", "mnist", LENET5_MNIST_SCHEDULE, StructurePrune, 0.3, ignore=("classifier.2",)
    ),
}


def schedule_for(task_name: str) -> Schedule:
    """Returns the published schedule for a network: LeNet-5's own, AlexNet's for all others."""
    return LENET5_MNIST_SCHEDULE if task_name.startswith("lenet5") else ALEXNET_CIFAR10_SCHEDULE
