"""Numbers of the caller as Python's own: numpy's would make a checkpoint that can never be read."""

from __future__ import annotations

import numbers
import operator
from typing import Any

from torch import Tensor

from autocompress.errors import InvalidInputError


def whole_number(name: str, value: Any, least: int) -> int:
    """Returns a whole number of any library as an int.

    Raises:
        InvalidInputError: it is none, or below `least`; `name` says of what.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise InvalidInputError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    if number < least:
        raise InvalidInputError(f"{name} is {number}; it must be at least {least}")
    return number


def real_number(name: str, value: Any) -> float:
    """Returns a number of any library as a float.

    Raises:
        InvalidInputError: it is none; `name` says of what.
    """
    one = isinstance(value, Tensor) and value.numel() == 1
    if isinstance(value, bool) or not (one or isinstance(value, numbers.Real)):
        raise InvalidInputError(f"{name} is {value!r}; it must be a number")
    return float(value)
