"""The searches by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from typing import Any

from autocompress.errors import InvalidInputError
from baselines.interface import Searcher

DEFAULT_SPACE = "per-layer"
CONDENSA, PRICE = "condensa", "price"
# Of successive halving: epochs before a trial is stopped, and how many trials there are for each that goes on.
GRACE_EPOCHS, REDUCTION_FACTOR = 1, 3


@dataclass(frozen=True)
class Method:
    """A search that can be chosen.

    Attributes:
        description: one line.
        make: returns the searcher with the pruner named, or with its own for None.
        packages: what must be installed.
        own_space: the one space it searches; None = any of the others.
        halves: most of its trials are stopped early, by successive halving.
        least_trials: with which it is what its name says.
        trials: of a search that is not told how many.
        most_trials: that it takes; None = any number.
    """

    description: str
    make: Callable[[str | None], Searcher]
    packages: tuple[str, ...] = ("optuna",)
    own_space: str | None = None
    trials: int = 20
    most_trials: int | None = None
    halves: bool = False
    least_trials: int = 1

    @property
    def uses_ray(self) -> bool:
        """Trials run on a Ray cluster, and the search is kept in a folder."""
        return "ray" in self.packages


def _optuna(name: str, pruner: str | None) -> Searcher:
    from baselines.optuna_search import OptunaSearcher

    return OptunaSearcher(name, pruner)


def _ray(name: str, pruner: str | None) -> Searcher:
    if pruner not in (None, "none"):
        raise InvalidInputError(f"pruner {pruner!r} cannot be used with {name}, whose scheduler stops trials itself")
    from baselines.ray_search import RayAsha, RayMultipliers, RayOptuna, RayPbt

    searchers: dict[str, Callable[[], Searcher]] = {
        "ray-optuna": RayOptuna,
        "ray-asha": RayAsha,
        "ray-pbt": RayPbt,
        PRICE: RayMultipliers,
    }
    return searchers[name]()


def _condensa(pruner: str | None) -> Searcher:
    if pruner not in (None, "none"):
        raise InvalidInputError(f"pruner {pruner!r} cannot be used with condensa, whose trials all run to their end")
    from baselines.condensa.searcher import CondensaSearcher

    return CondensaSearcher()


def _with_optuna(
    name: str, description: str, packages: tuple[str, ...] = (), own_space: str | None = None, **more: Any
) -> Method:
    return Method(description, partial(_optuna, name), ("optuna", *packages), own_space, **more)


def _with_ray(name: str, description: str, own_space: str | None = None, **more: Any) -> Method:
    return Method(description, partial(_ray, name), ("ray", "optuna"), own_space, **more)


METHODS: dict[str, Method] = {
    "uniform": _with_optuna("uniform", "the same keep fraction in every layer, each bit-width tried", (), "uniform"),
    "magnitude": _with_optuna(
        "magnitude", "one threshold on all weights together, each bit-width tried", (), "magnitude"
    ),
    "gradual": _with_optuna(
        "gradual", "gradual magnitude pruning, then k-means codebooks; each bit-width tried", (), "gradual"
    ),
    "random": _with_optuna("random", "random search, each number uniform in its range"),
    "optuna-tpe": _with_optuna("optuna-tpe", "Parzen estimators of good and bad trials (TPE), all numbers jointly"),
    "optuna-cmaes": _with_optuna(
        "optuna-cmaes", "evolution with an adapted covariance matrix (CMA-ES)", ("cmaes",), least_trials=20
    ),
    "optuna-gp": _with_optuna("optuna-gp", "Bayesian optimization with a Gaussian process", ("scipy",)),
    "optuna-nsga2": _with_optuna(
        "optuna-nsga2", "genetic search for accuracy against size (NSGA-II); gives the front", least_trials=20
    ),
    "ray-optuna": _with_ray("ray-optuna", "TPE on a Ray cluster, every trial runs to its end"),
    "ray-asha": _with_ray(
        "ray-asha", "asynchronous successive halving on a Ray cluster: the worse trials end early", halves=True
    ),
    "ray-pbt": _with_ray("ray-pbt", "population based training on a Ray cluster: the plans change while they train"),
    PRICE: _with_ray(
        PRICE, "the compressor's own plan, each layer's price searched by ASHA on a Ray cluster", PRICE, halves=True
    ),
    CONDENSA: Method(
        "Condensa: one density for all, trained by L-C; ten samples at most find where the target is lost",
        _condensa,
        ("optuna", "sklearn"),
        own_space=CONDENSA,
        trials=10,
        most_trials=10,
    ),
}
# Those that search plans of keep fractions and bit-widths; Condensa has schemes instead.
PLAN_METHODS = tuple(name for name in METHODS if name != CONDENSA)


def find_method(name: str) -> Method:
    """Returns the method of this name.

    Raises:
        InvalidInputError: there is none, or what it needs is not installed.
    """
    if name not in METHODS:
        close = get_close_matches(name, METHODS, 3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InvalidInputError(f"method {name!r} is not one of {', '.join(METHODS)}{hint}")
    missing = [package for package in METHODS[name].packages if find_spec(package) is None]
    if missing:
        raise InvalidInputError(f'method {name!r} needs {" and ".join(missing)}: pip install "autocompress[studies]"')
    return METHODS[name]


def find_space(method: str, space: str | None) -> str:
    """Returns the space that a method searches: the one asked for, or its own, or the default.

    Raises:
        InvalidInputError: there is no such space, or the method does not search it.
    """
    own = find_method(method).own_space
    if space in (None, own):
        return own or DEFAULT_SPACE
    if own is not None:
        raise InvalidInputError(f"space {space!r} cannot be searched with {method}, which has its own; leave it out")
    # Imported here: a study's report needs no torch.
    from baselines.space import SPACES

    owned = {known.own_space for known in METHODS.values()} - {PRICE}  # which any searcher may search
    choices = [name for name in SPACES if name not in owned]
    if space not in choices:
        close = get_close_matches(str(space), choices, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InvalidInputError(f"space {space!r} is not one of {', '.join(choices)}{hint}")
    return str(space)
