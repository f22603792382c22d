"""Optuna's CMA-ES, which reads its state from the storage without running code that somebody else put there."""

from __future__ import annotations

import io
import pickle
from typing import Any

from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from autocompress.errors import InvalidInputError

# All that the state of an optimizer is made of. numpy 1 and 2 have the same two functions in different modules.
_ALLOWED = {("cmaes._cma", "CMA"), ("numpy", "dtype"), ("numpy", "ndarray")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("scalar", "_reconstruct")
}


class _StateUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of it")
        return super().find_class(module, name)


class SafeCmaEsSampler(CmaEsSampler):
    """A covariance matrix adaptation that takes nothing but its own state out of a storage.

    Optuna keeps the state pickled in the attributes of the trials and would unpickle whatever a stranger's
    `search.db` has there.
    """

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        """Returns the optimizer as the last trial with a state left it, None where there is none.

        Raises:
            InvalidInputError: what the storage holds is no such state.
        """
        for trial in reversed(completed_trials):
            key = self._attr_key_optimizer
            state = {name: value for name, value in trial.system_attrs.items() if name.startswith(key)}
            if state:
                try:
                    return _StateUnpickler(io.BytesIO(bytes.fromhex(self._concat_optimizer_attrs(state)))).load()
                except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError) as error:
                    raise InvalidInputError(
                        f"the storage holds no state of CMA-ES in trial {trial.number} ({error}); it was not written "
                        "by this search: give another storage"
                    ) from error
        return None
