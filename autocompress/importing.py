"""`package.module:function` on the command line and in Python: the user's own models and data."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from autocompress.errors import InvalidInputError


def own_source(reference: str) -> str | None:
    """Returns the package folder or file that another machine needs for `package.module:function`.

    None for a name that is not of that form: one of the built-in models or data sets.

    Raises:
        InvalidInputError: as `import_function`.
    """
    if ":" not in reference or reference.startswith(("torchvision:", "folder:")):
        return None
    import_function(reference)
    top = sys.modules[reference.partition(":")[0].partition(".")[0]]
    folders = list(getattr(top, "__path__", []))
    return folders[0] if folders else top.__file__


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
