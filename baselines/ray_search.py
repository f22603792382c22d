"""Searches with Ray Tune: trials as warm actors on one machine or on a cluster, started again where they fail."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocompress.errors import InvalidInputError
from baselines.interface import Objective, SearchOutcome, SearchSettings

if TYPE_CHECKING:
    from collections.abc import Iterator


class RaySearcher:
    """What the three searches share: checks, the folder, the cluster."""

    name: ClassVar[str]
    modules: Sequence[str]

    def check(self, settings: SearchSettings) -> None:
        """Finds out within seconds what is wrong with the settings, before anything is trained.

        Raises:
            InvalidInputError: naming the value and what would be right.
        """
        _check_numbers(settings)
        _check_storage(settings)
        if importlib.util.find_spec("ray") is None or importlib.util.find_spec("optuna") is None:
            raise InvalidInputError(f"{self.name} needs Ray Tune and Optuna: pip install 'ray[tune]' optuna")
        from baselines.ray_cluster import check_address

        if settings.ray_address is not None:
            check_address(settings.ray_address, settings.connect_seconds)
        elif settings.gpus_per_trial > 0:
            import torch

            if torch.cuda.device_count() < settings.gpus_per_trial:
                raise InvalidInputError(
                    f"gpus_per_trial is {settings.gpus_per_trial:g}, but this machine has {torch.cuda.device_count()}"
                )

    def search(self, objective: Objective, settings: SearchSettings) -> SearchOutcome:
        """Returns the search; Ctrl-C ends it with what is finished, a second Ctrl-C without waiting for Ray.

        Raises:
            InvalidInputError: the settings cannot be used, the storage holds another search, or the objective
                refused every proposal.
        """
        self.check(settings)
        from baselines.ray_records import SearchFolder
        from baselines.ray_run import run_search

        with _folder(settings) as path:
            folder = SearchFolder(path)
            folder.open(self._identity(objective, settings), settings.resume)
            return run_search(self, objective, settings, folder)

    def _identity(self, objective: Objective, settings: SearchSettings) -> dict[str, Any]:
        """Returns what a search must have in common with one that it goes on from."""
        own = {"method": self.name, "seed": settings.seed, "trials": settings.trials, "space": objective.space.name}
        options = {key: value for key, value in vars(self).items() if key != "modules"}
        return own | options | {f"objective {key}": value for key, value in objective.identity.items()}


@dataclass(frozen=True)
class RayOptuna(RaySearcher):
    """Optuna's TPE proposes, every trial runs to its end.

    Attributes:
        modules: folders of packages that the cluster's nodes lack and the objective needs.
    """

    modules: Sequence[str] = ()
    name: ClassVar[str] = "ray-optuna"


@dataclass(frozen=True)
class RayAsha(RaySearcher):
    """Asynchronous successive halving: after 1, 3, 9, ... epochs only the best third of what came so far goes on.

    Attributes:
        proposals: "tpe" (Optuna's) or "random".
        grace_epochs: no trial is stopped before.
        reduction_factor: one trial of so many goes on.
        modules: as in `RayOptuna`.
    """

    proposals: Literal["tpe", "random"] = "tpe"
    grace_epochs: int = 1
    reduction_factor: int = 3
    modules: Sequence[str] = ()
    name: ClassVar[str] = "ray-asha"


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


def _check_numbers(settings: SearchSettings) -> None:
    for name, least in (("trials", 1), ("workers", 1), ("retries", 0), ("seed", 0)):
        value = getattr(settings, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidInputError(f"{name} is {value!r}, but must be a whole number of at least {least}")
    for name in ("cpus_per_trial", "gpus_per_trial"):
        value = getattr(settings, name)
        if not 0 <= value < float("inf"):
            raise InvalidInputError(f"{name} is {value!r}, but must be a number of at least 0")
    if settings.gpus_per_trial > 1 and settings.gpus_per_trial != int(settings.gpus_per_trial):
        raise InvalidInputError(f"gpus_per_trial is {settings.gpus_per_trial}, but above 1 must be a whole number")
    if not settings.connect_seconds > 0:
        raise InvalidInputError(f"connect_seconds is {settings.connect_seconds!r}, but must be more than 0")


def _check_storage(settings: SearchSettings) -> None:
    if settings.storage is None:
        if settings.resume:
            raise InvalidInputError("resume needs a storage: name the folder that holds the search")
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
