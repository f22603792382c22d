"""What a command leaves behind: the checks before the work starts, and how its answer is printed."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.codec.atomic_write import NAME_CHARACTERS, remove_leftovers
from autocompress.errors import AutocompressError, InvalidInputError

# Enough to find out now, not after hours of training, that a disk is full.
PROBE_BYTES = 65536


def check_output(path: Path, suffixes: tuple[str, ...], inputs: tuple[Path | None, ...] = ()) -> None:
    """Returns if `path` can be written: its name says what it is, its folder takes files, no input is overwritten.

    Raises:
        InvalidInputError: otherwise, naming what is wrong.
    """
    if path.suffix.lower() not in suffixes:
        raise InvalidInputError(f"--out {str(path)!r}: the file's name must end in {' or '.join(suffixes)}")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long for the file system
        raise InvalidInputError(f"--out {str(path)!r} cannot be a file: {error.strerror}") from error
    if is_folder:
        raise InvalidInputError(f"--out {str(path)!r} is a folder; give the name of a file in it")
    for other in inputs:
        if other is not None and path.exists() and other.exists() and path.samefile(other):
            raise InvalidInputError(f"--out {str(path)!r} is a file that is read, too; give it another name")
    check_folder(path.parent, f"--out {str(path)!r}")
    remove_leftovers(path)


def check_folder(folder: Path, what: str) -> None:
    """Returns if files can be created in `folder`.

    Raises:
        InvalidInputError: there is no such folder, or it takes no file; `what` names the option.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{what}: there is no folder {str(folder)!r}; create it first")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise InvalidInputError(f"{what}: cannot write into the folder {str(folder)!r}: {error.strerror}") from error


def save_or_keep(save: Callable[[Path], None], path: Path) -> None:
    """Writes a result of hours of work; where its place is gone or full by now, to a temporary folder.

    Raises:
        AutocompressError: it is not at `path`; the message says where it is.
    """
    try:
        save(path)
    except (AutocompressError, OSError) as error:
        kept = Path(tempfile.mkdtemp(prefix="autocompress-")) / path.name[-NAME_CHARACTERS:]
        try:
            save(kept)
        except (AutocompressError, OSError) as second:
            raise AutocompressError(f"{error}; nor can it be kept in {kept.parent}: {second}") from error
        raise AutocompressError(f"{error}; the result is kept as {kept}: move it where it shall be") from error


def to_json(answer: Mapping[str, object]) -> str:
    """Returns one JSON object on one line; a number that JSON does not have (nan, inf) becomes null."""
    return json.dumps(_plain(answer), allow_nan=False)


def _plain(value: object) -> object:
    """Returns `value` with what JSON does not have replaced."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def percent(fraction: float | None) -> str:
    """Returns a fraction of 1 as text such as `98.61 %`."""
    return "not known" if fraction is None else f"{100 * fraction:.2f} %"


def accuracy_lines(answer: Mapping[str, Any]) -> list[str]:
    """Returns the scores as text; the reference's is of the test data where there are some."""
    metric = answer.get("metric", "accuracy")

    def text(key: str) -> str:
        return percent(answer[key]) if metric == "accuracy" else str(answer[key])

    reference = f", reference {text('reference_accuracy')}"
    validation = f"validation {metric}  {text('validation_accuracy')}"
    if answer["test_accuracy"] is None:
        return [validation + reference]
    return [validation, f"{f'test {metric}':<{len(validation.partition('  ')[0])}}  {text('test_accuracy')}{reference}"]
