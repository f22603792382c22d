"""What is measured or noted around a cell: code, versions, device, memory."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("autocompress", "baselines", "studies")


@functools.cache
def revision() -> str:
    """Returns the revision of the code, with "+changes" where it was not committed; "unknown" without git."""
    try:
        changed = _git("status", "--porcelain", "--", *PACKAGES, ":!studies/results")
        return _git("rev-parse", "--short=10", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "optuna", "ray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def hardware() -> dict[str, object]:
    """Returns {"cpu", "gpu", "cores"}: the makes, and the cores that this process may use; "" = no GPU."""
    import torch

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"cpu": cpu, "gpu": gpu, "cores": usable_cores()}


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: str) -> str:
    """Returns a device with the name of its make: "cpu", "cuda (NVIDIA H200)"."""
    import torch

    where = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else device


def peak_memory_bytes() -> int:
    """Returns the most memory this process held: on a GPU if it used one, else in main memory."""
    import torch

    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()) > 0:
        return int(peak)
    try:
        # `getrusage` would tell the memory of the process that started this one, where that is more.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
