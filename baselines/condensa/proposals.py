"""Constrained Bayesian optimization of one number, in two steps (Joseph et al. 2020, section 4).

    1.  the level set: where does what is to be kept cross its level?      ILS-UCB,  (1 - g) sigma(s) - g |mu(s) - L|
    2.  among what keeps it, where is the objective best?                  GP-UCB,   mu(s) + b sigma(s)

mu and sigma are those of a Gaussian process fitted to the samples. What is kept changes one way with s, so the level
lies between the outermost sample that keeps it and the next one that does not, and only there it is looked for; the
second step looks on the side that keeps, as far as the process puts the level.

s is the logarithm of the density, scaled to [0, 1], dense to sparse: what matters happens within a few factors of a
density of a hundredth, which a linear scale would not resolve. Neither g nor b is published.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from baselines.condensa.goal import Goal

Array = npt.NDArray[np.float64]

GRID = 401  # points at which an acquisition is looked at
EXPLOITATION = 0.9  # g: the level is between two samples, so that there is little to explore
CONFIDENCE = 1.0  # b
# The level is searched for in this part of the samples at most, and until it is known within so much of s.
LEVEL_FRACTION, RESOLUTION = 0.6, 0.03
# Each sample leaves this part of the interval at least: the process cannot walk along its edge.
EDGE_FRACTION = 0.2
# A margin below this says only that the sample is far off; as it is, a fall to chance would hide all else.
FARTHEST_MARGIN = -0.05


@dataclass(frozen=True)
class Sample:
    """One evaluated point.

    Attributes:
        s: in [0, 1], from dense to sparse.
        margin: by how much the goal is kept there, below 0 where it is not.
        worth: what is to be largest among what keeps it.
    """

    s: float
    margin: float
    worth: float


def propose(goal: Goal, samples: Sequence[Sample], trials: int, running: Sequence[float] = ()) -> float:
    """Returns where to sample next, in [0, 1]; the same for the same samples.

    Args:
        goal: tells which side keeps it.
        samples: evaluated; without any, the point farthest from those running.
        trials: of the whole search.
        running: points that are being evaluated.
    """
    grid = np.linspace(0, 1, GRID)
    known = np.array([sample.s for sample in samples])
    distance = np.abs(grid[:, None] - np.append(known, [*running, -1.0])).min(1)
    free = distance > 0.5 / (GRID - 1)
    if not samples:
        return _best(grid, distance, free)
    low, high = bracket(goal, samples)
    edge = EDGE_FRACTION * (high - low)
    inside = free & (grid > low + edge) & (grid < high - edge)
    margins = np.array([max(sample.margin, FARTHEST_MARGIN) for sample in samples])
    mean, deviation = predict(known, margins, grid)
    if inside.any() and high - low > RESOLUTION and len(samples) < LEVEL_FRACTION * trials:
        return _best(grid, ils_ucb(mean, deviation), inside)
    kept = free & (mean >= 0)
    kept &= (grid < high) if goal.kept_when_dense else (grid > low)
    if not kept.any():  # the process puts the level at a sample: what is left is between the samples around it
        kept = inside if inside.any() else free
    mean, deviation = predict(known, np.array([sample.worth for sample in samples]), grid)
    return _best(grid, mean + CONFIDENCE * deviation, kept)


def bracket(goal: Goal, samples: Sequence[Sample]) -> tuple[float, float]:
    """Returns the interval in which the level lies: the farthest sample that keeps it, the next that does not."""
    kept = [sample.s for sample in samples if sample.margin >= 0]
    lost = [sample.s for sample in samples if sample.margin < 0]
    if goal.kept_when_dense:
        low = max(kept, default=0.0)
        return low, min((s for s in lost if s > low), default=1.0)
    high = min(kept, default=1.0)
    return max((s for s in lost if s < high), default=0.0), high


def ils_ucb(margin: Array, deviation: Array) -> Array:
    """Returns the acquisition of the level 0 of a margin: high where it is near, or not known."""
    return (1 - EXPLOITATION) * deviation - EXPLOITATION * np.abs(margin)


def predict(at: Array, values: Array, grid: Array) -> tuple[Array, Array]:
    """Returns (mean, standard deviation) of a Gaussian process at the points of a grid.

    Args:
        at, values: the samples, [n] each.
        grid: points [m].
    """
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(0.3, (0.05, 2.0), nu=2.5) + WhiteKernel(1e-3, (1e-6, 1e-2))
    process: Any = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at the end of its range is an answer, too
        process.fit(at[:, None], values)
        mean, deviation = process.predict(grid[:, None], return_std=True)
    return mean, deviation


def _best(grid: Array, acquisition: Array, allowed: npt.NDArray[np.bool_]) -> float:
    return float(grid[int(np.argmax(np.where(allowed, acquisition, -np.inf)))])
