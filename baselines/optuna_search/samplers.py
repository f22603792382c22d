"""The samplers and pruners of Optuna by name, with what a search of ten to a hundred trials needs of them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import optuna
from optuna import pruners
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from baselines.interface import Parameter, Space

# (seed of this proposal, trials of the whole search, space, trials at a time) -> sampler
MakeSampler = Callable[[int, int, Space, int], BaseSampler]

# Of the trials a quarter at most is spent on random points before a model is trusted; more than ten do not help it.
STARTUP_FRACTION, MAX_STARTUP_TRIALS = 1 / 4, 10
# An evolution needs several generations: at least five of them, with at least four individuals each.
GENERATIONS, MIN_POPULATION = 5, 4
MIN_TRIALS = dict.fromkeys(("optuna-cmaes", "optuna-nsga2"), GENERATIONS * MIN_POPULATION)
# A median of fewer complete trials says little: of one, it would be the start that all others are held against.
MEDIAN_TRIALS = 5
# Points in the largest space that is enumerated.
MAX_POINTS = 10_000


def proposal_seed(seed: int, number: int) -> int:
    """Returns the seed with which the sampler of trial `number` is made, below 2**32.

    The state of a sampler's generator is not in the storage. A sampler made anew for each trial, from a seed of the
    trial's own, proposes after a resume what it would have proposed without one.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def startup_trials(trials: int) -> int:
    """Returns how many of `trials` are random before a model proposes, the start included."""
    return max(1, min(MAX_STARTUP_TRIALS, math.ceil(trials * STARTUP_FRACTION)))


def random_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns independent draws, each uniform over its range (or its logarithm)."""
    return RandomSampler(seed=seed)


def tpe_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns tree-structured Parzen estimators of all parameters jointly.

    Where trials run side by side, those under way count as bad ones: no two workers look in the same place.
    """
    return TPESampler(seed=seed, multivariate=True, constant_liar=workers > 1, n_startup_trials=startup_trials(trials))


def cmaes_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns a covariance matrix adaptation around the start; its state is kept in the storage."""
    from baselines.optuna_search.cmaes_state import SafeCmaEsSampler

    usual = 4 + math.floor(3 * math.log(len(space.parameters)))
    # Without x0 it would start in the middle of the ranges and spend its few generations on the way to the start.
    return SafeCmaEsSampler(
        seed=seed,
        x0=dict(space.start),
        popsize=max(MIN_POPULATION, min(usual, trials // GENERATIONS)),
        warn_independent_sampling=False,
    )


def gp_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns Bayesian optimization with a Gaussian process."""
    return GPSampler(seed=seed, n_startup_trials=startup_trials(trials), warn_independent_sampling=False)


def nsga2_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns the genetic algorithm NSGA-II."""
    return NSGAIISampler(seed=seed, population_size=max(MIN_POPULATION, min(50, trials // GENERATIONS)))


def condensa_sampler(seed: int, trials: int, space: Space, workers: int = 1) -> BaseSampler:
    """Returns Condensa's search of one density, which draws nothing at random."""
    from baselines.condensa.sampler import CondensaSampler
    from baselines.condensa.space import CondensaSpace

    assert isinstance(space, CondensaSpace)
    return CondensaSampler(space, trials)


SAMPLERS: dict[str, MakeSampler] = {
    # Three enumerate their points; nothing is left to be sampled.
    "uniform": random_sampler,
    "magnitude": random_sampler,
    "random": random_sampler,
    "optuna-tpe": tpe_sampler,
    "optuna-cmaes": cmaes_sampler,
    "optuna-gp": gp_sampler,
    "optuna-nsga2": nsga2_sampler,
    "gradual": random_sampler,
    "condensa": condensa_sampler,
}


def make_pruner(name: str, epochs: int) -> pruners.BasePruner:
    """Returns the pruner `name` for trials of so many epochs."""
    if name == "median":
        return pruners.MedianPruner(n_startup_trials=MEDIAN_TRIALS)
    if name == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
    return pruners.NopPruner()


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Returns the ranges of a space as Optuna has them."""
    return {
        p.name: IntDistribution(int(p.low), int(p.high), log=p.log)
        if p.integer
        else FloatDistribution(p.low, p.high, log=p.log)
        for p in space.parameters
    }


def as_numbers(space: Space, values: dict[str, float]) -> dict[str, float]:
    """Returns `values` with whole numbers as int, as Optuna keeps them."""
    whole = {parameter.name for parameter in space.parameters if parameter.integer}
    return {name: int(value) if name in whole else float(value) for name, value in values.items()}


def grid(space: Space) -> list[dict[str, float]]:
    """Returns all points of a space of whole numbers: the start first, then by their distance from it.

    Raises:
        ValueError: a parameter is not a whole number, or there are too many points.
    """
    parameters = space.parameters
    if not all(parameter.integer for parameter in parameters):
        raise ValueError(f"the space {space.name!r} cannot be enumerated: not all of its numbers are whole")
    if math.prod(int(p.high) - int(p.low) + 1 for p in parameters) > MAX_POINTS:
        raise ValueError(f"the space {space.name!r} cannot be enumerated: it has more than {MAX_POINTS} points")
    names = [parameter.name for parameter in parameters]
    points = itertools.product(*(_whole_numbers(parameter) for parameter in parameters))
    start = space.start
    return sorted(
        (dict(zip(names, point, strict=True)) for point in points),
        key=lambda point: (sum(abs(point[name] - start[name]) for name in names), *point.values()),
    )


def _whole_numbers(parameter: Parameter) -> range:
    return range(int(parameter.low), int(parameter.high) + 1)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silences what Optuna logs below a warning, and its remarks on experimental and ageing arguments."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(optuna|baselines)\.")
            yield
    finally:
        optuna.logging.set_verbosity(before)
