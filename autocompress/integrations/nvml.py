"""NVML (the optional package nvidia-ml-py): the energy counter of an NVIDIA GPU."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

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
