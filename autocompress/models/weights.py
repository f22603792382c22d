"""Weights from a file into a network, checked name by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import InvalidInputError

_LISTED = 8  # names told in an error message


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a state_dict into the model, in place, and returns the model.

    Args:
        model: the network.
        path: `.safetensors`, or anything else as a file of `torch.save` that holds a state_dict, read without
            unpickling code.

    Raises:
        InvalidInputError: no such file, not a file of tensors, or names or shapes that are not the model's.
    """
    state = _read_state(Path(path))
    expected = model.state_dict()
    problems = [f"{name} is missing" for name in expected if name not in state and not _is_counter(name)]
    problems += [f"{name} is not in the model" for name in state if name not in expected]
    problems += [
        f"{name} is {list(state[name].shape)} where the model has {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise InvalidInputError(
            f"the weights in {path} do not fit the model {type(model).__name__}: {'; '.join(problems[:_LISTED])}{more}"
        )
    model.load_state_dict(state, strict=False)
    return model


def _is_counter(name: str) -> bool:
    """Returns whether the entry is batch norm's count of batches, which older files lack and nothing needs."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path} to take weights from")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds pickled objects; save model.state_dict() instead"
        raise InvalidInputError(f"{path} is not a readable file of weights ({reason})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # a training checkpoint in the common form
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InvalidInputError(f"{path} holds a {type(state).__name__}; it must be a state_dict: names and tensors")
    return cast(dict[str, Tensor], state)
