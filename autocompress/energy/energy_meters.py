"""Meters of energy: counters of joules that a GPU or a CPU keeps."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.energy.channel_graph import ChannelGraph
from autocompress.energy.channel_model import ChannelEnergy, fit_channel_energy, random_widths
from autocompress.energy.network_energy import run_example
from autocompress.errors import InvalidInputError


def energy_counter(index: int = 0) -> Callable[[], float]:
    """Returns a function that returns the joules a GPU has taken since its driver was loaded.

    Raises:
        InvalidInputError: the package is not installed, or there is no GPU that counts.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise InvalidInputError("--meter nvml needs the package nvidia-ml-py: pip install nvidia-ml-py") from error
    try:
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        raise InvalidInputError(f"--meter nvml: this machine has no GPU that counts its energy ({error})") from error
    return lambda: 1e-3 * float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))


POWERCAP = Path("/sys/class/powercap")
# Counters move every few to 100 ms: over this time a step is a small part.
SECONDS_PER_MEASUREMENT = 2.0


class Meter(Protocol):
    """A counter of joules.

    Attributes:
        device: where what it measures has to run.
    """

    device: torch.device

    def start(self) -> None:
        pass

    def joules(self) -> float:
        """Returns the energy since `start`."""


class RaplMeter:
    """The packages of a CPU, by Linux's powercap interface; everything that runs there is counted."""

    def __init__(self, folder: Path = POWERCAP) -> None:
        """Finds the packages.

        Raises:
            InvalidInputError: there are none, or they may not be read.
        """
        self.device = torch.device("cpu")
        self.packages = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
        if not self.packages:
            raise InvalidInputError(f"--meter rapl: this machine has no counters of energy in {str(folder)!r}")
        self.start()

    def start(self) -> None:
        self.before = [self._read(package / "energy_uj") for package in self.packages]

    def joules(self) -> float:
        """Returns the energy since `start`; a counter that began again at 0 is taken for that."""
        total = 0
        for package, before in zip(self.packages, self.before, strict=True):
            after = self._read(package / "energy_uj")
            total += after - before if after >= before else after - before + self._read(package / "max_energy_range_uj")
        return 1e-6 * total

    @staticmethod
    def _read(path: Path) -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"--meter rapl: cannot read {str(path)!r}: {error}") from error


class NvmlMeter:
    """The first NVIDIA GPU, by its own counter; everything that runs there is counted."""

    def __init__(self) -> None:
        """Opens the counter.

        Raises:
            InvalidInputError: the package nvidia-ml-py, the GPU or its counter is missing.
        """
        from autocompress.energy.energy_meters import energy_counter

        self.read: Callable[[], float] = energy_counter()
        if not torch.cuda.is_available():
            raise InvalidInputError("--meter nvml: torch sees no GPU here")
        self.device = torch.device("cuda", 0)

    def start(self) -> None:
        torch.cuda.synchronize(self.device)
        self.before = self.read()

    def joules(self) -> float:
        """Returns the energy since `start`, once the GPU has done what was asked."""
        torch.cuda.synchronize(self.device)
        return self.read() - self.before


def make_meter(name: str) -> Meter:
    """Returns the meter `nvml` or `rapl`.

    Raises:
        InvalidInputError: this machine has none.
    """
    return NvmlMeter() if name == "nvml" else RaplMeter()


def joules_per_call(meter: Meter, run: Callable[[], Any], seconds: float = SECONDS_PER_MEASUREMENT) -> float:
    """Returns the energy of one call of `run`, the mean over calls that take this long together."""
    run()  # the first one also allocates and chooses kernels
    calls, began = 0, time.perf_counter()
    meter.start()
    while calls == 0 or time.perf_counter() - began < seconds:
        run()
        calls += 1
    return meter.joules() / calls


def measured_energy(
    model: nn.Module, example: Tensor, meter: Meter, samples: int, batch: int, seed: int
) -> ChannelEnergy:
    """Returns the model fitted to joules per input, measured on physically smaller networks of random widths."""
    graph = ChannelGraph(model, example)
    channels = [group.channels for group in graph.groups]
    widths = random_widths(channels, samples, seed)
    inputs = torch.cat([example] * batch).to(meter.device)
    energies = []
    for row in widths.tolist():
        keep = [torch.arange(count) < width for count, width in zip(channels, row, strict=True)]
        smaller = graph.without(model, keep)
        energies.append(joules_per_call(meter, partial(run_example, smaller, inputs)) / batch)
    if min(energies) <= 0:
        raise InvalidInputError("the meter counted no energy at all: it is too coarse for this network; try --batch")
    names = [group.root for group in graph.groups]
    return fit_channel_energy(names, channels, graph.terms(), widths, np.array(energies), "J")
