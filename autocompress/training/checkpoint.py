"""Checkpoints: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.codec.atomic_write import replacing
from autocompress.errors import AutocompressError, InvalidInputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    The first one is read back, because a checkpoint that cannot be read is found out when it is needed.

    Raises:
        AutocompressError: the folder is read-only or full.
        InvalidInputError: the state holds what cannot be read without unpickling code; it is named.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(state, file)
            if not path.exists():
                _read_back(temporary, path, state)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise AutocompressError(f"cannot write the checkpoint {path}: {error}") from error


def _read_back(temporary: Path, path: Path, state: dict[str, Any]) -> None:
    try:
        load_checkpoint(temporary)
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the checkpoint {path} could never be read: {_first_unreadable(state) or error}; use numbers of Python "
            "itself, tensors and containers of them"
        ) from error


def _first_unreadable(value: Any, where: str = "the state") -> str | None:
    """Returns where in a state something lies that is neither a tensor nor plain, and what; None where all is plain."""
    if isinstance(value, Mapping):
        parts = [(f"{where}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{where}[{number}]", part) for number, part in enumerate(value)]
    else:
        plain = value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str, bytes, complex)
        return None if plain else f"{where} is a {type(value).__module__}.{type(value).__qualname__}"
    return next((found for part in parts if (found := _first_unreadable(part[1], part[0]))), None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save_checkpoint` wrote, its tensors on the CPU (where generator states must lie).

    Raises:
        InvalidInputError: the file is no checkpoint, or is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(f"{path} is not a readable checkpoint ({reason}); delete it to start anew") from error
    if not isinstance(state, dict):
        raise InvalidInputError(f"{path} is not a checkpoint of a run; delete it to start anew")
    return state
