"""Searches with Ray Tune: trials as warm actors on one machine or on a cluster, started again where they fail."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from autocompress.errors import InvalidInputError
from autocompress.task.user_code import own_source
from baselines.interface import Objective, SearchOutcome, SearchSettings, check_numbers
from baselines.methods import GRACE_EPOCHS, REDUCTION_FACTOR
from baselines.ray_search.folder_lock import owned

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKPOINT_SECONDS = 30.0


class RaySearcher:
    """What the three searches share: checks, the folder, the cluster."""

    name: ClassVar[str]
    modules: Sequence[str]
    checkpoint_seconds: float = 0.0

    def with_modules(self, *references: str) -> Self:
        """Returns the same search, with the code of `package.module:function`s travelling to the cluster."""
        searcher = copy(self)
        found = (own_source(reference) for reference in references)
        object.__setattr__(searcher, "modules", tuple(dict.fromkeys(source for source in found if source)))
        return searcher

    def check(self, settings: SearchSettings) -> None:
        check_numbers(settings)
        _check_storage(settings)
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec("optuna") is None:
            raise InvalidInputError(f"{self.name} needs Ray Tune and Optuna: pip install 'ray[tune]' optuna")
        from baselines.ray_search.cluster import check_address

        if settings.ray_address is not None:
            check_address(settings.ray_address, settings.connect_seconds)
        elif settings.gpus_per_trial > _gpus():
            raise InvalidInputError(
                f"gpus_per_trial is {settings.gpus_per_trial:g}, but there are {_gpus():g} to run trials on"
            )

    def search(self, objective: Objective, settings: SearchSettings) -> SearchOutcome:
        """Returns the search; Ctrl-C ends it with what is finished, a second Ctrl-C without waiting for Ray.

        Raises:
            InvalidInputError: the settings cannot be used, the storage holds another search, or the objective
                refused every proposal.
        """
        self.check(settings)
        from baselines.ray_search.records import SearchFolder
        from baselines.ray_search.run import run_search

        with _folder(settings) as path, owned(path):
            folder = SearchFolder(path)
            folder.open(self._identity(objective, settings), settings.resume)
            return run_search(self, objective, settings, folder)

    def _identity(self, objective: Objective, settings: SearchSettings) -> dict[str, Any]:
        own: dict[str, Any] = {"method": self.name, "seed": settings.seed, "space": objective.space.name}
        if isinstance(self, RayPbt):
            own["trials"] = settings.trials  # a population cannot grow
        options = {key: value for key, value in vars(self).items() if key not in ("modules", "checkpoint_seconds")}
        return own | options | {f"objective {key}": value for key, value in objective.identity.items()}


@dataclass(frozen=True)
class RayOptuna(RaySearcher):
    """Optuna's TPE proposes, every trial runs to its end.

    Attributes:
        modules: packages and files that the cluster's nodes lack and the objective needs.
        checkpoint_seconds: at least, between two checkpoints of a trial, from which it goes on where its node is lost.
    """

    modules: Sequence[str] = ()
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    name: ClassVar[str] = "ray-optuna"


@dataclass(frozen=True)
class RayAsha(RaySearcher):
    """Asynchronous successive halving: after 1, 3, 9, ... epochs only the best third of what came so far goes on.

    Attributes:
        proposals: "tpe" (Optuna's) or "random".
        grace_epochs: no trial is stopped before.
        reduction_factor: one trial of so many goes on.
        modules, checkpoint_seconds: as in `RayOptuna`.
    """

    proposals: Literal["tpe", "random"] = "tpe"
    grace_epochs: int = GRACE_EPOCHS
    reduction_factor: int = REDUCTION_FACTOR
    modules: Sequence[str] = ()
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    name: ClassVar[str] = "ray-asha"


@dataclass(frozen=True)
class RayMultipliers(RayAsha):
    """Successive halving over a multiplier of each layer: the compressor is the point that it starts from."""

    name: ClassVar[str] = "price"


@dataclass(frozen=True)
class RayPbt(RaySearcher):
    """Population based training: all trials train side by side, at most `workers` of them at a time.

    At each of about `rounds - 1` points of a trial's epochs one of the worst quarter goes on from the weights of one of
    the best quarter, with its values mutated. What it had trained itself counts as cost all the same.

    On a cluster of several machines `storage` must be a folder that all of them see.

    Attributes:
        rounds: parts into which a trial's epochs are divided.
        modules: as in `RayOptuna`.
    """

    rounds: int = 5
    modules: Sequence[str] = ()
    name: ClassVar[str] = "ray-pbt"


def _gpus() -> float:
    """Returns the GPUs of the cluster that this process uses already, or of this machine."""
    import ray
    import torch

    if not ray.is_initialized():
        return float(torch.cuda.device_count())
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0.0)


def _check_storage(settings: SearchSettings) -> None:
    if settings.storage is None:
        return
    if "://" in settings.storage:
        raise InvalidInputError(f"storage {settings.storage!r} is a URL, but a Ray search is kept in a folder")
    path = Path(settings.storage)
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"storage {settings.storage!r} is a file, but a Ray search is kept in a folder")
    if (path / "trials.jsonl").exists() and not settings.resume:
        raise InvalidInputError(
            f"storage {settings.storage!r} holds a search already: resume it, or name another folder"
        )


@contextmanager
def _folder(settings: SearchSettings) -> Iterator[Path]:
    """Gives the folder of the search; one without storage is removed at the end."""
    if settings.storage is not None:
        yield Path(settings.storage).absolute()
        return
    with tempfile.TemporaryDirectory(prefix="search-", ignore_cleanup_errors=True) as path:
        yield Path(path)
