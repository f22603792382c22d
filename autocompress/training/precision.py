"""Where bfloat16 and channels-last pay: on CUDA, and on CPUs with AMX tiles."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from autocompress.errors import InvalidInputError

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


def autocast(enabled: bool, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Returns the bfloat16 autocast context of `device`, or one that does nothing."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else contextlib.nullcontext()
