"""Whether a difference of accuracies is more than chance: a paired bootstrap over seeds and test examples.

Notation, for two methods trained with the same S seeds and tested on the same E examples:

    d[s, e]   1 where only the first is right, -1 where only the second, else 0; the difference is its mean
    seeds and examples are crossed: d = mean + seed effect + example effect + remainder
    a replicate draws S seeds and E examples, both with replacement, and takes the mean of d over the drawn ones;
    all methods of a table see the same draws

The replicates of a crossed design are known to have the wrong spread: the remainder counts almost three times, the
seeds' part (S - 1) / S times (McCullagh 2000; Owen 2007, "The pigeonhole bootstrap"), and five seeds say little about
how much seeds differ. So the replicates are spread about the difference: their variance becomes the unbiased one of a
crossed design, and their shape a t's with Satterthwaite's degrees of freedom (as Hesterberg 2015 widens percentiles).
The interval is symmetric (Hall 1988): the skewness of a few seeds is noise.
Under simulated nulls at a level of 5 % the test then rejects in 2 to 6 % of the cases, whatever differs most: seeds,
examples or the single networks. Without the spreading it is 0.3 to 17 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

REPLICATES = 10_000
LEVEL = 0.05
FEWEST_SEEDS = 5
# Draws are made in pieces of this many numbers, to keep memory low.
PIECE = 5_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The difference of two methods' test accuracies, the first's minus the second's, as fractions of 1.

    Attributes:
        mean: over seeds and examples.
        low, high: 95 % interval, symmetric.
        p: two-sided, of the hypothesis that there is none.
        seeds: number of seeds that both have.
        adjusted_p: after Holm's correction over the family of `adjust`; p before.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    adjusted_p: float

    @property
    def verdict(self) -> str:
        """Returns "better", "worse", "tie" (no difference detected) or "n < 5" (too few seeds for a claim)."""
        if self.seeds < FEWEST_SEEDS:
            return f"n < {FEWEST_SEEDS}"
        if self.adjusted_p >= LEVEL or self.mean == 0:
            return "tie"
        return "better" if self.mean > 0 else "worse"


class Bootstrap:
    """The replicates of all networks of one test split."""

    def __init__(
        self, correct: Mapping[str, Mapping[int, NDArray[np.bool_]]], *, replicates: int = REPLICATES, seed: int = 0
    ) -> None:
        """Draws the examples.

        Args:
            correct: for each method and seed, which examples were right, bool [E]; E the same for all.
            replicates: number of draws.
            seed: of the draws; the same gives the same answer.
        """
        self.correct = {method: dict(by_seed) for method, by_seed in correct.items()}
        self.replicates, self.seed = replicates, seed
        names = [(method, s) for method, by_seed in correct.items() for s in by_seed]
        networks = np.array([correct[method][s] for method, s in names], dtype=np.float32)
        self._resampled = dict(zip(names, self._resample_examples(networks), strict=True))

    def _resample_examples(self, networks: NDArray[np.float32]) -> Floats:
        """Returns each network's accuracy in each draw of the examples, [N, replicates], of bool [N, E]."""
        generator = np.random.default_rng(self.seed)
        examples = networks.shape[1]
        pieces, done = [], 0
        while done < self.replicates:
            count = min(self.replicates - done, max(1, PIECE // examples))
            drawn = generator.integers(examples, size=(count, examples)) + examples * np.arange(count)[:, None]
            times = np.bincount(drawn.ravel(), minlength=count * examples).reshape(count, examples)
            pieces.append(networks @ times.T.astype(np.float32))  # exact: whole numbers below 2**24
            done += count
        resampled: Floats = np.concatenate(pieces, axis=1).astype(np.float64) / examples
        return resampled

    def replicates_of(self, first: str, second: str) -> tuple[Floats, Floats]:
        """Returns d, [S, E], of the seeds that both methods have, and the replicates of its mean, unspread."""
        common = [s for s in self.correct[first] if s in self.correct[second]]
        d = np.array([self.correct[first][s].astype(float) - self.correct[second][s] for s in common])
        by_seed = np.array([self._resampled[first, s] - self._resampled[second, s] for s in common])
        generator = np.random.default_rng([self.seed, len(common)])
        times = generator.multinomial(len(common), np.full(len(common), 1 / len(common)), size=self.replicates)
        replicates: Floats = (times * by_seed.T).sum(axis=1) / len(common)
        return d, replicates

    def difference(self, first: str, second: str) -> Difference | None:
        """Returns the first method's accuracy minus the second's, or None where they have no seed in common."""
        if not set(self.correct[first]) & set(self.correct[second]):
            return None
        d, replicates = self.replicates_of(first, second)
        mean = float(d.mean())
        variance, freedom = crossed_variance(d)
        if variance == 0:
            p = 1.0 if mean == 0 else 1 / (self.replicates + 1)
            return Difference(mean, mean, mean, p, len(d), p)
        distances = spread_distances(replicates, mean, variance, freedom)
        reach = float(np.quantile(distances, 1 - LEVEL))
        p = _p_value(distances, mean, variance, freedom)
        return Difference(mean, mean - reach, mean + reach, p, len(d), p)


def crossed_variance(d: Floats) -> tuple[float, float]:
    """Returns the variance of the mean of d, [S, E], and its degrees of freedom; seeds and examples both vary.

    The three parts are estimated from the mean squares of the two-way layout, none below zero. The degrees of freedom
    are Satterthwaite's with the mean square of the seeds in full, which is the careful side: with the seeds' part alone
    they are too many whenever that part comes out too small by chance. Of one seed it is the variance over examples.
    """
    seeds, examples = d.shape
    of_examples = float(d.mean(axis=0).var(ddof=1)) / examples
    if seeds == 1:
        return of_examples, examples - 1.0
    of_seeds = float(d.mean(axis=1).var(ddof=1)) / seeds
    rest = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0, keepdims=True) + d.mean()
    of_rest = float((rest**2).sum()) / ((seeds - 1) * (examples - 1)) / (seeds * examples)
    seed_part, example_part = max(0.0, of_seeds - of_rest), max(0.0, of_examples - of_rest)
    variance = seed_part + example_part + of_rest
    if variance < 1e-24:  # nothing but rounding
        return 0.0, 1.0
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_examples**2 / (examples - 1))
    return variance, freedom


def spread_distances(replicates: Floats, mean: float, variance: float, freedom: float) -> Floats:
    """Returns how far the replicates lie from the difference, spread to this variance and the tails of a t."""
    normal = np.abs(replicates - mean) / replicates.std()
    spread: Floats = np.sqrt(variance) * stats.t.isf(stats.norm.sf(normal), freedom)
    return spread


def _p_value(distances: Floats, mean: float, variance: float, freedom: float) -> float:
    """Returns the share of replicates at least as far from the difference as zero is; of none, the t's p-value."""
    beyond = int((distances >= abs(mean)).sum())
    if beyond == 0:
        tail = 2 * float(stats.t.sf(abs(mean) / np.sqrt(variance), freedom))
        return min(1.0, max(tail, 1 / (len(distances) + 1)))
    return min(1.0, (beyond + 1) / (len(distances) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number by Holm's method (1979): the family's error stays at the level."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
