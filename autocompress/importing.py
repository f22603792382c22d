"""`package.module:function` on the command line and in Python: the user's own models and data."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from autocompress.errors import InvalidInputError


def import_function(reference: str) -> Callable[..., Any]:
    """Returns the function that `package.module:function` names; the current folder is importable.

    Raises:
        InvalidInputError: no such module, no such function in it, or it cannot be called.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise InvalidInputError(f"{reference!r} names no function; write package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInputError(
            f"cannot import {module_name!r} of {reference!r} ({error}); it must be installed or lie in {os.getcwd()}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        named = ", ".join(
            sorted(key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key)))
        )
        raise InvalidInputError(f"{module_name!r} has no function {name!r}; it has {named or 'none'}")
    return function  # type: ignore[no-any-return]
