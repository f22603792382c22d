"""The errors that autocompress raises on purpose; each message names the value and what would be right."""

from __future__ import annotations

import operator
from typing import Any


class AutocompressError(Exception):
    """Base of every error raised on purpose."""


class InvalidInputError(AutocompressError, ValueError):
    """An argument cannot be used: an unknown name, a malformed value, weights that do not fit."""


class InfeasibleTargetError(AutocompressError, ValueError):
    """No network meets the target.

    Attributes:
        smallest: the smallest budget that can be met, in the target's own unit (bytes, bits, percent of the
            dense energy); asking for exactly this succeeds.
    """

    def __init__(self, message: str, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


class CorruptArtifactError(AutocompressError):
    """A compressed file is truncated, altered, or was never one."""


class TrainingDivergedError(AutocompressError, ArithmeticError):
    """The training loss became NaN or infinite."""


# The largest seed that every random generator takes.
MAX_SEED = 2**32 - 1


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns a whole number of any library as an int.

    Raises:
        InvalidInputError: it is none, below `least` or above `most`; `name` says of what.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidInputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if number < least:
        raise InvalidInputError(f"{name} is {number}; it must be at least {least}")
    if most is not None and number > most:
        raise InvalidInputError(f"{name} is {number}; it must be at most {most}")
    return number
