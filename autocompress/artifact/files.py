"""Writing and reading the file, and filling a module from it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from autocompress.codec.atomic_write import write_whole
from autocompress.codec.file import decode_state
from autocompress.codec.layout import layout_of
from autocompress.errors import InvalidInputError
from autocompress.network.compressed_tensors import CompressedState
from autocompress.network.network_state import fill


def save_artifact(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all: to a temporary one in the same folder, which then takes the name.

    Raises:
        InvalidInputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidInputError(f"cannot write {path}: there is no folder {path.parent}")
    try:
        write_whole(path, data)
    except OSError as error:
        raise InvalidInputError(f"cannot write {path}: {error.strerror or error}") from error


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file.

    Raises:
        InvalidInputError: it does not exist or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error


def read_state(path: str | os.PathLike[str], model: nn.Module | None = None) -> CompressedState:
    """Returns the state in a file; `model` (only its names and shapes count) is needed where the file has no names.

    Raises:
        InvalidInputError: no such file, a file for another network, or a model is needed.
        CorruptArtifactError: a damaged file.
    """
    return decode_state(read_bytes(path), None if model is None else layout_of(model))


def load(path: str | os.PathLike[str], into: nn.Module) -> nn.Module:
    """Fills a module with the weights of a file and returns it in eval mode.

    The values are exactly those of the state that was saved, converted to each parameter's dtype and device.

    Raises:
        InvalidInputError: no such file, or a file for another network; the module is unchanged.
        CorruptArtifactError: a damaged file; the module is unchanged.
    """
    if not isinstance(into, nn.Module):
        raise InvalidInputError(f"into is {into!r}; it must be a torch.nn.Module, such as make_model()")
    return fill(into, read_state(path, into))
