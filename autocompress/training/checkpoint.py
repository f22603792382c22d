"""Checkpoints: written whole or not at all, read without unpickling code."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import AutocompressError, InvalidInputError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes `state` to a temporary file beside `path`, then renames it: a kill leaves the old file or the new one.

    Raises:
        AutocompressError: the folder is read-only or full.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        raise AutocompressError(f"cannot write the checkpoint {path}: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


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
