"""`package.module:function` on the command line and in Python: the user's own models and data."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from autocompress.errors import AutocompressError, InvalidInputError


def own_source(reference: str) -> str | None:
    """Returns the package folder or file that another machine needs for `package.module:function`.

    None for a name that is not of that form: one of the built-in models or data sets.

    Raises:
        InvalidInputError: as `import_function`.
    """
    if ":" not in reference or reference.startswith(("torchvision:", "timm:", "hf:", "folder:")):
        return None
    import_function(reference)
    top = sys.modules[reference.partition(":")[0].partition(".")[0]]
    folders = list(getattr(top, "__path__", []))
    return folders[0] if folders else top.__file__


def import_function(reference: str, arguments: Sequence[str] = ()) -> Callable[..., Any]:
    """Returns the function that `package.module:function` names; the current folder is importable.

    Args:
        reference: the name.
        arguments: what it will be called with, in words.

    Raises:
        InvalidInputError: no such module, one that cannot be imported, no such function in it, or one that takes
            other arguments.
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
    except (Exception, SystemExit) as error:  # a script that reads its own arguments ends the process
        raise InvalidInputError(f"cannot import {module_name!r} of {reference!r}: {_cause(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        named = ", ".join(
            sorted(key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key)))
        )
        raise InvalidInputError(f"{module_name!r} has no function {name!r}; it has {named or 'none'}")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        called = f"with ({', '.join(arguments)})" if arguments else "without arguments"
        takes = "takes these" if arguments else "takes none"
        raise InvalidInputError(
            f"{reference!r} cannot be called {called} ({error}); give a function that {takes}"
        ) from error
    except ValueError:  # a built-in that does not say what it takes
        pass
    return function  # type: ignore[no-any-return]


def call_function(reference: str) -> Any:
    """Returns what the function that `package.module:function` names returns.

    Raises:
        InvalidInputError: as `import_function`, or whatever the function raises, by name and place.
    """
    function = import_function(reference)
    try:
        return function()
    except (AutocompressError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InvalidInputError(f"{reference!r} cannot be called: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    """Returns an error of the user's code with its file and line."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}, line {error.lineno}"
    else:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}, line {last.lineno}"
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {said} ({place})"
